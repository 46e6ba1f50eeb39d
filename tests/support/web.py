"""A web server with answers set by a test, which records its requests."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import ssl
import threading
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from support.tools import Certificate


@dataclass
class Page:
    """The answer of a path.

    `cuts` are the numbers of bytes after which the next answers are cut; `headers` are extra.
    """

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    validators: bool = True
    head: bool = True
    #: The server waits for it after half of the content.
    stall: threading.Event | None = None
    stalled: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]


class WebServer:
    def __init__(self, certificate: Certificate | None = None) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: list[Asked] = []
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                web._answer(self, body=True)

            def do_HEAD(self) -> None:
                web._answer(self, body=False)

            def log_message(self, format: str, *args: object) -> None:
                """Logs nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.certificate, certificate.key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'http' if certificate is None else 'https'}://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def put(self, path: str, content: bytes) -> Page:
        self.pages[path] = Page(content)
        return self.pages[path]

    def gets(self, path: str) -> int:
        """The number of GET requests for a path."""
        return sum(asked.method == "GET" and asked.path == path for asked in self.asked)

    def _answer(self, handler: http.server.BaseHTTPRequestHandler, body: bool) -> None:
        self.asked.append(
            Asked(
                handler.command,
                handler.path,
                {name.lower(): value for name, value in handler.headers.items()},
            )
        )
        page = (
            self.pages.get(handler.path)
            or self.pages.get(urlsplit(handler.path).path)
            or Page(b"not here", 404)
        )
        content, status = page.content, page.status
        if not body and not page.head:
            content, status = b"", 405
        start = 0
        wanted = handler.headers.get("Range", "")
        if page.ranges and status == 200 and wanted.startswith("bytes="):
            start, status = int(wanted[6:].rstrip("-")), 206
        handler.send_response(status)
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if page.validators and status in {200, 206}:
            handler.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()[:16]}"')
        for name, value in page.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        if not body:
            return
        rest = content[start:]
        if page.cuts:
            handler.wfile.write(rest[: page.cuts.pop(0)])
            handler.wfile.flush()
            handler.close_connection = True
            return
        if page.stall is not None:
            half = len(rest) // 2
            handler.wfile.write(rest[:half])
            handler.wfile.flush()
            rest = rest[half:]
            page.stalled.set()
            page.stall.wait(60)
        with contextlib.suppress(ConnectionError):  # the client may be gone
            handler.wfile.write(rest)
