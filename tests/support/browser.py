"""A real browser that opens a test's page."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.tools import tool

#: Host names that only this browser resolves, both to this machine.
HOSTILE, TRUSTED = "evil.example", "console.example"
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--remote-debugging-port=0",
    f"--host-resolver-rules=MAP {HOSTILE} 127.0.0.1, MAP {TRUSTED} 127.0.0.1",
)  # fmt: skip


@contextlib.contextmanager
def browse(url: str, profile: Path) -> Iterator[None]:
    """Keeps a page open in Chromium until the block ends; skips the test if Chromium is not installed."""
    with (profile.parent / f"{profile.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [tool("chromium"), *_OPTIONS, f"--user-data-dir={profile}", url],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class PageServer(http.server.ThreadingHTTPServer):
    """Serves one page on every path of a loopback port and records what the page posts."""

    daemon_threads = True

    def __init__(self, page: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.page = page
        self.reports: queue.Queue[dict[str, Any]] = queue.Queue()
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the listening socket."""
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        page = self.server.page.encode()
        self.send_response(200)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("content-length", str(len(page)))
        self.send_header("connection", "close")
        self.send_header("access-control-allow-origin", "*")  # lets pages on other ports read it
        self.end_headers()
        self.wfile.write(page)

    def do_POST(self) -> None:
        self.server.reports.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass
