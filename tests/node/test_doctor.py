"""The requirements of a measurement: on a machine that meets all, and without each one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kproxylat.cli import app
from kproxylat.errors import MachineError
from kproxylat.measure import stage
from kproxylat.modes import MODES, find_mode
from kproxylat.node import checks, doctor, lock, network
from kproxylat.node.doctor import CHECKS, Finding, examine, missing_to_trace, possible_modes, require
from kproxylat.system import kernel, processes
from kproxylat.system.kernel import name_remedies
from kproxylat.trace import engine

TREE = {
    "proc/modules": "nf_tables 1 0 - Live 0x0\n",
    "proc/self/status": "CapEff:\t000001ffffffffff\n",
    "proc/sys/kernel/ftrace_enabled": "1\n",
    "proc/sys/net/ipv4/ip_forward": "1\n",
    "sys/bus/event_source/devices/kprobe/type": "8\n",
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
    "sys/devices/system/cpu/vulnerabilities/meltdown": "Mitigation: PTI\n",
    "sys/fs/bpf/x": "",
    "sys/kernel/btf/nf_tables": "",
    "sys/kernel/btf/vmlinux": "",
    "sys/kernel/debug/tracing/x": "",
    "sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
    "sys/kernel/tracing/available_filter_functions": "",
}
PROGRAMS = {
    "bpftrace": "echo bpftrace v0.23.2",
    "iptables": "echo 'iptables v1.8.9 (nf_tables)'",
    "modprobe": 'for name; do case " $ABSENT " in *" $name "*) exit 1; esac; done',
}
PLAIN = (
    "conntrack",
    "grep",
    "hping3",
    "virtme-run",
    "ip",
    "nft",
    "nsenter",
    "sysctl",
    "qemu-system-x86_64",
    "file",
    "busybox",
    *{t for mode in MODES for family in (4, 6) for t in mode.for_family(family).tools},
)
USES = ("trace", "fentry", "kprobe", "run", "hping3", "node", "rules", "vm")
COMMANDS = {"apt-get", "dnf", "docker", "echo", "grubby", "kproxylat", "mokutil", "mount", "sed", "sudo", "sysctl"}
UNNEEDED = {"kprobe", "fentry", "hping3"}
LEGACY = find_mode("iptables", "legacy")
Edit = Callable[[Path], object]


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a machine that has everything, and look at it in place of this one."""
    for name, text in TREE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "proc/self/ns").mkdir()
    for name in ("user", "pid", "net"):
        (tmp_path / "proc/self/ns" / name).touch()
    monkeypatch.setattr(kernel, "INITIAL_USER", (tmp_path / "proc/self/ns/user").stat().st_ino)
    monkeypatch.setattr(checks, "INITIAL_PID", (tmp_path / "proc/self/ns/pid").stat().st_ino)
    (tmp_path / "bin").mkdir()
    for name, body in {**dict.fromkeys(PLAIN, "exit 0"), **PROGRAMS}.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    (tmp_path / "bin/setpriv").symlink_to(shutil.which("setpriv", path=processes.PATH) or "/usr/bin/setpriv")
    monkeypatch.setattr(processes, "PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(kernel, "ROOT", tmp_path)
    monkeypatch.setattr(kernel, "release", lambda: "6.1.0-56-amd64")
    monkeypatch.setattr(checks.virtual_machine, "find_kernel", lambda *_: Path("vmlinuz-6.1.0-56-amd64"))
    monkeypatch.setattr(lock, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(network, "NETNS", tmp_path / "netns")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(app.signal, "signal", lambda *_: None)
    monkeypatch.setattr(checks.virtual_machine.sys, "executable", str(tmp_path / "python"))
    engine.find_version.cache_clear()
    yield tmp_path
    engine.find_version.cache_clear()


def states() -> dict[str, Finding]:
    return {each.name: each for each in examine()}


def ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def test_a_machine_that_has_everything(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings = examine()
    assert [(each.name, each.state, each.found) for each in findings if each.state != "ok"] == []
    assert possible_modes(findings) == ["iptables on legacy", "iptables on nft", "nftables on nft", "ipvs on ipvs"]
    assert missing_to_trace() == []
    for mode in MODES:
        require(mode, "trace", "run", "node")
    with pytest.raises(SystemExit) as ended:
        app.main(["doctor", "--format", "json"])
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["schema"], err) == ("kproxylat/1", "")
    assert len(document["possible"]) == len(MODES)
    assert document["checks"][0] == {
        "name": "rights",
        "state": "ok",
        "found": "root, with the capabilities needed",
        "breaks": "every traced measurement",
        "apt": "sudo kproxylat ...",
        "dnf": "sudo kproxylat ...",
    }
    assert not (good / "lock").exists(), "looking changes nothing"


def remove(name: str) -> Edit:
    def edit(root: Path) -> None:
        path = root / name
        path.unlink() if path.is_file() or path.is_symlink() else shutil.rmtree(path)

    return edit


def write(name: str, text: str) -> Edit:
    def edit(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        (root / name).chmod(0o755)

    return edit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "edit", "state", "message"),
    [
        ("rights", write("proc/self/status", "CapEff:\t0000000000001000\n"), "missing", "SYS_ADMIN"),
        ("bpftrace", remove("bin/bpftrace"), "missing", "the program 'bpftrace' is missing"),
        ("bpftrace", write("bin/bpftrace", "#!/bin/sh\necho bpftrace v0.9.4\n"), "missing", "too old"),
        ("setpriv", remove("bin/setpriv"), "missing", "the program 'setpriv' is missing"),
        ("modprobe", remove("bin/modprobe"), "missing", "the program 'modprobe' is missing"),
        ("ip", remove("bin/ip"), "missing", "the program 'ip' is missing"),
        ("nft", remove("bin/nft"), "missing", "the program 'nft' is missing"),
        ("nsenter", remove("bin/nsenter"), "missing", "the program 'nsenter' is missing"),
        ("sysctl", remove("bin/sysctl"), "missing", "the program 'sysctl' is missing"),
        ("conntrack", remove("bin/conntrack"), "missing", "the program 'conntrack' is missing"),
        ("BTF", remove("sys/kernel/btf/vmlinux"), "missing", "CONFIG_DEBUG_INFO_BTF"),
        ("BTF", remove("sys/kernel/btf/nf_tables"), "missing", "CONFIG_DEBUG_INFO_BTF_MODULES"),
        ("function tracing", remove("proc/sys/kernel/ftrace_enabled"), "missing", "CONFIG_FUNCTION_TRACER"),
        ("function tracing", write("proc/sys/kernel/ftrace_enabled", "0\n"), "missing", "switched off"),
        ("tracefs", remove("sys/kernel/tracing/available_filter_functions"), "missing", "not mounted"),
        ("kprobes", remove("sys/bus/event_source/devices/kprobe"), "missing", "CONFIG_KPROBE_EVENTS"),
        ("hping3", remove("bin/hping3"), "missing", "the program 'hping3' is missing"),
        ("hping3", write("proc/self/status", "CapEff:\t000001ffffffdfff\n"), "missing", "lacks CAP_NET_RAW"),
        ("iptables on legacy: rights", write("proc/self/status", "CapEff:\t000001ffffffdfff\n"), "missing",
            "lacks CAP_NET_RAW"),
        ("lockdown", write("sys/kernel/security/lockdown", "none [confidentiality]"), "missing", "locked down"),
        ("user namespace", write("proc/self/ns/other", ""), "missing", "user namespace"),
        ("iptables on legacy: tools", remove("bin/nfacct"), "missing", "the program 'nfacct' is missing"),
        ("iptables", remove("bin/iptables"), "warning", "the program 'iptables' is missing"),
        ("clock source", write(
            "sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet"), "warning", "hpet"),
        ("mitigations", write("sys/devices/system/cpu/vulnerabilities/mds", "Vulnerable\n"), "warning", "mds"),
        ("leftovers", write("netns/kproxylat-client", ""), "warning", "kproxylat-client"),
        ("leftovers", write("lock", "123"), "warning", "lock"),
        ("surroundings", write(".dockerenv", ""), "warning", "/.dockerenv"),
        ("surroundings", remove("sys/fs/bpf"), "warning", "no /sys/fs/bpf"),
        ("surroundings", remove("proc/sys/net/ipv4/ip_forward"), "warning", "a read-only /proc/sys"),
        ("surroundings", remove("sys/kernel/debug"), "warning", "no /sys/kernel/debug"),
        ("virtual machine", remove("bin/qemu-system-x86_64"), "missing", "the program 'qemu-system-x86_64' is missing"),
        ("virtual machine", remove("bin/virtme-run"), "missing", "the program 'virtme-run' is missing"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)  # fmt: skip
def test_a_missing_requirement_stops_the_measurements_that_need_it(
    good: Path, monkeypatch: pytest.MonkeyPatch, name: str, edit: Edit, state: str, message: str
) -> None:
    edit(good)
    if name == "user namespace":
        monkeypatch.setattr(kernel, "INITIAL_USER", 1)
    finding = states()[name]
    assert finding.state == state
    assert message in finding.found
    assert finding.apt
    assert finding.dnf
    check = next(each for each in CHECKS if each.name == name)
    if state == "missing":
        assert doctor.possible_modes(examine()) == [] or check.mode or check.use in UNNEEDED | {"vm", "node"}
        if check.name == "function tracing":
            assert (doctor.possible_modes(examine()) == []) == (message == "switched off"), "kprobes need no tracer"
        with pytest.raises(MachineError) as caught:
            require(LEGACY, *USES)
        assert message in str(caught.value)
        assert caught.value.remedy
    else:
        require(LEGACY, *USES)


LIST = "sys/kernel/tracing/available_filter_functions"
LACKS: dict[str, tuple[Edit, ...]] = {
    "no tracer": (remove("proc/sys/kernel/ftrace_enabled"),),
    "no kprobes": (remove("sys/bus/event_source/devices/kprobe"),),
    "neither": (remove("proc/sys/kernel/ftrace_enabled"), remove("sys/bus/event_source/devices/kprobe")),
    "switched off": (write("proc/sys/kernel/ftrace_enabled", "0\n"),),
    "unreadable": (remove(LIST), lambda root: (root / LIST).mkdir()),
    "unreadable, no kprobes": (
        remove(LIST),
        lambda root: (root / LIST).mkdir(),
        remove("sys/bus/event_source/devices/kprobe"),
    ),
}
"""What a kernel lacks; its kinds of probe that work follow in KINDS_LEFT. A directory in the list's place cannot be
read, even by root."""
KINDS_LEFT = {
    "no tracer": {"kprobe"},
    "no kprobes": {"fentry"},
    "neither": set[str](),
    "switched off": set[str](),
    "unreadable": {"kprobe"},
    "unreadable, no kprobes": set[str](),
}


@pytest.mark.slow
@pytest.mark.parametrize("lack", LACKS)
@pytest.mark.parametrize("probe", ["auto", "fentry", "kprobe"])
def test_doctor_and_run_give_the_same_answer(
    good: Path, monkeypatch: pytest.MonkeyPatch, lack: str, probe: str
) -> None:
    monkeypatch.setattr(stage, "load_modules", lambda _: None)
    for edit in LACKS[lack]:
        edit(good)
    left = KINDS_LEFT[lack]
    works = bool(left if probe == "auto" else left & {probe})
    findings = states()
    assert bool(possible_modes(findings.values())) == bool(left)
    assert (findings["nftables on nft: probes"].state == "ok") == bool(left)
    for kind, name in (("fentry", "function tracing"), ("kprobe", "kprobes")):
        assert (findings[name].state == "ok") == (kind in left)
    assert missing_to_trace([LEGACY], probe) == ([] if works else ["iptables on legacy: probes"])
    if works:
        stage.check_machine(LEGACY, probe, "run")
    else:
        with pytest.raises(MachineError) as caught:
            stage.check_machine(LEGACY, probe, "run")
        for message in str(caught.value).split("; "):
            assert message in findings["iptables on legacy: probes"].found or probe != "auto"
        assert caught.value.remedy
    lacking = doctor.find_lacking(findings.values())["nftables on nft"]
    assert lacking["send time (--probe none)"] == []
    assert lacking["instructions (--vm)"] == []
    assert lacking["lookup by bpftrace"] == ([] if left else ["nftables on nft: probes"])


def test_modules_without_types_leave_kprobes(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Debian's 5.10; whether fentry can trace a function, the module's types say once it is loaded."""
    monkeypatch.setattr(kernel, "release", lambda: "5.10.0-32-amd64")
    remove("sys/kernel/btf/nf_tables")(good)
    write("proc/kallsyms", "0 T nft_do_chain\n")(good)
    kernel._is_built_in.cache_clear()
    engine.find_engine.cache_clear()
    monkeypatch.setattr(engine, "has_function", lambda name: name == "nft_do_chain")
    monkeypatch.setattr(engine, "version_numbers", lambda: (5, 10))
    nft = find_mode("nftables", None)
    require(nft, "trace")
    remove("sys/bus/event_source/devices/kprobe")(good)
    engine.find_engine.cache_clear()
    assert "nftables on nft" not in possible_modes(examine())
    with pytest.raises(MachineError, match="no kprobes"):
        require(nft, "trace")
    engine.find_engine.cache_clear()
    kernel._is_built_in.cache_clear()


def test_a_kernel_that_is_installed_is_not_installed_again(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove("proc/sys/kernel/ftrace_enabled")(good)
    assert states()["function tracing"].apt == "apt-get install linux-image-amd64"
    monkeypatch.setattr(checks.virtual_machine, "find_kernel", lambda *_: Path("vmlinuz-6.12.9-amd64"))
    reboot = "reboot # into kernel 6.12.9-amd64, which is installed"
    assert states()["function tracing"].apt == states()["function tracing"].dnf == reboot
    with pytest.raises(MachineError) as caught:
        require(LEGACY, "trace", probe="fentry")
    assert caught.value.remedy == f"{reboot}; or: {kernel.IN_VM}"


@pytest.mark.usefixtures("good")
@pytest.mark.parametrize(("version", "left"), [((6, 1), set[str]()), ((6, 12), {"fentry"})])
def test_an_arm64_machine(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], left: set[str]) -> None:
    """As seen on Debian's kernels 6.1 and 6.12 for arm64. No remedy is one for another architecture."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(engine, "version_numbers", lambda: version)
    findings = states()
    for kind, name in (("fentry", "function tracing"), ("kprobe", "kprobes"), ("", "virtual machine")):
        assert (findings[name].state == "ok") == (kind in left), name
        assert "amd64" not in findings[name].apt
    assert (findings["ipvs on ipvs: probes"].state == "ok") == bool(left)
    with pytest.raises(MachineError) as caught:
        engine.check_probes(LEGACY, "kprobe")
    assert caught.value.remedy == "pass --probe fentry"
    assert name_remedies("aarch64") == ("use an x86-64 machine, where --vm works", "linux-image-arm64")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("absent", "option", "left"),
    [
        ("iptable_nat", "CONFIG_IP_NF_NAT", {"nftables on nft", "iptables on nft", "ipvs on ipvs"}),
        ("ip_tables", "CONFIG_IP_NF_IPTABLES_LEGACY", {"nftables on nft", "iptables on nft", "ipvs on ipvs"}),
        ("nf_tables", "CONFIG_NF_TABLES", {"iptables on legacy"}),
        ("ip_vs", "CONFIG_IP_VS", {"iptables on legacy", "nftables on nft", "iptables on nft"}),
        ("veth", "CONFIG_VETH", set()),
    ],
)
@pytest.mark.usefixtures("good")
def test_a_kernel_without_an_option_names_it(
    monkeypatch: pytest.MonkeyPatch, absent: str, option: str, left: set[str]
) -> None:
    monkeypatch.setenv("ABSENT", absent)
    findings = examine()
    assert set(possible_modes(findings)) == left
    assert any(option in finding.found for finding in findings)
    for mode in MODES:
        for uses in (("trace", "run"), ("send time", "run")):
            if f"{mode.name} on {mode.backend}" in left:
                require(mode, *uses)
            else:
                with pytest.raises(MachineError, match=f"module not found for this kernel: .*{option}"):
                    require(mode, *uses)


def test_a_kernel_without_network_namespaces(good: Path) -> None:
    remove("proc/self/ns/net")(good)
    assert possible_modes(examine()) == []
    with pytest.raises(MachineError, match="CONFIG_NET_NS"):
        require(LEGACY, "send time", "run")


def test_an_ordinary_user_sends_where_namespaces_are_allowed(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary(monkeypatch)
    assert states()["rights to send"].state == "missing"
    write("bin/unshare", "#!/bin/sh\nexit 0\n")(good)
    findings = states()
    assert findings["rights to send"].state == "ok"
    assert findings["rights on a node"].state == "missing"
    assert doctor.find_lacking(findings.values())["nftables on nft"]["send time (--probe none)"] == []
    assert possible_modes(findings.values()) == []


def test_a_built_in_module_is_not_missing(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a kernel whose modules are not installed; a module's own symbols have its name behind them."""
    monkeypatch.setenv("ABSENT", "nf_tables nf_conntrack xt_set")
    monkeypatch.setattr(doctor, "check_probes", lambda *_: "fentry")
    nft = find_mode("nftables", None)
    with pytest.raises(MachineError, match="module not found for this kernel: nf_tables, nf_conntrack"):
        require(nft, "trace")
    kernel._is_built_in.cache_clear()
    write("proc/kallsyms", "0 T nft_do_chain\n0 t set_match_v4\t[xt_set]\n")(good)
    write(f"lib/modules/{kernel.release()}/modules.builtin", "kernel/net/netfilter/nf-conntrack.ko\n")(good)
    require(nft, "trace")
    assert not kernel.has_module("xt_set")


def test_every_tool_has_a_package() -> None:
    rows = [mode.for_family(family) for mode in MODES for family in (4, 6)]
    tools = {tool for row in rows for tool in row.tools}
    tools |= {row.iptables for row in rows if row.name == "iptables"}
    assert tools <= set(processes.PACKAGES)
    some = "ip6tables-legacy-restore", "ip6tables-legacy-save", "ip6tables-nft-save", "virtme-run"
    pip = "pip install virtme-ng"
    dnf = f"dnf install iptables-legacy iptables-nft && {pip}"
    assert processes.install(*some) == (f"apt-get install iptables && {pip}", dnf)
    assert processes.install("virtme-run")[0] == pip


@pytest.mark.usefixtures("good")
@pytest.mark.parametrize(("release", "state"), [
    ("4.8.0", "missing"), ("4.9.0", "warning"), ("5.4.0", "warning"),
    ("5.10.0-32-amd64", "ok"), ("5.11.0", "ok"), ("6.18.44-x", "ok"),
])  # fmt: skip
def test_kernels(monkeypatch: pytest.MonkeyPatch, release: str, state: str) -> None:
    monkeypatch.setattr(kernel, "release", lambda: release)
    assert states()["kernel"].state == state


@pytest.mark.usefixtures("good")
def test_missing_modules_stop_only_their_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABSENT", "xt_nfacct iptable_nat")
    assert possible_modes(examine()) == ["nftables on nft", "ipvs on ipvs"]
    require(find_mode("nftables", None), "trace", "run")
    with pytest.raises(MachineError, match="module not found for this kernel: iptable_nat, xt_nfacct") as caught:
        require(LEGACY, "trace", "run")
    assert caught.value.remedy.endswith(f"; or: {kernel.IN_VM}")
    assert missing_to_trace([find_mode("nftables", None)]) == []
    assert missing_to_trace([LEGACY, LEGACY]) == ["iptables on legacy: kernel"]


def test_all_missing_programs_are_named_at_once(good: Path) -> None:
    for name in ("ip", "nft", "iptables-legacy"):
        remove(f"bin/{name}")(good)
    with pytest.raises(MachineError, match=r"^the programs 'ip', 'nft', 'iptables-legacy' are missing$") as caught:
        require(LEGACY, "trace", "run")
    assert caught.value.remedy == "apt-get install iproute2 nftables iptables"


@pytest.mark.usefixtures("good")
def test_pktgen_is_for_sending_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABSENT", "pktgen")
    assert len(possible_modes(examine())) == len(MODES), "sockets send, too"
    assert missing_to_trace() == ["pktgen"]
    require(LEGACY, "trace", "run")
    with pytest.raises(MachineError, match="pktgen"):
        require(LEGACY, "pktgen")


def test_conntrack_room(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "CONNTRACK", good / "proc/sys/net/netfilter")
    (good / "bin/cat").symlink_to("/bin/cat")
    (good / "proc/sys/net/netfilter").mkdir()
    (good / "proc/sys/net/netfilter/nf_conntrack_max").write_text("16384\n")
    (good / "proc/sys/net/netfilter/nf_conntrack_count").write_text("144\n")
    assert states()["conntrack room"].state == "warning"
    assert "room for 16,240" in states()["conntrack room"].found
    (good / "proc/sys/net/netfilter/nf_conntrack_max").write_text("262144\n")
    assert states()["conntrack room"].state == "ok"


def test_node_containers_are_listed(good: Path) -> None:
    assert states()["node containers"].found == "none"
    write("bin/docker", "#!/bin/sh\necho kind-worker io.x-k8s.kind.cluster=kind\n")(good)
    (good / "bin/docker").chmod(0o755)
    finding = states()["node containers"]
    assert (finding.state, finding.found) == ("ok", "kind-worker (kind)")
    assert finding.apt == "kproxylat run --node-container NAME"


def test_the_command_fits_the_system(good: Path) -> None:
    remove("bin/conntrack")(good)
    for dnf, command in ((False, "apt-get install conntrack"), (True, "dnf install conntrack-tools")):
        if dnf:
            write("bin/dnf", "#!/bin/sh\n")(good)
        with pytest.raises(MachineError) as caught:
            require(LEGACY, "run")
        assert caught.value.remedy == command


def test_an_ordinary_user_without_any_tool(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ordinary(monkeypatch)
    shutil.rmtree(good / "bin")
    (good / "sys/kernel/tracing/available_filter_functions").unlink()
    with pytest.raises(SystemExit) as ended:
        app.main(["doctor"])
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (1, "")
    assert "root" in out
    assert "apt-get install bpftrace" in out
    assert "dnf install bpftrace" in out
    assert "can be traced here: nothing" in out
    remedies = [line for line in out.splitlines() if line.startswith("  apt-get")]
    assert remedies.count("  apt-get install util-linux") == 1, "problems of the same remedy stand together"
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.usefixtures("good")
def test_a_check_without_permission_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary(monkeypatch)

    def refuse(_: str) -> bool:
        raise PermissionError("/sys/kernel/tracing: Permission denied")

    monkeypatch.setattr(kernel, "path_exists", refuse)
    assert states()["tracefs"].state == "warning"


def test_each_row_has_a_unique_name_a_consequence_and_a_remedy() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert check.breaks
        assert check.apt or check.in_vm, "the error names the remedy, else it is another kernel"
        assert check.use in (*USES, "pktgen", "send time", "")
        for command in (check.apt, check.dnf or check.apt):
            assert not command or command.split()[0] in COMMANDS


def test_modules_without_types_are_traced_where_offsets_are_known(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove("sys/kernel/btf/nf_tables")(good)
    monkeypatch.setattr(kernel, "release", lambda: "5.10.0-32-amd64")
    assert states()["BTF"].state == "warning"
    assert "kprobes" in states()["BTF"].found
    require(LEGACY, "trace", "run", "node")
    monkeypatch.setattr(kernel, "release", lambda: "5.9.0")
    with pytest.raises(MachineError, match="none of the loaded modules has BTF"):
        require(LEGACY, "trace")


def test_the_modes_family_and_origin_keep_its_checks(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(LEGACY.for_family(6).from_node(), "trace", "run", "node")
    monkeypatch.setenv("ABSENT", "ip6_tables")
    require(LEGACY.from_node(), "trace", "run", "node")
    with pytest.raises(MachineError, match="module not found for this kernel: ip6_tables"):
        require(LEGACY.for_family(6).from_node(), "trace", "run")
    remove("bin/ip6tables-legacy")(good)
    monkeypatch.delenv("ABSENT")
    with pytest.raises(MachineError, match="the program 'ip6tables-legacy' is missing"):
        require(LEGACY.for_family(6), "trace", "run")


def test_a_module_that_a_pod_may_not_load_is_loaded_on_the_node(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod of --node: the remedy is no package of a kernel, whose modules the node has."""
    monkeypatch.setenv("ABSENT", "pktgen")
    write("proc/self/status", f"CapEff:\t{(1 << 40) - 1 - (1 << 16):016x}\n")(good)
    with pytest.raises(MachineError, match="module pktgen is not loaded, and only root of the machine can") as caught:
        require(LEGACY, "run", "pktgen")
    assert caught.value.remedy == (
        "modprobe pktgen # as root on the node; or, in a pod: pass --load-modules; or: pass --generator sockets"
    )
    assert states()["pktgen"].state == "missing"
