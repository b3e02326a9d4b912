"""A Linux kernel in a virtual machine over this machine's root file system, for a host that cannot trace.

virtme-ng boots a distribution's kernel under QEMU, with KVM where it can, emulated (TCG) where not, without root. The
guest sees the host's files read-only (9p), and the output directory writable.

On the instruction clock (QEMU ``-icount shift=0``) the guest's clock advances by 1 ns per executed instruction, so
that a difference of ``nsecs`` counts instructions. ``sleep=on`` keeps that clock behind the real one while the guest
waits for the host's disk; ``sleep=off`` would let every time limit in the guest run out at once.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Self

from kproxylat import interrupts
from kproxylat.errors import Interrupted, MachineError, UsageError
from kproxylat.proc import Background, find
from kproxylat.rights import find_caller
from kproxylat.screen import say, waiting

BOOT_LIMIT_S = 300
BOOT_S = 45
"""How long a boot takes under emulation, as measured on 2 cores."""
SHARE = "kproxylat"
_GUEST = """\
mkdir -p /run/host &&
mount -t 9p -o ro,version=9p2000.L,trans=virtio,cache=loose,msize=512000 {share} /run/host &&
for each in proc sys dev; do mount --rbind /$each /run/host/$each; done &&
mount --bind /run /run/host/run && {writable}
{{ cp /etc/protocols /run/protocols && mount --bind /run/protocols /run/host/etc/protocols; true; }} &&
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/run PYTHONPATH={package} {sudo} &&
exec chroot /run/host {python} -m kproxylat.guest
"""
"""What the guest's shell runs. virtme-ng mounts the root file system without a cache, so that every page that a program
touches is a trip to the host, and bpftrace takes 15 s to start; below a cached mount of the same files it takes 1 s. To
open a file is still a trip, and ipset opens /etc/protocols for each element that names one (getprotobyname(3))."""
PYTHON, PACKAGE = "/usr/bin/python3", "/opt/kproxylat"
"""What another root file system has: Python, and a directory with kproxylat and the packages that it needs."""
APT_KERNEL = "apt-get install linux-image-amd64"


def find_runner() -> str:
    """Return the path of virtme-run: beside this Python, or where programs are.

    :raises MachineError: it is not installed.
    """
    program = Path(sys.executable).parent / "virtme-run"
    return str(program) if program.exists() else find("virtme-run")


def find_kernel(image: Path | None, root: Path | None) -> Path:
    """Return the kernel image to boot: the one asked for, else the newest below ``root``/boot.

    :raises MachineError: there is none, it cannot be read, or its modules are not below ``root``.
    """
    top = root or Path("/")
    if image is None:
        # The cloud image has no 9p, by which the guest reads its root file system.
        images = [each for each in (top / "boot").glob("vmlinuz-*") if "-cloud-" not in each.name]
        if not images:
            raise MachineError(f"no kernel image in {top / 'boot'}", f"{APT_KERNEL}, or --kernel IMAGE")
        image = max(images, key=lambda each: [int(part) for part in re.findall(r"\d+", each.name)])
    if not os.access(image, os.R_OK):
        raise MachineError(f"kernel image {image} cannot be read", f"{APT_KERNEL}, or another --kernel IMAGE")
    modules = top / "lib/modules" / image.name.removeprefix("vmlinuz-")
    if not modules.is_dir():
        raise MachineError(f"the modules of {image.name} are not in {modules}", "name an image that is installed there")
    return image


def has_kvm() -> bool:
    """Whether KVM works here. Some hosts show /dev/kvm without the processor's support, and QEMU hangs on it."""
    flags = re.search(r"^flags\s*:.*\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text(), re.M)
    return flags is not None and os.access("/dev/kvm", os.R_OK | os.W_OK)


class Machine:
    """A booted guest that runs command lines of ours; a context manager.

    :param clock: "ns" or "instructions".
    :param writable: directory of the host that the guest may write to; below ``root`` (None: it writes nowhere).
    :param kernel: kernel image (None: the newest in /boot).
    :param root: root file system to boot over, with :data:`PYTHON` and :data:`PACKAGE` (None: this machine's own).
    :ivar inside: path of ``writable`` in the guest ("" without one).
    :ivar said: set whenever the guest has said something; several machines may share one.
    :raises MachineError: QEMU, virtme-ng or the kernel are missing, or it did not boot.
    """

    def __init__(
        self,
        clock: str,
        writable: Path | None = None,
        kernel: Path | None = None,
        root: Path | None = None,
    ) -> None:
        self.image = find_kernel(kernel, root)
        self.root = root.resolve() if root else None
        self.clock = clock
        self.writable = writable.resolve() if writable else None
        self.inside = str("/" / self.writable.relative_to(self.root or "/")) if self.writable else ""
        self.kvm = clock == "ns" and has_kvm()
        self.release = ""
        self.said = threading.Event()
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._noise: list[str] = []

    def command(self) -> list[str]:
        """Return virtme-run's command line."""
        clock = ["-icount", "shift=0,sleep=on"] if self.clock == "instructions" else []
        accelerator = "kvm" if self.kvm else "tcg"
        # Page-table isolation makes emulation several times slower: QEMU forgets its translations at every system
        # call. It protects a guest from its own processes and takes no part in what a softirq executes.
        # So does the random placement of programs: what was translated is not found again the next time.
        options = [f"kproxylat.clock={self.clock}", f"kproxylat.accelerator={accelerator}", "pti=off", "norandmaps"]
        # One instruction is one tick of the TSC. Else the kernel measures it by these timers, each time with another
        # error of some parts in a million: enough to be off by one in a long call.
        options += ["tsc_early_khz=1000000", "hpet=disable", "pmtmr=0"] if self.clock == "instructions" else []
        # QEMU's newest CPU model crashes a 6.12 kernel under QEMU 7.2; Nehalem boots everywhere.
        cpu = ["-cpu", "host" if self.kvm else "Nehalem"]
        caller = find_caller() if os.geteuid() == 0 else (os.getuid(), os.getgid())
        inside = shlex.quote(self.inside)
        guest = _GUEST.format(
            share=SHARE,
            writable=f"mount --bind {inside} /run/host{inside} &&" if self.writable else "",
            # What the guest saves belongs to whoever called sudo out here, and it believes their templates.
            sudo=f"SUDO_UID={caller[0]} SUDO_GID={caller[1]}" if caller else "",
            package=shlex.quote(PACKAGE if self.root else str(Path(__file__).parent.parent)),
            python=shlex.quote(PYTHON if self.root else sys.executable),
        )
        share = ["-fsdev", f"local,id={SHARE},path={self.root or '/'},security_model=none,readonly=on,multidevs=remap"]
        share += ["-device", f"virtio-9p-pci,fsdev={SHARE},mount_tag={SHARE}"]
        command = ["virtme-run", "--kimg", str(self.image), "--mods", "auto", "--memory", "2G", "--user", "root"]
        command += ["--root", str(self.root)] if self.root else []
        command += ["--cpus", "1" if self.clock == "instructions" else "2", "--force-9p", "--disable-monitor"]
        command += [] if self.kvm else ["--disable-kvm"]
        command += [word for option in options for word in ("--kopt", option)]
        command += [f"--rwdir={self.writable}"] if self.writable else []
        command += ["--script-sh", guest, "--qemu-opts", *cpu, *clock, *share]
        return command

    def __enter__(self) -> Self:
        self.begin()
        self.wait_booted()
        return self

    def begin(self) -> None:
        """Begin to boot.

        :raises UsageError: a path that cannot be shared. ``MachineError``: a program is missing.
        """
        find("qemu-system-x86_64")
        for each in filter(None, (self.writable, self.root)):
            if set(",=") & set(str(each)):
                raise UsageError(
                    f"QEMU and virtme-ng take no comma and no = in a path: {each}", "name a directory without them"
                )
        search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        command = self.command()
        self._process = Background(
            find_runner(),
            *command[1:],
            on_out=self._read,
            on_err=lambda line: self._noise.append(line),
            env={"PATH": search},
        )

    def wait_booted(self) -> None:
        """Wait until the guest takes command lines; if it never does, end it."""
        try:
            self.release = self._next(BOOT_LIMIT_S, "boot")["ready"]
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self._process.write(None)
        self._process.wait(5)
        self._process.end()

    def _read(self, line: str) -> None:
        """Take a line of the guest's stdout; whatever is no event of ours is kept for an error message."""
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict):
            self._events.put(event)
            self.said.set()
        else:
            self._noise.append(line)

    def take(self) -> Iterator[dict[str, Any]]:
        """Take what the guest has said since the last time.

        :raises MachineError: it has ended.
        """
        while self._process.alive or not self._events.empty():
            try:
                yield self._events.get_nowait()
            except queue.Empty:
                return
        raise self._lost("finish")

    def _lost(self, what: str) -> MachineError:
        return MachineError(
            f"the virtual machine ended before it could {what}: {self._last_words()}",
            "it takes 2 GiB of free memory; or try another --kernel IMAGE",
        )

    def _next(self, limit_s: float | None, what: str) -> dict[str, Any]:
        """Wait for the guest's next event.

        :raises MachineError: the guest ended, or ``limit_s`` passed.
        :raises Interrupted: a signal came.
        """
        waited_s = 0.0
        while self._process.alive or not self._events.empty():
            interrupts.check()
            try:
                return self._events.get(timeout=0.5)
            except queue.Empty:
                waited_s += 0.5
            if limit_s is not None and waited_s >= limit_s:
                raise MachineError(
                    f"the virtual machine did not {what} within {limit_s:.0f} s: {self._last_words()}",
                    "try again with the machine idle, or another --kernel IMAGE",
                )
        raise self._lost(what)

    def _last_words(self) -> str:
        return " ".join("".join(self._noise[-5:]).split())[-300:] or "(it printed nothing)"

    def signal(self, signum: int) -> None:
        """Send a signal to the command line under way."""
        self._process.write(json.dumps({"signal": signum}) + "\n")

    def order(self, argv: Sequence[str], program: bool = False, mode: Sequence[str] = ()) -> None:
        """Have one command line run; what it says comes by :meth:`take`, last its status.

        :param mode: name and backend of the mode that it measures, where more runs in it are to come.
        """
        cwd = "/" if self.root else str(Path.cwd())
        order = {"argv": list(argv), "cwd": cwd, "program": program, "mode": list(mode)}
        self._process.write(json.dumps(order) + "\n")

    def run(self, argv: Sequence[str], out: IO[str], err: IO[str], program: bool = False) -> int:
        """Run one command line in the guest.

        :param argv: kproxylat's arguments; with ``program`` another program and its arguments.
        :param out: receives its standard output as it comes. ``err``: its standard error.
        :return: its exit status.
        :raises MachineError: the guest died.
        """
        self.order(argv, program)
        while True:
            try:
                event = self._next(None, "finish")
            except Interrupted as interrupt:
                self.signal(interrupt.exit_code - 128)
                continue
            if "status" in event:
                return int(event["status"])
            for stream, text in event.items():
                print(text, end="", flush=True, file={"out": out, "err": err}[stream])


def boot(machines: Sequence[Machine], stack: ExitStack) -> None:
    """Boot machines side by side, with a word on how long it takes.

    :param machines: of one kind. ``stack`` ends them.
    :raises MachineError: one did not boot.
    """
    kvm, many = machines[0].kvm, f"{len(machines)} virtual machines" if len(machines) > 1 else "a virtual machine"
    how = "with KVM" if kvm else f"emulated, about {BOOT_S} s"
    say(f"Booting {machines[0].image.name} in {many} ({how})...")
    for each in machines:
        each.begin()
        stack.callback(each.__exit__)
    with waiting("booting", 5 if kvm else BOOT_S):
        for each in machines:
            each.wait_booted()
