"""What the running kernel says about its machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxylat.system import kernel

X86 = "processor\t: 0\nmodel name\t: AMD EPYC 7B13\n\nprocessor\t: 1\nmodel name\t: AMD EPYC 7B13\n"
ARM = "CPU implementer\t: 0x41\nCPU part\t: 0xd03\n\nCPU implementer\t: 0x41\nCPU part\t: 0xd09\n"


@pytest.mark.parametrize(
    ("cpuinfo", "size", "text"),
    [
        (X86, "32K\n", "AMD EPYC 7B13, caches L1 32K"),
        (ARM, "32K\n", "0x41 0xd03 0xd09, caches L1 32K"),
        (ARM, "", "0x41 0xd03 0xd09, caches unknown"),
        ("processor\t: 0\n", "32K\n", ""),
    ],
)
def test_a_processor(cpuinfo: str, size: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU's arm64 machine describes its caches without sizes."""
    cache = tmp_path / "sys/devices/system/cpu/cpu0/cache/index0"
    cache.mkdir(parents=True)
    (cache / "level").write_text("1\n")
    if size:
        (cache / "size").write_text(size)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(kernel, "ROOT", tmp_path)
    assert kernel.describe_processor() == text
