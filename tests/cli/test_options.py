"""Every option of every command, in every place: it changes what the command does, or it is refused by name.

A command does what it prints, and calls of the entry points in ENTRIES. An option is used if it changes these; else it
has to end the command with status 2 and a message that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kproxylat.cluster.envelope import Envelope
from kproxylat.cluster.nodes import Outcome
from kproxylat.cluster.proxy_mode import Evidence, Finding
from kproxylat.measure.expected import announce
from kproxylat.measure.options import NodeUnderTest, Options, Sending
from kproxylat.modes import find_mode
from kproxylat.node.node import Node
from kproxylat.results import Result, Run, Target
from tests.results import COUNTED
from tests.support import ROOT
from tests.support.bills import make_bill
from tests.support.command import PARAMETERS, RULES, Captured, call, name_of

pytestmark = pytest.mark.usefixtures("nothing_starts")

LOG = str(COUNTED.with_name("ebpf_iptables_20261122_225438.log"))
TEMPLATE = str(ROOT / "templates/overhead.bt.j2")
MODEL = str(ROOT / "tests/documents/whatif-costs.json")
LAB = ("--lab",)
NODE = ("--target", "10.96.0.10:53", "--mode", "iptables")
REPLAY = ("--lab", "--ruleset", RULES, "--every-service")
POINTS = ("--services", "10,20")
DRY = ("--dry-run",)
NODES = ("--node", "n1")
TRACED = ("--mode", "nftables", "--duration", "9", *NODES)
PLACES: dict[str, dict[str, tuple[str, ...]]] = {
    "run": {
        "lab": LAB,
        "ruleset": REPLAY,
        "vm": (*LAB, "--vm"),
        "node": NODE,
        "cluster": (),
        "nodes": NODES,
        "dry nodes": (*NODES, *DRY),
        "lab nodes": (*LAB, *NODES),
        "dry": (*LAB, *DRY),
        "dry ruleset": (*REPLAY, *DRY),
        "dry node": (*NODE, *DRY),
    },
    "render": {"lab": LAB, "ruleset": REPLAY, "vm": (*LAB, "--vm"), "node": NODE, "cluster": ()},
    "sweep": {
        "lab": (*LAB, *POINTS),
        "ruleset": REPLAY,
        "vm": (*LAB, *POINTS, "--vm"),
        "instructions": (*LAB, *POINTS, "--vm", "--clock", "instructions"),
        "cluster": POINTS,
        "nodes": (*LAB, *POINTS, *NODES),
        "dry nodes": (*LAB, *POINTS, *NODES, *DRY),
        "dry": (*LAB, *POINTS, *DRY),
        "dry cluster": (*POINTS, *DRY),
    },
    "whatif": {"here": (RULES,), "vm": (RULES, "--vm"), "dry": (RULES, *DRY)},
    "trace": {
        "all packets": ("--mode", "iptables", "--backend", "nft"),
        "target": (*NODE, "--backend", "nft"),
        "dry": (*NODE, "--backend", "nft", *DRY),
        "nodes": TRACED,
        "dry nodes": (*TRACED, *DRY),
    },
    "bill": {"here": (), "serve": ("--serve", ":9105"), "nodes": NODES},
    "demo": {"here": ()},
    "reproduce": {"quick": ("k8s-blog-2025",)},
    "capture": {"node": (), "nodes": NODES},
    "cleanup": {"here": (), "nodes": NODES},
    "doctor": {"here": (), "nodes": NODES},
    "parse": {
        "table": (LOG,),
        "csv": (LOG, "--format", "csv"),
        "experiment": (LOG, "--format", "csv", "--csv-dialect", "experiment"),
        "prints": (LOG, "--prints", "all"),
        "intervals": (LOG, "--intervals"),
    },
    "compare": {"one": (str(COUNTED),), "two": (LOG, LOG), "forced": (LOG, LOG, "--force")},
    "plot": {"one": (LOG,), "two": (LOG, LOG)},
    "report": {"html": (LOG,), "markdown": (LOG, "-o", "x.md")},
    "mode show": {"cluster": (), "nodes": NODES},
    "mode set": {"cluster": ("nftables",)},
    "services create": {"cluster": ("--count", "5"), "worker": ("--count", "5", "--worker", "--wait", "7")},
    "services delete": {"cluster": (), "wait": ("--wait", "7")},
    "services list": {"cluster": ()},
}
"""Command -> place -> the words that bring the command there."""
CONNECTION = {"--kubeconfig", "--context", "--cluster", "--as", "--as-group", "--request-timeout"}
API = CONNECTION | {"--namespace", "--service", "--port"}
IN_LAB = API | {"--netns", "--node-container", "--allow"}
NO_VM = {"--kernel", "--clock"}
NO_LAB = {"--services", "--worker-ports", "--ruleset", "--every-service", "--places", "--kube-proxy"}
NO_LAB |= {"--endpoints", "--affinity", "--node-port"}
NO_NODE = {"--netns", "--node-container"}
NO_PODS = {"--parallel", "--job-namespace", "--image"}
LOADS = {"run", "sweep", "doctor"}
"""Commands whose pods may load modules."""
NO_OTHER = {"--selector", "--all-nodes"}
NOT_DRY = {"--output-dir", "--parallel"}
NO_PERCENTILES = {"--percentiles"}
NO_POD = NO_NODE | NO_OTHER | {"--template"}
NO_POD_LAB = NO_POD | NO_VM | {"--keep", "--vm", "--vm-if-needed", "--ruleset", "--every-service", "--allow"}
NO_POD_RUN = NO_POD | NO_VM | NO_LAB | {"--keep", "--vm", "--vm-if-needed"}
NO_POD_SWEEP = (NO_POD_LAB - {"--keep"}) | {"--target", "--namespace", "--service", "--port", "--yes", "--fresh"}
OWN = {"--services", "--position", "--worker-ports", "rule_position", "--family", "--places", "--kube-proxy"}
OWN |= {"--endpoints", "--affinity", "--node-port"}
"""Options that a ruleset takes the place of."""
REFUSED: dict[str, dict[str, set[str]]] = {
    "run": {
        "nodes": NO_POD_RUN,
        "lab nodes": NO_POD_LAB | {"--target", "--namespace", "--service", "--port", "--yes"},
        "dry nodes": NO_POD_RUN | NOT_DRY | {"--yes"},
        "lab": IN_LAB | NO_VM | {"--target", "--every-service", "--yes"},
        "ruleset": IN_LAB
        | NO_VM
        | OWN
        | {"--target", "--keep", "--overhead", "--envelope", "--send-time", "--mode", "--generator", "--yes"},
        "vm": IN_LAB | {"--target", "--every-service", "--keep", "--yes"},
        "node": API | NO_VM | NO_LAB | {"--lab", "--keep", "--family"},
        "cluster": NO_VM | NO_LAB | {"--keep"},
        "dry": IN_LAB | NO_VM | {"--target", "--every-service", "--yes"},
        "dry ruleset": IN_LAB
        | NO_VM
        | OWN
        | {"--target", "--keep", "--overhead", "--envelope", "--send-time", "--mode", "--generator", "--yes"},
        "dry node": API | NO_VM | NO_LAB | {"--lab", "--keep", "--family"},
    },
    "render": {
        "lab": IN_LAB | {"--kernel", "--target", "--every-service"},
        "ruleset": IN_LAB | OWN | {"--kernel", "--target", "--mode", "--generator", "--envelope"},
        "vm": IN_LAB | {"--target", "--every-service"},
        "node": API | NO_LAB | {"--kernel", "--lab", "--family"},
        "cluster": NO_LAB | {"--kernel"},
    },
    "sweep": {
        "lab": IN_LAB | NO_VM | {"--target", "--ruleset", "--every-service", "--yes"},
        "ruleset": IN_LAB
        | NO_VM
        | (OWN - {"rule_position"})
        | {"--target", "--overhead", "--envelope", "--generator", "--yes", "--mode"},
        "vm": IN_LAB | {"--target", "--ruleset", "--every-service", "--yes"},
        "instructions": IN_LAB | {"--target", "--ruleset", "--every-service", "--yes", "--seed"},
        "cluster": NO_VM | (NO_LAB - {"--services"}) | {"--target", "--seed"},
        "nodes": NO_POD_SWEEP,
        "dry nodes": NO_POD_SWEEP | NOT_DRY,
        "dry": IN_LAB | NO_VM | {"--target", "--ruleset", "--every-service", "--yes"},
        "dry cluster": NO_VM | (NO_LAB - {"--services"}) | {"--target", "--seed"},
    },
    "whatif": {"here": NO_VM | {"--mode"}, "vm": {"--mode"}, "dry": NO_VM | {"--mode"}},
    "trace": {
        "all packets": {"--protocol", "--format"},
        "target": {"--family", "--format"},
        "dry": {"--family"},
        "nodes": NO_POD | {"--protocol", "--format"},
        "dry nodes": NO_POD | {"--protocol", *NOT_DRY},
    },
    "capture": {"nodes": NO_POD - {"--template"}},
    "cleanup": {"nodes": NO_OTHER},
    "doctor": {"nodes": NO_OTHER},
    "mode show": {"nodes": NO_POD - {"--template"}},
    "bill": {
        "serve": {"--format", "--whatif", "--watch", "--node", *NO_OTHER},
        "nodes": NO_POD - {"--template"} | {"--serve", "--watch", "--whatif"},
    },
    "parse": {
        "table": {"--csv-dialect"},
        "experiment": NO_PERCENTILES | {"--intervals", "--prints"},
        "csv": {"--prints"},
        "prints": NO_PERCENTILES | {"--intervals", "--csv-dialect", "--format"},
        "intervals": NO_PERCENTILES | {"--prints", "--csv-dialect"},
    },
    "compare": {"one": {"--fail-if-worse"}, "forced": {"--allow"}},
    "plot": {"one": {"--allow"}},
    "services create": {"cluster": NO_NODE | {"--worker-image"}},
    "services delete": {"cluster": NO_NODE},
}
"""Command -> place -> the options that are refused there; all others are used."""
for command in ("run", "sweep", "trace", "bill", "capture", "cleanup", "doctor", "mode show"):
    for place, base in PLACES[command].items():
        if "--node" not in base:
            local = (
                {"--node", *NO_OTHER}
                if "--vm" in base or "--ruleset" in base or (command == "sweep" and "--lab" not in base)
                else set()
            )
            local |= set() if command in ("run", "sweep", "bill", "mode show") else CONNECTION
            local |= set() if command != "trace" else {"--node", *NO_OTHER}
            REFUSED.setdefault(command, {}).setdefault(place, set()).update(
                NO_PODS | local | ({"--load-modules"} if command in LOADS else set())
            )
"""Without --node, options of pods are refused, and with the lab or without --duration --node is."""
IMPLIED = {
    *((command, "vm", "--vm-if-needed") for command in ("run", "sweep", "whatif")),
    ("sweep", "instructions", "--vm-if-needed"),
    ("reproduce", "quick", "name"),
    *((command, place, "--node") for command in PLACES for place in ("nodes", "lab nodes", "dry nodes")),
    *((command, place, "b") for command, place in (("compare", "two"), ("compare", "forced"), ("plot", "two"))),
}
"""Command, place and a parameter that the place's own words pass already, or more than it."""
SAMPLES: dict[str, tuple[str, ...]] = {
    "duration": ("7",),
    "rate": ("7", "700"),
    "warmup": ("7", "700", "70"),
    "rule_position": ("7", "700", "70", "first"),
    "mode": ("nftables",),
    "ruleset": (RULES,),
    "a": (LOG,),
    "b": (LOG,),
    "files": (LOG,),
    "--budget": ("--budget", "0.7"),
    "--for": ("--for", "7s"),
    "--serve": ("--serve", "127.0.0.1:7"),
    "--whatif": ("--whatif", MODEL),
    "--allow": ("--allow", "net.ipv4.ip_forward"),
    "compare --allow": ("--allow", "kernel"),
    "plot --allow": ("--allow", "kernel"),
    "--backend": ("--backend", "legacy"),
    "--clock": ("--clock", "instructions"),
    "whatif --clock": ("--clock", "ns"),
    "--as": ("--as", "person"),
    "--as-group": ("--as-group", "group"),
    "--cluster": ("--cluster", "other"),
    "--context": ("--context", "prod"),
    "--request-timeout": ("--request-timeout", "1m30s"),
    "--count": ("--count", "6"),
    "--csv-dialect": ("--csv-dialect", "experiment"),
    "trace --duration": ("--duration", "7"),
    "--endpoints": ("--endpoints", "3"),
    "--fail-if-worse": ("--fail-if-worse", "7"),
    "--family": ("--family", "6"),
    "--format": ("--format", "json"),
    "--from": ("--from", "node"),
    "--generator": ("--generator", "sockets"),
    "run ruleset --generator": ("--generator", "pktgen"),
    "run dry ruleset --generator": ("--generator", "pktgen"),
    "render ruleset --generator": ("--generator", "pktgen"),
    "sweep ruleset --generator": ("--generator", "pktgen"),
    "parse prints --format": ("--format", "csv"),
    "parse intervals --format": ("--format", "csv"),
    "--kernel": ("--kernel", "/boot/vmlinuz-7"),
    "--kube-proxy": ("--kube-proxy", "1.37"),
    "--kubeconfig": ("--kubeconfig", "/nowhere"),
    "--mode": ("--mode", "nftables"),
    "--namespace": ("--namespace", "prod"),
    "--node": ("--node", "n2"),
    "--selector": ("--selector", "a=b"),
    "--parallel": ("--parallel", "2"),
    "--job-namespace": ("--job-namespace", "jobs"),
    "--image": ("--image", "other:1"),
    "--netns": ("--netns", "/run/netns/x"),
    "--node-container": ("--node-container", "kind-worker"),
    "--output": ("--output", "other.png"),
    "report --output": ("--output", "other.html"),
    "--output-dir": ("--output-dir", "other"),
    "--packets": ("--packets", "7"),
    "--percentiles": ("--percentiles", "7"),
    "--places": ("--places", "3"),
    "--port": ("--port", "7"),
    "--position": ("--position", "first"),
    "--prints": ("--prints", "all"),
    "--probe": ("--probe", "kprobe"),
    "--protocol": ("--protocol", "tcp"),
    "demo --protocol": ("--protocol", "udp"),
    "--rate": ("--rate", "7"),
    "--repeats": ("--repeats", "7"),
    "--ruleset": ("--ruleset", RULES),
    "--seed": ("--seed", "7"),
    "--service": ("--service", "other"),
    "--services": ("--services", "7"),
    "--set": ("--set", "name=value"),
    "--source": ("--source", "10.244.7.128/25"),
    "--target": ("--target", "10.96.0.9:80"),
    "--template": ("--template", TEMPLATE),
    "--traced-services": ("--traced-services", "7"),
    "--timeout": ("--timeout", "7"),
    "--title": ("--title", "other"),
    "--wait": ("--wait", "8"),
    "--worker-image": ("--worker-image", "other"),
    "--worker-ports": ("--worker-ports", "udp"),
}  # fmt: skip
"""Option or argument, after a command and a place if need be -> words that pass it; a flag needs none."""
WITH = {
    "--as-group": ("--as", "person"),
    "--protocol": ("--generator", "sockets"),
    "--family": ("--generator", "sockets"),
    "--ruleset": ("--every-service",),
    "--places": ("--first-packet",),
    "--kube-proxy": ("--mode", "nftables"),
    "whatif --kube-proxy": (),
}
"""Option -> the words without which it cannot stand."""


