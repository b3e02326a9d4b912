"""``--node``, ``-l`` and ``--all-nodes``: the same command line, in a pod on each of these nodes of a cluster."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from kproxylat.cli.options import LOGS, Format, number
from kproxylat.cli.places import Cluster, Namespaced, OnNode, Place
from kproxylat.console import plain_line, say, show
from kproxylat.errors import BOOKS_OPEN, MachineError, UsageError, refuse_options
from kproxylat.system import interrupts

if TYPE_CHECKING:
    from kproxylat.cluster.api import Api
    from kproxylat.cluster.kubeconfig import Object
    from kproxylat.cluster.nodes import Outcome
    from kproxylat.measure.options import Options

PARALLEL = 5
"""Nodes at a time, unless the user names another number."""
LoadModules = Annotated[bool, typer.Option("--load-modules", help="Let the pods of --node load kernel modules.")]


@dataclass(frozen=True)
class Nodes:
    """Which nodes, and how their pods run."""

    node: Annotated[
        list[str] | None,
        typer.Option("--node", metavar="NAME", help="In a pod on this node of the cluster; repeatable."),
    ] = None
    selector: Annotated[
        str | None, typer.Option("--selector", "-l", help="In pods on the nodes with these labels.")
    ] = None
    all_nodes: Annotated[bool, typer.Option("--all-nodes", help="In pods on all nodes.")] = False
    parallel: Annotated[
        int | None, typer.Option("--parallel", metavar="N", help=f"Nodes at a time ({PARALLEL}).", show_default=False)
    ] = None
    job_namespace: Annotated[str | None, typer.Option("--job-namespace", help="Namespace of the Jobs (kproxylat).")] = (
        None
    )
    image: Annotated[str | None, typer.Option("--image", help="Image of the pods (kproxylat:VERSION).")] = None

    def asked(self, load_modules: bool = False) -> bool:
        """Return whether the command runs in pods.

        :param load_modules: ``--load-modules``, of commands that have it.
        :raises UsageError: two ways to name the nodes, or an option that has no effect here.
        """
        if len(self.ways) > 1:
            raise UsageError(f"{' and '.join(self.ways)} exclude each other", "pass one of them")
        if not self.ways:
            refuse_options(
                "nothing runs in pods", "add --node", parallel=self.parallel, job_namespace=self.job_namespace,
                image=self.image, load_modules=load_modules,
            )  # fmt: skip
        if self.parallel is not None and not 1 <= self.parallel <= 100:
            raise UsageError(f"--parallel {self.parallel} is out of range", "it takes 1 to 100")
        return bool(self.ways)

    @property
    def ways(self) -> list[str]:
        """The options that name the nodes."""
        ways = {"--node": self.node, "--selector": self.selector, "--all-nodes": self.all_nodes}
        return [name for name, value in ways.items() if value]

    def refuse(
        self, place: Place | None = None, dry_run: bool = False, output_dir: Path = LOGS, **local: object
    ) -> None:
        """Refuse options that concern this machine.

        :param dry_run: nothing runs, so that ``output_dir`` has no effect, either.
        :param local: further options, as in :func:`kproxylat.errors.refuse_options`.
        :raises UsageError: one of them was passed.
        """
        if place:
            local |= {"netns": place.netns, "node_container": place.node_container}
        local["output_dir"] = dry_run and output_dir != LOGS
        refuse_options("a pod on the node does the work", f"leave out {self.ways[0]}", **local)


@dataclass(frozen=True)
class Remote(Nodes, Cluster):
    """The same for a command that asks no cluster by itself."""

    def asked(self, load_modules: bool = False) -> bool:
        """Return whether the command runs in pods.

        :raises UsageError: as in :class:`Nodes`; also an option of the cluster without pods.
        """
        asked = super().asked(load_modules)
        if not asked:
            refuse_options("no cluster is asked", "add --node", **self.api_options)
        return asked


@dataclass(frozen=True)
class Errand:
    """A command for pods.

    :param command: a key of :data:`kproxylat.cluster.job.COMMANDS`.
    :param words: its words for every node. ``own``: returns further words for a Node object.
    :param expected_s: how long it takes. ``finish``: completes the outcome of each node.
    """

    command: str
    words: Sequence[str]
    expected_s: float = 60
    own: Callable[[Object], Iterable[str]] = lambda _: ()
    finish: Callable[[Outcome], Outcome] = lambda outcome: outcome


CLIENTS = {field.name for kind in (Nodes, Namespaced) for field in fields(kind)}
CLIENTS |= {"dry_run", "output_dir", "output", "load_modules"}
"""Parameters that the client alone uses."""


def list_words(ctx: typer.Context, *without: str) -> list[str]:
    """Return the words of a command line that were passed, without those that the client alone uses.

    :param without: further parameters to leave out.
    """
    words = ctx.command_path.removeprefix(ctx.find_root().command_path).split()
    for parameter in ctx.command.params:
        name = str(parameter.name)
        source = ctx.get_parameter_source(name)
        if name in CLIENTS or name in without or source is None or source.name != "COMMANDLINE":
            continue
        value, option = ctx.params[name], max(parameter.opts, key=len)
        if parameter.param_type_name == "argument":
            words.append(_write(value))
        elif value is True:
            words.append(option)
        elif value is not False:
            words += [f"{option}={_write(one)}" for one in (value if isinstance(value, list | tuple) else [value])]
    return words


def _write(value: object) -> str:
    return value.value if isinstance(value, StrEnum) else str(value)


def plan_run(ctx: typer.Context, plan: Options, node: OnNode, asks: bool, api: Api) -> Errand:
    """Return a run for pods: the client looks up target and sources, and the pod its node's mode.

    :param ctx: of command run. ``plan``: the run, without what only the API knows. ``node``: names the Service.
    :param asks: ask a person for permission.
    :raises DeclinedError: the answer is not yes.
    """
    from kproxylat.cluster.job import OUTPUT
    from kproxylat.measure.defaults import look_up_source, look_up_target
    from kproxylat.measure.expected import announce, expect_s

    words = list_words(ctx, "form", "yes", *(() if plan.lab else ("service", "port", "family")))
    words += [*([] if plan.lab else ["--yes"]), "--format=json", f"--output-dir={OUTPUT}"]
    if ctx.params["target"] is None and not plan.lab:
        plan, target = look_up_target(plan, api, node.asked, number(ctx.params["family"]))
        words += target
    if plan.sending.generator.sends and not plan.lab:
        announce(plan, asks)
    bursts = 5 if plan.tracing.overhead or plan.tracing.send_time else 1
    expected_s = plan.sending.duration_s * bursts + expect_s(plan, False) + 60
    return Errand("run", words, expected_s, lambda document: [] if plan.lab else look_up_source(plan, api, document))


def plan_sweep(ctx: typer.Context, points: Sequence[Options], repeats: int, form: str) -> Errand:
    """Return a sweep of the lab for pods, whose result is a table or JSON, as ``form`` says."""
    from kproxylat.cluster.job import OUTPUT
    from kproxylat.measure.expected import expect_s

    words = [*list_words(ctx, "form"), f"--format={form}", f"--output-dir={OUTPUT}"]
    return Errand("sweep", words, 2 * repeats * sum(expect_s(point, False) for point in points) + 60)


def plan_trace(ctx: typer.Context, duration: float | None) -> Callable[[Api], Errand]:
    """Return what plans a trace for pods, which needs nothing of the API.

    :raises UsageError: it would not end.
    """
    from kproxylat.cluster.job import OUTPUT

    if duration is None:
        raise UsageError("with --node, --selector or --all-nodes, trace takes a duration", "add --duration SECONDS")
    errand = Errand("trace", [*list_words(ctx, "form"), f"--output-dir={OUTPUT}"], duration + 60)
    return lambda _: errand


def run_on_nodes(
    nodes: Nodes,
    cluster: Cluster,
    plan: Callable[[Api], Errand],
    form: str = Format.TABLE,
    dry_run: bool = False,
    output_dir: Path | None = None,
    load_modules: bool = False,
) -> NoReturn:
    """Run a command in pods, print the outcome of each node, and exit: 0 if all succeeded; 4 if only books are open; 1.

    :param plan: returns the command, with what only the API knows.
    :param form: "table" or "json"; ``dry_run``: print the Jobs and create none.
    :param output_dir: where to save the pods' files, in a directory for each node (None: they are left out).
    :param load_modules: the pods may load kernel modules.
    :raises KproxylatError: nothing could be started. An error of one node is part of the output.
    """
    from kproxylat.cluster import job as jobs
    from kproxylat.cluster.nodes import Outcome, check_namespace, find_fault, find_nodes, run_jobs

    if dry_run:
        refuse_options("--dry-run starts nothing", parallel=nodes.parallel)
    api = cluster.connect()
    listed = find_nodes(api, nodes.node or [], nodes.selector or "")
    objects = {document["metadata"]["name"]: document for document in listed}
    errand = plan(api)
    with interrupts.deferred():
        namespace, image = nodes.job_namespace or jobs.NAMESPACE, nodes.image or jobs.IMAGE
        faults = {name: fault for name, document in objects.items() if (fault := find_fault(document))}
        planned = {
            name: jobs.make_job(
                errand.command,
                name,
                [*errand.words, *errand.own(document)],
                namespace,
                image,
                errand.expected_s,
                load_modules,
            )
            for name, document in objects.items()
            if dry_run or name not in faults
        }
        if dry_run:
            _show_jobs(planned.values(), form)
            sys.exit(0)
        check_namespace(api, namespace)
        outcomes = [Outcome(name, error=fault) for name, fault in faults.items()]
        for outcome in run_jobs(api, planned, nodes.parallel or PARALLEL):
            outcomes.append(errand.finish(outcome))
            if output_dir:
                _save(outcome, output_dir)
    _show(errand.command, outcomes, form)
    statuses = {outcome.status for outcome in outcomes} - {0}
    sys.exit(BOOKS_OPEN if statuses == {BOOKS_OPEN} else int(bool(statuses)))


def _show_jobs(jobs: Iterable[Object], form: str) -> None:
    if form == Format.JSON:
        show(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(jobs)}, indent=2))
        return
    import yaml

    show(yaml.safe_dump_all(jobs, sort_keys=False), end="")


def _save(outcome: Outcome, output_dir: Path) -> None:
    """Save a pod's files below a directory named after its node; an error spoils no other node."""
    from kproxylat.system.files import make_directory, save_file

    for name, text in outcome.envelope.files.items() if outcome.envelope else ():
        path = output_dir / outcome.node / name
        try:
            make_directory(path.parent)
            save_file(path, text)
            say(f"{outcome.node}: saved {path}")
        except MachineError as error:
            say(f"{outcome.node}: not saved: {error}")


def _show(command: str, outcomes: list[Outcome], form: str) -> None:
    from kproxylat.report import nodes as report

    results = report.read_results(outcomes) if command == "run" else {}
    order: Mapping[str, int] = {name: place for place, name in enumerate(results)}
    outcomes.sort(key=lambda outcome: (order.get(outcome.node, len(order)), outcome.node))
    if form == Format.JSON:
        show(report.to_json(command, outcomes, results))
    elif results:
        show(report.draw_runs(results))
    else:
        for outcome in outcomes:
            if outcome.envelope and outcome.envelope.stdout:
                show(f"== node {outcome.node}\n{outcome.envelope.stdout}", end="")
    for outcome in outcomes:
        if outcome.status:
            say(f"kproxylat: node {outcome.node}: {plain_line(outcome.error)}")
            if outcome.remedy:
                say(f"  {outcome.remedy}")
