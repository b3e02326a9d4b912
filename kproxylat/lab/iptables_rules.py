"""A parser for the output of ``iptables-save``, and a writer of what it understood. The text is untrusted. Pure.

The text for iptables-restore holds only tokens of this module's tables. iptables-restore reads lines into a buffer of
10,240 bytes and treats the rest as another line; it takes an abbreviated option for a longer one, and in any rule runs
the program that ``--modprobe`` names (iptables, xshared.c). So the writer limits bytes, and accepts only whole options
of the match or target before them, with exactly the values that they take.
"""

from __future__ import annotations

import re

from kproxylat.errors import RulesetError

_MAX_LINE, _MAX_WORD, _MAX_WORDS = 10_000, 1000, 250
"""Bytes of a line and of a word, and words of a line, that iptables-restore has room for."""
_USUAL_LINE = 750
"""Characters of a line that is within these limits whatever it holds."""
FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_CHAIN = r"(?!-)[\w.:@+=-]{1,64}"
_HEAD = re.compile(rf":({_CHAIN}) (-|ACCEPT|DROP|QUEUE|RETURN)(?: \[(\d{{1,20}}:\d{{1,20}})\])?\s*", re.A)
_RULE = re.compile(rf"(\[\d{{1,20}}:\d{{1,20}}\] )?-A ({_CHAIN})((?:[ \t].*)?)", re.A)
_COMMAND = re.compile(r"-[XFIDRNPZE] ?")
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"(?=[ \t]|$)|([^\s"]+)(?=[ \t]|$)|(\S)')
_ESCAPE = re.compile(r"\\(.)")
_IP = r"[\da-fA-F:.]{2,45}"
_BUILT_IN = {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}
TABLES = ("raw", "mangle", "nat", "filter", "security")

_VALUES = {
    "number": r"(?:0x[\da-fA-F]{1,16}|\d{1,20})(?:/(?:0x[\da-fA-F]{1,16}|\d{1,20}))?",
    "float": r"\d{1,3}(?:\.\d{1,20})?",
    "range": r"\d{0,10}(?:[:-]\d{0,10})?",
    "ports": r"\d{1,5}(?:[:-]\d{1,5})?(?:,\d{1,5}(?:[:-]\d{1,5})?){0,14}",
    "address": rf"{_IP}(?:[/-]{_IP}|/\d{{1,3}})?",
    "endpoint": r"\[?[\da-fA-F:.]{0,45}(?:-[\da-fA-F:.]{2,45})?\]?(?::\d{1,5})?(?:-\d{1,5})?(?:/\d{1,5})?",
    "name": r"[\w.:@+][\w.:@+=-]{0,63}",
    "link": r"[^\s/\\\"'-][^\s/\\\"']{0,15}",
    "words": r"[\w+.:/][\w,+.:/-]{0,199}",
    "mac": r"[\da-fA-F]{2}(?::[\da-fA-F]{2}){5}",
}
"""Kind of value -> its form. A value of the kind "text" can be anything, and gets quotes."""