def words_of(command: str, place: str, parameter: Any) -> tuple[str, ...]:
    """Return the words that pass a parameter.

    :raises KeyError: SAMPLES lacks it.
    """
    name = name_of(parameter)
    if getattr(parameter, "is_flag", False):
        return (name,)
    for key in (f"{command} {place} {name}", f"{command} {name}"):
        if key in SAMPLES:
            return SAMPLES[key]
    return SAMPLES[name]


def describe(value: object) -> str:
    """Write a value, without the command line that it came from, and without addresses in memory."""
    if is_dataclass(value) and not isinstance(value, type):
        members = [(each.name, getattr(value, each.name)) for each in fields(value) if each.name != "arguments"]
        return f"{type(value).__name__}({', '.join(f'{name}={describe(each)}' for name, each in members)})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(describe, value))}]"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(describe, value)))}}}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


class Api:
    """An API that was connected to."""

    context, namespace = "context", "namespace"

    def __repr__(self) -> str:
        return "Api()"


class Machine:
    """A virtual machine that runs nothing."""

    def __init__(self, *options: object) -> None:
        DONE.append(f"Machine {describe(options)}")

    def run(self, argv: list[str], *_: object, **__: object) -> int:
        """Note the command line."""
        DONE.append(f"inside {argv}")
        return 0


