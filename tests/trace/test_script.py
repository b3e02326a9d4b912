"""Rendering: golden scripts in tests/scripts, errors that name the line, values that a script must not contain.

``KPROXYLAT_GOLDEN=write`` writes the golden scripts again; review the diff.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kproxylat.errors import KproxylatError, MachineError, TemplateError, UsageError
from kproxylat.lab.rules import DEFAULT_RELEASE, RELEASES
from kproxylat.measure.overhead import INNER
from kproxylat.modes import MODES, Mode, find_mode
from kproxylat.templates import DIRECTORIES, render_rules
from kproxylat.trace.plan import Flow, Live, Plan
from kproxylat.trace.script import OVERHEAD_SCRIPT, SCRIPT, check_settings, render_script
from tests.support import ROOT, TESTS
from tests.support.plans import FLOW, KINDS, PLAN, plan_of

pytestmark = pytest.mark.slow

SCRIPTS = TESTS / "scripts"
FLOW6 = Flow((0xFD, 1, 2, 3), 0x001183C3, (0xFD, 4, 0, 0), (0xFFFFFFFF, 0xFFFFFFFF, 0, 0))
SHAPES: Mapping[str, tuple[Any, ...]] = {
    "flow": (FLOW, 0, False),
    "all": (None, 0, False),
    "flow-5s": (FLOW, 5, False),
    "5s": (None, 5, False),
    "envelope": (FLOW, 0, True),
    "sources": (Flow((), None, FLOW.saddr, FLOW.saddr_mask), 0, False),
    "live": (Flow((), None, (0,), (0,)), 0, False, 4026532008, True),
}


CASES = [
    pytest.param(
        f"{mode.name}-{mode.backend}-{version}-{shape}.bt",
        mode,
        version,
        shape,
        id=f"{mode.name}-{mode.backend}-{version}-{shape}",
    )
    for mode in MODES
    for version in KINDS
    for shape in SHAPES
]


@pytest.mark.parametrize(("name", "mode", "version", "shape"), CASES)
def test_golden_scripts(name: str, mode: Mode, version: str, shape: str) -> None:
    script = render_script(plan_of(mode, version, *SHAPES[shape]))
    if os.environ.get("KPROXYLAT_GOLDEN") == "write":
        SCRIPTS.mkdir(exist_ok=True)
        (SCRIPTS / name).write_text(script)
    assert script == (SCRIPTS / name).read_text()


def as_kprobes(script: str, mode: Mode) -> str:
    """Rewrite a script of fentry probes, which only kernels that allow them check, to kprobes with the same types."""
    types = {"skb": "(struct sk_buff *)", "state": "(struct nf_hook_state *)", "pkt": "(struct nft_pktinfo *)"}
    names = mode.engines[0].layout
    # A kernel without ip_vs lacks its bit; another one has the same type.
    script = script.replace("->ipvs_property", "->cloned")
    for name in ("skb", "state", *names):
        number = names.index(name) if name in names else ("skb", "state").index(name)
        script = re.sub(rf"args(?:->|\.){name}\b", f"({types.get(name, '(struct sk_buff *)')}arg{number})", script)
    return re.sub(r"^(?:kretfunc|kfunc|fexit|fentry|kretprobe):(?:\w+:)?", "kprobe:", script, flags=re.M).replace(
        "retval", "arg5"
    )


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("bpftrace"), reason="needs root and bpftrace")
@pytest.mark.parametrize("version", KINDS)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.name}-{mode.backend}")
def test_bpftrace_has_no_warning_of_a_script(mode: Mode, version: str, tmp_path: Path) -> None:
    """bpftrace checks the scripts without attaching them; that this kernel lacks a function is no concern here."""
    rows = [mode, mode.from_node()] if version != "kprobe" else [mode]
    for row in rows:
        for shape in SHAPES.values():
            script = as_kprobes(render_script(plan_of(row, version, *shape)), row)
            (tmp_path / "script.bt").write_text(script)
            done = subprocess.run(
                ["bpftrace", "-d", str(tmp_path / "script.bt")], check=False, capture_output=True, text=True
            )
            if "Unknown struct" in done.stderr or "Cannot resolve unknown type" in done.stderr:
                pytest.skip("this kernel has no types of the module")
            said = [line for line in done.stderr.splitlines() if "WARNING" in line and "not traceable" not in line]
            assert (done.returncode, said) == (0, []), done.stderr[-2000:]


@pytest.mark.parametrize("kind", ["fentry", "kprobe"])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.name}-{mode.backend}")
def test_bpftrace_0_27_finds_every_result_used(mode: Mode, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It warns of a delete whose result is discarded; older versions do not let a script use it."""
    monkeypatch.setitem(KINDS, "0.27", ((0, 27), kind))
    script = render_script(plan_of(mode, "0.27", *SHAPES["flow"]))
    assert "$_ = delete(@start[$key]);" in script
    assert not re.search(r"(?<!\$_ = )delete\(", script)