def _table(text: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """Read a table of modules: a name, and options as ``--option`` (no value) or ``--option=KIND`` (``=KIND=KIND``)."""
    modules = {}
    for line in text.strip().splitlines():
        name, *options = line.split()
        modules[name] = {option: tuple(kinds) for option, *kinds in (word.split("=") for word in options)}
    return modules


MATCHES = _table("""
    addrtype --src-type=words --dst-type=words --limit-iface-in --limit-iface-out
    comment --comment=text
    connbytes --connbytes=range --connbytes-dir=words --connbytes-mode=words
    connlimit --connlimit-upto=number --connlimit-above=number --connlimit-mask=number --connlimit-saddr \
--connlimit-daddr
    connmark --mark=number
    conntrack --ctstate=words --ctproto=words --ctorigsrc=address --ctorigdst=address --ctreplsrc=address \
--ctrepldst=address --ctorigsrcport=range --ctorigdstport=range --ctreplsrcport=range --ctrepldstport=range \
--ctstatus=words --ctexpire=range --ctdir=words
    dscp --dscp=number --dscp-class=words
    hashlimit --hashlimit-upto=words --hashlimit-above=words --hashlimit-burst=words --hashlimit-mode=words \
--hashlimit-name=name --hashlimit-htable-size=number --hashlimit-htable-max=number --hashlimit-htable-expire=number \
--hashlimit-htable-gcinterval=number --hashlimit-srcmask=number --hashlimit-dstmask=number
    icmp --icmp-type=words
    iprange --src-range=address --dst-range=address
    length --length=range
    limit --limit=words --limit-burst=number
    mac --mac-source=mac
    mark --mark=number
    multiport --sports=ports --dports=ports --ports=ports
    nfacct --nfacct-name=name
    owner --uid-owner=range --gid-owner=range --socket-exists
    physdev --physdev-in=link --physdev-out=link --physdev-is-in --physdev-is-out --physdev-is-bridged
    pkttype --pkt-type=words
    policy --dir=words --pol=words --strict --reqid=number --spi=number --proto=words --mode=words --next
    recent --set --rcheck --update --remove --seconds=number --hitcount=number --reap --rttl --name=name \
--mask=address --rsource --rdest
    rpfilter --loose --validmark --accept-local --invert
    sctp --sport=range --dport=range --source-port=range --destination-port=range --chunk-types=words=words
    set --match-set=name=words --return-nomatch
    socket --transparent --nowildcard --restore-skmark
    state --state=words
    statistic --mode=words --probability=float --every=number --packet=number
    string --string=text --hex-string=text --algo=words --from=number --to=number --icase
    tcp --sport=range --dport=range --source-port=range --destination-port=range --tcp-flags=words=words --syn \
--tcp-option=number
    tcpmss --mss=range
    ttl --ttl-eq=number --ttl-gt=number --ttl-lt=number
    udp --sport=range --dport=range --source-port=range --destination-port=range
""")
"""Match that kube-proxy, CNIs or docker write -> its options -> the values that each takes."""

TARGETS = _table("""
    ACCEPT
    CHECKSUM --checksum-fill
    CLASSIFY --set-class=words
    CONNMARK --set-xmark=number --set-mark=number --save-mark --restore-mark --nfmask=number --ctmask=number \
--mask=number
    CT --notrack --zone=number --zone-orig=number --zone-reply=number
    DNAT --to-destination=endpoint --random --persistent
    DROP
    DSCP --set-dscp=number --set-dscp-class=words
    LOG --log-prefix=text --log-level=words --log-tcp-sequence --log-tcp-options --log-ip-options --log-uid
    MARK --set-xmark=number --set-mark=number --and-mark=number --or-mark=number --xor-mark=number
    MASQUERADE --to-ports=range --random --random-fully
    NETMAP --to=address
    NFLOG --nflog-prefix=text --nflog-group=number --nflog-range=number --nflog-size=number --nflog-threshold=number
    NFQUEUE --queue-num=number --queue-balance=range --queue-bypass --queue-cpu-fanout
    NOTRACK
    REDIRECT --to-ports=range --random
    REJECT --reject-with=words
    RETURN
    SET --add-set=name=words --del-set=name=words --exist --timeout=number
    SNAT --to-source=endpoint --random --random-fully --persistent
    TCPMSS --set-mss=number --clamp-mss-to-pmtu
    TPROXY --on-port=number --on-ip=address --tproxy-mark=number
    TRACE
    TTL --ttl-set=number --ttl-inc=number --ttl-dec=number
""")
"""Target that kube-proxy, CNIs or docker write -> its options -> the values that each takes."""

_BASE = {
    **{"-s": ("address",), "-d": ("address",), "-p": ("words",), "-i": ("link",), "-o": ("link",), "-f": ()},
    **dict.fromkeys(("-m", "-j", "-g"), ("name",)),
}
"""Option of every rule -> the values that it takes."""
_MODULES: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {"-m": MATCHES, "-p": MATCHES, "-j": TARGETS}
"""Option of every rule that makes the options of a module known -> the modules."""
_PATTERNS = {kind: re.compile(pattern, re.A) for kind, pattern in _VALUES.items()}


def _canonical_options(options: dict[str, tuple[str, ...]]) -> str:
    """Return a pattern of options and values as :func:`_rewrite_rule` writes them."""
    forms = {**_VALUES, "address": r"[\d.]{7,15}(?:/\d{1,2})?", "text": r'"(?:[^"\\]|\\["\\]){0,250}"'}
    alternatives = (
        "".join([option, *(rf" (?![- ]){forms[kind]}(?= |$)" for kind in kinds)]) for option, kinds in options.items()
    )
    return f"(?: (?:! )?(?:{'|'.join(alternatives)})(?= |$))*+" if options else ""


def _canonical_rule() -> re.Pattern[str]:
    plain = {option: kinds for option, kinds in _BASE.items() if option not in ("-m", "-j", "-g")}
    matches = "|".join(name + _canonical_options(options) for name, options in MATCHES.items())
    targets = "|".join(name + _canonical_options(options) for name, options in TARGETS.items() if options)
    jump = rf"(?:{targets}|{_VALUES['name']})(?= |$)"
    return re.compile(
        rf"(?:\[\d{{1,20}}:\d{{1,20}}\] )?-A (?P<chain>{_CHAIN})"
        rf"(?:{_canonical_options(plain)}(?: -m (?:{matches})(?= |$))*+)(?P<jump> -[jg] {jump})?+",
        re.A,
    )


_CANONICAL = _canonical_rule()
"""Rules that :func:`_rewrite_rule` would return as they are; most rules are, and a pattern tells it in less time."""


def refuse(source: str, number: int, line: str, why: str) -> RulesetError:
    """Return the error for a line that cannot be accepted."""
    return RulesetError(f"{source}, line {number}: {why}", f"the line: {line.strip()[:120]}")


def rewrite_saved(source: str, text: str, notes: list[str]) -> str:
    """Parse the output of iptables-save, and write the text for iptables-restore, without the parts for IPv6.

    :param source: the file, for messages.
    :param notes: gets a sentence on each part that is left out.
    :raises RulesetError: a line is not one of iptables-save, or holds something that is not in the tables.
    """
    tables: dict[str, list[str]] = {}
    chains: set[str] = set()
    jumps: dict[str, tuple[int, str]] = {}
    name, kept, skipped, ipv6 = "", [""], False, False
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith("# Generated by "):
            ipv6 = line.startswith("# Generated by ip6tables")
        if not line.strip() or line.startswith("#"):
            continue
        if FORBIDDEN.search(line):
            raise refuse(source, number, line, "not a line of iptables-save: it has a control character")
        if line.startswith("*"):
            if name:
                raise refuse(source, number, line, f"the text is cut: table {name} has no COMMIT")
            name = line[1:].strip()
            # Loading a second table of this name would flush the first. Without a comment above, it may be of IPv6.
            skipped, kept, chains, jumps = ipv6 or name in tables, [f"*{name}"], set(_BUILT_IN), {}
            if skipped:
                add_note(notes, "its IPv6 tables are left out" if ipv6 else f"its second table {name} is left out")
            elif name not in TABLES:
                raise refuse(source, number, line, f"iptables has no table {name[:40]!r}")
        elif line.strip() == "COMMIT" and name:
            if not skipped:
                tables[name] = [*kept, "COMMIT"]
                _check_jumps(source, chains, jumps)
            name = ""
        elif not name:
            raise refuse(source, number, line, "not a line of iptables-save: it is in no table")
        elif skipped:
            continue
        elif head := _HEAD.fullmatch(line):
            chains.add(head[1])
            kept.append(f":{head[1]} {head[2]} [{head[3] or '0:0'}]")
        elif len(line) <= _USUAL_LINE and (rule := _CANONICAL.fullmatch(line)):
            chain, jump = rule.group("chain", "jump")
            jumps.setdefault(chain, (number, line))
            if jump and (target := jump.split(" ")[2]) not in TARGETS:
                jumps.setdefault(target, (number, line))
            kept.append(line)
        elif len(line.encode()) <= _MAX_LINE and (rule := _RULE.fullmatch(line)):
            words = _rewrite_rule(source, number, line, rule[3])
            if words is None:
                add_note(notes, "its IPv6 tables are left out")
                skipped = True
                continue
            for chain in (rule[2], _find_jump(words)):
                if chain not in TARGETS:
                    jumps.setdefault(chain, (number, line))
            kept.append(f"{rule[1] or ''}-A {rule[2]} {' '.join(words)}")
            if len(kept[-1].encode()) > _MAX_LINE or len(words) > _MAX_WORDS or any(map(_is_long, words)):
                raise refuse(source, number, line, "not a line of iptables-save: it is longer than iptables reads")
        elif _COMMAND.match(line):
            problem = f"{source} is an input for iptables-restore, as kube-proxy writes it: line {number} is a command"
            raise RulesetError(problem, f"run iptables-save, which prints the rules in use; the line: {line[:80]}")
        else:
            raise refuse(source, number, line, "not a line of iptables-save")
    if name:
        raise RulesetError(f"{source} is cut: its table {name} has no COMMIT", "run iptables-save again, and pass all")
    return "".join(f"{line}\n" for lines in tables.values() for line in lines)


def add_note(notes: list[str], note: str) -> None:
    if note not in notes:
        notes.append(note)


def _is_long(word: str) -> bool:
    return len(word) > _MAX_WORD // 4 and len(word.encode()) > _MAX_WORD


def _find_jump(words: list[str]) -> str:
    """Return the chain or target of a rule; "ACCEPT" stands for none."""
    return next((words[at + 1] for at, word in enumerate(words) if word in ("-j", "-g")), "ACCEPT")


def _check_jumps(source: str, chains: set[str], jumps: dict[str, tuple[int, str]]) -> None:
    """Make sure that a table has all chains that its rules name."""
    for chain, (number, line) in jumps.items():
        if chain not in chains:
            raise refuse(source, number, line, f"{chain[:40]!r} is neither a chain of the table nor a known target")


def _rewrite_rule(source: str, number: int, line: str, text: str) -> list[str] | None:
    """Return the words of a rule, quoted for iptables-restore; None for a rule of IPv6."""
    words: list[str] = []
    module: dict[str, tuple[str, ...]] = {}
    name, ipv6, tokens = "rules", False, iter(_WORD.findall(text))
    for _, word, broken in tokens:
        words.append(word)
        if word == "!":
            continue
        kinds = module.get(word, _BASE.get(word))
        if kinds is None:
            raise refuse(source, number, line, f"unknown option of {name}: {(word or broken)[:40]!r}")
        values = [token for _, token in zip(kinds, tokens, strict=False)]
        if len(values) < len(kinds):
            raise refuse(source, number, line, f"{word} has no value")
        for kind, (quoted, plain, _) in zip(kinds, values, strict=True):
            value = plain or quoted
            if kind == "text":
                value = _quote(_ESCAPE.sub(r"\1", quoted) if quoted else plain)
            elif not value or value[0] == "-" or not _PATTERNS[kind].fullmatch(value):
                raise refuse(source, number, line, f"invalid value of {word}: {value[:40]!r}")
            words.append(value)
        if word in _MODULES:
            name = words[-1]
            module = _MODULES[word].get(name, {})
            if word == "-m" and name not in MATCHES:
                raise refuse(source, number, line, f"unknown match {name[:40]!r}")
        elif word in ("-s", "-d") and ":" in words[-1]:
            ipv6 = True
    return None if ipv6 else words


def _quote(value: str) -> str:
    """Return a value in quotes, as iptables-save prints it."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
