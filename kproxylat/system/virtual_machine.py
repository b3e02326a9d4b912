"""A virtual machine with the kernel of a distribution and the root file system of this machine.

virtme-ng boots the kernel under QEMU without root: with KVM where it works, else emulated (TCG). The guest reads the
files of the host over 9p, and can write to the output directory only. :mod:`kproxylat.system.launch` starts QEMU.

On the instruction clock (QEMU ``-icount shift=0``) the guest's clock advances by 1 ns per executed instruction, so
that a difference of ``nsecs`` counts instructions. ``sleep=on`` keeps that clock behind the real one while the guest
waits for the host's disk; with ``sleep=off`` every time limit in the guest would expire at once.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Self

from kproxylat.console import say, show, waiting
from kproxylat.errors import MachineError, UsageError
from kproxylat.system import interrupts, launch
from kproxylat.system.files import hold_directory
from kproxylat.system.processes import Background, find
from kproxylat.system.trust import find_caller

BOOT_LIMIT_S = 300
BOOT_S = 45
"""Duration of a boot under emulation, measured on 2 cores."""
POLL_S = 0.2
"""How often a thread that waits for the guest checks for a signal, and for the end of the guest."""
SHARE = "kproxylat"
NAME = "kproxylat-"
"""Begin of a machine's name; the process id of its kproxylat follows."""
PROCESSES = Path("/proc")
_GUEST = """\
mkdir -p /run/host &&
mount -t 9p -o ro,version=9p2000.L,trans=virtio,cache=loose,msize=512000 {share} /run/host &&
for name in proc sys dev; do mount --rbind /$name /run/host/$name; done &&
mount --bind /run /run/host/run && {writable}
{{ cp /etc/protocols /run/protocols && mount --bind /run/protocols /run/host/etc/protocols; true; }} &&
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/run PYTHONPATH={package} {sudo} &&
exec chroot /run/host {python} -m kproxylat.guest
"""
"""The script of the guest's shell. virtme-ng mounts the root file system without a cache: each page of a program is
then read from the host, and bpftrace takes 15 s to start. With a cached mount of the same files it takes 1 s. Opening
a file asks the host, and ipset opens /etc/protocols for each element that names a protocol (getprotobyname(3))."""
PYTHON, PACKAGE = "/usr/bin/python3", "/opt/kproxylat"
"""Paths in another root file system: Python, and a directory with kproxylat and the packages that it needs."""
APT_KERNEL = "apt-get install linux-image-amd64"


def check_host() -> None:
    """Raise MachineError unless this is an x86-64, whose QEMU, processor model and system calls ``--vm`` uses."""
    if platform.machine() != "x86_64":
        raise MachineError(f"--vm needs an x86-64 machine; this one is {platform.machine()}", "omit --vm")


def find_runner() -> str:
    """Return the path of virtme-run: beside this Python, or in PATH.

    :raises MachineError: it is not installed, or a program that it runs is not.
    """
    program = Path(sys.executable).parent / "virtme-run"
    found = find("qemu-system-x86_64", "file", "busybox", *(() if program.exists() else ["virtme-run"]))
    return str(program) if program.exists() else found


def find_release(image: Path) -> str:
    """Return the release of a kernel image by its path: boot/vmlinuz-RELEASE or lib/modules/RELEASE/vmlinuz."""
    return image.parent.name if image.name == "vmlinuz" else image.name.removeprefix("vmlinuz-")


def find_kernel(image: Path | None, root: Path | None) -> Path:
    """Return the kernel image to boot: ``image``, else the newest below ``root``, in /boot or beside its modules.

    :raises MachineError: no image was found, it cannot be read, or its modules are not below ``root``.
    """
    top = root or Path("/")
    if image is None:
        # Fedora, Arch, and Debian since Linux 7 have the image beside the modules.
        images = [*(top / "boot").glob("vmlinuz-*"), *(top / "lib/modules").glob("*/vmlinuz")]
        # A cloud kernel lacks 9p, by which the guest reads its root file system.
        images = [path for path in images if "-cloud-" not in find_release(path)]
        if not images:
            raise MachineError(
                f"no kernel image in {top / 'boot'} or {top / 'lib/modules'}", f"{APT_KERNEL}, or --kernel IMAGE"
            )
        image = max(images, key=lambda path: [int(part) for part in re.findall(r"\d+", find_release(path))])
    if not os.access(image, os.R_OK):
        raise MachineError(f"kernel image {image} cannot be read", f"{APT_KERNEL}, or another --kernel IMAGE")
    modules = top / "lib/modules" / find_release(image)
    if not modules.is_dir():
        raise MachineError(
            f"the modules of {image.name} are not in {modules}", "pass an image whose modules are installed"
        )
    return image


