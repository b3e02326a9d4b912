"""Saved files: none is replaced by accident, an error names the file, and they belong to the caller of sudo."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kproxylat.errors import MachineError
from kproxylat.system.files import save_file


@pytest.mark.parametrize("content", ["é\n", b"\x00\xff"], ids=["text", "bytes"])
def test_a_file_holds_what_is_saved(tmp_path: Path, content: str | bytes) -> None:
    for replace in (False, True):
        path = tmp_path / str(replace)
        save_file(path, content, replace=replace)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)


def test_a_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    path, link = tmp_path / "old", tmp_path / "link"
    path.write_text("old")
    link.symlink_to(tmp_path / "elsewhere")
    for taken in (path, link):
        with pytest.raises(MachineError, match=f"{taken} cannot be written: File exists") as caught:
            save_file(taken, "new", "--output")
        assert caught.value.remedy == "pass another --output"
    assert path.read_text() == "old"
    assert not (tmp_path / "elsewhere").exists()
    save_file(path, "new", replace=True)
    assert path.read_text() == "new"


def test_an_error_names_the_file_and_the_option(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "file"
    for replace in (False, True):
        with pytest.raises(MachineError, match=f"{path} cannot be written: No such file") as caught:
            save_file(path, "", replace=replace)
        assert caught.value.remedy == "pass another --output-dir"


def test_a_file_belongs_to_the_caller_of_sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda _, *owner, follow_symlinks: owners.append((*owner, follow_symlinks)))
    monkeypatch.setenv("SUDO_UID", "1000")
    monkeypatch.setenv("SUDO_GID", "100")
    save_file(tmp_path / "new", "")
    save_file(tmp_path / "over", "", replace=True)
    assert owners == [(1000, 100, True), (1000, 100, False)], "an open file itself; never the target of a link"
