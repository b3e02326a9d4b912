"""The record: the last line of our own run logs, which holds as JSON what bpftrace's text lacks."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace

from kproxylat.logs.legacy import RunText, read_header
from kproxylat.modes import MODES, Mode
from kproxylat.results import SCHEMA, Result
from kproxylat.results_json import from_json
from kproxylat.trace.percentiles import add_to_maps
from kproxylat.trace.probes import build_path, build_probes, split_maps

MARK = "kproxylat record: "
TIMES_MARK = "times by the sender's clock: "
"""Begins the line of what the sender printed."""
OVERHEAD_MARK = "overhead, "
"""Begins each line of what bpftrace printed while it was measured what tracing adds."""
SIGN = re.compile(r"kproxylat( record)?: ")
_FACTS = re.compile(r"kproxylat: (\S+), (\w+)/(\w+), (\w+)(, from node)?")


def render_facts(mode: Mode, version: str, clock: str) -> str:
    """Render the text after ``kproxylat: `` of the header's line ``VERSION, MODE/BACKEND, CLOCK[, from node]``.

    :param mode: the mode and the origin of the packets.
    :param version: kproxylat's version.
    :param clock: ns or instructions.
    """
    return f"{version}, {mode.name}/{mode.backend}, {clock}{', from node' if mode.origin == 'node' else ''}"


def render_record(result: Result) -> str:
    """Render the record of a result, a line with its end. The log's text holds the probes and maps."""
    data = {name: value for name, value in asdict(result).items() if name not in ("probes", "maps", "path", "source")}
    return f"{MARK}{json.dumps({'schema': SCHEMA, **data})}\n"


def build_recorded(text: RunText) -> Result:
    """Build the result of one of our own logs: figures from the maps, the rest from the record if there is one.

    :return: the result; without a record, it was cut short.
    """
    result = read_header(text)
    facts = next(filter(None, map(_FACTS.match, text.marks["kproxylat"])), None)
    for line in text.marks["kproxylat"]:
        if line.startswith(MARK):
            try:
                result = from_json(line.removeprefix(MARK))
            except ValueError as error:
                text.warnings.append(f"the run's record cannot be read: {error}"[:200])
    mode = facts and next((row for row in MODES if (row.name, row.backend) == (facts[2], facts[3])), None)
    if not facts or not mode:
        text.warnings.append("the header does not say which mode, backend and clock it was")
        return replace(result, maps=add_to_maps(text.maps))
    mode = mode.from_node() if facts[5] else mode
    if result.run.kproxylat is None:
        run = replace(result.run, kproxylat=facts[1], mode=mode.name, backend=mode.backend, origin=mode.origin)
        result = replace(result, run=replace(run, clock=facts[4], cut_short=True))
    own, users_maps = split_maps(text.maps)
    probes = build_probes(own, mode, facts[4])
    users_maps = {name: content for name, content in users_maps.items() if not _is_of_report(name)}
    return replace(
        result,
        probes=probes,
        path=build_path(probes, facts[4]),
        maps=add_to_maps(users_maps),
        intervals=text.intervals or result.intervals,
    )


def _is_of_report(name: str) -> bool:
    """Return whether a map is one that the final report prints."""
    prefix, _, unit = name.partition("_latency_")
    return unit in ("us", "instructions", "linear") and prefix in {row.report[1] for row in MODES}