def test_there_is_no_golden_script_too_many() -> None:
    assert {each.name for each in SCRIPTS.iterdir()} == {case.values[0] for case in CASES}


@pytest.mark.parametrize(("name", "mode", "version", "shape"), CASES)
def test_a_script_speaks_one_versions_words(name: str, mode: Mode, version: str, shape: str) -> None:
    script = render_script(plan_of(mode, version, *SHAPES[shape]))
    words = {"0.17": "kfunc:", "0.23": "fentry:", "kprobe": "kprobe:"}
    scope = "" if version == "kprobe" else f"{mode.module}:"
    assert f"{words.pop(version)}{scope}{mode.engine}\n" in script
    assert not any(each in script for each in words.values() if each != "kprobe:")
    assert ("args->" in script) == (version == "0.17")
    assert ("args." in script) == (version == "0.23")
    assert ("arg0" in script or "arg1" in script) == (version == "kprobe")
    assert script.count("{") == script.count("}"), name
    assert "{%" not in script
    assert ("$conn" in script) == (SHAPES[shape][0] is not None)
    assert ("interval:s:5" in script) == (SHAPES[shape][1] == 5)


def test_an_ipv6_flow_is_matched_word_by_word() -> None:
    script = render_script(plan_of(MODES[0], "0.23", FLOW6, 0))
    assert ") == 0xfd00000000 && $conn->daddr1 == 1 && $conn->daddr2 == 2 && $conn->daddr3 == 3 && " in script
    assert "($conn->saddr1 & 4294967295) == 4" in script
    assert "saddr2 &" not in script


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.name}-{mode.backend}")
def test_the_overheads_scripts_differ_in_what_traces_the_engine_alone(mode: Mode, kind: str) -> None:
    plain, planned = (plan_of(mode, kind, FLOW, 0, envelope) for envelope in (False, True))
    none, empty, ours = (render_script(planned, None, {"inner": each}, OVERHEAD_SCRIPT) for each in INNER)
    around = none[none.index("nf_hook_slow\n{") :]
    assert around in empty
    assert around.count("{") == around.count("}")
    assert f":{mode.engine}\n" not in none
    pair = re.findall(rf"^\w+:\S*{mode.engine} \{{ \}}$", empty, re.M)
    assert len(pair) == 2
    head = f"{planned.entry}:{planned.scope}{mode.engine}\n"
    script = render_script(plain)
    probes = script[script.index(head) : script.index("END\n") if "END\n" in script else len(script)].strip()
    assert probes in ours, "the very script of a run"
    assert all(each.count("@stored[") == 1 for each in (none, empty, ours))


@pytest.mark.parametrize("kind", KINDS)
def test_one_namespace_alone(kind: str) -> None:
    """Before anything else is asked of a packet, in each entry; and the rest of the script is the same."""
    script = render_script(plan_of(MODES[1], kind, FLOW, 0, netns_inode=4026532008))
    assert "struct kpl_net { char head[144]; unsigned int inum; };\n" in script
    assert "struct kpl_place { char head[32]; struct kpl_net *net; };\n" in script
    entry = script[script.index("\t$skb = ") : script.index("\t/* The rules look up")]
    assert "if ($place->net->inum != 4026532008) {\n\t\treturn;\n\t}\n" in entry
    everywhere = render_script(plan_of(MODES[1], kind, FLOW, 0))
    added = [line for line in script.splitlines() if line not in everywhere.splitlines()]
    assert len(added) == 6, added


