"""The words of a run: reading what words() writes gives the same options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxylat.cli import app
from kproxylat.cli.run import words
from kproxylat.lab.ruleset import read_ruleset
from kproxylat.measure.options import Lab, NodeUnderTest, Options, Record, Sending, Tracing
from kproxylat.measure.replay import plan_backends, plan_replay
from kproxylat.modes import MODES
from kproxylat.node.changes import ALLOWABLE
from kproxylat.node.node import Node
from kproxylat.results import Result, Run, Target
from kproxylat.traffic.generators import GENERATORS
from tests.support import ROOT
from tests.support.command import RULES

RUN = typer.main.get_command(app.build("run"))
RULESET = read_ruleset(Path(RULES))
NETWORKS = {4: ip_network("10.244.7.128/25"), 6: ip_network("fd00:10:244:7::/112")}
POSITIONS = st.sampled_from(["first", "middle", "last"])
VALUES = st.from_regex(r"[A-Za-z0-9_.:/@+-]{0,20}", fullmatch=True)
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True).map("x{}".format)


def parse(arguments: list[str]) -> Options:
    """Return what ``run`` measures when it gets these arguments, without the command line that it records."""
    measured: list[Options] = []

    def measure(options: Options, **_: object) -> tuple[Result, None]:
        measured.append(options)
        return Result(Run()), None

    with (
        patch("kproxylat.measure.run.measure", measure),
        patch("kproxylat.measure.plan.check_trusted"),
        patch("kproxylat.measure.defaults.check_root"),
        patch("kproxylat.node.node.find_node", lambda netns, _: Node(netns)),
    ):
        RUN.main(["run", "--format=json", *arguments], standalone_mode=False, obj=())
    [options] = measured
    return options


@st.composite
def everything_but_where(draw: Callable[[Any], Any]) -> dict[str, Any]:
    """Options that are possible in a lab and on a node."""
    generator = draw(st.sampled_from(list(GENERATORS.values())))
    family = draw(st.sampled_from(generator.families))
    origin = draw(st.sampled_from(["pod", "node"])) if generator.from_node else "pod"
    template = draw(st.sampled_from([None, ROOT / "templates/overhead.bt.j2"]))
    sending = Sending(
        generator=generator,
        duration_s=draw(st.floats(1, 10)),
        rate_pps=draw(st.integers(1, 1000)),
        warmup=draw(st.integers(0, 1000)),
        source=draw(st.sampled_from([None, NETWORKS[family]])),
        origin=origin,
    )
    overhead = generator.sends and origin == "pod" and not template and draw(st.booleans())
    tracing = Tracing(
        probe=draw(st.sampled_from(["auto", "fentry", "kprobe"])),
        envelope=draw(st.booleans()),
        overhead=overhead,
        # A run that measures what tracing adds takes the send time, too.
        send_time=overhead or (generator.sends and draw(st.booleans())),
        others=draw(st.booleans()),
        template=template,
        settings=draw(st.dictionaries(NAMES, VALUES, max_size=3)),
    )
    ip = "10.96.100.50" if family == 4 else "fd00:10:96::50"
    return {
        "mode": draw(st.sampled_from(MODES)),
        "target": Target(ip, 50051, draw(st.sampled_from(generator.protocols))),
        "sending": sending,
        "tracing": tracing,
        "record": Record(draw(st.sampled_from([Path("logs/ebpf"), Path("-odd name=1")]))),
    }


@pytest.mark.slow
@given(
    everything_but_where(),
    st.builds(
        Lab,
        st.integers(0, 5000),
        POSITIONS,
        st.sampled_from(["both", "udp", "tcp"]),
        keep=st.booleans(),
        endpoints=st.integers(1, 9),
        affinity=st.booleans(),
        node_port=st.booleans(),
    ),
)
def test_words_of_a_lab_are_read_as_the_same_options(rest: dict[str, Any], lab: Lab) -> None:
    options = Options(where=lab, **rest)
    assert parse(words(options)) == options


@settings(max_examples=20)
@given(st.integers(0, 12), st.integers(12, 5000), st.sampled_from(["auto", "none"]), st.sampled_from([4, 6]))
def test_words_of_first_packets_are_read_as_the_same_options(
    places: int, services: int, probe: str, family: int
) -> None:
    sending = Sending(GENERATORS["sockets"], 1.0, 100, connects=True)
    target = Target("10.96.100.50" if family == 4 else "fd00:10:96::50", 50051, "tcp")
    lab = Lab(services, places=places)
    options = Options(MODES[0], target, where=lab, sending=sending, tracing=Tracing(probe))
    assert len(options.targets) == places
    assert parse(words(options)) == options


@given(
    everything_but_where(),
    st.sampled_from([None, "/run/netns/node"]),
    st.none() | POSITIONS,
    st.lists(st.sampled_from(ALLOWABLE), unique=True).map(tuple),
    st.integers(1, 65535),
)
def test_words_of_a_node_are_read_as_the_same_options(
    rest: dict[str, Any], netns: str | None, position: str | None, allow: tuple[str, ...], port: int
) -> None:
    rest["target"] = replace(rest["target"], port=port)
    options = Options(where=NodeUnderTest(Node(netns), position, allow), **rest)
    assert parse(words(options)) == options


@pytest.mark.parametrize("protocol", ["", "udp", "tcp"])
def test_words_of_a_ruleset_name_its_file_and_its_services(protocol: str) -> None:
    base = Options(RULESET.mode, where=Lab())
    for options in plan_backends(base, RULESET, (), None, True, "", protocol):
        assert parse(words(options)) == options
    target = next(each for each in RULESET.targets if protocol in ("", each.protocol))
    options = plan_replay(base, RULESET, f"{target.ip}:{target.port}", False, "", protocol)
    assert parse(words(options)) == options
