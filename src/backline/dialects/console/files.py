"""Serves the files of the console to browsers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from backline.engine.errors import NotFound
from backline.wire.application import Fields, HttpRequest

FOLDER = Path(__file__).with_name("static")
PAGE = "index.html"
_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
#: The page may load nothing from another host and has no inline script or style
#: (https://www.w3.org/TR/CSP3/). Images and sounds that visitors open are blobs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors "
)
_FIELDS: Fields = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"microphone=(self), camera=(), geolocation=()"),
    # Files may change with the server's version, so browsers must ask whether their copies are current.
    (b"cache-control", b"no-cache"),
)


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    fields: Fields
    tag: bytes


class ConsoleFiles:
    """Responds with the console's files, which are read when a browser first asks for one."""

    def __init__(self, frame_ancestors: Sequence[str] = ()) -> None:
        """`frame_ancestors` are the origins of pages that may show the console in a frame, in the syntax of
        CSP. By default no page may, to prevent clickjacking.
        """
        self._policy = (_POLICY + (" ".join(frame_ancestors) or "'none'")).encode()
        self._files: dict[str, _File] = {}

    def respond(self, name: str, request: HttpRequest) -> None:
        """Responds with a file. Raises NotFound for an unknown name."""
        if not self._files:
            self._files = {path.name: self._read(path) for path in FOLDER.iterdir() if path.suffix in _TYPES}
        file = self._files.get(name)
        if file is None:
            raise NotFound(f"the console has no file '{name[:64]}'")
        if request.headers.get(b"if-none-match") == file.tag:
            request.respond(304, file.fields)
        else:
            request.respond(200, file.fields, [file.body], compressible=True)

    def _read(self, path: Path) -> _File:
        body = path.read_bytes()
        tag = b'"%b"' % sha256(body).hexdigest()[:32].encode()
        kind = (b"content-type", _TYPES[path.suffix])
        policy = (b"content-security-policy", self._policy)
        return _File(body, (kind, (b"etag", tag), policy, *_FIELDS), tag)
