"""Saved files: none is replaced by accident, no link is followed, and they belong to the caller of sudo."""

from __future__ import annotations

import ast
import errno
import os
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from kproxylat.errors import MachineError
from kproxylat.system import files
from kproxylat.system.files import append, create, make_directory, read_own, save_file, write_new
from tests.support import ROOT


@pytest.mark.parametrize("content", ["é\n", b"\x00\xff"], ids=["text", "bytes"])
def test_a_file_holds_what_is_saved(tmp_path: Path, content: str | bytes) -> None:
    for force in (False, True):
        path = tmp_path / str(force)
        save_file(path, content, force=force)
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
    save_file(path, "new", force=True)
    assert path.read_text() == "new"


def test_a_replaced_link_leaves_its_target(tmp_path: Path) -> None:
    """A hard link, too."""
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "soft").symlink_to("victim")
    (tmp_path / "hard").hardlink_to(tmp_path / "victim")
    for name in ("soft", "hard"):
        save_file(tmp_path / name, "new", force=True)
        assert (tmp_path / name).read_text() == "new"
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_file_with_the_mark_is_replaced(tmp_path: Path) -> None:
    save_file(tmp_path / "own", "a mark", mark=b"mark")
    save_file(tmp_path / "own", "a mark again", mark=b"mark")
    assert (tmp_path / "own").read_text() == "a mark again"
    (tmp_path / "foreign").write_text("no sign")
    (tmp_path / "link").symlink_to("own")
    for name in ("foreign", "link"):
        with pytest.raises(MachineError, match="File exists"):
            save_file(tmp_path / name, "a mark", mark=b"mark")
    assert (tmp_path / "foreign").read_text() == "no sign"


def test_an_error_names_the_file_and_the_option(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "file"
    for force in (False, True):
        with pytest.raises(MachineError, match=f"{path} cannot be written: No such file") as caught:
            save_file(path, "", force=force)
        assert caught.value.remedy == "pass another --output-dir"


def test_a_file_belongs_to_the_caller_of_sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = []

    def own(descriptor: int, *owner: int, follow_symlinks: bool) -> None:
        assert follow_symlinks
        owners.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, *owner))

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", own)
    monkeypatch.setenv("SUDO_UID", "1000")
    monkeypatch.setenv("SUDO_GID", "100")
    save_file(tmp_path / "new", "")
    save_file(tmp_path / "new", "", force=True)
    make_directory(tmp_path / "a/b")
    assert owners == [(name, 1000, 100) for name in ("new", "new", "a", "b")], "by the descriptor"


