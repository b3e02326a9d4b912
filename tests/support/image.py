"""The root file system of the pods' image, which `make image` builds."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kproxylat.cluster.job import make_job
from tests.support import ROOT
from tests.support.kubelet import Pod, confine

IMAGE = ROOT / ".cache/image/root"


def prepare_image() -> None:
    """Put this kproxylat into the image; without one skip the test, and with KPROXYLAT_REQUIRE=image fail it."""
    if os.geteuid() or not (IMAGE / "srv/packages.txt").exists():
        if "image" in os.environ.get("KPROXYLAT_REQUIRE", ""):
            pytest.fail("make image, as root")
        pytest.skip("the image's root file system is not there: make image, as root")
    subprocess.run([ROOT / "deploy/image.sh", "root"], check=True, capture_output=True)


def write_pod(state: str, *words: str, without: str = "", netns: str = "", load_modules: bool = False) -> list[str]:
    """Return the command line of the pod of a command, with the rights of its Job.

    :param state: the node's /run/kproxylat.
    :param without: a capability to take away.
    :param netns: as in :func:`tests.support.kubelet.confine`. ``load_modules``: as in :func:`make_job`.
    """
    job = make_job(
        " ".join(words[:2]) if words[0] == "mode" else words[0], "n1", words, "ns", "image", 30, load_modules
    )
    rights = job["spec"]["template"]["spec"]["containers"][0]["securityContext"]["capabilities"]["add"]
    if without:
        rights.remove(without)
    return confine(Pod("x", job, Path("log")), str(IMAGE), Path(state), netns)
