"""A headless Chromium driven over a pipe by its DevTools protocol, with only the standard library."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 60.0
"""Timeout of the browser's answers."""


def find_browser() -> str | None:
    """Path of a Chromium on this machine, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """A browser with one page, which records the page's network requests and errors."""

    def __init__(self, executable: str, profile: Path) -> None:
        """Args: profile is a folder for this browser alone."""
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
        flags += [f"--user-data-dir={profile}", "--no-first-run", "--hide-scrollbars", "about:blank"]
        # the browser reads file 3 and writes file 4
        shell = ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "bash", executable, *flags]
        with (profile.parent / f"{profile.name}.log").open("wb") as log:
            self._process = subprocess.Popen(shell, pass_fds=(commands, answers), stdout=log, stderr=log)
        os.close(commands)
        os.close(answers)
        self._rest, self._last, self._session = b"", 0, ""
        self.requests: list[str] = []
        """Addresses that the page requested, including its own."""
        self.complaints: list[str] = []
        """Errors and warnings of the console, exceptions, and violations of the policy."""
        self._loaded = False

    def __enter__(self) -> Self:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def open(self, page: Path | str, width: int, height: int = 900) -> None:
        """Open a file or an address in a window of this size, in CSS pixels, and wait until it is loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._loaded = False
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        end = time.monotonic() + SECONDS
        while not self._loaded:
            self._take(self._message(end))

    def value(self, expression: str) -> Any:
        """Evaluate a JavaScript expression in the page.

        Raises:
            AssertionError: the expression threw.
        """
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 20.0) -> Any:
        """Evaluate an expression until it is true, also while the page changes; returns its value.

        Raises:
            AssertionError: it is not true in time.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.call_or_none("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
            if found and "exceptionDetails" not in found and found["result"].get("value"):
                return found["result"]["value"]
            time.sleep(0.01)
        raise AssertionError(f"not true within {seconds:g} s: {expression}")

    def move(self, x: float, y: float) -> None:
        """Move the pointer to a position."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        """Click at a position."""
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def middle(self, element: str) -> tuple[float, float]:
        """Scroll an element, given by an expression, into view; returns the position of its middle in the window."""
        box = self.value(
            f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect(); return [b.left + b.width / 2, b.top + b.height / 2]; })()"
        )
        return box[0], box[1]

    def picture(self, path: Path, whole: bool = True) -> None:
        """A screenshot of the page as a PNG file."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def call(self, method: str, **parameters: Any) -> Any:
        """Send a command to the browser; returns its answer.

        Raises:
            AssertionError: it refused, died, or was late.
        """
        message = self._exchange(method, parameters)
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    def call_or_none(self, method: str, **parameters: Any) -> Any:
        """As ``call``, with None if the browser refuses, as it does while a page is left."""
        return self._exchange(method, parameters).get("result")

    def _exchange(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._last += 1
        command: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._to, json.dumps(command).encode() + b"\0")
        end = time.monotonic() + SECONDS
        while (message := self._message(end)).get("id") != self._last:
            self._take(message)
        return message

    def _take(self, message: dict[str, Any]) -> None:
        told = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(told["exceptionDetails"]))
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.complaints.append(told["entry"]["text"])
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                self.complaints.append(str(told["args"]))

    def _message(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser gave no answer"
            more = os.read(self._from, 2**16)
            assert more, "the browser ended"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message