def has_kvm() -> bool:
    """Return whether KVM works. Some hosts have /dev/kvm without support of the processor; there QEMU hangs."""
    flags = re.search(r"^flags\s*:.*\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text(), re.M)
    return flags is not None and os.access("/dev/kvm", os.R_OK | os.W_OK)


class Machine:
    """A virtual machine that runs command lines of kproxylat; a context manager that boots and ends it.

    :param clock: "ns" or "instructions".
    :param writable: directory of the host, below ``root``, that the guest can write to (None: none).
    :param kernel: kernel image (None: the newest).
    :param root: root file system of the guest, with :data:`PYTHON` and :data:`PACKAGE` (None: that of this machine).
    :ivar cpus: the number of its processors; the instruction clock takes one.
    :ivar columns: the width of the terminal that shows what a command prints.
    :ivar inside: path of ``writable`` in the guest ("" without one); ``shared``: where QEMU opens it, whatever its name
        stands for by then.
    :raises MachineError: QEMU, virtme-ng or the kernel is missing, the host is not an x86-64, or it does not boot.
    """

    def __init__(
        self,
        clock: str,
        writable: Path | None = None,
        kernel: Path | None = None,
        root: Path | None = None,
    ) -> None:
        check_host()
        self.image = find_kernel(kernel, root)
        self.root = root.resolve() if root else None
        self.clock = clock
        self._held = ExitStack()
        self.shared = ""
        if writable:
            self.shared = f"/proc/{os.getpid()}/fd/{self._held.enter_context(hold_directory(writable))}"
        self.writable = Path(self.shared).readlink() if writable else None
        self.inside = str("/" / self.writable.relative_to(self.root or "/")) if self.writable else ""
        self.kvm = clock == "ns" and has_kvm()
        self.release = ""
        self.cpus = 1 if clock == "instructions" else 2
        self.columns = 80
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._console: list[str] = []

    def __enter__(self) -> Self:
        self.begin()
        self.wait_booted()
        return self

    def begin(self) -> None:
        """Begin to boot.

        :raises UsageError: the path of a shared directory has a comma or ``=``.
        :raises MachineError: a program is missing.
        """
        for path in filter(None, (self.writable, self.root)):
            if set(",=") & set(str(path)):
                raise UsageError(f"invalid path for a virtual machine: {path} has a comma or =", "rename the directory")
        search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        caller = find_caller() if os.geteuid() == 0 else (os.getuid(), os.getgid())
        runner = find_runner()
        self._process = Background(
            *(launch.find_python(runner) or "python3", launch.__file__, runner),
            *build_command(self, caller),
            on_out=self._read,
            on_err=self._console.append,
            env={"PATH": search},
        )

    def wait_booted(self) -> None:
        """Wait until the guest accepts command lines; end it if that fails.

        :raises MachineError: the guest did not boot within :data:`BOOT_LIMIT_S`.
        """
        ends_s = time.monotonic() + BOOT_LIMIT_S
        try:
            while not self.release:
                interrupts.check()
                self.release = self._next("boot").get("ready", "")
                if not self.release and time.monotonic() >= ends_s:
                    raise MachineError(
                        f"the virtual machine did not boot within {BOOT_LIMIT_S:.0f} s: {self._last_words()}",
                        "try again while the machine is idle, or pass another --kernel IMAGE",
                    )
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        with self._held, interrupts.shielded():
            self._process.write(None)
            self._process.wait(5)
        self._process.end()

    def _read(self, line: str) -> None:
        """Queue an event of the guest; keep another line of its console for an error message."""
        event = None
        with suppress(ValueError):
            event = json.loads(line)
        if isinstance(event, dict):
            self._events.put(event)
        else:
            self._console.append(line)

    def _next(self, action: str) -> dict[str, Any]:
        """Return the next event of the guest; an empty one if none comes within :data:`POLL_S`.

        :param action: completes "ended before it could ...".
        :raises MachineError: the guest ended.
        """
        if not self._process.alive and self._events.empty():
            raise MachineError(
                f"the virtual machine ended before it could {action}: {self._last_words()}",
                "make sure that 2 GiB of memory are free; or pass another --kernel IMAGE",
            )
        try:
            return self._events.get(timeout=POLL_S)
        except queue.Empty:
            return {}

    def _last_words(self) -> str:
        return " ".join("".join(self._console[-5:]).split())[-300:] or "(it printed nothing)"

    def run(
        self, argv: Sequence[str], out: IO[str], err: IO[str], program: bool = False, mode: Sequence[str] = ()
    ) -> int:
        """Run one command line in the guest, and pass a signal on to it. Any thread may call this.

        :param argv: kproxylat's arguments; with ``program`` another program and its arguments.
        :param out: receives standard output as it comes; ``err``: standard error.
        :param mode: name and backend of the mode to measure, if more runs in this mode follow.
        :return: the exit status of the command.
        :raises MachineError: the guest ended.
        """
        cwd = "/" if self.root else str(Path.cwd())
        order = {"argv": list(argv), "cwd": cwd, "program": program, "mode": list(mode), "columns": self.columns}
        self._process.write(json.dumps(order) + "\n")
        forwarded = 0
        while True:
            if not forwarded and (forwarded := interrupts.pending()):
                self.signal(forwarded)
            event = self._next("finish")
            if "status" in event:
                return int(event["status"])
            for stream, text in event.items():
                show(text, end="", flush=True, file={"out": out, "err": err}[stream])

    def signal(self, signum: int) -> None:
        """Send a signal to the command that runs in the guest. Any thread may call this."""
        self._process.write(json.dumps({"signal": signum}) + "\n")


def build_command(machine: Machine, caller: tuple[int, int] | None) -> list[str]:
    """Return the arguments of virtme-run.

    :param machine: the machine to boot.
    :param caller: user and group that own the files that the guest saves, and whose templates it trusts (None: root).
    """
    counting = machine.clock == "instructions"
    # Page-table isolation makes emulation several times slower: QEMU discards its translations at every system
    # call. It protects a guest from its own processes, and a softirq executes none of its code.
    # The random placement of programs costs as much: QEMU cannot reuse its translations of the last run.
    accelerator = "kvm" if machine.kvm else "tcg"
    options = [f"kproxylat.clock={machine.clock}", f"kproxylat.accelerator={accelerator}", "pti=off", "norandmaps"]
    # One instruction is one tick of the TSC. Without these options the kernel calibrates the TSC by other timers, with
    # an error of some parts in a million: enough to be off by one in a long call.
    options += ["tsc_early_khz=1000000", "hpet=disable", "pmtmr=0"] if counting else []
    inside = shlex.quote(machine.inside)
    guest = _GUEST.format(
        share=SHARE,
        writable=f"mount --bind {inside} /run/host{inside} &&" if machine.writable else "",
        sudo=f"SUDO_UID={caller[0]} SUDO_GID={caller[1]}" if caller else "",
        package=shlex.quote(PACKAGE if machine.root else str(Path(__file__).parents[2])),
        python=shlex.quote(PYTHON if machine.root else sys.executable),
    )
    command = ["--kimg", str(machine.image), "--mods", "auto", "--memory", "2G", "--user", "root"]
    command += ["--root", str(machine.root)] if machine.root else []
    command += ["--cpus", str(machine.cpus), "--force-9p", "--disable-monitor"]
    command += [] if machine.kvm else ["--disable-kvm"]
    command += [word for option in options for word in ("--kopt", option)]
    command += [f"--rwdir={machine.inside[1:]}={machine.shared}"] if machine.writable else []
    command += ["--script-sh", guest, "--qemu-opts", "-name", f"{NAME}{os.getpid()}"]
    # QEMU's newest CPU model crashes a 6.12 kernel under QEMU 7.2; Nehalem boots everywhere.
    command += ["-cpu", "host" if machine.kvm else "Nehalem"]
    command += ["-icount", "shift=0,sleep=on"] if counting else []
    directory = machine.root or "/"
    command += ["-fsdev", f"local,id={SHARE},path={directory},security_model=none,readonly=on,multidevs=remap"]
    command += ["-device", f"virtio-9p-pci,fsdev={SHARE},mount_tag={SHARE}"]
    return command


def boot(machines: Sequence[Machine], stack: ExitStack) -> None:
    """Boot machines side by side, and print how long that takes.

    :param machines: machines with the same clock and kernel.
    :param stack: ends the machines when it closes.
    :raises MachineError: a machine did not boot.
    """
    kvm, number = machines[0].kvm, len(machines)
    find_runner()
    text = f"{number} virtual machines" if number > 1 else "a virtual machine"
    duration = "with KVM" if kvm else f"emulated, about {BOOT_S} s"
    say(f"Booting vmlinuz-{find_release(machines[0].image)} in {text} ({duration})...")
    for machine in machines:
        machine.begin()
        stack.callback(machine.__exit__)
    with waiting("booting", 5 if kvm else BOOT_S):
        for machine in machines:
            machine.wait_booted()


def end_leftovers(dry_run: bool = False) -> list[str]:
    """End the machines whose kproxylat no longer runs.

    :param dry_run: end none.
    :return: their names.
    """
    ended = []
    for process, name in _find_leftovers():
        # The id may be another process's by now: the descriptor of a process is not reused.
        with suppress(OSError):
            descriptor = os.pidfd_open(process)
            try:
                if (process, name) in _find_leftovers():
                    if not dry_run:
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    ended.append(f"virtual machine {name}")
            finally:
                os.close(descriptor)
    return ended


def _find_leftovers() -> Iterator[tuple[int, str]]:
    """Yield process id and name of each QEMU of a kproxylat that is not its parent any more."""
    own = (PROCESSES / "self/ns/pid").readlink()
    for directory in PROCESSES.glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            words = (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")
            name = words[words.index("-name") + 1]
            parent = (directory / "stat").read_text().rpartition(")")[2].split()[1]
            # In another namespace of processes, numbers mean other processes.
            if re.fullmatch(rf"{NAME}\d+", name) and (directory / "ns/pid").readlink() == own and name != NAME + parent:
                yield int(directory.name), name
