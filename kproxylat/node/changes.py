"""What a run changes for its own length: modules loaded, settings, the place of the target's rule in KUBE-SERVICES.

Each change is noted in the lock before it is made, so that ``kproxylat cleanup`` can put back what SIGKILL left; and it
is put back only where things still are as we made them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

from kproxylat.console import say
from kproxylat.errors import CommandError, MachineError
from kproxylat.node import lock as node_lock
from kproxylat.node import network as net
from kproxylat.node.lock import Lock
from kproxylat.node.node import Node
from kproxylat.node.service_rule import is_rule_of, list_rules
from kproxylat.results import Destination, join_host_port
from kproxylat.system import interrupts, kernel
from kproxylat.system.processes import run

FORWARD = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
CONNTRACK_MAX = "net.netfilter.nf_conntrack_max"
ALLOWABLE = (*FORWARD.values(), CONNTRACK_MAX)
"""Settings of a node that a run may have to change."""
Note = tuple[str, ...]
"""Kind, network namespace ("": ours), its inode, and what the kind's function of :data:`RESTORERS` takes."""


class SupersededError(MachineError):
    """A change that is not ours to put back any more: somebody has changed the same thing since, or it is gone."""


class Changes:
    """The changes of a run, to be put back once.

    :param lock: takes the notes.
    """

    def __init__(self, lock: Lock, node: Node) -> None:
        self._lock = lock
        self._node = node
        self._earlier = len(lock.notes)

    def _note(self, kind: str, *words: str) -> None:
        self._lock.note(kind, self._node.netns or "", str(self._node.inode), *words)

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
        own = self._lock.notes[self._earlier :]
        _, warnings = put_back(self._lock, [note for note in own if not kinds or note[0] in kinds])
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


def put_back(lock: Lock, notes: Sequence[Note]) -> tuple[list[str], list[str]]:
    """Put noted changes back, the last one first. A note leaves the lock only if nothing is left to restore.

    :param notes: some of the lock's, the oldest first.
    :return: what was put back, as :func:`describe` names it; and warnings of what was not, and why.
    """
    restored: list[str] = []
    warnings: list[str] = []
    failed = set()
    for note in reversed([*notes]):
        # An older change of the same thing can be put back only after the later one.
        if note[:4] in failed:
            continue
        try:
            restore(note)
        except SupersededError as error:
            warnings.append(str(error))
        except MachineError as error:
            failed.add(note[:4])
            warnings.append(f"{describe(note)} is not put back: {error}; the next run or kproxylat cleanup tries again")
            continue
        else:
            restored.append(describe(note))
        lock.forget(note)
    return restored, warnings


def describe(note: Note) -> str:
    """Return the change that a note tells, such as ``net.ipv4.ip_forward=1``."""
    match note:
        case ("module", _, _, name):
            return name
        case ("sysctl", _, _, name, _, value):
            return f"{name}={value}"
        case ("rule", _, _, _, ip, port, protocol, _, _):
            return f"the place of {join_host_port(ip, port)}/{protocol}'s rule"
    return f"{' '.join(note)[:60]!r}"


def restore(note: Note) -> None:
    """Put back what a note tells.

    :raises SupersededError: it is not ours to put back any more.
    :raises MachineError: it is not put back, and could be later; says why.
    """
    try:
        kind, path, inode, *words = note
        putting_back = RESTORERS[kind, len(words)]
    except (ValueError, KeyError):
        raise MachineError("the note in the lock is of another version of kproxylat") from None
    with interrupts.shielded():
        # Modules belong to no namespace.
        if kind != "module" and not _is_namespace(path, inode):
            if path:
                raise SupersededError(f"{describe(note)} is not put back: namespace {path} is another one by now")
            raise MachineError("our network namespace is another one by now than that of the run")
        putting_back(path or None, *words)


def _is_namespace(path: str, inode: str) -> bool:
    try:
        return str(Node(path or None).inode) == inode
    except MachineError:
        return False


def _restore_module(_: str | None, name: str) -> None:
    if kernel.has_module(name):
        kernel.unload_module(name)


def _restore_sysctl(netns: str | None, name: str, old: str, new: str) -> None:
    value = run("sysctl", "-n", name, netns=netns).strip()
    if value not in (old, new):
        raise SupersededError(f"{name} is not put back to {old}: somebody has set it to {value}")
    if value == new:
        run("sysctl", "-q", "-w", f"{name}={old}", netns=netns)


def _restore_rule(netns: str | None, iptables: str, ip: str, port: str, protocol: str, home: str, order: str) -> None:
    """Put the target's rule back in its place, if kube-proxy has not written the chain anew since."""
    target = Destination(ip, int(port), protocol)
    try:
        rules = list_rules(iptables, netns)
    except CommandError as error:
        if "No chain" not in error.output:
            raise
        rules = []
    if digest(rules) != order:
        raise SupersededError("kube-proxy rewrote KUBE-SERVICES during the run: its order is left as it is now")
    _transact(iptables, netns, [rule for rule in rules if is_rule_of(target, rule)], int(home))


RESTORERS: dict[tuple[str, int], Callable[..., None]] = {
    ("module", 1): _restore_module,
    ("sysctl", 3): _restore_sysctl,
    ("rule", 6): _restore_rule,
}
"""Kind of a note, and how many words of its own it has -> what puts it back."""


def clean_up(lock: node_lock.Lock, standing: bool = False) -> list[str]:
    """Remove what an earlier run left: namespaces and links; and put back what an interrupted one changed.

    :param lock: keeps the notes of what could not be put back.
    :param standing: let the lab stand.
    :return: the names of what was removed, and what was put back.
    :raises MachineError: something could not be removed, or belongs to a run that is under way.
    """
    removed: list[str] = []
    with interrupts.shielded():
        try:
            removed += [] if standing else net.remove_leftovers()
        finally:
            restored, warnings = put_back(lock, lock.notes)
            for warning in warnings:
                say(f"warning: {warning}")
    return removed + restored
