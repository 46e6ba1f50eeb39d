"""Finds the handler of an HTTP request by its path and method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import NamedTuple, TypeAlias
from urllib.parse import unquote_to_bytes

from backline.access.gate import Target
from backline.access.scope import Scope
from backline.engine.errors import BacklineError, InvalidArgument, NotFound
from backline.memo import Memo
from backline.wire.application import HttpRequest

Handler: TypeAlias = Callable[[HttpRequest], None]
#: The most bytes of a path whose handlers are cached, and the number of cached paths.
_MAX_REMEMBERED_SIZE = 512
_MAX_REMEMBERED = 4096


class MethodNotAllowed(BacklineError):
    """The path exists, but not for this method."""

    http_status = 405
    grpc_code = 12

    def __init__(self, message: str, allow: bytes) -> None:
        super().__init__(message)
        self.allow = allow


class _Route(NamedTuple):
    scope: Scope
    handler: Callable[..., None]
    further: tuple[str, ...]


class _Methods(dict[bytes, Handler]):
    """The handlers of a path by method, with what they are about."""

    targets: Mapping[bytes, Target] = {}


class Router:
    """Matches paths to patterns such as "/v2/models/{}/ready", where `{}` is any one segment.

    HEAD works wherever GET does (the wire drops the body), OPTIONS everywhere.
    """

    def __init__(self) -> None:
        self._patterns: dict[tuple[str, ...], dict[bytes, _Route]] = {}
        self._resolved: Memo[bytes, _Methods] = Memo(_MAX_REMEMBERED)

    def add(
        self, scope: Scope, method: str, pattern: str, handler: Callable[..., None], *further: str
    ) -> None:
        """Routes `method` on `pattern` to `handler(*names, *further, request)`.

        `names` are the percent-decoded segments at each `{}`. `scope` is what the route lets a caller do; the
        gate, not the router, checks it. Raises ValueError for a route that is already taken.
        """
        segments = tuple(pattern.strip("/").split("/"))
        methods = self._patterns.setdefault(segments, {})
        for name in (method.encode(), *([b"HEAD"] if method == "GET" else [])):
            if name in methods:
                raise ValueError(f"{method} {pattern} is routed twice")
            methods[name] = _Route(scope, handler, further)

    def resolve(self, request: HttpRequest) -> Handler:
        """A request's handler. Raises NotFound, MethodNotAllowed, or InvalidArgument for a malformed path."""
        methods = self._resolved.get(request.path)
        if methods is None:
            methods = self._resolve(request.method, request.path)
        handler = methods.get(request.method)
        if handler is None:
            handler = self._other_method(request, methods)
        return handler

    def target(self, method: bytes, path: bytes) -> Target | None:
        """What a request is about; None if no handler takes it."""
        try:
            methods = self._resolved.get(path) or self._resolve(method, path)
        except BacklineError:
            return None
        return methods.targets.get(method)

    def _resolve(self, method: bytes, path: bytes) -> _Methods:
        if path == b"*":
            return _Methods()
        segments = _segments(path)
        for pattern, methods in self._patterns.items():
            if len(pattern) != len(segments):
                continue
            pairs = list(zip(pattern, segments, strict=True))
            names = [segment for expected, segment in pairs if expected == "{}"]
            if all(names) and all(expected in ("{}", segment) for expected, segment in pairs):
                bound = _Methods(
                    (name, partial(route.handler, *names, *route.further)) for name, route in methods.items()
                )
                model = _model(pattern, segments)
                bound.targets = {name: Target(route.scope, model) for name, route in methods.items()}
                if len(path) <= _MAX_REMEMBERED_SIZE:
                    self._resolved.keep(bytes(path), bound)
                return bound
        raise NotFound(self._not_found(method, segments))

    def _other_method(self, request: HttpRequest, methods: dict[bytes, Handler]) -> Handler:
        allow = b", ".join(
            sorted([*methods, b"OPTIONS"]) if methods else [b"GET", b"HEAD", b"OPTIONS", b"POST"]
        )
        if request.method == b"OPTIONS":
            return lambda asked: asked.respond(204, [(b"allow", allow)])
        method = request.method[:32].decode("latin-1")
        path = request.path[:256].decode("latin-1")
        raise MethodNotAllowed(f"Method Not Allowed: {method} {path} (allowed: {allow.decode()})", allow)

    def _not_found(self, method: bytes, segments: list[str]) -> str:
        asked = "/" + "/".join(segments)
        text = f"Not Found: {method[:32].decode('latin-1')} {asked[:256]}"
        candidates = []
        for pattern in self._patterns:
            if len(pattern) == len(segments):
                filled = [
                    segment if expected == "{}" else expected
                    for expected, segment in zip(pattern, segments, strict=True)
                ]
                candidates.append("/" + "/".join(filled))
        near = get_close_matches(asked, candidates, n=1, cutoff=0.8) if len(asked) <= 256 else []
        return f"{text} (did you mean {near[0]}?)" if near else text


def _model(pattern: tuple[str, ...], segments: list[str]) -> str | None:
    """The name of the model in a path: the variable segment that follows "models"."""
    for before, expected, segment in zip(pattern, pattern[1:], segments[1:], strict=False):
        if before == "models" and expected == "{}":
            return segment
    return None


def _segments(path: bytes) -> list[str]:
    if len(path) > 1 and path.endswith(b"/"):
        path = path[:-1]
    try:
        return [unquote_to_bytes(segment).decode() for segment in path.removeprefix(b"/").split(b"/")]
    except UnicodeDecodeError:
        raise InvalidArgument("the path is not UTF-8 after percent-decoding") from None
