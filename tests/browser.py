"""A real browser without a window, driven through a pipe by the protocol of its own tools.

The standard library alone: Chromium reads commands from its descriptor 3 and answers on 4, each a
JSON object that ends with a zero byte.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE_SEC = 900.0  # A machine may be busy; a right answer takes milliseconds.
_LAUNCH = (
    "import fcntl, os, sys; read, write = (fcntl.fcntl(int(n), fcntl.F_DUPFD, 20) for n in "
    "sys.argv[1:3]); os.dup2(read, 3); os.dup2(write, 4); os.execv(sys.argv[3], sys.argv[3:])"
)


def find_browser() -> str | None:
    """Returns the path of a Chromium, or nothing where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page of one browser; ``close`` ends the process that was started."""

    def __init__(self, folder: Path, width: int = 1200, height: int = 900) -> None:
        path = find_browser()
        assert path is not None
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += ["--no-first-run", "--hide-scrollbars", f"--window-size={width},{height}"]
        flags += [f"--user-data-dir={folder / 'profile'}", "--remote-debugging-pipe", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(theirs_in), str(theirs_out), path, *flags],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest = b""
        self._number = 0
        self.errors: list[str] = []  # What the page's console complained of.
        self._session: str | None = None
        target = self.call("Target.createTarget", {"url": "about:blank"}, session=None)
        attach = {"targetId": target["targetId"], "flatten": True}
        self._session = self.call("Target.attachToTarget", attach, session=None)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def open(self, address: str) -> None:
        """Goes to an address and waits until its pictures are there."""
        self.call("Page.navigate", {"url": address})
        self.wait()

    def wait(self) -> None:
        """Waits until the page that was asked for has loaded."""
        deadline = time.monotonic() + PATIENCE_SEC
        while self.js("document.readyState") != "complete" or self.js("location.href") == "":
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def js(self, expression: str) -> Any:
        """Returns the value of an expression in the page."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        found = self.call("Runtime.evaluate", asked)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def text(self) -> str:
        return str(self.js("document.body.innerText"))

    def click(self, selector: str) -> None:
        """Presses the mouse on an element, and waits for the page that follows."""
        place = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect(); "
            "window.notYet = true; return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        mouse = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", {"type": kind, **mouse})
        deadline = time.monotonic() + PATIENCE_SEC
        while self.js("window.notYet === true"):  # The page that was pressed on is still there.
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.wait()

    def fill(self, selector: str, value: str) -> None:
        """Sets the value of a field."""
        self.js(f"document.querySelector({json.dumps(selector)}).value = {json.dumps(value)}")

    def screenshot(self, path: Path) -> None:
        """Writes the whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(shot["data"]))

    def call(
        self, method: str, params: dict[str, Any] | None = None, session: str | None = ""
    ) -> dict[str, Any]:
        """Sends one command and returns its result; events that come meanwhile are looked at."""
        self._number += 1
        order: dict[str, Any] = {"id": self._number, "method": method, "params": params or {}}
        if session == "" and self._session is not None:
            order["sessionId"] = self._session
        os.write(self._to, json.dumps(order).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("method") == "Log.entryAdded":
                entry = answer["params"]["entry"]
                self.errors.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}")
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], PATIENCE_SEC)
            assert ready, "The browser does not answer."
            part = os.read(self._from, 1 << 16)
            assert part, "The browser has ended."
            self._rest += part
        first, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(first)
        return answer
