"""Prefixes that ts, journald, kubectl, container runtimes, CI systems and people put before every line of a log."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from typing import NamedTuple

_EDGE = rb"(?:\.\.\.|-?\d+[KMGTPEk]?)"
ROW = rb"[\[(]%s(?:, ?%s)?[\])] *\d+ +\|" % (_EDGE, _EDGE)
"""A row of a histogram, up to its bar."""
_CONTENT = re.compile(
    rb"@\w*(?:\[[^\]]*\Z|(?:\[.*\])?:(?: |\s*\Z))|"
    + ROW
    + rb"|Attach(?:ing|ed) \d+ probe|={20,}|TIME +\| PACKETS|Tracing (?:ip|pack)"
    rb"|  (?:FINAL (?:SUMMARY )?REPORT|eBPF Kube-Proxy|Kube-Proxy Data|\[\w+\] Count: )|--- \w+ MODE ---"
    rb"|\d\d:\d\d:\d\d (?:SLOW \w+: |Statistics:| *\| *\d+ *\|)|\[\w+\] Latency: |ServiceCount,ProxyMode,"
    rb'|Kube-proxy mode: |kproxylat(?: record)?: |\{"type": "'
)
"""The beginning of a line that belongs to a log of some dialect."""
_NAME = rb"\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun|Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\b"
_TIMES = (
    rb"\d{2,4}[-/]\d\d[-/]\d{2,4}",  # a date
    rb"\d\d?:\d\d(?::\d\d(?:[.,]\d+)?)?",  # a time
    rb"\d{1,2}(?= \d\d:\d\d| %s)" % _NAME,  # the day of a month
    rb"\d{9,}(?:\.\d+)?|\d+\.\d+(?!\.)",  # seconds since 1970, or since the start
)
_VARYING = re.compile(
    rb"(?P<name>%s)|(?P<stream>\bstd(?:out|err)(?: [FP]\b)?)|\A *(?P<number>\d+)(?![\d./-]|:\d\d(?!\d))"
    rb"| *(?<![\d.:])(?P<time>%s)(?!\d)" % (_NAME, b"|".join(_TIMES))
)
"""The parts of a prefix that differ from line to line: times, numbers of lines, and the stream of a container."""
_SEARCHED = 1 << 15
_CANDIDATES = 20


class _Candidate(NamedTuple):
    """A possible prefix.

    :param pattern: matches the prefix at the beginning of a line.
    :param lines: the indices of the lines that have it.
    :param content: the indices of those in which a log's content follows.
    """

    pattern: bytes
    lines: frozenset[int]
    content: list[int]


class PrefixStripper:
    """Strips the prefix that the lines of one log share: a constant one, or one that varies only in time.

    A log may have several prefixes one after another. Where two alternate, two programs wrote the lines, and only the
    one with more lines of a log loses its prefix. Lines without the prefix stay as they are.

    :ivar example: the first prefix that was stripped, or "".
    """

    def __init__(self) -> None:
        self.example = ""
        self._prefix: re.Pattern[bytes] | None = None
        self._start = b""  # of the log; a pipe may bring it line by line
        self._searched = 0  # bytes of it that were searched

    def strip(self, piece: bytes) -> bytes:
        """Strip the prefix, and a byte order mark, from the next lines of the log; their number stays the same."""
        if not self._start:
            piece = piece.removeprefix(codecs.BOM_UTF8)
        if len(self._start) < _SEARCHED:
            self._start += piece
            if len(self._start) >= min(2 * self._searched, _SEARCHED):
                self._searched = len(self._start)
                self._prefix = _find_prefix(self._start[:_SEARCHED])
        elif self._prefix and not self._prefix.search(piece):
            self._prefix = _find_prefix(piece) or self._prefix
        if not self._prefix:
            return piece
        if not self.example:
            first = next(filter(None, (match[0] for match in self._prefix.finditer(piece))), b"")
            self.example = first.decode(errors="backslashreplace")
        return self._prefix.sub(b"", piece)


def _find_prefix(text: bytes) -> re.Pattern[bytes] | None:
    """Find the pattern of the prefixes in a text; None if the lines of a log begin at their beginning."""
    lines = text.replace(b"\r\n", b"\n").split(b"\n")
    starts = Counter(
        line[: match.start()] for line in lines for match in _CONTENT.finditer(line) if match.start() <= len(line)
    )
    patterns = Counter[bytes]()
    for start, count in starts.items():
        patterns[_build_pattern(start)] += count
    least = min(2, sum(map(bool, lines)))
    candidates = [_try(pattern, lines) for pattern, _ in patterns.most_common(_CANDIDATES)]
    candidates = [candidate for candidate in candidates if len(candidate.lines) >= least]
    candidates.sort(key=lambda item: (-len(item.content), item.pattern != b"", -len(item.lines), len(item.pattern)))
    chosen = list[_Candidate]()
    for candidate in candidates:
        longer = [item for item in candidates if _extends(item, candidate)]
        candidate = longer[0] if candidate.pattern and longer else candidate
        if candidate.content and not any(_overlap(candidate.content, other.content) for other in chosen):
            chosen.append(candidate)
    prefixes = [candidate.pattern for candidate in chosen if candidate.pattern]
    return re.compile(rb"(?m)^(?:%s)" % b"|".join(prefixes)) if prefixes else None


def _try(pattern: bytes, lines: list[bytes]) -> _Candidate:
    matches = {at: match for at, line in enumerate(lines) if line and (match := re.match(pattern, line))}
    content = [at for at, match in matches.items() if _CONTENT.match(lines[at], match.end())]
    return _Candidate(pattern, frozenset(matches), content)


def _extends(longer: _Candidate, shorter: _Candidate) -> bool:
    """Return whether a longer prefix fits the same lines: ``root@node: `` looks like ``root`` before a map's entry."""
    return len(longer.pattern) > len(shorter.pattern) and longer.lines == shorter.lines and len(shorter.lines) > 1


def _overlap(one: list[int], other: list[int]) -> bool:
    return one[0] <= other[-1] and other[0] <= one[-1]


def _build_pattern(prefix: bytes) -> bytes:
    """Build the pattern of a prefix. Blanks at its end may lack in a line that holds nothing else."""
    core, pattern, end = prefix.rstrip(b" \t"), b"", 0
    if not prefix:
        return b""
    for part in _VARYING.finditer(core):
        pattern += re.escape(core[end : part.start()])
        end = part.end()
        if part["name"]:
            pattern += rb"[A-Z][a-z]{2}"
        elif part["stream"]:
            pattern += rb"std(?:out|err)(?: [FP])?"
        else:
            digits = part["number"] or re.sub(rb"(:\d+)[.,]\d+", rb"\1", part["time"])
            fraction = rb"(?:[.,]\d+)?" if b":" in digits else b""  # Go leaves it out if it is 0
            pattern += b" *" + re.sub(rb"\d+", rb"\\d+", re.escape(digits)) + fraction
    return pattern + re.escape(core[end:]) + rb"(?:%s|[ \t]*(?=\r?$))" % re.escape(prefix[len(core) :])
