"""A headless Chromium, spoken to through its own protocol: what a page does in it, and what it looks like.

The protocol: https://chromedevtools.github.io/devtools-protocol
"""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
BROWSER = os.environ.get("DISTILL_BROWSER") or next((found for name in BROWSERS if (found := shutil.which(name))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--no-zygote",
    "--disable-gpu",
    "--in-process-gpu",
    "--no-first-run",
    "--disable-background-networking",
)
SECONDS = 60.0


@dataclass
class Tab:
    """The browser's one page."""

    socket: Any
    numbers: Iterator[int] = field(default_factory=itertools.count)
    events: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, method: str, **given: Any) -> dict[str, Any]:
        """A command's result; events that come before it are kept."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": given}))
        while True:
            said = json.loads(self.socket.recv(timeout=SECONDS))
            if said.get("id") == number:
                assert "error" not in said, said
                return said["result"]
            self.events.append(said)

    def visit(self, address: str, width: int, dark: bool = False) -> None:
        """Open a page on a screen of so many pixels and wait until it has loaded; its events are kept from then on."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        for part in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{part}.enable")
        self.events.clear()
        self.ask("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self.socket.recv(timeout=SECONDS)))

    def value(self, script: str) -> Any:
        """What an expression comes to in the page, as plain JSON."""
        done = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def complaints(self) -> list[Any]:
        """Errors and warnings that the page has put on the console or into the browser's log since it was opened."""
        self.value("new Promise(done => setTimeout(done, 300))")
        told = [event for event in self.events if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
        return [event["params"] for event in (*told, *(e for e in self.events if e["method"] == "Runtime.consoleAPICalled"))]

    def asked_for(self) -> list[str]:
        """Addresses that the page made the browser load; what it carries itself (data:) is none."""
        sent = [event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [address for address in sent if not address.startswith("data:")]

    def photograph(self, path: Path) -> None:
        """A picture of the whole page."""
        done = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(done["data"]))


@contextlib.contextmanager
def opened(profile: Path) -> Iterator[Tab]:
    """A browser with a profile of its own, gone when the block is left."""
    from websockets.sync.client import connect

    command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        told, until = profile / "DevToolsActivePort", time.monotonic() + SECONDS
        while not told.exists() or not told.read_text().strip():
            assert process.poll() is None, f"{BROWSER} ended with exit code {process.returncode}"
            assert time.monotonic() < until, f"{BROWSER} does not answer"
            time.sleep(0.1)
        port = told.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=SECONDS) as answer:
            page = next(one for one in json.load(answer) if one["type"] == "page")
        with connect(page["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Tab(socket)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
