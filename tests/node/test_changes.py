"""Changes of a node are restored, also after SIGKILL, unless something else changed the same thing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kproxylat.errors import CommandError, MachineError
from kproxylat.measure import conntrack
from kproxylat.measure import options as plan
from kproxylat.measure.conntrack import make_room
from kproxylat.measure.options import Options, Sending
from kproxylat.modes import find_mode
from kproxylat.node import changes, network, service_rule
from kproxylat.node import lock as node_lock
from kproxylat.node.changes import CONNTRACK_MAX, FORWARD, Changes, clean_up, place_rules, restore_note
from kproxylat.node.lock import Lock
from kproxylat.node.network import Network
from kproxylat.node.node import Node
from kproxylat.results import Target
from kproxylat.system import kernel

TARGET = Target("10.96.100.50", 50051, "udp")


def rule(ip: str, port: int, protocol: str, goal: str, first: str = "") -> str:
    comment = f'-m comment --comment "x -d {TARGET.ip}/32 -p {TARGET.protocol} --dport {TARGET.port} cluster IP"'
    return f"-A KUBE-SERVICES {first}-d {ip}/32 -p {protocol} {comment} -m {protocol} --dport {port} -j {goal}"


OWN = rule(TARGET.ip, TARGET.port, "udp", "KUBE-SVC-WORKER")
TCP = rule(TARGET.ip, TARGET.port, "tcp", "KUBE-SVC-TCP")
OTHERS = [TCP, *(rule(f"10.97.0.{number}", 80, "tcp", f"KUBE-SVC-{number}") for number in range(3))]
NODEPORTS = '-A KUBE-SERVICES -m comment --comment "last" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS'
CHAIN = [*OTHERS[:2], OWN, *OTHERS[2:], NODEPORTS]


class Kernel:
    """KUBE-SERVICES and the settings, behind iptables(8) and sysctl(8)."""

    def __init__(self) -> None:
        self.chain = list(CHAIN)
        self.settings = {FORWARD[4]: "0", CONNTRACK_MAX: "1000", "net.netfilter.nf_conntrack_udp_timeout": "30"}
        self.transactions = 0
        self.sync_after_next = False

    def run(
        self, *argv: str, netns: str | None = None, stdin: str = "", ok: tuple[int, ...] = (0,), limit_s: None = None
    ) -> str:
        assert (netns, ok, limit_s) == (None, (0,), None)
        if argv[0] == "iptables-nft":
            assert argv[-2:] == ("-S", "KUBE-SERVICES")
            return "-N KUBE-SERVICES\n" + "".join(f"{each}\n" for each in self.chain)
        if argv[0] == "sysctl":
            name, _, value = argv[-1].partition("=")
            if value:
                self.settings[name] = value
            return self.settings[name] + "\n"
        assert argv == ("iptables-nft-restore", "--noflush", "--wait=5")
        self._transact(stdin)
        return ""

    def _transact(self, script: str) -> None:
        head, *lines, commit = script.splitlines()
        assert (head, commit) == ("*nat", "COMMIT")
        chain = list(self.chain)
        for line in lines:
            verb, spec = line[:2], line.removeprefix("-D KUBE-SERVICES ")
            if verb == "-D":
                chain.remove(f"-A KUBE-SERVICES {spec}")
            else:
                match = re.fullmatch(r"-I KUBE-SERVICES (\d+) (.*)", line)
                assert match
                chain.insert(int(match[1]) - 1, f"-A KUBE-SERVICES {match[2]}")
        self.chain = chain
        self.transactions += 1
        if self.sync_after_next:
            self.chain = list(CHAIN)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    fake = Kernel()
    for module in (changes, conntrack, service_rule):
        monkeypatch.setattr(module, "run", fake.run)
    return fake


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lock]:
    monkeypatch.setattr(node_lock, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(network, "NETNS", tmp_path / "NETNS")
    monkeypatch.setattr(network, "list_links", list)
    with node_lock.lock() as held:
        yield held


@pytest.mark.parametrize(("position", "index"), [("first", 0), ("middle", 2), ("last", 4)])
def test_the_targets_rule_is_moved_and_restored(system: Kernel, lock: Lock, position: str, index: int) -> None:
    changed = Changes(lock, Node())
    changed.move_rule("iptables-nft", TARGET, position)
    assert system.chain.index(OWN) == index
    assert [each for each in system.chain if each != OWN] == [*OTHERS, NODEPORTS], "the others keep their order"
    assert system.transactions == (0 if position == "middle" else 1), "one, or none if the rule is in that position"
    assert changed.restore() == ()
    assert system.chain == CHAIN
    assert changed.restore() == ()
    assert system.transactions == (0 if position == "middle" else 2), "restored once"


def test_a_service_with_two_rules_keeps_them_together(system: Kernel, lock: Lock) -> None:
    """Up to 1.21 kube-proxy wrote the mark for masquerade beside the jump."""
    own = [rule(TARGET.ip, TARGET.port, "udp", "KUBE-MARK-MASQ", "! -s 10.244.0.0/16 "), OWN]
    assert place_rules(OTHERS, own, "last") == [*OTHERS, *own], "without a rule of NodePorts, too"
    assert place_rules([*OTHERS, NODEPORTS], own, "first") == [*own, *OTHERS, NODEPORTS]
    system.chain = before = [*OTHERS, *own, NODEPORTS]
    changed = Changes(lock, Node())
    changed.move_rule("iptables-nft", TARGET, "first")
    assert system.chain == [*own, *OTHERS, NODEPORTS]
    assert changed.restore() == ()
    assert system.chain == before


def test_an_order_that_kube_proxy_rewrote_is_kept(system: Kernel, lock: Lock) -> None:
    changed = Changes(lock, Node())
    changed.move_rule("iptables-nft", TARGET, "first")
    system.chain = written = [*OTHERS, OWN, NODEPORTS]
    assert changed.restore() == ("kube-proxy rewrote KUBE-SERVICES during the run: the order of its rules is kept",)
    assert system.chain is written


def test_kube_proxy_writes_while_the_rule_is_moved(system: Kernel, lock: Lock) -> None:
    system.sync_after_next = True
    with pytest.raises(MachineError, match="wrote KUBE-SERVICES while its rule was moved"):
        Changes(lock, Node()).move_rule("iptables-nft", TARGET, "first")


def test_a_target_without_a_rule_cannot_be_moved(lock: Lock, system: Kernel) -> None:
    with pytest.raises(MachineError, match=r"rule of 10.96.100.50:50052/udp: not found"):
        Changes(lock, Node()).move_rule("iptables-nft", replace(TARGET, port=50052), "first")
    assert system.chain == CHAIN


@pytest.mark.usefixtures("lock")
def test_cleanup_after_sigkill(system: Kernel, lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    modules = {"pktgen"}
    monkeypatch.setattr(kernel, "has_module", lambda name: name in modules)
    monkeypatch.setattr(kernel, "load_module", lambda name: modules.add(name))
    monkeypatch.setattr(kernel, "unload_module", removed.append)
    changed = Changes(lock, Node())
    changed.load_module("pktgen")
    modules.clear()
    changed.load_module("pktgen")
    changed.set(FORWARD[4], "1")
    changed.move_rule("iptables-nft", TARGET, "first")
    node_lock.LOCK.write_text(
        node_lock.LOCK.read_text() + '["sysctl", "/run/netns/gone", "1", "a", "0", "1"]\n["later", "x"]\n'
    )
    with node_lock.LOCK.open("r+") as file:
        after = Lock(file)
        assert clean_up(after) == ["the position of 10.96.100.50:50051/udp's rule", f"{FORWARD[4]}=1", "pktgen"]
    assert (system.chain, system.settings[FORWARD[4]], removed) == (CHAIN, "0", ["pktgen"])
    assert after.notes == [("later", "x")], "another version of kproxylat may restore it"
    assert node_lock.LOCK.read_text().splitlines()[1:] == ['["later", "x"]']


def refuse(*argv: str, **_: object) -> str:
    raise CommandError([*argv], 1, "not now")


def test_a_restore_that_fails_keeps_its_note(system: Kernel, lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = Changes(lock, Node())
    changed.set(FORWARD[4], "1")
    changed.move_rule("iptables-nft", TARGET, "first")
    notes, text = list(lock.notes), node_lock.LOCK.read_text()
    for module in (changes, service_rule):
        monkeypatch.setattr(module, "run", refuse)
    again = "; the next run or kproxylat cleanup tries again"
    assert changed.restore() == (
        f"the position of {TARGET}'s rule is not restored: iptables-nft --wait=5 -t nat -S KUBE-SERVICES"
        f" ended with status 1: not now{again}",
        f"{FORWARD[4]}=1 is not restored: sysctl -n {FORWARD[4]} ended with status 1: not now{again}",
    )
    assert (lock.notes, node_lock.LOCK.read_text()) == (notes, text)
    for module in (changes, service_rule):
        monkeypatch.setattr(module, "run", system.run)
    assert changed.restore() == ()
    assert (system.chain, system.settings[FORWARD[4]], lock.notes) == (CHAIN, "0", [])
    assert len(node_lock.LOCK.read_text().splitlines()) == 1


def test_an_older_change_waits_for_the_later_one(system: Kernel, lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed run and the one after it raised the same limit."""
    Changes(lock, Node()).raise_limit(500)
    after = Changes(lock, Node())
    after.raise_limit(500)
    monkeypatch.setattr(changes, "run", refuse)
    assert len(after.restore()) == 1
    monkeypatch.setattr(changes, "run", system.run)
    assert clean_up(lock) == [f"{CONNTRACK_MAX}=2000", f"{CONNTRACK_MAX}=1500"]
    assert (system.settings[CONNTRACK_MAX], lock.notes) == ("1000", [])


