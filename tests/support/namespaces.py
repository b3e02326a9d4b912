"""kproxylat in namespaces of its own: nothing of the machine's network, and nothing below its /run, is touched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from kproxylat.results import Result
from kproxylat.results_json import from_json
from tests.support import ROOT

SITE = next(path for path in sys.path if path.endswith("site-packages"))
# An ordinary user may not be able to read where Python and the checkout lie: both are bound to /mnt.
_SCRIPT = """
set -eu
mount -t tmpfs tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/python /mnt/checkout /mnt/site
mount --bind "$1" /mnt/python
mount --bind "$2" /mnt/checkout
mount --bind "$3" /mnt/site
user=$4
shift 4
export PYTHONPATH=/mnt/checkout:/mnt/site PYTHONDONTWRITEBYTECODE=1
[ "$user" = root ] || set -- setpriv --reuid="$user" --regid=nogroup --clear-groups "$@"
cd /mnt/checkout
exec "$@"
"""


def run_python(*words: str, user: str = "root", directory: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in mount and network namespaces of its own.

    :param words: Python's arguments.
    :param user: "root", or another user of this machine.
    :param directory: where the user may write; its home directory.
    """
    if user != "root":
        for parent in (directory, *directory.parents):
            if parent.stat().st_uid == 0 and parent != Path("/tmp"):
                parent.chmod(0o777 if parent == directory else 0o755)
    script = ("sh", "-c", _SCRIPT, "sh", sys.base_prefix, str(ROOT), SITE, user)
    python = f"/mnt/python/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    return subprocess.run(
        ["unshare", "--mount", "--net", *script, "env", f"HOME={directory}", python, *words],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def run_alone(*words: str, user: str = "root", directory: Path) -> subprocess.CompletedProcess[str]:
    """Run kproxylat likewise, and save its results in the directory."""
    return run_python("-m", "kproxylat", *words, "--output-dir", str(directory), user=user, directory=directory)


def measure_alone(*words: str, user: str = "root", directory: Path) -> Result:
    """Return the result of a run; it must succeed."""
    done = run_alone("run", *words, "--format", "json", user=user, directory=directory)
    assert done.returncode == 0, done.stderr
    return from_json(done.stdout)


def sweep_alone(*words: str, directory: Path) -> dict[str, Any]:
    """Return the document of a sweep; it must succeed."""
    done = run_alone("sweep", *words, "--format", "json", directory=directory)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document
