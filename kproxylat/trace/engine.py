"""bpftrace's version and abilities, and the kernel functions that it can trace."""

from __future__ import annotations

import os
import platform
import re
from functools import lru_cache
from pathlib import Path

from kproxylat.errors import MachineError
from kproxylat.modes import Engine, Mode
from kproxylat.system import kernel
from kproxylat.system.btf import btf_module
from kproxylat.system.kernel import IN_VM, has_function, release, version_numbers
from kproxylat.system.processes import run

MAX_MAP_KEYS = {"ns": 65536, "instructions": 8192}
"""Keys of a map by clock: nanoseconds have many distinct values, instructions few; making a large map takes time."""
MIN_VERSION = (0, 17)


@lru_cache
def find_version() -> tuple[str, tuple[int, int]]:
    """Return the version of the installed bpftrace, as text and as numbers.

    :raises MachineError: bpftrace is not installed, or too old for fentry probes with a module's name.
    """
    text = run("bpftrace", "--version").strip()
    numbers = re.search(r"v?(\d+)\.(\d+)", text)
    if numbers is None:
        raise MachineError(f"bpftrace --version printed no version: {text[:80]!r}", "install bpftrace 0.17 or newer")
    version = int(numbers[1]), int(numbers[2])
    if version < MIN_VERSION:
        raise MachineError(f"{text} is too old", "install bpftrace 0.17 or newer")
    return text.removeprefix("bpftrace ").strip(), version


def probe_words(version: tuple[int, int], kind: str = "fentry") -> tuple[str, str, str]:
    """Return the names of the entry and exit probes, and the prefix of an argument ("args->", "args." or "arg").

    :param version: bpftrace's version.
    :param kind: "fentry" or "kprobe".
    """
    if kind == "kprobe":
        return "kprobe", "kretprobe", "arg"
    return ("fentry", "fexit", "args.") if version >= (0, 21) else ("kfunc", "kretfunc", "args->")


def check_function_tracing() -> str:
    """Check function tracing: fentry and fexit patch the ftrace call site of a function that tracefs lists.

    :raises MachineError: it is missing, switched off, or its list cannot be read.
    """
    if not kernel.path_exists("proc/sys/kernel/ftrace_enabled"):
        raise MachineError("no function tracing (CONFIG_FUNCTION_TRACER)")
    if platform.machine() == "aarch64" and version_numbers() < (6, 4):
        # CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS
        raise MachineError("fentry needs Linux 6.4 on arm64", "boot a newer kernel, or pass --probe none")
    _check_switch()
    functions = Path(kernel.find_tracefs().lstrip("/")) / "available_filter_functions"
    try:
        with (kernel.ROOT / functions).open() as file:
            file.read(1)
    except OSError as error:
        if os.geteuid() != 0:
            raise
        raise MachineError(f"/{functions}, the list for fentry, cannot be read: {error.strerror}") from None
    return "on"


def _check_switch() -> None:
    """Check that function tracing, if the kernel has it, is switched on.

    Otherwise a kprobe at a function's ftrace call site attaches, too, and never fires (seen on 6.1).
    """
    path = "proc/sys/kernel/ftrace_enabled"
    if kernel.path_exists(path) and kernel.read_path(path) == "0":
        raise MachineError(
            "function tracing is switched off (kernel.ftrace_enabled=0)", "sysctl -w kernel.ftrace_enabled=1"
        )


def check_kprobes() -> str:
    """Check that the kernel has kprobes.

    :raises MachineError: it has not; or they are switched off with function tracing; or this is not an x86-64.
    """
    _check_switch()
    if problem := _find_foreign_calls():
        raise MachineError(problem, "pass --probe fentry")
    if not kernel.path_exists("sys/bus/event_source/devices/kprobe"):
        raise MachineError("no kprobes (CONFIG_KPROBE_EVENTS)")
    return "on"


def _find_foreign_calls() -> str:
    """Return why this architecture's calls cannot be traced by kprobes, "" if they can.

    The script identifies a call by the address at which x86-64's call instruction stores the return address.
    """
    machine = platform.machine()
    return "" if machine == "x86_64" else f"kprobes need x86-64; {machine} stores a call's return address elsewhere"


KINDS = {"fentry": check_function_tracing, "kprobe": check_kprobes}
"""Kind of probe -> the check whether this kernel has it, for any function. "auto" takes the first kind that works."""