@pytest.mark.parametrize("kind", KINDS)
def test_scripts_for_other_sources_and_nodes_are_of_one_kind(kind: str) -> None:
    there = Flow(FLOW.daddr, FLOW.port_protocol, (0x00F0F40A,), (0xF0FFFFFF,))
    one, other = (
        plan_of(MODES[1], kind, each, 0, netns_inode=inode) for each, inode in ((FLOW, 4026532008), (there, 4026532999))
    )
    assert render_script(one) != render_script(other)
    assert render_script(one.anonymous) == render_script(other.anonymous)
    everywhere = Flow(FLOW.daddr, FLOW.port_protocol, (0,), (0,))
    for less in (replace(one, flow=everywhere), replace(one, netns_inode=0), replace(one, flow=None, stepping=False)):
        assert render_script(less.anonymous) != render_script(one.anonymous), "a comparison less costs less"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.name}-{mode.backend}")
def test_calls_of_others_are_counted_where_they_are_left(mode: Mode, kind: str) -> None:
    plain = plan_of(mode, kind, FLOW, 0)
    script = render_script(replace(plain, others=True, reasons={2: "NOT_SPECIFIED"}))
    left = "{\n\t\t@others = count();\n\t\treturn;\n\t}"
    assert script.count(left) == 2 * len(plain.functions)
    fields = "args." if kind == "0.23" else "args->"
    assert script.count(f"tracepoint:skb:kfree_skb\n{{\n\t@reasons[{fields}reason] = count();\n}}\n") == 1
    at = script.index("tracepoint")
    script = script[:at] + script[script.index("}\n\n", at) + 3 :]
    assert script.replace("\t\t@others = count();\n", "") == render_script(plain), "nothing else differs"


def test_two_functions_are_two_pairs_of_probes() -> None:
    both = replace(plan_of(find_mode("ipvs", None), "kprobe", FLOW, 0), functions=("one", "two"))
    words = re.findall(r"^(k\w*:\w+)$", render_script(both), re.M)
    assert words == ["kprobe:one", "kretprobe:one", "kprobe:two", "kretprobe:two"]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def error_of(template: Path, settings: Mapping[str, str] | None = None) -> TemplateError:
    with pytest.raises(TemplateError) as caught:
        render_script(PLAN, template, settings)
    return caught.value


def test_an_unknown_variable_is_named_with_its_line_and_what_there_is(tmp_path: Path) -> None:
    error = error_of(write(tmp_path / "mine.bt.j2", "// one\n// two\n{{ tresold }}\n"), {"threshold": "5"})
    assert str(error) == "template mine.bt.j2, line 3: 'tresold' is undefined"
    assert error.remedy.startswith("known variables: threshold, plan.mode, plan.backend, ")
    for name in Plan.__dataclass_fields__:
        assert f"plan.{name}" in error.remedy


def test_an_unknown_field_of_the_plan_is_named(tmp_path: Path) -> None:
    error = error_of(write(tmp_path / "mine.bt.j2", "// one\n{{ plan.engin }}\n"))
    assert "line 2: " in str(error)
    assert "engin" in str(error)


def test_a_syntax_error_has_its_line(tmp_path: Path) -> None:
    error = error_of(write(tmp_path / "mine.bt.j2", "// one\n{% if %}\n"))
    assert re.fullmatch(r"template \S*mine.bt.j2, line 2: .+", str(error))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("// one\n{{ 1 / 0 }}\n", "line 2: ZeroDivisionError: division by zero"),
        ("{{ plan.engine + 1 }}", "line 1: TypeError: "),
        ('{% include "nowhere.j2" %}', "nowhere.j2"),
    ],
)
def test_a_template_that_raises(tmp_path: Path, text: str, said: str) -> None:
    assert said in str(error_of(write(tmp_path / "mine.bt.j2", text)))


