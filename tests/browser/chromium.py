"""Drives a headless Chromium over its debugging pipe, with the standard library only."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TIMEOUT_S = 60.0


def find() -> str | None:
    """The path of a Chromium; SRFT_CHROMIUM names one that is not on the search path."""
    return os.environ.get("SRFT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab. Attributes `problems` and `requests` collect what the console reports and what is loaded."""

    def __init__(self, write_fd: int, read_fd: int) -> None:
        self._write = write_fd
        self._read = read_fd
        self._buffer = b""
        self._last = 0
        self._session: str | None = None
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.loads = 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self._note(answer)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (script, found)
        return found["result"].get("value")

    def open(self, url: str) -> float:
        """Opens a page; returns the seconds until it had loaded."""
        started = time.perf_counter()
        loads = self.loads
        self.call("Page.navigate", url=url)
        while self.loads == loads:
            self._note(self._next())
        return time.perf_counter() - started

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], TIMEOUT_S)
            assert ready, f"the browser said nothing for {TIMEOUT_S:.0f} s"
            piece = os.read(self._read, 2**16)
            assert piece, "the browser has ended"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method = event.get("method")
        if method == "Page.loadEventFired":
            self.loads += 1
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])
        elif method in ("Runtime.exceptionThrown", "Log.entryAdded") or _is_complaint(event):
            self.problems.append(json.dumps(event["params"])[:500])


def _is_complaint(event: dict[str, Any]) -> bool:
    if event.get("method") != "Runtime.consoleAPICalled":
        return False
    return event["params"]["type"] in ("error", "warning")


@contextlib.contextmanager
def page(browser: str, profile: Path) -> Iterator[Page]:
    """A tab of a browser that ends with the context."""
    theirs_read, ours_write = os.pipe()
    ours_read, theirs_write = os.pipe()
    # Chromium reads commands from descriptor 3 and writes to 4. Bash knows descriptors above 9, sh may not.
    shell = f'exec "$0" "$@" 3<&{theirs_read} 4>&{theirs_write}'
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
    ]
    process = subprocess.Popen(
        ["bash", "-c", shell, browser, *options],
        pass_fds=[theirs_read, theirs_write],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    os.close(theirs_read)
    os.close(theirs_write)
    try:
        yield Page(ours_write, ours_read)
    finally:
        os.close(ours_write)
        os.close(ours_read)
        process.terminate()
        process.wait()
