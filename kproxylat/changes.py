"""What a run changes for its own length: modules loaded, settings, the place of the target's rule in KUBE-SERVICES.

Each change is noted in the lock before it is made, so that ``kproxylat cleanup`` can put back what SIGKILL left; and it
is put back only where things still are as we made them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

from kproxylat import interrupts, kernel
from kproxylat.detect import is_rule_of, list_rules
from kproxylat.errors import CommandError, MachineError
from kproxylat.model import Destination
from kproxylat.net import Lock
from kproxylat.nodes import Node
from kproxylat.proc import run

FORWARD = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
CONNTRACK_MAX = "net.netfilter.nf_conntrack_max"
ALLOWABLE = (*FORWARD.values(), CONNTRACK_MAX)
"""Settings of a node that a run may have to change."""
Note = tuple[str, ...]
"""Kind, network namespace ("": ours), its inode, and what the kind's function of :data:`RESTORERS` takes."""


class Changes:
    """The changes of a run, to be put back once.

    :param lock: takes the notes.
    """

    def __init__(self, lock: Lock, node: Node) -> None:
        self._lock = lock
        self._node = node
        self._made: list[Note] = []

    def _note(self, kind: str, *words: str) -> None:
        note = (kind, self._node.netns or "", str(self._node.inode), *words)
        self._lock.note(*note)
        self._made.append(note)

    def load_module(self, name: str) -> None:
        """Load a kernel module, if it is not there yet.

        :raises MachineError: this kernel does not have it.
        """
        if not kernel.has_module(name):
            self._note("module", name)
            kernel.load_module(name)

    def set(self, name: str, value: str) -> None:
        """Change a sysctl of the node.

        :raises CommandError: the kernel refuses it.
        """
        old = run("sysctl", "-n", name, netns=self._node.netns).strip()
        self._note("sysctl", name, old, value)
        run("sysctl", "-q", "-w", f"{name}={value}", netns=self._node.netns)

    def raise_limit(self, flows: int) -> None:
        """Let conntrack hold so many flows more, on every namespace of this machine.

        :raises CommandError: the kernel refuses it, as it does outside of the first network namespace.
        """
        most = int(run("sysctl", "-n", CONNTRACK_MAX, netns=self._node.netns))
        self.set(CONNTRACK_MAX, str(most + flows))

    def move_rule(self, iptables: str, target: Destination, position: str) -> None:
        """Move the target's rule within KUBE-SERVICES.

        :param iptables: the program of family and backend, e.g. ``ip6tables-nft``.
        :param position: "first", "middle" or "last" of the Services' rules.
        :raises MachineError: it has none, or kube-proxy wrote the chain at the same moment.
        """
        netns = self._node.netns
        rules = list_rules(iptables, netns)
        own = [rule for rule in rules if is_rule_of(target, rule)]
        if not own:
            raise MachineError(f"KUBE-SERVICES has no rule of {target} to be moved", "leave --position out")
        home = rules.index(own[0])
        moved = place_rules([rule for rule in rules if rule not in own], own, position)
        if moved == rules:
            return
        self._note("rule", iptables, *map(str, target), str(home), digest(moved))
        _transact(iptables, netns, own, moved.index(own[0]))
        if list_rules(iptables, netns) != moved:
            raise MachineError("kube-proxy wrote KUBE-SERVICES while its rule was moved", "try again")

    def put_back(self, *kinds: str) -> tuple[str, ...]:
        """Put things back, the last one first.

        :param kinds: which (none: all).
        :return: what could not be, and why.
        """
        warnings = []
        for note in [each for each in reversed(self._made) if not kinds or each[0] in kinds]:
            self._made.remove(note)
            try:
                restore(note)
            except MachineError as error:
                warnings.append(str(error))
        return tuple(warnings)


def place_rules(others: Sequence[str], own: Sequence[str], position: str) -> list[str]:
    """Put a Service's rules among the others; that of NodePorts, which is no Service's, stays behind them."""
    services = next((number for number, rule in enumerate(others) if "-j KUBE-NODEPORTS" in rule), len(others))
    before = {"first": 0, "middle": services // 2, "last": services}[position]
    return [*others[:before], *own, *others[before:]]


def digest(rules: Sequence[str]) -> str:
    """Return what tells one order of rules from another."""
    return sha256("\n".join(rules).encode()).hexdigest()


def _transact(iptables: str, netns: str | None, rules: Sequence[str], before: int) -> None:
    """Move rules, as iptables(8) lists them, behind so many others: all of it at once, or nothing."""
    specs = [rule.removeprefix("-A KUBE-SERVICES ") for rule in rules]
    lines = [f"-D KUBE-SERVICES {spec}" for spec in specs]
    lines += [f"-I KUBE-SERVICES {before + number} {spec}" for number, spec in enumerate(specs, 1)]
    script = "\n".join(["*nat", *lines, "COMMIT", ""])
    run(f"{iptables}-restore", "--noflush", "--wait=5", netns=netns, stdin=script)


def restore(note: Note) -> str:
    """Put back what a note tells.

    :return: what it was.
    :raises MachineError: it is not put back; says why.
    """
    try:
        kind, path, inode, *words = note
        putting_back = RESTORERS[kind]
    except (ValueError, KeyError):
        raise MachineError(f"the lock's note {note!r:.60} is of another kproxylat") from None
    node = Node(path or None)
    with interrupts.shielded():
        if str(node.inode) != inode:
            raise MachineError(f"{kind} is not put back: network namespace {path} is another one by now")
        return putting_back(node.netns, *words)


def _restore_module(_: str | None, name: str) -> str:
    if kernel.has_module(name):
        kernel.unload_module(name)
    return name


def _restore_sysctl(netns: str | None, name: str, old: str, new: str) -> str:
    value = run("sysctl", "-n", name, netns=netns).strip()
    if value != new:
        raise MachineError(f"{name} is not put back to {old}: somebody has set it to {value}")
    run("sysctl", "-q", "-w", f"{name}={old}", netns=netns)
    return f"{name}={new}"


def _restore_rule(netns: str | None, iptables: str, ip: str, port: str, protocol: str, home: str, order: str) -> str:
    """Put the target's rule back in its place, if kube-proxy has not written the chain anew since."""
    target = Destination(ip, int(port), protocol)
    try:
        rules = list_rules(iptables, netns)
    except CommandError:
        rules = []
    if digest(rules) != order:
        raise MachineError("kube-proxy rewrote KUBE-SERVICES during the run: its order is left as it is now")
    _transact(iptables, netns, [rule for rule in rules if is_rule_of(target, rule)], int(home))
    return f"the place of {target}'s rule"


RESTORERS: dict[str, Callable[..., str]] = {
    "module": _restore_module,
    "sysctl": _restore_sysctl,
    "rule": _restore_rule,
}
"""Kind of a note -> what puts it back."""