def test_a_template_that_raises_may_have_any_name(tmp_path: Path) -> None:
    assert ", line 2: ZeroDivisionError" in str(error_of(write(tmp_path / "mine.txt", "// one\n{{ 1 / 0 }}\n")))


def test_the_line_is_the_templates_own_where_a_block_of_ours_is_overridden(tmp_path: Path) -> None:
    text = '{% extends "trace-kubeproxy.bt.j2" %}\n{% block end %}\n{{ nothing }}\n{% endblock %}'
    assert "mine.bt.j2, line 3: " in str(error_of(write(tmp_path / "mine.bt.j2", text)))


def test_a_template_that_does_not_exist(tmp_path: Path) -> None:
    error = error_of(tmp_path / "nowhere.bt.j2")
    assert str(error) == f"template {tmp_path}/nowhere.bt.j2 not found"
    assert "--template" in error.remedy


def test_a_template_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.bt.j2"
    path.write_bytes(b"\xff\xfe\x00")
    error = error_of(path)
    assert str(error).startswith("cannot read template mine.bt.j2: ")
    assert error.remedy


def test_a_template_of_the_users_extends_ours(tmp_path: Path) -> None:
    template = write(
        tmp_path / "mine.bt.j2",
        '{% extends "trace-kubeproxy.bt.j2" %}\n'
        "{% block end %}END { clear(@seen); @limit = {{ limit }}; }\n{% endblock %}",
    )
    ours, theirs = render_script(PLAN), render_script(PLAN, template, {"limit": "100"})
    assert theirs.endswith("END { clear(@seen); @limit = 100; }\n")
    head = ours[: ours.index("END\n")]
    assert head in theirs
    assert "\nEND\n" not in theirs


def test_every_line_of_a_script_knows_its_template(tmp_path: Path) -> None:
    text = (
        '{% extends "trace-kubeproxy.bt.j2" %}\n\n{% block begin -%}\n// one\n{{ plan.engine }} two\n{% endblock %}\n'
    )
    script = render_script(PLAN, write(tmp_path / "mine.bt.j2", text))
    lines = script.split("\n")
    assert script.locate(lines.index("// one") + 1) == "template mine.bt.j2, line 4"
    assert script.locate(lines.index("ipt_do_table two") + 1) == "template mine.bt.j2, line 5"
    ours = (DIRECTORIES[1] / SCRIPT).read_text().split("\n")
    for line, (name, number) in zip(lines, script.origins, strict=True):
        if name == SCRIPT and line and "{{" not in ours[number - 1]:
            assert line in ours[number - 1]
    assert script.locate(len(lines) + 1) == f"script, line {len(lines) + 1}"


DOCS = (ROOT / "docs/templates.md").read_text()
EXAMPLES = dict(re.findall(r"^### (\S+)\n```\n(.*?)^```$", DOCS, re.M | re.S))


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_docs_examples_render_as_run_and_render_do(tmp_path: Path, name: str) -> None:
    for mode in MODES:
        script = render_script(plan_of(mode, "0.17", FLOW, 0), write(tmp_path / name, EXAMPLES[name]))
        assert script.count("{") == script.count("}")


def test_the_users_template_of_our_name_is_taken_from_their_directory(tmp_path: Path) -> None:
    assert render_script(PLAN, write(tmp_path / SCRIPT, "mine {{ plan.engine }}")) == "mine ipt_do_table"


@pytest.mark.parametrize("value", ["", "5", "10.96.0.10:50051", "a_b/c-d+e@f", "0xff", "x" * 200])
def test_harmless_values_get_in(tmp_path: Path, value: str) -> None:
    assert render_script(PLAN, write(tmp_path / "t.j2", "<{{ each }}>"), {"each": value}) == f"<{value}>"


