"""Tables of first packets, as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple

from kproxylat.report.columns import draw_table, fill, write_figure
from kproxylat.results import FirstPacket


def draw_first_packet(times: FirstPacket, unit: str) -> Iterator[str]:
    """Yield the time from SYN to SYN-ACK with its bounds, of several Services one by one, too; the unit for heads."""
    names, clock_unit = list(times.probe.percentiles), times.probe.unit
    rows = [
        [kind, *(write_figure(getattr(times.probe.percentiles[name], side), clock_unit) for name in names)]
        for kind, side in (("first packet", "estimate"), ("  at least", "lo"), ("  at most", "hi"))
    ]
    header = ["", *("max" if name == "100" else f"p{name}" for name in names)]
    title = f"first packet of {times.probe.count:,} connections, {unit}"
    yield draw_table(title, header, rows, ("",))
    if times.places:
        rows = [
            [
                place.target,
                f"{place.before:,}",
                f"{place.count:,}",
                *(write_figure(figure, clock_unit) for figure in astuple(place.median)),
            ]
            for place in times.places
        ]
        header = ["Service", "before it", "connections", "p50", "at least", "at most"]
        yield draw_table("", header, rows, ("Service",))
    if times.lookup_share is not None:
        yield f"the lookup takes {times.lookup_share:.1%} of the median"
    text = (
        f"reading the clock adds {write_figure(times.clock, clock_unit)} to each; during {times.preempted:,} "
        f"connections the sender lost the CPU: left out; {times.refused:,} were refused, {times.unanswered:,} not "
        "answered"
    )
    yield fill(text, indent="")
