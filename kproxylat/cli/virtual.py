"""``--vm``: the same command line, inside a virtual machine."""

from __future__ import annotations

import io
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from kproxylat.console import say, show, waiting
from kproxylat.errors import refuse_options
from kproxylat.system import interrupts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kproxylat.modes import Mode


Clock = StrEnum("Clock", ["NS", "INSTRUCTIONS"])
"""The unit of a virtual machine's clock."""


Vm = Annotated[bool, typer.Option("--vm", help="Run in a virtual machine; needs neither root nor KVM.")]
KernelImage = Annotated[Path | None, typer.Option("--kernel", help="Kernel image for --vm (the newest installed).")]
RUN_S = 45
"""About how long an emulated machine takes for a short run."""
_VM_FLAGS = {"--output": 1, "--vm": 0, "--vm-if-needed": 0, "--kernel": 1, "--clock": 1}


@dataclass(frozen=True)
class InVm:
    """Whether a command runs in a virtual machine, and in which."""

    vm: Vm = False
    vm_if_needed: Annotated[
        bool, typer.Option("--vm-if-needed", help="Run in one only if this machine cannot trace.")
    ] = False
    kernel: KernelImage = None
    clock: Annotated[
        Clock | None, typer.Option("--clock", help="Clock of --vm (ns); instructions counts them exactly.")
    ] = None
    usual: ClassVar[Clock] = Clock.NS

    @property
    def asked(self) -> bool:
        """Whether a virtual machine may be used."""
        return self.vm or self.vm_if_needed

    @property
    def its_clock(self) -> Clock:
        """The clock of the virtual machine."""
        return self.clock or self.usual

    def check(self) -> None:
        """Refuse the options of a virtual machine without one.

        :raises UsageError: one of them was passed.
        """
        if not self.asked:
            refuse_options("no virtual machine is asked for", "add --vm", clock=self.clock, kernel=self.kernel)

    def describe(self) -> dict[str, str] | None:
        """Describe the virtual machine that a command would use; None without one."""
        if not self.asked:
            return None
        return {"is used": "always" if self.vm else "if this machine cannot trace", "clock": self.its_clock,
                "kernel": str(self.kernel or "the newest installed")}  # fmt: skip

    def is_used(self, modes: Iterable[Mode], probe: str) -> bool:
        """Return whether to use a virtual machine: always, or if this machine cannot measure.

        :param modes: the modes to measure, by this kind of ``probe``.
        """
        if self.vm or not self.vm_if_needed:
            return self.vm
        from kproxylat.node.doctor import missing_to_trace

        lacking = ", ".join(missing_to_trace(modes, probe))
        say(
            f"This machine lacks {lacking}: using a virtual machine." if lacking else "Using this machine's own kernel."
        )
        return bool(lacking)

    def relay_if(
        self, arguments: Iterable[str], output_dir: Path | None, modes: Iterable[Mode] = (), probe: str = "auto"
    ) -> None:
        """Run this command line in a virtual machine, if one is to be used, and exit with its status.

        :param arguments: the command line, without the program's name.
        :param output_dir: the directory that the command may write to (None: it writes nothing).
        :param modes: as in :meth:`is_used`; so is ``probe``.
        """
        if not self.is_used(modes, probe):
            return
        from kproxylat.report import columns
        from kproxylat.system.files import make_directory
        from kproxylat.system.virtual_machine import Machine, boot

        words, inside = iter(arguments), []
        for word in words:
            name, equals, _ = word.partition("=")
            if name not in _VM_FLAGS:
                inside.append(word)
            elif _VM_FLAGS[name] and not equals:
                next(words)
        if output_dir:
            make_directory(output_dir)
        machine = Machine(self.its_clock, output_dir, self.kernel)
        machine.columns = columns.width()
        out = io.StringIO()
        try:
            with interrupts.deferred(), ExitStack() as stack:
                boot([machine], stack)
                # The bar moves what is printed on stderr above itself; the result follows it.
                with waiting("the command in the virtual machine", RUN_S):
                    status = machine.run(inside, out, sys.stderr)
        finally:
            show(out.getvalue(), end="", flush=True, style=columns.paint)
        sys.exit(status)