@pytest.mark.parametrize(
    "value",
    [
        *('"', "'", "a b", "a\n", "\n", "a;b", "{", "}", "$(id)", "`id`", "$x", "*/", "a\\b", "x" * 201, "{{ plan }}"),
        *("a,b", "a(b)", "a=b", "<", "|", "&", "#", "é", "٣", "\0", "5\r"),
    ],
)
def test_other_values_are_refused(value: str) -> None:
    with pytest.raises(UsageError, match="--set each: a value takes letters") as caught:
        check_settings({"each": value})
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["", "plan", "a b", "a-b", "1a", "a;b", "a\nb", "$(id)", "a.b", '"'])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="invalid name of a variable"):
        check_settings({name: "5"})


def test_rendering_checks_its_settings() -> None:
    with pytest.raises(UsageError):
        render_script(PLAN, None, {"each": "system(1);"})


def test_every_error_is_a_users(tmp_path: Path) -> None:
    for text in ("{% endblock %}", "{{ plan.offsets['x.y'] }}", '{% extends "nowhere" %}', "{{ [][0] }}", "{% for %}"):
        with pytest.raises(KproxylatError) as caught:
            render_script(PLAN, write(tmp_path / "t.j2", text))
        assert caught.value.remedy


@pytest.mark.parametrize("name", ["iptables", "nftables"])
def test_the_rules_templates_are_found(name: str) -> None:
    cluster = {"cluster_cidr": "10.244.0.0/16", "service_cidr": "10.96.0.0/12", "node_ip": "10.99.0.2"}
    rules = render_rules(
        name,
        {
            "services": [],
            "added": [],
            "again": [],
            "cluster": cluster,
            "family": 4,
            "ip": "ip",
            "bits": 32,
            "more": False,
            "append": False,
            "release": RELEASES[DEFAULT_RELEASE],
        },
    )
    assert "KUBE-SERVICES" in rules or "chain services" in rules


def test_every_mode_has_its_rules_template() -> None:
    found = {each.name for directory in DIRECTORIES for each in directory.glob("*.j2")}
    steps = [step for mode in MODES for step in (*mode.loading, *mode.growing)]
    assert found >= {SCRIPT, *(f"rules-{step.template}.j2" for step in steps if step.template)}


def test_ipvs_lookup_of_the_nodes_own_packets_holds_a_call_at_the_same_hook() -> None:
    own = find_mode("ipvs", None).from_node()
    assert "@start[$key + 8] = (uint64)1;" in render_script(plan_of(own, "0.17", FLOW, 0))
    for mode in (find_mode("ipvs", None), find_mode("nftables", None).from_node()):
        assert "+ 8" not in render_script(plan_of(mode, "0.17", FLOW, 0))
    with pytest.raises(MachineError, match="the call within it"):
        plan_of(own, "kprobe", FLOW, 0)


@pytest.mark.parametrize("shift", [1, 3, 6])
@pytest.mark.parametrize("service", range(1, 6))
def test_the_hash_picks_one_flow_in_so_many_of_each_service(shift: int, service: int) -> None:
    """Ports and addresses that step, as clients choose them, in the words of the script."""
    live = Live.of(MODES[1], 1000, 0.1, shift)
    script = render_script(replace(plan_of(MODES[1], "0.17", *SHAPES["live"]), live=live))
    [(factor, places)] = re.findall(r"\+ \$conn->saddr0\) \* (\w+)\) >> (\d+)\) != 0", script)

    def is_picked(sport: int, client: int) -> bool:
        ends = int.from_bytes(struct.pack(">H2sBBBB", sport, b"\2\0", 10, 96, 0, service), "little")
        saddr0 = int.from_bytes(bytes((10, 244, client // 256, client % 256)), "little")
        return ((ends + saddr0) * int(factor, 16) % 2**64) >> int(places) == 0

    by_port = [is_picked(sport, 7) for sport in range(32768, 61000, 2)]
    by_client = [is_picked(40000, client) for client in range(10000)]
    for picked in (by_port, by_client):
        assert sum(picked) / len(picked) * 2**shift == pytest.approx(1, abs=0.15)
