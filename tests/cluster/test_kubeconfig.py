"""Kubeconfig files that are hostile, that others can change, or that hold secrets."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from pathlib import Path

import pytest

from kproxylat.cluster.kubeconfig import load_client
from kproxylat.cluster.kubeconfig_check import MAX_BYTES
from kproxylat.errors import MachineError, UsageError

SECRET = "s3cr3t-t0ken"  # noqa: S105
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{chr(ord(name) - 1)}'] * 10)}]\n" for name in "bcdefghi"
)
TEXTS = {
    "alias bomb": BOMB,
    "alias bomb as contexts": f"{BOMB}contexts: *i\ncurrent-context: x\n",
    "holds itself": "a: &a [*a]\ncontexts: *a\n",
    "flow lists 100,000 deep": "[" * 100_000,
    "JSON 100,000 deep": "[" * 100_000 + "]" * 100_000,
    "block lists 2,000 deep": "- " * 2_000 + "x",
    "too large": "#" * (MAX_BYTES + 1),
    "zeros": "\0" * 1000,
    "not UTF-8": "\udcff\udcfe",
    "a secret as an alias": f"users: [{{name: x, user: {{token: *{SECRET}}}}}]",
    "a secret as a tag": f"users: [{{name: x, user: {{password: !{SECRET} x}}}}]",
    "a secret in a broken line": f'users: [{{name: x, user: {{token: "{SECRET}\\q"}}}}]',
    "contexts are a number": "current-context: x\ncontexts: 5",
    "users are numbers": "current-context: x\ncontexts: [{name: x, context: {user: u, cluster: c}}]\nusers: [3]",
    "the user is a list": "current-context: x\ncontexts: [{name: x, context: [1]}]\nusers: [{name: u, user: [1]}]",
    "the current context is a list": "current-context: [x]\ncontexts: [{name: x, context: {}}]",
    "the terminal's codes": 'current-context: "\\e[2J"\ncontexts: []',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_hostile_kubeconfig(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises((MachineError, UsageError)) as caught:
        load_client(path, None)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value) + caught.value.remedy
    assert len(str(caught.value)) < 400
    assert caught.value.remedy


def test_kubeconfig_is_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="kubeconfig /dev/zero is not a regular file"):
        load_client(Path("/dev/zero"), None)
    monkeypatch.setenv("KUBECONFIG", "/dev/zero")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(MachineError, match="/dev/zero is not a file"):
        load_client(None, None)


def write_config(directory: Path, **user: object) -> Path:
    """Write a kubeconfig with one user."""
    document = {
        "current-context": "fake",
        "clusters": [{"name": "fake", "cluster": {"server": "https://127.0.0.1:1"}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        "users": [{"name": "fake", "user": user}],
    }
    path = directory / "config"
    path.write_text(json.dumps(document))
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("in_file", [False, True], ids=["token", "tokenFile"])
@pytest.mark.parametrize("end", ["\n", "\r\n", " "])
def test_token_with_a_line_end(tmp_path: Path, in_file: bool, end: str) -> None:
    """The end is stripped, as kubectl does; inside the token it is an error that does not show the token."""

    def load(token: str) -> str:
        (tmp_path / "token").write_text(token)
        user = {"tokenFile": str(tmp_path / "token")} if in_file else {"token": token}
        client = load_client(write_config(tmp_path, **user), None)[0]
        return dict(client.read_credentials())["authorization"]

    assert load(f"{SECRET}{end}") == f"Bearer {SECRET}"
    if end.strip(" "):
        with pytest.raises(MachineError, match="has a line end") as caught:
            load(f"{SECRET}{end}x")
        assert SECRET not in str(caught.value)


def test_private_key_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SIGKILL at any time leaves no key behind, because none is in a file of a directory."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    content = base64.b64encode(b"a private key").decode()
    path = write_config(tmp_path, **{"client-key-data": content, "client-certificate-data": content})
    configuration = load_client(path, None)[0].configuration
    assert Path(configuration.key_file).read_bytes() == b"a private key"
    assert configuration.key_file.startswith("/proc/self/fd/")
    assert not [*(tmp_path / "temporary").iterdir()]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root refuses")
@pytest.mark.parametrize("user", [{"exec": {"command": "true"}}, {"client-key": "key"}, {"client-key-data": "eA=="}])
def test_root_refuses_what_others_can_write(tmp_path: Path, user: dict[str, object]) -> None:
    path = write_config(tmp_path, **user)
    path.chmod(0o666)
    with pytest.raises(MachineError, match="is not read as root: other users can change"):
        load_client(path, None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root refuses")
def test_root_refuses_a_key_file_that_others_can_write(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("x")
    (tmp_path / "key").chmod(0o666)
    with pytest.raises(MachineError, match=r"key is not read as root"):
        load_client(write_config(tmp_path, **{"client-key": "key"}), None)


def test_another_user_is_warned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    path = write_config(tmp_path, exec={"command": "false"})
    path.chmod(0o666)
    with pytest.raises(MachineError):
        load_client(path, None)
    assert f"other users can change {path}" in capsys.readouterr().err
