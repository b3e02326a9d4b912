"""A headless Chromium, driven through a pipe by Chrome's DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TIMEOUT_S = 120
"""A browser that answers nothing for so long hangs."""
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip
PIPES = 'exec "$@" 3<&"$COMMANDS" 4>&"$ANSWERS"'
"""Chromium takes commands from file descriptor 3, and answers on 4."""


class Browser:
    """One page of a browser.

    :ivar events: what the browser reported, as (name, parameters).
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers, self._read, self._number = commands, answers, b"", 0
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command, and return its result."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        command = {"id": self._number, "method": method, "params": params, **session}
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") == self._number:
                assert "result" in message, message
                result: dict[str, Any] = message["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        """Read a message; keep it if it is an event."""
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._answers], [], [], TIMEOUT_S)
            piece = os.read(self._answers, 1 << 16) if ready else b""
            assert piece, "the browser does not answer"
            self._read += piece
        text, _, self._read = self._read.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message

    def wait_for(self, name: str) -> dict[str, Any]:
        """Wait for the next event of a name, and return its parameters."""
        seen = len(self.events)
        while True:
            for event, params in self.events[seen:]:
                if event == name:
                    return params
            seen = len(self.events)
            self._receive()

    def open(self, path: Path) -> None:
        """Open a file, and wait until it is loaded."""
        self.events.clear()
        self.send("Page.navigate", url=path.as_uri())
        if "Page.loadEventFired" not in [name for name, _ in self.events]:
            self.wait_for("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript, which may be a promise."""
        done = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def show_as(self, scheme: str, width: int = 1100, media: str = "screen") -> None:
        """Choose the colour scheme, the width of the window, and screen or print."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", media=media, features=features)
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)

    def hover(self, x: float, y: float) -> None:
        """Move the pointer to a place in the window."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def save_picture(self, path: Path) -> None:
        """Save a picture of the whole page."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browsing(directory: Path) -> Iterator[Browser]:
    """Start a browser, which keeps its files in a directory; end it afterwards."""
    (command_end, commands), (answers, answer_end) = os.pipe(), os.pipe()
    environment = {**os.environ, "HOME": str(directory), "COMMANDS": str(command_end), "ANSWERS": str(answer_end)}
    words = ["bash", "-c", PIPES, "chromium", "chromium", *OPTIONS, f"--user-data-dir={directory / 'profile'}"]
    process = subprocess.Popen(
        words, env=environment, pass_fds=(command_end, answer_end), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for end in (command_end, answer_end):
        os.close(end)
    try:
        yield Browser(commands, answers)
    finally:
        # Without the pipe, Chromium ends itself and its children.
        os.close(commands)
        process.wait(TIMEOUT_S)
        os.close(answers)
