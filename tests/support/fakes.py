"""kproxylat in a world of fakes: every program that it runs is a small shell script, the machine is a directory.

``python -m tests.support.fakes`` serves command lines as kproxylat.guest does, each in its own world (the order's
``cwd``); ``python -m tests.support.fakes ARGV...`` runs one, in the current directory.
"""

from __future__ import annotations

import io
import os
import pathlib
import shutil
import sys

from kproxylat import guest
from kproxylat.cli import app
from kproxylat.node import checks, lock, network
from kproxylat.system import btf, kernel, processes
from kproxylat.trace import bpftrace, engine
from kproxylat.traffic import pktgen

PROGRAMS = {
    "bpftrace": """
case $1 in
--version) echo "bpftrace v0.17.0"; exit ;;
-lv) printf '%s\\n    struct nft_pktinfo * pkt\\n    void * priv\\n' "$2"; exit ;;
esac
names='kube-proxy nat-prerouting'
case $(cat) in *"mode iptables"*) names='nat PREROUTING' ;; esac
echo 0 >burst
dump() {
    count=$(cat burst)
    [ $count = 0 ] || printf '\\n@n[8, 5]: %s\\n\\n@table[8]: %s\\n@chain[8]: %s\\n' $count $names
}
exec 9</dev/null
trap 'exec 9<&-; dump; exit 0' INT
echo __BPFTRACE_NOTIFY_PROBES_ATTACHED
while :; do sleep 0.02; done
""",
    "cat": """
case "$*" in
*nf_conntrack*) echo $(cat ns/host/sysctls/net.netfilter.nf_conntrack_max) 0 ;;
*) exec /bin/cat "$@" ;;
esac
""",
    "conntrack": "rm -f ns/${NETNS:-host}/flows",
    "grep": "exit 0",
    "ip": """
here=ns/${NETNS:-host}
apply() {
    case "$1 $2" in
    "netns add")
        [ ! -e run/netns/$3 ] || { echo "netns $3: File exists" >&2; return 1; }
        : >run/netns/$3
        mkdir -p ns/$3/links ns/$3/rules ns/$3/sysctls ;;
    "netns delete")
        rm -rf ns/$3
        rm run/netns/$3 ;;
    "link add")
        : >$here/links/$3
        while [ $# -gt 2 ]; do
            case $1 in peer) peer=$3 ;; esac
            shift
        done
        case $2 in *[!0-9]*) : >ns/$2/links/$peer ;; *) : >ns/host/links/$peer ;; esac ;;
    "link delete") rm $here/links/$3 ;;
    "link set") [ "$4" != alias ] || echo "$5" >$here/alias ;;
    esac
}
case "$*" in
*-json*link*)
    printf '[{"operstate": "UP", "ifalias": "%s"}]' "$(sed 's/"/\\\\"/g' $here/alias 2>/dev/null)" ;;
*-json*) echo '[]' ;;
*-batch*) while read -r line; do apply $line || case "$*" in *-force*) ;; *) exit 1 ;; esac; done ;;
*) apply "$@" ;;
esac
""",
    "iptables-nft": """
case "$*" in
*" -v "*) sed "s/ -j KUBE-SVC-WORKER/ -c $(cat sent) 0&/; t; s/ -j / -c 0 0&/" ns/${NETNS:-host}/rules/nat ;;
*) cat ns/${NETNS:-host}/rules/nat ;;
esac
""",
    "iptables-nft-restore": """
awk '
NR == FNR { rules[++n] = $0; next }
/^-D/ {
    line = "-A" substr($0, 3)
    for (at = 1; at <= n && rules[at] != line; at++);
    for (n--; at <= n; at++) rules[at] = rules[at + 1]
}
/^-I/ {
    line = $0
    sub(/^-I KUBE-SERVICES [0-9]+/, "-A KUBE-SERVICES", line)
    for (at = ++n; at > $3 + 0; at--) rules[at] = rules[at - 1]
    rules[at] = line
}
END { for (at = 1; at <= n; at++) print rules[at] }
' ns/${NETNS:-host}/rules/nat - >new && mv new ns/${NETNS:-host}/rules/nat
""",
    "modprobe": """
for name; do :; done
case "$1" in --dry-run) ;; -r) rmdir root/sys/module/$name ;; *) mkdir root/sys/module/$name ;; esac
""",
    "nfacct": "exit 0",
    "nft": """
case "$*" in
*"list map"*) echo '{"nftables": [{"map": {"elem": [[{"concat": ["10.96.100.50", "udp", 50051]}, {}]]}}]}'; exit ;;
esac
case "$1" in
-f) cksum >new && mv new ns/${NETNS:-host}/rules/nft ;;
--json)
    printf '{"nftables": [{"counter": {"name": "delivered", "packets": %s}}' $(cat sent)
    printf ', {"counter": {"name": "%s", "packets": 0}}' masqueraded untranslated strayed others rejected
    echo ']}'
esac
""",
    "nsenter": """export NETNS=${1##*/}; shift; exec "$@" """,
    "sysctl": """
here=ns/${NETNS:-host}/sysctls
[ "$1" != -n ] || exec cat $here/$2
for each; do
    # A link's own settings go with it.
    case $each in *.kpl-*) ;; *=*) echo "${each#*=}" >new && mv new $here/${each%%=*} ;; esac
done
""",
    "tee": """
case $1 in
*/pgctrl)
    read -r order
    [ "$order" = start ] || { : >pktgen/stop; exit; }
    [ -e run/netns/kproxylat-node ] || : >ns/host/flows
    for step in 1 2 3 4 5; do [ -e pktgen/stop ] || sleep 0.02; done
    rm -f pktgen/stop
    count=$(cat pktgen/count)
    echo $count >burst
    echo $(($(cat sent) + count)) >new && mv new sent
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
"""Program -> what its script does, in the world's directory: ``run/netns`` has the namespaces, ``root`` is /.

``ns/NAME`` has each namespace's links, rules and settings, and whether conntrack knows flows of ours; ``ns/host`` is
the one that we run in. A link stays when the namespace of its other end goes, which the kernel removes only later.
"""
RULES = """-A KUBE-SERVICES -d 10.97.0.1/32 -p tcp -m comment --comment "a" -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SERVICES -d 10.96.100.50/32 -p udp -m comment --comment "worker" -m udp --dport 50051 -j KUBE-SVC-WORKER
-A KUBE-SERVICES -d 10.97.0.2/32 -p tcp -m comment --comment "b" -m tcp --dport 80 -j KUBE-SVC-B
-A KUBE-SERVICES -m comment --comment "last" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
"""
TREE = {
    "burst": "0",
    "sent": "0",
    "stop_limit_s": "6",
    "ns/host/links/eth0": "",
    "ns/host/rules/nat": RULES,
    "ns/host/sysctls/net.ipv4.ip_forward": "0\n",
    "ns/host/sysctls/net.netfilter.nf_conntrack_max": "262144\n",
    "ns/host/sysctls/net.netfilter.nf_conntrack_udp_timeout": "30\n",
    "pktgen/kpktgend_0": "",
    "pktgen/pod0": "",
    "root/proc/sys/kernel/ftrace_enabled": "1",
    "root/sys/kernel/btf/vmlinux": "",
    "root/sys/kernel/btf/nf_tables": "",
    "root/sys/kernel/tracing/available_filter_functions": "",
    # Those of a mode stay loaded after a run (docs/rights.md); pktgen does not.
    **{f"root/sys/module/{name}/x": "" for name in ("nf_tables", "nf_conntrack", "nft_compat", "nfnetlink_acct")},
    "root/sys/module/xt_nfacct/x": "",
    "tmp/x": "",
    "run/netns/another": "",
}


class Typed(io.StringIO):
    """Text that a person types at a terminal."""

    def isatty(self) -> bool:
        """Say that it is one."""
        return True


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
    (world / "bin/setpriv").symlink_to(shutil.which("setpriv", path=processes.PATH) or "/usr/bin/setpriv")


def enter() -> None:
    """Let this process see the world below its current directory instead of the machine."""
    path = pathlib.Path
    root = path("root")
    processes.PATH = "bin"
    processes.CLEAN_UP_LIMIT_S = float(os.environ.get("KPROXYLAT_LIMIT_S", processes.CLEAN_UP_LIMIT_S))
    kernel.ROOT, kernel.BTF = root, root / "sys/kernel/btf"
    kernel.check_root = lambda *_: None
    kernel.release = lambda: "6.1.0-fake"
    engine.has_function = lambda _: False
    btf.struct_offset = lambda *_: 64  # type: ignore[assignment]
    lock.LOCK, network.NETNS = path("run/lock"), path("run/netns")
    network.list_links = lambda: [link.name for link in path("ns/host/links").iterdir()]
    pktgen.PROC = "pktgen"
    pktgen.Path = lambda text: path("pktgen", path(text).name)  # type: ignore[assignment,misc]
    kernel.INITIAL_USER = path("/proc/self/ns/user").stat().st_ino
    checks.INITIAL_PID = path("/proc/self/ns/pid").stat().st_ino
    bpftrace.Tracer.wait_attached.__defaults__ = (1,)
    stop = bpftrace.Tracer.stop
    bpftrace.Tracer.stop = lambda self: stop(self, float(path("stop_limit_s").read_text()))  # type: ignore[method-assign]
    # Less than what the fault table's floods print, as the real limit is less than a real flood.
    bpftrace.KEEP_CHARS = 6 << 20


if __name__ == "__main__":
    enter()
    os.environ["TMPDIR"] = "tmp"
    if sys.argv[1:]:
        app.main(sys.argv[1:])
    guest.serve()