def test_a_noted_change_that_never_happened(system: Kernel, lock: Lock) -> None:
    lock.note("sysctl", "", str(Node().inode), FORWARD[4], "0", "1")
    assert clean_up(lock) == [f"{FORWARD[4]}=1"]
    assert (system.settings[FORWARD[4]], lock.notes) == ("0", [])


def test_a_module_is_unloaded_though_its_runs_namespace_is_gone(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    monkeypatch.setattr(kernel, "has_module", lambda _: True)
    monkeypatch.setattr(kernel, "unload_module", removed.append)
    lock.note("module", "/run/netns/gone", "1", "pktgen")
    assert (clean_up(lock), removed, lock.notes) == (["pktgen"], ["pktgen"], [])


UNREADABLE = [("sysctl", "", "1"), ("sysctl", "", "1", FORWARD[4], "0"), ("rule",), ("later", "x")]


@pytest.mark.parametrize("note", UNREADABLE)
def test_a_note_that_this_version_cannot_read(
    lock: Lock, note: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    lock.note(*note)
    assert (clean_up(lock), lock.notes) == ([], [note])
    assert "is not restored: the note in the lock is of another version of kproxylat" in capfd.readouterr().err


def test_a_value_that_another_program_set_is_kept(system: Kernel, lock: Lock) -> None:
    changed = Changes(lock, Node())
    changed.raise_limit(500)
    assert system.settings[CONNTRACK_MAX] == "1500"
    system.settings[CONNTRACK_MAX] = "9999"
    assert changed.restore() == (f"{CONNTRACK_MAX} is not restored to 1000: another program has set it to 9999",)
    assert system.settings[CONNTRACK_MAX] == "9999"


def test_a_note_of_another_namespace_is_not_restored(system: Kernel) -> None:
    with pytest.raises(MachineError, match="used another network namespace"):
        restore_note(("sysctl", "", "1", FORWARD[4], "1", "0"))
    assert system.settings[FORWARD[4]] == "0"


def test_the_chain_is_gone(system: Kernel, lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = Changes(lock, Node())
    changed.move_rule("iptables-nft", TARGET, "first")

    def gone(*_: str, **__: object) -> str:
        raise CommandError(["iptables-nft"], 1, "No chain/target/match by that name.")

    monkeypatch.setattr(service_rule, "run", gone)
    assert len(changed.restore()) == 1
    assert system.transactions == 1


ON_NODE = Options(find_mode("nftables", None), TARGET, sending=Sending(duration_s=30, rate_pps=10_000, warmup=100))
NETWORK = Network("client", None, None)


def at_rate(rate: int, source: str | None = None) -> Options:
    network = plan.parse_source(source) if source else None
    return replace(ON_NODE, sending=replace(ON_NODE.sending, rate_pps=rate, source=network))


def room_of(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(kernel, "conntrack_room", lambda _: free)


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize(("rate", "free", "needed", "forget_s"), [
    (1000, 40_000, 30_100, None),
    (1000, 30_100, 30_100, None),
    (1000, 30_099, 2_100, 1.0),
    (10_000, 262_144, 20_100, 1.0),
])  # fmt: skip
def test_flows_that_would_not_fit_are_removed_during_the_run(
    monkeypatch: pytest.MonkeyPatch, rate: int, free: int, needed: int, forget_s: float | None
) -> None:
    room_of(monkeypatch, free)
    room = make_room(at_rate(rate, "10.244.1.0/24"), NETWORK)
    assert (room.free, room.needed, room.kept, room.forget_s) == (free, needed, False, forget_s)


@pytest.mark.usefixtures("system")
def test_masqueraded_flows_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    room_of(monkeypatch, 262_144)
    room = make_room(at_rate(1600), NETWORK)
    assert (room.free, room.needed, room.forget_s) == (50_000, 48_100, None)
    room = make_room(ON_NODE, NETWORK)
    assert (room.free, room.needed, room.forget_s) == (50_000, 20_100, 1.0)
    with pytest.raises(MachineError, match=r"60100 flows at a time need more room than masquerade has \(50000\)") as e:
        make_room(at_rate(30_000), NETWORK)
    assert e.value.remedy == "there is room for 24950 pps, or for a shorter run"
    make_room(at_rate(24_950), NETWORK)


@pytest.mark.usefixtures("system")
def test_a_rate_that_conntrack_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    room_of(monkeypatch, 10_000)
    with pytest.raises(MachineError, match=r"20100 flows at a time need more room than conntrack has \(10000\)") as e:
        make_room(ON_NODE, NETWORK)
    assert e.value.remedy.startswith(f"there is room for 4950 pps, or for a shorter run; or: --allow {CONNTRACK_MAX}")
    make_room(at_rate(4950), NETWORK)


def test_a_limit_that_may_be_raised(system: Kernel, lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "conntrack_room", lambda _: int(system.settings[CONNTRACK_MAX]))
    changed = Changes(lock, Node())
    room = make_room(ON_NODE, NETWORK, changed.raise_limit)
    assert (room.free, room.needed) == (20_100, 20_100)
    assert changed.restore() == ()
    assert system.settings[CONNTRACK_MAX] == "1000"