class Pool:
    """Virtual machines that run nothing."""

    def __init__(self, clock: object, kernel: object, output_dir: object, order: Callable[[Any], list[str]]) -> None:
        self.order = order
        DONE.append(f"Pool {clock} {kernel} {output_dir}")


DONE: list[str] = []
"""What the entry points were called with since it was cleared."""
RESULT = Result(Run(clock="ns"))
CHANGE = SimpleNamespace(diff="diff", runs_as="nftables", undoing=lambda _: "undo", old="iptables")
FINDING = Finding("iptables", "nft", "certain", "reason")
WHATIF = SimpleNamespace(to_json=lambda: "{}", results=())
DUMMIES = SimpleNamespace(services={}, slices={}, without_slice=[], strange=[])


def sweep(points: list[Any], *options: Any) -> tuple[Any, None]:
    """Note what would be swept, and each point's words for a virtual machine."""
    place = options[-1]
    own = [place.order(point) for point in points] if isinstance(place, Pool) else []
    DONE.append(f"sweep {describe(points)} {own} {describe([each for each in options if not isinstance(each, Pool)])}")
    return SimpleNamespace(results=[], series=(), saved=None), None


def gather(open_api: Callable[[], Any] | None, probe: bool = False, node: Node | None = None) -> Evidence:
    """Ask the API, and note what is asked for."""
    DONE.append(f"gather {open_api and open_api()} {probe} {node}")
    return Evidence()


