"""Changes of a node for the length of a run: loaded modules, settings, the position of the target's rule.

Each change is noted in the lock before it happens, so that the next run or ``kproxylat cleanup`` can restore it after a
SIGKILL. A change is restored only where nothing else has changed the same thing since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

from kproxylat.console import say
from kproxylat.errors import CommandError, MachineError
from kproxylat.modes import LOCK_WAIT
from kproxylat.node import network
from kproxylat.node.lock import Lock
from kproxylat.node.node import Node
from kproxylat.node.service_rule import is_rule_of, list_rules
from kproxylat.results import Target, join_host_port
from kproxylat.system import interrupts, kernel
from kproxylat.system.processes import run

FORWARD = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
"""IP family -> the setting that lets a node forward (kernel, Documentation/networking/ip-sysctl.rst). Nothing here sets
them: that resets accept_redirects, and the forwarding of each link, which the old value does not bring back
(net/ipv4/devinet.c, inet_forward_change; net/ipv6/addrconf.c, addrconf_forward_change)."""
CONNTRACK_MAX = "net.netfilter.nf_conntrack_max"
"""The limit of connections that conntrack tracks (kernel, Documentation/networking/nf_conntrack-sysctl.rst)."""
ALLOWABLE = (FORWARD[4], CONNTRACK_MAX)
"""Settings that ``--allow`` accepts."""
Note = tuple[str, ...]
"""Kind, network namespace ("": the current one), its inode, and the arguments of the kind in :data:`RESTORERS`."""


class SupersededError(MachineError):
    """A change that cannot be restored: something else has changed the same thing since, or the thing is gone."""


class Changes:
    """The changes of a run.

    :param lock: keeps the notes.
    :param node: the node to change.

    ``load_s`` is how long a lab took to load its rules (None: it loaded none).
    """

    def __init__(self, lock: Lock, node: Node) -> None:
        self._lock = lock
        self._node = node
        self._earlier = len(lock.notes)
        self.load_s: float | None = None

    def _note(self, kind: str, *words: str) -> None:
        self._lock.note(kind, self._node.netns or "", str(self._node.inode), *words)

    def load_module(self, name: str) -> None:
        """Load a kernel module, unless it is loaded or built in.

        :raises MachineError: modprobe(8) cannot load it.
        """
        if not kernel.has_module(name):
            self._note("module", name)
            kernel.load_module(name)

    def set(self, name: str, value: str) -> None:
        """Change a sysctl of the node.

        :raises CommandError: the kernel refuses the change.
        """
        old = run("sysctl", "-n", name, netns=self._node.netns).strip()
        self._note("sysctl", name, old, value)
        run("sysctl", "-q", "-w", f"{name}={value}", netns=self._node.netns)

    def raise_limit(self, flows: int) -> None:
        """Raise the limit of conntrack, which counts the connections of all network namespaces.

        :param flows: how many more connections to allow.
        :raises CommandError: the kernel refuses the change, as it does outside the initial network namespace.
        """
        limit = int(run("sysctl", "-n", CONNTRACK_MAX, netns=self._node.netns))
        self.set(CONNTRACK_MAX, str(limit + flows))

    def move_rule(self, iptables: str, target: Target, position: str) -> None:
        """Move the target's rule within KUBE-SERVICES.

        :param iptables: the program of family and backend, e.g. ``ip6tables-nft``.
        :param position: "first", "middle" or "last" among the rules of Services.
        :raises MachineError: the target has no rule, or kube-proxy wrote the chain at the same moment.
        """
        netns = self._node.netns
        rules = list_rules(iptables, netns)
        own = [rule for rule in rules if is_rule_of(target, rule)]
        if not own:
            raise MachineError(f"cannot move the rule of {target}: not found in KUBE-SERVICES", "leave --position out")
        home = rules.index(own[0])
        moved = place_rules([rule for rule in rules if rule not in own], own, position)
        if moved == rules:
            return
        self._note("rule", iptables, *map(str, (target.ip, target.port, target.protocol, home)), digest(moved))
        _move(iptables, netns, own, moved.index(own[0]))
        if list_rules(iptables, netns) != moved:
            raise MachineError("kube-proxy wrote KUBE-SERVICES while its rule was moved", "try again")

    def restore(self, *kinds: str) -> tuple[str, ...]:
        """Restore the changes of this run, the latest first.

        :param kinds: the kinds to restore (none: all).
        :return: warnings: what was not restored, and why.
        """
        own = self._lock.notes[self._earlier :]
        _, warnings = restore_notes(self._lock, [note for note in own if not kinds or note[0] in kinds])
        return tuple(warnings)


def place_rules(rules: Sequence[str], own: Sequence[str], position: str) -> list[str]:
    """Return rules with those of a Service inserted, always before the rule of NodePorts.

    :param rules: the other rules of the chain; ``own``: the rules to insert.
    :param position: as in :meth:`Changes.move_rule`.
    """
    services = next((number for number, rule in enumerate(rules) if "-j KUBE-NODEPORTS" in rule), len(rules))
    before = {"first": 0, "middle": services // 2, "last": services}[position]
    return [*rules[:before], *own, *rules[before:]]


def digest(rules: Sequence[str]) -> str:
    """Return a digest that differs for any other rules or order."""
    return sha256("\n".join(rules).encode()).hexdigest()


def _move(iptables: str, netns: str | None, rules: Sequence[str], before: int) -> None:
    """Move rules of KUBE-SERVICES behind the first ``before`` others, in one transaction."""
    specs = [rule.removeprefix("-A KUBE-SERVICES ") for rule in rules]
    lines = [f"-D KUBE-SERVICES {spec}" for spec in specs]
    lines += [f"-I KUBE-SERVICES {before + number} {spec}" for number, spec in enumerate(specs, 1)]
    script = "\n".join(["*nat", *lines, "COMMIT", ""])
    run(f"{iptables}-restore", "--noflush", LOCK_WAIT, netns=netns, stdin=script)


def restore_notes(lock: Lock, notes: Sequence[Note]) -> tuple[list[str], list[str]]:
    """Restore noted changes, the latest first. A note leaves the lock only if nothing is left to restore.

    :param notes: notes of the lock, the oldest first.
    :return: the restored changes, as :func:`describe` names them; warnings: what was not restored, and why.
    """
    restored: list[str] = []
    warnings: list[str] = []
    failed = set()
    for note in reversed([*notes]):
        # An older change of the same thing can be restored only after the later one.
        if note[:4] in failed:
            continue
        try:
            restore_note(note)
            restored.append(describe(note))
        except SupersededError as error:
            warnings.append(str(error))
        except MachineError as error:
            failed.add(note[:4])
            warnings.append(f"{describe(note)} is not restored: {error}; the next run or kproxylat cleanup tries again")
            continue
        lock.forget(note)
    return restored, warnings


def describe(note: Note) -> str:
    """Return the change of a note in words, such as ``net.ipv4.ip_forward=1``."""
    match note:
        case ("module", _, _, name):
            return name
        case ("sysctl", _, _, name, _, value):
            return f"{name}={value}"
        case ("rule", _, _, _, ip, port, protocol, _, _):
            return f"the position of {join_host_port(ip, port)}/{protocol}'s rule"
    return f"{' '.join(note)[:60]!r}"


def restore_note(note: Note) -> None:
    """Restore the change of a note.

    :raises SupersededError: the change cannot be restored any more.
    :raises MachineError: the change was not restored, but may be later.
    """
    try:
        kind, path, inode, *words = note
        restorer = RESTORERS[kind, len(words)]
    except (ValueError, KeyError):
        raise MachineError("the note in the lock is of another version of kproxylat") from None
    with interrupts.shielded():
        # Modules belong to no namespace.
        if kind != "module" and not _is_namespace(path, inode):
            if path:
                raise SupersededError(f"{describe(note)} is not restored: {path} is another namespace now")
            raise MachineError("the run used another network namespace than this one")
        restorer(path or None, *words)


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
        raise SupersededError(f"{name} is not restored to {old}: another program has set it to {value}")
    if value == new:
        run("sysctl", "-q", "-w", f"{name}={old}", netns=netns)


def _restore_rule(netns: str | None, iptables: str, ip: str, port: str, protocol: str, home: str, order: str) -> None:
    """Move the target's rule back, unless kube-proxy has rewritten the chain since."""
    target = Target(ip, int(port), protocol)
    try:
        rules = list_rules(iptables, netns)
    except CommandError as error:
        if "No chain" not in error.output:
            raise
        rules = []
    if digest(rules) != order:
        raise SupersededError("kube-proxy rewrote KUBE-SERVICES during the run: the order of its rules is kept")
    _move(iptables, netns, [rule for rule in rules if is_rule_of(target, rule)], int(home))


RESTORERS: dict[tuple[str, int], Callable[..., None]] = {
    ("module", 1): _restore_module,
    ("sysctl", 3): _restore_sysctl,
    ("rule", 6): _restore_rule,
}
"""Kind of a note, and number of its arguments -> the function that restores it."""


def clean_up(lock: Lock, standing: bool = False) -> list[str]:
    """Remove the namespaces and links of earlier runs, and restore the changes of interrupted ones.

    :param lock: keeps the notes of changes that cannot be restored.
    :param standing: keep the lab.
    :return: the names of what was removed, and the restored changes.
    :raises MachineError: something cannot be removed, or belongs to another run that is under way.
    """
    removed: list[str] = []
    with interrupts.shielded():
        try:
            if not standing:
                removed = network.remove_leftovers()
        finally:
            restored, warnings = restore_notes(lock, lock.notes)
            for warning in warnings:
                say(f"warning: {warning}")
    return removed + restored
