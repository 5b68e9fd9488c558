"""Headless Chromium, driven through its debugging pipe: a page, its requests, a picture.

python tests/browser.py runs/lenet5/report.html report.png --width 1280 --dark
"""

import argparse
import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
)


class Page:
    """One page of a browser.

    Attributes
    ----------
    events : list of (name, parameters)
        All reports of the browser since its start.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self.commands, self.answers = commands, answers
        self.buffer, self.number, self.session = b"", 0, ""
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give a command of the DevTools protocol, and wait for its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], 60)  # seconds, to prevent hanging
            assert ready, "the browser does not answer"
            piece = os.read(self.answers, 1 << 20)
            assert piece, "the browser has ended"
            self.buffer += piece
        message, _, self.buffer = self.buffer.partition(b"\0")
        answer = json.loads(message)
        if "method" in answer:
            self.events.append((answer["method"], answer["params"]))
        return answer

    def open(self, path: Path | str, width: int, *, dark: bool = False, height: int = 800) -> None:
        """Load a file or an address in a window of this width in CSS pixels, and wait for it."""
        self.view(width, dark=dark, height=height)
        self.events.clear()
        url = path if isinstance(path, str) else path.absolute().as_uri()
        self("Page.navigate", url=url)
        while "Page.loadEventFired" not in [name for name, _ in self.events]:
            self._next()

    def view(self, width: int, *, dark: bool = False, height: int = 800) -> None:
        """Show the page in a window of this size, light or dark."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        size = {"width": width, "height": height, "mobile": False}
        self("Emulation.setDeviceMetricsOverride", deviceScaleFactor=1, **size)
        self("Emulation.setEmulatedMedia", features=[scheme])

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript; None if it has none."""
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    def requests(self) -> list[str]:
        """The addresses that the page has fetched, without data in the page itself."""
        urls = [
            p["request"]["url"] for name, p in self.events if name == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith("data:")]

    def complaints(self) -> list[str]:
        """Errors and warnings of the console."""
        names = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [json.dumps(parameters) for name, parameters in self.events if name in names]

    def picture(self, path: Path, height: int = 0) -> None:
        """Write the page as a PNG, as a whole or up to a number of pixels from its top."""
        width = self.evaluate("window.innerWidth")
        height = height or self.evaluate("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser() -> Iterator[Page]:
    """A page of a new browser, which ends with the block."""
    (read, commands), (answers, write) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory() as profile:
        # The browser reads commands from descriptor 3 and answers on 4.
        script = f'exec "$0" "$@" 3<&{read} 4>&{write}'
        process = subprocess.Popen(
            ["bash", "-c", script, CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(read, write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        try:
            yield Page(commands, answers)
        finally:
            os.close(commands)  # which ends it
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(answers)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a page as a PNG.")
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=0, help="by default the whole page")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    with browser() as page:
        page.open(options.page, options.width, dark=options.dark)
        page.picture(options.picture, options.height)


if __name__ == "__main__":
    main()