ENTRIES: dict[str, Any] = {
    "system.kernel.check_root": None,
    "cli.host.check_root": None,
    "cli.host.node_lock.lock": nullcontext(SimpleNamespace(notes=())),
    "cli.host.clean_up": ["x"],
    "cli.host.find_leftovers": [],
    "cli.sweep.detect_clock": ("ns", False),
    "system.kernel.detect_clock": ("ns", False),
    "measure.plan.check_trusted": None,
    "measure.defaults.check_root": None,
    "measure.defaults.read_target": Target("10.96.0.10", 53, "udp", "prod/worker", ("53/UDP",), ("10.244.0.2:53",)),
    "measure.defaults.choose_source": "10.244.7.0/24",
    "measure.defaults.find_node_object": {"metadata": {"name": "here"}},
    "measure.defaults.find_hazards": [],
    "measure.defaults.detect_mode": (find_mode("iptables", "nft"), ()),
    "measure.defaults.find_source": lambda options, _: options,
    "cluster.api.connect": Api(),
    "cluster.nodes.find_nodes": lambda *_: [{"metadata": {"name": "n1"}}],
    "cluster.nodes.check_namespace": None,
    "cluster.nodes.run_jobs": [Outcome("n1", Envelope("1", 0, "{}", 0.0, {"x.log": "x"}))],
    "system.files.save_file": None,
    "cluster.job.make_name": "name",
    "node.node.find_node": lambda netns, container: Node(netns, container or "here"),
    "measure.run.measure": (RESULT, None),
    "sweep.sweep.sweep": sweep,
    "cli.sweep.show_sweep": None,
    "cli.reproduce.show_reproduction": None,
    "cli.demo.plot_clocks": None,
    "sweep.on_cluster.sweep_cluster": (SimpleNamespace(results=[], saved=None), None),
    "cli.sweep.Pool": Pool,
    "system.virtual_machine.Machine": Machine,
    "system.virtual_machine.boot": None,
    "measure.plan.require": None,
    "node.doctor.missing_to_trace": ["bpftrace"],
    "node.doctor.examine": [],
    "node.doctor.to_json": "{}",
    "measure.watch.watch": None,
    "cli.bill.check_root": None,
    "cli.bill.can_draw": True,
    "cli.bill.watch_bill": (make_bill(), None),
    "cli.bill.serve_bills": None,
    "measure.bill.plan_bill": None,
    "measure.bill.bill": (make_bill(), None),
    "cluster.service_names.read_names": {},
    "measure.plan.load_modules": None,
    "measure.plan.plan_script": lambda options: SimpleNamespace(kind="", options=describe(options)),
    "trace.script.render_script": "",
    "sweep.whatif.whatif": (WHATIF, None),
    "sweep.whatif.save": Path("saved.json"),
    "cli.whatif.show_whatif": None,
    "cli.sweep.confirm": None,
    "measure.expected.can_ask": True,
    "measure.expected.confirm": None,
    "console.confirm": None,
    "cli.mode.confirm": None,
    "lab.capture.capture": ("{}", SimpleNamespace(notes=(), mode=find_mode("ipvs", "ipvs"), services=())),
    "lab.capture.save": None,
    "analysis.compare.compare": (),
    "cli.compare.check_worse": False,
    "cli.compare.to_json": "{}",
    "report.plot.plot": None,
    "report.page.draw_charts": lambda parts: ([""] * len(parts), []),
    "cli.report.save_file": None,
    "cli.mode.gather": gather,
    "cli.mode.decide": FINDING,
    "cli.mode.plan_change": CHANGE,
    "cli.mode.needs_restart": True,
    "cli.mode.set_mode": None,
    "node.live_rules.read_live_rules": (),
    "cli.services.service_ports": set(),
    "cli.services.wait_for_rules": 1.0,
    "cli.services.read_dummies": DUMMIES,
    "cli.services.read_all_dummies": {"prod": DUMMIES},
    "cli.services.plan_creation": [1],
    "cli.services.create": None,
    "cli.services.delete": (0, 0),
    "cli.services.apply_worker": None,
    "cli.services.find_service": {"kind": "Service"},
    "cli.services.find_worker": ["Service"],
    "cli.services.delete_worker": 1,
}
"""What commands call -> what stands in for it, or what it returns; its arguments are noted."""