def test_a_link_is_not_appended_to(tmp_path: Path) -> None:
    """A state of a sweep lies in a directory of the caller of sudo."""
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "soft").symlink_to("victim")
    for name in ("soft", "victim"):
        if name == "victim":
            (tmp_path / "hard").hardlink_to(tmp_path / "victim")
        with pytest.raises(OSError, match=r"(symbolic links|not a file that kproxylat made)"):
            append(tmp_path / name, "more")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a file that kproxylat made"):
        read_own(tmp_path / "pipe")
    assert (tmp_path / "victim").read_text() == "precious"
    write_new(tmp_path / "own", "first")
    append(tmp_path / "own", "second")
    assert read_own(tmp_path / "own") == b"first\nsecond"


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Act as root, called by another user; return the inodes of the directories and files that this user gets."""
    given: list[int] = []

    def own(descriptor: int, uid: int, _gid: int, *, follow_symlinks: bool) -> None:
        assert uid == 4711
        assert follow_symlinks
        given.append(os.stat(descriptor).st_ino)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", own)
    monkeypatch.setenv("SUDO_UID", "4711")
    monkeypatch.setenv("SUDO_GID", "4711")
    return given


@pytest.mark.usefixtures("as_root")
def test_root_follows_only_links_that_nobody_else_can_make(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "victim").mkdir()
    (tmp_path / "link").symlink_to("victim")
    for work in (lambda path: create(path / "file"), lambda path: make_directory(path / "sub")):
        with pytest.raises(MachineError, match="link is not followed as root: other users can change") as caught:
            work(tmp_path / "link")
        assert caught.value.remedy == f"name {tmp_path / 'victim'}"
    assert list((tmp_path / "victim").iterdir()) == []
    if os.getuid() == 0:
        tmp_path.chmod(0o755)
        os.close(create(tmp_path / "link/file"))
        os.lchown(tmp_path / "link", 4711, 4711)
        with pytest.raises(MachineError, match="link is not followed"):
            create(tmp_path / "link/other")


def replace_by_link(path: Path, victim: Path) -> None:
    path.rename(path.with_name(f"{path.name} away"))
    path.symlink_to(victim)


def replace_by_directory(path: Path, victim: Path) -> None:
    path.rename(path.with_name(f"{path.name} away"))
    victim.rename(path)


@pytest.mark.parametrize("replace", [replace_by_link, replace_by_directory])
@pytest.mark.parametrize("target", ["a", "a/b"])
def test_a_race_is_lost_at_every_call(
    tmp_path: Path, as_root: list[int], monkeypatch: pytest.MonkeyPatch, target: str,
    replace: Callable[[Path, Path], None],
) -> None:  # fmt: skip
    """Before each system call of make_directory and create in turn, the caller of sudo replaces a directory."""
    originals = {name: getattr(os, name) for name in ("open", "mkdir", "fstat", "chown", "close")}
    calls = refused = 0

    def meddle(name: str) -> Callable[..., Any]:
        def call(*words: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= moment and not replaced and (root / target).is_dir():
                replaced.append(True)
                (root / target).parent.chmod(0o777)
                replace(root / target, root / "victim")
            return originals[name](*words, **options)

        return call

    for name in originals:
        monkeypatch.setattr(files.os, name, meddle(name))
    for moment in count(1):
        as_root.clear()
        calls, replaced, root = 0, [], tmp_path / f"{moment}"
        originals["mkdir"](root)
        originals["mkdir"](root / "victim")
        (root / "victim/precious").write_text("precious")
        inode = (root / "victim").stat().st_ino
        try:
            make_directory(root / "a/b")
            os.close(create(root / "a/b/log"))
        except (MachineError, OSError):
            refused += 1
        [victim] = [path for path in (root / "victim", root / "a", root / "a/b") if path.exists() and
                    path.stat().st_ino == inode and not path.is_symlink()]  # fmt: skip
        assert inode not in as_root, moment
        if replace is replace_by_link:
            assert [path.name for path in victim.iterdir()] == ["precious"], moment
        if not replaced:
            assert [path.name for path in (root / "a/b").iterdir()] == ["log"]
            break
    assert 0 < refused < moment
    assert moment > 20


def test_a_new_directory_is_not_given_through_a_link(
    tmp_path: Path, as_root: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after mkdir() its name becomes a link to a directory of root's, which is as empty as a new one."""
    original = os.mkdir
    original(tmp_path / "victim")

    def make(name: str, *, dir_fd: int) -> None:
        original(name, dir_fd=dir_fd)
        replace_by_link(tmp_path / name, tmp_path / "victim")

    monkeypatch.setattr(files.os, "mkdir", make)
    with pytest.raises(MachineError, match="new cannot be made: Not a directory"):
        make_directory(tmp_path / "new")
    assert as_root == []


def test_only_one_module_makes_files() -> None:
    """Others call it: what it checks holds for every file."""
    exceptions = {
        "system/files.py": "this module",
        "node/lock.py": "in /run, with checks of its own",
        "system/user_namespace.py": "files of the kernel",
    }
    writers = re.compile(r"^(mkdir|makedirs|mkstemp|mkdtemp|write_text|write_bytes|touch|chown|symlink_to)$")
    for path in (ROOT / "kproxylat").rglob("*.py"):
        if (name := str(path.relative_to(ROOT / "kproxylat"))) in exceptions:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                words = [word.value for word in (*node.args, *(item.value for item in node.keywords))
                         if isinstance(word, ast.Constant)]  # fmt: skip
                owner = getattr(getattr(node.func, "value", None), "id", "")
                modes = called == "open" and owner != "os" and {"w", "a", "x", "wb", "ab", "xb"} & {*words}
                assert not writers.match(called), f"{name}:{node.lineno}"
                assert not modes, f"{name}:{node.lineno}"
                assert not (owner == "os" and "O_CREAT" in ast.dump(node)), f"{name}:{node.lineno}"


def test_a_full_disk_leaves_no_stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(_: object) -> bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "_encode", fill)
    with pytest.raises(MachineError, match="No space left") as caught:
        files.save_file(tmp_path / "x.html", "text", "--output, or --force")
    assert (caught.value.remedy, list(tmp_path.iterdir())) == ("pass another --output", [])
