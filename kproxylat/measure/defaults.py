"""What the command line leaves out is looked up: the target, kube-proxy's mode and backend, addresses to send from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from kproxylat.cluster.api import Api
from kproxylat.cluster.kubeconfig import Object
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
        options = _set_target(options, read())
        hazards = find_hazards(api, options.target, _find_node_name(api, options))
        for hazard in hazards:
            say(f"warning: {hazard}")
        options = add_warnings(options, *hazards)
        options = find_source(options, api)
    if mode and (backend or only_backend(mode)):
        return options, read
    row, warnings = detect_mode(None if target else open_api, mode, backend, options.node)
    for warning in warnings:
        say(f"warning: {warning}")
    return add_warnings(replace(options, mode=row), *warnings), read


def _set_target(options: Options, target: Target) -> Options:
    """Return the options with a target that was looked up, and say what it is."""
    say(f"Service {target.service}: {target.ip}, ports {', '.join(target.ports)}; {len(target.endpoints)} endpoints")
    if missing := miss_path(target):
        say(missing)
    return replace(options, target=target)


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
    try:
        source = choose_source(api, options.node, *_describe_need(options))
    except MachineError as error:
        warning = f"packets come from {options.sources} and are masqueraded: {error}"
        say(f"warning: {warning}")
        return add_warnings(options, warning)
    say(f"Sources: {source}, a free part of the node's podCIDR")
    return replace(options, sending=replace(options.sending, source=source))


def _describe_need(options: Options) -> tuple[int, int, tuple[str, ...]]:
    """Return how many addresses a run sends from, their family, and the endpoints that are none of them."""
    needed = sum(burst.addresses for burst in plan_bursts(options, Network(None, None, None)))
    return needed, options.family, options.target.endpoints


def look_up_target(
    options: Options, api: Api, service: tuple[str, str | None], family: int | None
) -> tuple[Options, list[str]]:
    """Look up the target for a run in a pod, which cannot ask the API.

    :return: the options with the target, and the words of the pod's command line that name it.
    :raises MachineError: as :func:`kproxylat.cluster.target.read_target`.
    """
    options = _set_target(options, read_target(api, *service, options.target.protocol or "", family))
    return options, [f"--target={options.target.address}", f"--protocol={options.target.protocol}"]


def look_up_source(options: Options, api: Api, node: Object) -> list[str]:
    """Look up what depends on the node for a run in a pod on it.

    :param options: with the target's Service. ``node``: its Node object.
    :return: the words of the pod's command line that name the sources; none if packets are masqueraded.
    """
    name = node["metadata"]["name"]
    if options.target.service:
        for hazard in find_hazards(api, options.target, name):
            say(f"{name}: warning: {hazard}")
    if options.sending.source or not options.sending.generator.sends:
        return []
    try:
        return [f"--source={choose_source(api, None, *_describe_need(options), node)}"]
    except MachineError as error:
        say(f"{name}: warning: packets are masqueraded: {error}")
        return []
