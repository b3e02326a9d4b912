"""kproxylat in a world of fakes: every program that it runs is a small shell script, the machine is a directory.

``python -m tests.fakes`` serves command lines as :mod:`kproxylat.guest` does, each in its own world (the order's
``cwd``); ``python -m tests.fakes ARGV...`` runs one, in the current directory.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import sys

from kproxylat import bpftrace, cli, guest, kernel, machine, net, plan, proc, traffic

PROGRAMS = {
    "bpftrace": """
case $1 in
--version) echo "bpftrace v0.17.0"; exit ;;
-lv) printf '%s\\n    struct nft_pktinfo * pkt\\n    void * priv\\n' "$2"; exit ;;
esac
cat >/dev/null
echo 0 >burst
dump() { printf '\\n@n[8, 5]: %s\\n\\n@table[8]: kube-proxy\\n@chain[8]: nat-prerouting\\n' $(cat burst); }
exec 9</dev/null
trap 'exec 9<&-; dump; exit 0' INT
echo __BPFTRACE_NOTIFY_PROBES_ATTACHED
while :; do sleep 0.02; done
""",
    "cat": """case "$*" in *nf_conntrack*) echo "262144 0" ;; *) exec /bin/cat "$@" ;; esac""",
    "grep": "exit 0",
    "ip": """
apply() {
    case "$1 $2" in
    "netns add") [ ! -e run/netns/$3 ] || { echo "netns $3: File exists" >&2; exit 1; }; : >run/netns/$3 ;;
    "netns delete") rm run/netns/$3 || exit 1 ;;
    esac
}
case "$*" in
*-json*) echo '[{"operstate": "UP"}]' ;;
*-batch*) while read -r line; do apply $line; done ;;
*) apply "$@" ;;
esac
""",
    "modprobe": """
for name; do :; done
case "$1" in --dry-run) ;; -r) rmdir root/sys/module/$name ;; *) mkdir root/sys/module/$name ;; esac
""",
    "nft": """
case "$1" in
-f) cat >/dev/null ;;
--json)
    printf '{"nftables": [{"counter": {"name": "delivered", "packets": %s}}' $(cat sent)
    printf ', {"counter": {"name": "%s", "packets": 0}}' untranslated strayed others rejected
    echo ']}'
esac
""",
    "nsenter": 'shift; exec "$@"',
    "sysctl": "exit 0",
    "tee": """
case $1 in
*/pgctrl)
    read -r order
    [ "$order" = start ] || { : >pktgen/stop; exit; }
    for step in 1 2 3 4 5 6 7 8 9 10; do [ -e pktgen/stop ] || sleep 0.02; done
    rm -f pktgen/stop
    count=$(cat pktgen/count)
    echo $count >burst
    echo $(($(cat sent) + count)) >sent
    result="Result: OK: $((count * 1000))(c0+d0) usec"
    printf 'Current:\\n     pkts-sofar: %s  errors: 0\\n%s\\n' $count "$result" >pktgen/pod0 ;;
*)
    while read -r line; do
        case $line in "count "*) echo ${line#count } >pktgen/count ;; esac
        echo "Result: OK: $line" >$1
        echo "$line"
        echo "$line"
    done ;;
esac
""",
}
"""Program -> what its script does, in the world's directory: ``run/netns`` has the namespaces, ``root`` is /."""
TREE = {
    "burst": "0",
    "sent": "0",
    "pktgen/kpktgend_0": "",
    "pktgen/pod0": "",
    "root/proc/sys/kernel/ftrace_enabled": "1",
    "root/sys/kernel/btf/vmlinux": "",
    "root/sys/kernel/btf/nf_tables": "",
    "root/sys/kernel/tracing/available_filter_functions": "",
    "root/sys/module/nf_tables/x": "",
    "root/sys/module/nf_conntrack/x": "",
    "tmp/x": "",
    "run/netns/another": "",
}


def make_world(world: pathlib.Path, programs: dict[str, str | None]) -> None:
    """Make a world; ``programs`` are in the usual ones' place, None is one that is not installed."""
    for name, text in TREE.items():
        (world / name).parent.mkdir(parents=True, exist_ok=True)
        (world / name).write_text(text)
    (world / "bin").mkdir()
    for name, body in {**PROGRAMS, **programs}.items():
        if body is not None:
            (world / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
            (world / "bin" / name).chmod(0o755)
    (world / "root/proc/self").symlink_to("/proc/self")
    (world / "bin/setpriv").symlink_to(shutil.which("setpriv", path=proc.PATH) or "/usr/bin/setpriv")


def enter() -> None:
    """Let this process see the world below its current directory instead of the machine."""
    path = pathlib.Path
    root = path("root")
    proc.PATH = "bin"
    kernel.ROOT, kernel.BTF = root, root / "sys/kernel/btf"
    kernel.check_root = lambda: None
    kernel.release = lambda: "6.1.0-fake"
    bpftrace.has_function = lambda _: False
    kernel.struct_offset = lambda *_: 64  # type: ignore[assignment]
    net.LOCK, net.NETNS, net.LINKS = path("run/lock"), path("run/netns"), path("run/links")
    traffic.PROC = "pktgen"
    traffic.Path = lambda text: path("pktgen", path(text).name)  # type: ignore[assignment,misc]
    for name in ("user", "pid"):
        machine.INITIAL[name] = path("/proc/self/ns", name).stat().st_ino
    bpftrace.Tracer.wait_attached.__defaults__ = (1,)
    bpftrace.Tracer.stop.__defaults__ = (2,)
    assert plan.kernel is kernel


if __name__ == "__main__":
    enter()
    os.environ["TMPDIR"] = "tmp"
    if sys.argv[1:]:
        cli.main(sys.argv[1:])
    guest.serve()
