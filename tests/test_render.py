"""Templates to text: golden scripts in tests/scripts, errors that name the line, values that may not get in.

``KPROXYLAT_GOLDEN=write`` writes the golden scripts anew, to be reviewed as a diff.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from kproxylat.bpftrace import probe_words
from kproxylat.errors import KproxylatError, TemplateError, UsageError
from kproxylat.modes import MODES, Mode
from kproxylat.render import DIRECTORIES, SCRIPT, Flow, Plan, check_settings, render_rules, render_script

SCRIPTS = Path(__file__).parent / "scripts"
OFFSETS = {
    "nf_conn.tuplehash": 16,
    "xt_table.name": 56,
    "nft_chain.table": 64,
    "nft_chain.name": 88,
    "nft_table.name": 384,
}
FLOW = Flow(daddr=0x3264600A, port_protocol=0x001183C3, saddr=0x0080F40A, saddr_mask=0x0080FFFF)
"""10.96.100.50, port 50051, UDP, from 10.244.128.0/17, as a little-endian machine reads them."""
VERSIONS = {"0.17": (0, 17), "0.23": (0, 23)}
SHAPES: Mapping[str, tuple[Flow | None, int]] = {
    "flow": (FLOW, 0),
    "all": (None, 0),
    "flow-5s": (FLOW, 5),
    "5s": (None, 5),
}


def plan_of(mode: Mode, version: tuple[int, int], flow: Flow | None, interval_s: int) -> Plan:
    entry, leave, args = probe_words(version)
    wanted = {f"{name}.{member}" for _, name, member in mode.offsets} | ({"nf_conn.tuplehash"} if flow else set())
    return Plan(
        mode=mode.name,
        backend=mode.backend,
        engine=mode.engine,
        module=mode.module,
        entry=entry,
        exit=leave,
        skb=args + mode.skb,
        state=args + mode.state,
        priv=args + mode.priv,
        offsets={name: offset for name, offset in OFFSETS.items() if name in wanted},
        flow=flow,
        interval_s=interval_s,
    )


PLAN = plan_of(MODES[0], (0, 23), FLOW, 0)
CASES = [
    pytest.param(
        f"{mode.name}-{mode.backend}-{version}-{shape}.bt",
        mode,
        version,
        shape,
        id=f"{mode.name}-{mode.backend}-{version}-{shape}",
    )
    for mode in MODES
    for version in VERSIONS
    for shape in SHAPES
]


@pytest.mark.parametrize(("name", "mode", "version", "shape"), CASES)
def test_golden_scripts(name: str, mode: Mode, version: str, shape: str) -> None:
    script = render_script(plan_of(mode, VERSIONS[version], *SHAPES[shape]))
    if os.environ.get("KPROXYLAT_GOLDEN") == "write":
        SCRIPTS.mkdir(exist_ok=True)
        (SCRIPTS / name).write_text(script)
    assert script == (SCRIPTS / name).read_text()


def test_there_is_no_golden_script_too_many() -> None:
    assert {each.name for each in SCRIPTS.iterdir()} == {case.values[0] for case in CASES}


@pytest.mark.parametrize(("name", "mode", "version", "shape"), CASES)
def test_a_script_speaks_one_versions_words(name: str, mode: Mode, version: str, shape: str) -> None:
    script = render_script(plan_of(mode, VERSIONS[version], *SHAPES[shape]))
    ours, others = ("kfunc:", "fentry:") if version == "0.17" else ("fentry:", "kfunc:")
    assert f"{ours}{mode.module}:{mode.engine}\n" in script
    assert others not in script
    assert ("args->" in script) == (version == "0.17")
    assert ("args." in script) == (version == "0.23")
    assert script.count("{") == script.count("}"), name
    assert "{%" not in script
    assert ("$conn" in script) == (SHAPES[shape][0] is not None)
    assert ("interval:s:5" in script) == (SHAPES[shape][1] == 5)


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
    assert error.remedy.startswith("there are: threshold, plan.mode, plan.backend, ")
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
    assert "cannot be read" in str(error_of(path))


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


@pytest.mark.parametrize("name", ["", "plan", "a b", "a-b", "1a", "a;b", "a\nb", "$(id)", "a.b", '"'])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="not a name for a variable"):
        check_settings({name: "5"})


def test_rendering_checks_its_settings() -> None:
    with pytest.raises(UsageError):
        render_script(PLAN, None, {"each": "system(1);"})


def test_every_error_is_a_users(tmp_path: Path) -> None:
    for text in ("{% endblock %}", "{{ plan.offsets['x.y'] }}", '{% extends "nowhere" %}', "{{ [][0] }}", "{% for %}"):
        with pytest.raises(KproxylatError):
            render_script(PLAN, write(tmp_path / "t.j2", text))


@pytest.mark.parametrize("name", ["iptables", "nftables"])
def test_the_rules_templates_are_found(name: str) -> None:
    rules = render_rules(
        name, {"services": [], "cluster_cidr": "10.244.0.0/16", "service_cidr": "10.96.0.0/12", "node_ip": "10.99.0.2"}
    )
    assert "KUBE-SERVICES" in rules or "chain services" in rules


def test_every_mode_has_its_rules_template() -> None:
    found = {each.name for directory in DIRECTORIES for each in directory.glob("*.j2")}
    assert found >= {SCRIPT, *(f"rules-{mode.name}.j2" for mode in MODES)}
