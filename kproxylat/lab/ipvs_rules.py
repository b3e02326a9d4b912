"""Parsers for the output of ``ipset save`` and ``ipvsadm -Sn``, and writers of what they understood. Pure.

The texts are untrusted: ``ipset restore`` reads the file that follows ``-file`` (ipset(8)). So each line is written
anew, from words of this module's tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from kproxylat.errors import RulesetError
from kproxylat.lab.iptables_rules import FORBIDDEN, add_note, refuse

_NUMBER = r"0x[\da-f]{1,16}|\d{1,20}"
_ADDRESS = r"\d{1,3}(?:\.\d{1,3}){3}"
_SET = re.compile(r"(?!-)[\w.:@+=-]{1,31}", re.A)
_TYPE = re.compile(
    r"bitmap:(?:ip|ip,mac|port)|list:set|hash:(?:ip|net|mac|port|mark|iface)(?:,(?:ip|net|mac|port|mark|iface)){0,3}"
)
_CREATE = {
    "family": "inet",
    "range": rf"{_ADDRESS}(?:-{_ADDRESS}|/\d{{1,2}})|\d{{1,5}}-\d{{1,5}}",
    **dict.fromkeys(
        ("hashsize", "maxelem", "bucketsize", "initval", "netmask", "markmask", "size", "timeout"), _NUMBER
    ),
    **dict.fromkeys(("counters", "comment", "skbinfo", "forceadd", "wildcard"), ""),
}
_ADD = {
    **dict.fromkeys(("timeout", "packets", "bytes", "skbqueue"), _NUMBER),
    **{"nomatch": "", "comment": r'"[^"\\]{0,255}"', "skbmark": rf"(?:{_NUMBER})(?:/(?:{_NUMBER}))?"},
    "skbprio": r"[\da-f]{1,4}:[\da-f]{1,4}",
}
_SERVER = {
    "-s": "rr|wrr|lc|wlc|lblc|lblcr|dh|sh|sed|nq|fo|ovf|mh|twos",
    **{"-p": r"\d{1,9}", "-M": _ADDRESS, "-b": "[a-z-]{1,20}(?:,[a-z-]{1,20}){0,2}", "-o": "", "--pe": "sip"},
}
_REAL_SERVER = {
    "-r": rf"{_ADDRESS}:\d{{1,5}}",
    **dict.fromkeys(("-m", "-g", "-i"), ""),
    **dict.fromkeys(("-w", "-x", "-y"), r"\d{1,10}"),
}
"""Option of a line -> the form of its value; "" if it takes none."""
_ELEMENT = re.compile(
    rf"(?:{_ADDRESS}(?:/\d{{1,2}})?(?:-{_ADDRESS})?|(?:[a-z\d]{{1,10}}:)?\d{{1,5}}(?:-\d{{1,5}})?|icmp:[\w/-]{{1,40}}"
    r"|0x[\da-f]{1,8}|[\dA-Fa-f]{2}(?::[\dA-Fa-f]{2}){5})(?:,|$)",
    re.A,
)
_LINK = re.compile(r"(?:physdev:)?[\w.@+-]{1,31}", re.A)
_WORD = re.compile(r'"[^"]*"(?= |$)|[^\s"]+(?= |$)|\S')
_PROTOCOLS = {"-t": "tcp", "-u": "udp", "--tcp-service": "tcp", "--udp-service": "udp", "--sctp-service": "sctp"}
PROTOCOL_OPTIONS = {"tcp": "-t", "udp": "-u", "sctp": "--sctp-service"}
"""Protocol of a virtual server -> its option. ``-s`` is the scheduler."""
_PORT = re.compile(rf"{_ADDRESS}:\d{{1,5}}", re.A)


def _has_options(words: Sequence[str], options: Mapping[str, str]) -> bool:
    """Return whether words are options with values of their form."""
    rest = iter(words)
    for word in rest:
        form = options.get(word)
        if form is None or (form and not re.fullmatch(form, next(rest, ""), re.A)):
            return False
    return True


def rewrite_sets(source: str, text: str, notes: list[str]) -> str:
    """Parse the output of ``ipset save``, and write the text for ``ipset restore``, without sets of IPv6.

    :raises RulesetError: a line has another form.
    """
    types: dict[str, str] = {}
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split() if '"' not in line else _WORD.findall(line)
        if not words or line.startswith("#"):
            continue
        if words[0] == "create" and words[3:5] == ["family", "inet6"]:
            types[words[1]] = ""
            add_note(notes, "ipset save: lines other than IPv4 are left out")
            continue
        if len(words) < 3 or FORBIDDEN.search(line) or len(line) > 1000 or not _SET.fullmatch(words[1]):
            raise refuse(source, number, line, "not a line of ipset save")
        command, name, value, *options = words
        if command == "create" and _TYPE.fullmatch(value) and _has_options(options, _CREATE):
            types[name] = value
        elif command != "add" or not _has_options(options, _ADD):
            raise refuse(source, number, line, "not a line of ipset save")
        elif not types.get(name, "?"):
            continue
        elif name not in types:
            raise refuse(source, number, line, f"not a line of ipset save: set {name} was not created above")
        elif not _is_element(types[name], value):
            raise refuse(source, number, line, f"not a line of ipset save: invalid element {value[:60]!r}")
        lines.append(" ".join(words))
    return "".join(f"{line}\n" for line in lines)


def _is_element(kind: str, value: str) -> bool:
    if kind == "list:set":
        return bool(_SET.fullmatch(value))
    if kind.endswith("iface"):
        value, _, link = value.rpartition(",")
        if not _LINK.fullmatch(link) or link[0] == "-":
            return False
    end = 0
    while match := _ELEMENT.match(value, end):
        end = match.end()
    return end == len(value)


def rewrite_servers(source: str, text: str, notes: list[str]) -> str:
    """Parse the output of ``ipvsadm -Sn``, and write the text for ``ipvsadm --restore``, without servers of IPv6 and
    those by marks.

    :raises RulesetError: a line has another form.
    """
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        command, kind, address, *options = [*words, "", "", ""][: max(len(words), 3)]
        if command in ("-A", "-a") and (kind == "-f" or (kind in _PROTOCOLS and address.startswith("["))):
            add_note(notes, "ipvsadm -Sn: lines other than IPv4 are left out")
            continue
        if kind in _PROTOCOLS and command in ("-A", "-a") and not _PORT.fullmatch(address):
            why = f"not a line of ipvsadm -Sn: {address[:60]!r} is not an address and a port"
            raise RulesetError(f"{source}, line {number}: {why}", "run ipvsadm -S -n: without -n it prints names")
        known = {"-A": _SERVER, "-a": _REAL_SERVER}.get(command)
        if known is None or kind not in _PROTOCOLS or len(line) > 1000 or not _has_options(options, known):
            raise refuse(source, number, line, "not a line of ipvsadm -Sn")
        lines.append(" ".join([command, PROTOCOL_OPTIONS[_PROTOCOLS[kind]], address, *options]))
    return "".join(f"{line}\n" for line in lines)
