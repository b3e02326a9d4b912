"""kube-proxy's metrics of its syncs."""

from __future__ import annotations

import math

from kproxylat.errors import MachineError
from kproxylat.node.live_rules import METRICS_PORT

_PREFIX = "kubeproxy_sync_proxy_rules_"


def read_sync_values(metrics: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the values by name (without ``kubeproxy_sync_proxy_rules_``) and labels.

    :param metrics: kube-proxy's answer to /metrics, in Prometheus' text format.
    :raises MachineError: the text has another format.
    """
    from prometheus_client.parser import text_string_to_metric_families

    try:
        samples = [sample for family in text_string_to_metric_families(metrics) for sample in family.samples]
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise MachineError(
            f"cannot read kube-proxy's /metrics: {reason}",
            f"check what answers on this node: curl http://localhost:{METRICS_PORT}/metrics",
        ) from None
    return {
        (sample.name.removeprefix(_PREFIX), frozenset(sample.labels.items())): sample.value
        for sample in samples
        if sample.name.startswith(_PREFIX)
    }


def count_nat_rules(metrics: str) -> int | None:
    """Return the number of rules that kube-proxy keeps in table nat, of both IP families; None if no metric says so.

    Sample: ``kubeproxy_sync_proxy_rules_iptables_total{ip_family="IPv4",table="nat"} 525``.

    :raises MachineError: as :func:`read_sync_values`.
    """
    counts = [
        value
        for (name, labels), value in read_sync_values(metrics).items()
        if name == "iptables_total" and ("table", "nat") in labels
    ]
    return int(sum(counts)) if counts and math.isfinite(sum(counts)) else None