def check_probes(mode: Mode, probe_kind: str) -> str:
    """Return the kind of probe that traces a mode here: both doctor and a run decide by this function.

    :param probe_kind: as in :func:`find_engine`.
    :raises MachineError: no such probe works.
    """
    working, lacking = _split_kinds(probe_kind)
    if not working:
        remedy = next((error.remedy for error in lacking.values() if error.remedy), IN_VM)
        raise MachineError("; ".join(f"{kind}: {error}" for kind, error in lacking.items()), remedy)
    # The functions of a module can be looked up once it is loaded.
    if os.geteuid() == 0 and kernel.has_module(mode.module):
        return find_engine(mode, probe_kind)[1]
    return f"{working[0]}, once {mode.module} is loaded"


def _split_kinds(probe_kind: str) -> tuple[list[str], dict[str, MachineError]]:
    """Return the kinds of probe that this kernel has, and the others with their errors."""
    working, lacking = list[str](), dict[str, MachineError]()
    for kind in KINDS if probe_kind == "auto" else (probe_kind,):
        try:
            KINDS[kind]()
            working.append(kind)
        except MachineError as error:
            lacking[kind] = error
    return working, lacking


@lru_cache
def find_engine(mode: Mode, probe_kind: str) -> tuple[Engine, str]:
    """Return the functions that walk the rules on this kernel, and the kind of probe that can trace them.

    :param mode: the mode, with the known engines.
    :param probe_kind: "fentry", "kprobe", or "auto": fentry if the kernel has the types (BTF) that it needs.
    :raises MachineError: this kernel lacks the functions, or they have other arguments.
    """
    working, lacking = _split_kinds(probe_kind)
    problems = {kind: str(error) for kind, error in lacking.items()}
    # Without any, a script can be rendered all the same: check_probes decides whether it can run.
    for kind in working or lacking:
        for engine in mode.engines:
            problem = _check_typed(engine, mode) if kind == "fentry" else _check_untyped(engine)
            if not problem:
                return engine, kind
            problems.setdefault(kind, problem)
    message = "; ".join(f"{kind}: {problem}" for kind, problem in problems.items())
    raise MachineError(message, f"use another kernel; or: {IN_VM}")


def _check_typed(engine: Engine, mode: Mode) -> str:
    """Return the reason why fentry cannot trace these functions, "" if it can."""
    for function in engine.functions:
        probe = f"{probe_words(find_version()[1])[0]}:{btf_module(mode.module)}:{function}"
        listed = run("bpftrace", "-lv", probe, ok=(0, 1)).splitlines()
        if not any(line.strip() == probe for line in listed):
            return f"this kernel has no function {function} that fentry can trace"
        taken = [line.split()[-1].lstrip("*") for line in listed if line.startswith("    ") and "retval" not in line]
        if tuple(taken) != engine.layout:
            return f"{function} of this kernel takes ({', '.join(taken)}), not ({', '.join(engine.layout)})"
    return ""


def _check_untyped(engine: Engine) -> str:
    """Return the reason why kprobe cannot trace these functions, "" if it can; the version decides the arguments."""
    if problem := _find_foreign_calls():
        return problem
    if re.match(r"v?0\.26\.0\b", find_version()[0]):
        return "bpftrace 0.26.0 reads wrong arguments and results of kprobes where the kernel has sessions of them"
    if version_numbers() < engine.since:
        return f"this kernel ({release()}) is older than {'.'.join(map(str, engine.since))}"
    missing = [function for function in engine.functions if not has_function(function)]
    return f"this kernel has no function {missing[0]} that kprobe can trace" if missing else ""


def find_map_limit(clock: str) -> tuple[str, int]:
    """Return the name of bpftrace's variable that limits a map's keys, and its value: the user's or ours.

    :param clock: "ns" or "instructions".
    :raises MachineError: the user's value is not a number, or out of range.
    """
    name = "BPFTRACE_MAX_MAP_KEYS" if find_version()[1] >= (0, 20) else "BPFTRACE_MAP_KEYS_MAX"
    value = os.environ.get(name, str(MAX_MAP_KEYS[clock]))
    if not (value.isascii() and value.isdecimal() and 0 < int(value[:11]) < 2**31):
        remedy = "set it to a number from 1 to 2147483647, or unset it"
        raise MachineError(f"the environment has {name}={value[:20]!r}", remedy)
    return name, int(value)