@pytest.fixture(autouse=True)
def entries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let commands do nothing but note what they would do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.monotonic", count().__next__)

    def note(name: str, answer: Any) -> Callable[..., Any]:
        def noted(*words: Any, **more: Any) -> Any:
            if name not in ("sweep.sweep.sweep", "cli.sweep.detect_clock", "system.kernel.detect_clock"):
                DONE.append(f"{name} {describe(words)} {describe(sorted(more.items()))}")
            return answer(*words, **more) if callable(answer) else answer

        return noted

    for name, answer in ENTRIES.items():
        monkeypatch.setattr(f"kproxylat.{name}", answer if isinstance(answer, type) else note(name, answer))


def run(capsys: Captured, *words: str) -> tuple[int, str, str]:
    """Run a command: its status, all that it did, and its stderr."""
    DONE.clear()
    status, out, err = call(capsys, *words)
    return status, "\n".join((*DONE, out)), err


def test_every_command_has_its_places() -> None:
    assert set(PLACES) == set(PARAMETERS)
    for command, places in REFUSED.items():
        names = set(map(name_of, PARAMETERS[command]))
        assert set(places) <= set(PLACES[command])
        assert set().union(*places.values()) <= names | API, command


README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("command", re.findall(r"`kproxylat ([^`]+)`", README))
def test_the_readmes_commands_are_accepted(capsys: Captured, tmp_path: Path, command: str) -> None:
    """Each does something, and refuses no option."""
    for name, source in {
        "before.json": COUNTED,
        "after.json": COUNTED,
        "sweep.json": COUNTED,
        "ruleset.json": RULES,
    }.items():
        (tmp_path / name).write_bytes(Path(source).read_bytes())
    words = [LOG if "*" in word else word for word in command.split()]
    status, done, err = run(capsys, *words)
    assert status == 0, err
    assert done


