"""What the command line leaves out is looked up: the target, kube-proxy's mode and backend, addresses to send from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from kproxylat.cluster.api import Api
from kproxylat.cluster.proxy_mode import detect_mode
from kproxylat.cluster.sources import choose_source, find_node_object
from kproxylat.cluster.target import find_hazards, miss_path, read_target
from kproxylat.console import say
from kproxylat.errors import MachineError
from kproxylat.measure.options import Options, add_warnings
from kproxylat.measure.plan import plan_bursts
from kproxylat.modes import only_backend
from kproxylat.node.network import Network
from kproxylat.results import Target
from kproxylat.system.kernel import check_root


def look_up(
    options: Options,
    mode: str | None,
    backend: str | None,
    target: str | None,
    service: tuple[str, str | None],
    family: int | None,
    open_api: Callable[[], Api],
) -> tuple[Options, Callable[[], Target] | None]:
    """Fill in what the command line leaves out: target and sources from the API, mode and backend from the node.

    :param mode: None: it is detected; ``backend``: likewise.
    :param target: None: it is looked up; else the API is not asked.
    :param service: its name and port. ``family``: which of its ClusterIPs (None: the first).
    :raises MachineError: they cannot be found, or are not clear.
    """
    check_root()
    read = None
    if not target:
        api = _open(open_api)
        read = partial(read_target, api, *service, options.target.protocol or "", family)
        found = read()
        options = replace(options, target=found)
        say(f"Service {found.service}: {found.ip}, ports {', '.join(found.ports)}; {len(found.endpoints)} endpoints")
        missing = miss_path(found)
        if missing:
            say(missing)
        hazards = find_hazards(api, found, _find_node_name(api, options))
        for hazard in hazards:
            say(f"warning: {hazard}")
        options = add_warnings(options, *hazards)
        options = find_source(options, api)
    if mode and (backend or only_backend(mode)):
        return options, read
    row, warnings = detect_mode(None if target else open_api, mode, backend, options.node)
    for each in warnings:
        say(f"warning: {each}")
    return add_warnings(replace(options, mode=row), *warnings), read


def _find_node_name(api: Api, options: Options) -> str:
    """Return the node's name in the cluster; its host name if the API does not tell."""
    try:
        return str(find_node_object(api, options.node, options.family)["metadata"]["name"])
    except MachineError:
        return options.node.name


def _open(open_api: Callable[[], Api]) -> Api:
    try:
        return open_api()
    except MachineError as error:
        error.remedy += "\n  or, without a cluster's API: --target IP:PORT --mode MODE"
        raise


def find_source(options: Options, api: Api) -> Options:
    """Choose the sources, if packets are to be sent and none were passed; without a free slice they are masqueraded."""
    if options.sending.source or not options.sending.generator.sends:
        return options
    bursts = plan_bursts(options, Network(None, None, None))
    needed = sum(each.addresses for each in bursts)
    try:
        source = choose_source(api, options.node, needed, options.family, options.target.endpoints)
    except MachineError as error:
        warning = f"packets come from {options.sources} and are masqueraded: {error}"
        say(f"warning: {warning}")
        return add_warnings(options, warning)
    say(f"Sources: {source}, a free part of the node's podCIDR")
    return replace(options, sending=replace(options.sending, source=source))
