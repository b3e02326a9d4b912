"""Lines of bpftrace's text that their neighbours explain: messages, and keys that span lines. Pure.

Format: see :mod:`kproxylat.trace.dump`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from kproxylat.trace.values import parse_row

HEAD = re.compile(r"@(\w*)(?:(\[)|:(?: |\Z))")
"""The beginning of a map's entry: its name, and ``[`` if a key follows."""
KEY_END = re.compile(r"\]:(?: |\Z)")
_MESSAGE = re.compile(
    r"(?:\x1b\[[\d;]*m)*(?:(?P<source>.{1,300}?:\d+:\d+(?:-\d+)?: (?:WARNING|ERROR): |Additional Info - helper)"
    r"|Attaching \d+ probes?\.\.\.|Attached \d+ probes?\Z|__BPFTRACE_NOTIFY_PROBES_ATTACHED"
    r"|Lost \d+ events|(?:\S+: )?(?:WARNING|ERROR): )"
)
"""A message of bpftrace's own. After one with ``source``, a line of the program and its underline follow."""
ODD_BLANK = re.compile(r"[\t\r\xa0\u2007\u202f]| \Z")
"""A blank that bpftrace may not have printed."""
_BLANKS = str.maketrans({"\t": " " * 8} | dict.fromkeys("\r\xa0\u2007\u202f", " "))
_BLANKS_FROM_HTML = re.compile(r"(?:@\w*|.*\]):[^\S ]|@\w*\[[^\]]*,[^\S ]|\s*[^\S \t]")
_NUMBER = re.compile(r"@\w*(?:\[.*\])?: -?\d+\Z")
_UNDERLINE = re.compile(r" +[~^]+\Z")
_KEY_LINES, _KEY_SIZE, _DOUBTFUL_LINES = 1000, 1 << 20, 9


class BlankCleaner:
    """Cuts padding, and replaces tabs and no-break spaces, as terminals and mail leave them.

    A string may end with blanks, too, so it keeps them until another line shows that the text is padded.
    """

    def __init__(self) -> None:
        self._is_padded = False

    def clean(self, line: str, *, is_sure: bool) -> str:
        """Return the line as bpftrace printed it.

        :param line: a line in which :data:`ODD_BLANK` was found.
        :param is_sure: the line belongs to no string.
        """
        plain = line.translate(_BLANKS).rstrip()
        is_sure = is_sure or not plain or bool(parse_row(plain))
        if is_sure or _BLANKS_FROM_HTML.match(line):
            line = line.translate(_BLANKS)
        bare = line.rstrip()
        if bare.startswith("@") and bare.endswith(":"):
            return bare + " "
        if is_sure or _NUMBER.match(bare) or _MESSAGE.match(bare):
            self._is_padded = self._is_padded or bare != line
            return bare
        return bare if self._is_padded else line


class NoiseFilter:
    """Recognizes bpftrace's own messages, which may come anywhere, even inside a key.

    Sample, with the two lines of source that follow a message about the program::

        a.bt:1:2-3: WARNING: Bad address
            $a = 1;
                 ~

    Format: bpftrace, ``src/log.cpp``; the counts of probes and lost events: ``lost_events``, ``attached_probes`` in
    ``src/output.cpp`` (from 0.24 on ``src/output/text.cpp``).
    """

    def __init__(self) -> None:
        self._source_lines = 0  # how many lines of source may still follow

    def matches(self, line: str) -> bool:
        """Return whether the line is a message or the source below one. Call it once for each line, in order."""
        message = _MESSAGE.match(line)
        if message:
            self._source_lines = 2 if message["source"] else 0
            return True
        expected, self._source_lines = self._source_lines, 0
        if not (expected and line.startswith("    ") and (expected == 2 or _UNDERLINE.match(line))):
            return False
        self._source_lines = expected - 1
        return True


class KeyReader:
    """Collects a key that spans lines: one with a stack, or with a string that holds a line end.

    Sample::

        @[
            vfs_read+1
            ksys_read+2
        ]: 5

    A line that looks like a map makes the key doubtful: either the key's string holds that line, or the key was only
    text. It counts as a key if it ends within 9 lines, none of them empty.

    Format: bpftrace, ``src/output.cpp`` (keys up to 0.20: ``src/mapkey.cpp``; from 0.24 on ``src/output/text.cpp``).

    :param note: receives the reason for each decision about a doubtful key.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._lines: list[str] = []
        self._size = 0
        self._doubtful_lines = 0  # lines since the first one that looks like a map

    @property
    def is_open(self) -> bool:
        """Whether a key has begun and not ended."""
        return bool(self._lines)

    def begin(self, line: str) -> None:
        """Begin a key with its first line, ``@NAME[...``."""
        self._lines, self._size = [line], len(line)

    def admits(self, line: str) -> bool:
        """Return whether the key may continue with this line; if not, :meth:`drop` it. Call it once for each line."""
        head = HEAD.match(line)
        if self._doubtful_lines or head:
            self._doubtful_lines += 1
        is_text = self._doubtful_lines > _DOUBTFUL_LINES or (self._doubtful_lines > 0 and not line)
        begins_key = head and head[2] and not KEY_END.search(line, head.end())
        is_long = len(self._lines) > _KEY_LINES or self._size > _KEY_SIZE
        return not (is_text or begins_key or is_long)

    def add(self, line: str) -> tuple[str, str] | None:
        """Add a line.

        :return: None until a line ends the key; then the map's name, and the key with all that follows it,
            ``KEY]: VALUE``.
        """
        self._lines.append(line)
        self._size += len(line)
        if HEAD.match(line) or not KEY_END.search(line):
            return None
        if self._doubtful_lines:
            self._note(f"what looks like a map in the key that began with {self._lines[0][:100]!r} is a part of it")
        name, _, rest = "\n".join(self._take_lines())[1:].partition("[")
        return name, rest

    def drop(self) -> tuple[list[str], list[str]]:
        """Give the key up: its lines were text.

        :return: the lines of text, and those from the first one that looks like a map.
        """
        lines = self._take_lines()
        if lines:
            self._note(f"the key that began with {lines[0][:100]!r} does not end before this line")
        end = next((at for at, line in enumerate(lines) if at and HEAD.match(line)), len(lines))
        return lines[:end], lines[end:]

    def _take_lines(self) -> list[str]:
        lines, self._lines, self._doubtful_lines = self._lines, [], 0
        return lines
