"""Drives a real browser over the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/).

Chromium speaks it over a pair of pipes: JSON texts with a zero byte after each.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from support.tools import tool

_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--mute-audio",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--remote-debugging-pipe", "--autoplay-policy=no-user-gesture-required",
    # Every other host is out of reach, so that a page that needs one fails.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
WITHIN = 60.0


class PageError(AssertionError):
    """Raised when a script in the page throws, or a condition does not come true."""


class Page:
    """One page in the browser."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._readable = select.poll()  # unlike select.select, it takes descriptors above 1023
        self._readable.register(from_browser, select.POLLIN)
        self._buffer = b""
        self._last = 0
        self._session = ""
        #: The events so far: requests to the network, messages of the console, exceptions.
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """Calls a method of the protocol and returns its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + WITHIN
        while True:
            answer = self._receive(end)
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise PageError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def _receive(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not self._readable.poll(max(0.0, end - time.monotonic()) * 1000):
                raise PageError("the browser does not respond")
            received = os.read(self._from, 1 << 20)
            if not received:
                raise PageError("the browser has ended")
            self._buffer += received
        text, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(text))

    def frame(self, origin: str) -> Frame:
        """The frame in the page that shows a page of this origin, once it has begun to load."""
        end = time.monotonic() + WITHIN
        while time.monotonic() < end:
            self.run("0")  # receives the events so far
            for one in reversed(self.events):
                context = one.get("params", {}).get("context", {})
                if one.get("method") == "Runtime.executionContextCreated" and context["origin"] == origin:
                    return Frame(self, context["id"])
            time.sleep(0.05)
        raise PageError(f"no frame shows a page of {origin}")

    def open(self, url: str) -> None:
        """Opens a URL; a URL that differs only in its fragment does not load the page again."""
        self.call("Page.navigate", url=url)

    def size(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=theme)

    def run(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise. Raises PageError if it throws."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait(self, condition: str, within: float = WITHIN) -> Any:
        """Waits until an expression has a value that is true, and returns it; True for an element."""
        end = time.monotonic() + within
        condition = f"(() => {{ const found = {condition}; return found instanceof Node ? true : found; }})()"
        while True:
            with contextlib.suppress(PageError):  # while a page loads, its elements do not exist
                if found := self.run(condition):
                    return found
            if time.monotonic() > end:
                text = self.run("document.body.innerText")
                raise PageError(f"not true within {within:.0f} s: {condition}\n{text}")
            time.sleep(0.05)

    def text(self, selector: str = "main") -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def click(self, text: str, selector: str = "button, a") -> None:
        """Clicks the first visible element with this text, once there is one."""
        find = (
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            f".find((one) => one.innerText.trim() === {json.dumps(text)}"
            " && one.offsetParent && !one.disabled)"
        )
        self.wait(f"Boolean({find})")
        self.run(f"{find}.click()")

    def type(self, selector: str, text: str) -> None:
        chosen = json.dumps(selector)
        self.wait(f"Boolean(document.querySelector({chosen}))")
        self.run(
            f"(() => {{ const one = document.querySelector({chosen}); one.value = {json.dumps(text)};"
            " one.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )

    def upload(self, selector: str, file: Path) -> None:
        self.wait(f"Boolean(document.querySelector({json.dumps(selector)}))")
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def screenshot(self, file: Path, *, whole: bool = True) -> None:
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole, format="png")["data"]
        file.write_bytes(base64.b64decode(data))

    def problems(self) -> list[str]:
        """What went wrong in the page: exceptions, and what its own security policy blocked."""
        found = []
        for one in self.events:
            params = one.get("params", {})
            if one.get("method") == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            if one.get("method") == "Log.entryAdded" and params["entry"]["source"] in (
                "security",
                "violation",
            ):
                found.append(params["entry"]["text"])
        return found

    def hosts(self) -> set[str]:
        """The hosts that the page has sent requests to."""
        urls = [
            one["params"]["request"]["url"]
            for one in self.events
            if one.get("method") == "Network.requestWillBeSent"
        ]
        return {url.split("/")[2] for url in urls if url.startswith("http")}


class Frame(Page):
    """A frame in a page, in which scripts run as they do in a page."""

    def __init__(self, page: Page, context: int) -> None:
        self._page = page
        self._context = context

    def call(self, method: str, **params: Any) -> Any:
        if method == "Runtime.evaluate":
            params["contextId"] = self._context
        return self._page.call(method, **params)


@contextlib.contextmanager
def chromium(profile: Path, *options: str) -> Iterator[Page]:
    """A page in a browser that lives until the block ends; skips the test if Chromium is not installed."""
    to_browser_read, to_browser = os.pipe()
    from_browser, from_browser_write = os.pipe()
    command: Sequence[str] = [tool("chromium"), *_OPTIONS, *options, f"--user-data-dir={profile}"]
    with (profile.parent / f"{profile.name}.log").open("wb") as log:
        # The browser reads commands from descriptor 3 and writes to descriptor 4.
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{to_browser_read} 4>&{from_browser_write}', "bash", *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(to_browser_read, from_browser_write),
            start_new_session=True,
        )
    os.close(to_browser_read)
    os.close(from_browser_write)
    try:
        yield Page(to_browser, from_browser)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(to_browser)
        os.close(from_browser)
