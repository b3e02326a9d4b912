"""``--vm``: the command line as it stands, inside a virtual machine."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kproxylat import interrupts
from kproxylat.errors import refuse_options
from kproxylat.screen import say

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kproxylat.modes import Mode


class Clock(StrEnum):
    """What a virtual machine's clock counts."""

    NS = "ns"
    INSTRUCTIONS = "instructions"


InVm = Annotated[bool, typer.Option("--vm", help="Inside a virtual machine; takes neither root nor KVM.")]
VmIfNeeded = Annotated[bool, typer.Option("--vm-if-needed", help="The same, but only if this machine cannot trace.")]
KernelImage = Annotated[Path | None, typer.Option("--kernel", help="Kernel image for --vm (the newest in /boot).")]
VmClock = Annotated[
    Clock | None, typer.Option("--clock", help="Of --vm (ns): instructions counts what is executed, exactly.")
]
ARGUMENTS: list[str] = []
"""Those of the command line under way, without the program's name."""
_VM_FLAGS = {"--vm": 0, "--vm-if-needed": 0, "--kernel": 1, "--clock": 1}


def check_vm(vm: bool, clock: Clock | None, kernel: Path | None) -> None:
    """Refuse the options of a virtual machine without one.

    :raises UsageError: one of them was passed.
    """
    if not vm:
        refuse_options("no virtual machine is asked for", "add --vm", clock=clock, kernel=kernel)


def wants_vm(vm: bool, if_needed: bool, modes: Iterable[Mode], probe: str) -> bool:
    """Whether a virtual machine is wanted: in any case, or where this machine cannot measure.

    :param modes: what is to be measured, by which kind of ``probe``.
    """
    if vm or not if_needed:
        return vm
    from kproxylat.doctor import missing_to_trace

    lacking = ", ".join(missing_to_trace(modes, probe))
    say(f"This machine lacks {lacking}: using a virtual machine." if lacking else "Using this machine's own kernel.")
    return bool(lacking)


def relay_if(
    vm: bool,
    if_needed: bool,
    output_dir: Path | None,
    clock: Clock,
    image: Path | None,
    modes: Iterable[Mode] = (),
    probe: str = "auto",
) -> None:
    """Where a virtual machine is wanted, run this very command line inside one, and end as it ends.

    :param modes: as of :func:`wants_vm`, and ``probe``.
    """
    if not wants_vm(vm, if_needed, modes, probe):
        return
    from kproxylat.files import make_directory
    from kproxylat.vm import Machine, boot

    words, inside = iter(ARGUMENTS), []
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in _VM_FLAGS:
            inside.append(word)
        elif _VM_FLAGS[name] and not equals:
            next(words)
    if output_dir:
        make_directory(output_dir)
    machine = Machine(clock, output_dir, image)
    with interrupts.deferred(), ExitStack() as stack:
        boot([machine], stack)
        status = machine.run(inside, sys.stdout, sys.stderr)
    sys.exit(status)
