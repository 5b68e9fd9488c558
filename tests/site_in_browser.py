"""The site's network learns in a browser as xbp does: ``python tests/site_in_browser.py SITE``.

Serves a built site on this machine, opens start/browser.html in headless Chromium, and lets it make
its comparison: 20 steps from the same start must have xbp's losses, to 1e-4. Then it draws a one,
trains for some seconds, and reads what the network sees. Fails at a request to another server and
at a complaint of the browser. With ``--pictures FOLDER``, pictures at 1280 and 400 pixels, light
and dark.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from browser import Page, browser

TOLERANCE = 1e-4
"""Of the losses, which are about 2; float32 sums in another order differ by some 1e-7."""

READY = "!document.getElementById('digits-train').disabled"
STATE = "document.getElementById('digits-state').textContent"
SAYS = "document.getElementById('digits-says').textContent"
LARGEST = "Number(/by (\\S+) at most/.exec(%s)?.[1] ?? NaN)" % STATE  # noqa: UP031


class Quiet(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path != "/favicon.ico":  # which a browser asks for unasked, and the site lacks
            return super().do_GET()
        self.send_response(204)
        return self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing of each request."""


def wait(page: Page, condition: str, seconds: float = 120) -> None:
    """Wait until a condition holds on the page."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, (condition, page.evaluate(STATE), page.complaints())
        time.sleep(0.2)


def press(page: Page, name: str) -> None:
    page.evaluate(f"document.getElementById('digits-{name}').click()")


def draw_one(page: Page) -> None:
    """A vertical stroke in the middle of the drawing, by the mouse."""
    page.evaluate("document.getElementById('digits-drawing').scrollIntoView({block: 'center'})")
    box = page.evaluate(
        "(({left, top, width}) => [left, top, width])"
        "(document.getElementById('digits-drawing').getBoundingClientRect())"
    )
    left, top, width = box
    for k in range(11):
        kind = "mousePressed" if k == 0 else "mouseReleased" if k == 10 else "mouseMoved"
        place = {"x": left + width / 2, "y": top + width * (0.15 + 0.07 * k)}
        held = {"button": "left", "buttons": 1, "clickCount": 1}
        page("Input.dispatchMouseEvent", type=kind, **place, **held)


def check(site: Path, pictures: Path | None) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}/"
    with browser() as page:
        page.open(f"{home}start/browser.html", 1280)
        wait(page, READY)
        press(page, "compare")
        wait(page, f"{LARGEST} >= 0")
        sys.stdout.write(f"{page.evaluate(STATE)}\n")
        assert page.evaluate(LARGEST) <= TOLERANCE
        draw_one(page)
        press(page, "train")
        wait(page, "/^Step \\d{3,}/.test(%s)" % STATE)  # noqa: UP031
        press(page, "train")
        time.sleep(1)
        sys.stdout.write(f"{page.evaluate(STATE)} {page.evaluate(SAYS)}.\n")
        assert page.evaluate(SAYS) == "The network sees a 1"
        elsewhere = [url for url in page.requests() if not url.startswith((home, "blob:"))]
        assert not elsewhere, elsewhere
        assert not page.complaints(), page.complaints()
        for width in (1280, 400) if pictures else ():
            for dark in (False, True):
                page.view(width, dark=dark)
                time.sleep(0.5)
                page.picture(pictures / f"browser_{width}_{'dark' if dark else 'light'}.png")
    server.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    check(options.site, options.pictures)


if __name__ == "__main__":
    main()