def test_the_readme_shows_what_is_printed(capsys: Captured) -> None:
    """A result as it is printed, line by line, and the announcement of a run on a node."""
    blocks = re.findall(r"^```\n(.+?)^```", README, re.M | re.S)
    [result] = [block for block in blocks if "commonest count" in block]
    printed = call(capsys, "parse", LOG)[1].splitlines()
    assert [line for line in result.splitlines() if line not in printed] == []
    [announced] = [block for block in blocks if block.startswith("This sends ")]
    place = NodeUnderTest(Node(None, "here"))
    service = Target("10.96.0.10", 50051, "udp", "shop/my-service", (), ("10.244.1.10:50051",))
    mode = find_mode("iptables", "nft")
    plan = Options(mode, service, where=place, sending=Sending(duration_s=5, rate_pps=1000))
    announce(plan, False)
    assert " ".join(capsys.readouterr().err.split()) == " ".join(announced.split())


ROWS = [
    pytest.param(command, place, parameter, id=f"{command}-{place}-{name_of(parameter)}")
    for command, places in PLACES.items()
    for place, base in places.items()
    for parameter in PARAMETERS[command]
    if not {*parameter.opts} & {*base} and not (parameter.param_type_name == "argument" and parameter.required)
    if (command, place, name_of(parameter)) not in IMPLIED
]


@pytest.mark.parametrize(("command", "place", "parameter"), ROWS)
def test_an_option_is_used_or_refused(capsys: Captured, command: str, place: str, parameter: Any) -> None:
    base, name = (*command.split(), *PLACES[command][place]), name_of(parameter)
    words = words_of(command, place, parameter)
    refused = name in REFUSED.get(command, {}).get(place, ())
    extra = () if refused else WITH.get(f"{command} {name}", WITH.get(name, ()))
    extra = (
        () if {*extra} & {*base} or not {*extra} & {each for one in PARAMETERS[command] for each in one.opts} else extra
    )
    status, done, err = run(capsys, *base, *extra, *words)
    if refused:
        assert (status, done) == (2, ""), err
        assert name in err or name.removeprefix("rule_") in err
        return
    assert status != 2, err
    assert "internal error" not in err
    without = [word for word in extra if name != "--ruleset"]
    assert done != run(capsys, *base, *without)[1], f"{name} has no effect, and is not refused"
