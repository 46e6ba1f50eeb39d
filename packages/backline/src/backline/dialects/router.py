"""Finds the handler of an HTTP request by its path and method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote_to_bytes

from backline.access.gate import AccessTarget
from backline.access.identity import ANY_MODEL
from backline.access.restricted import api_of_route
from backline.access.scope import CHANGING, Scope
from backline.dialects.admission import MAX_REMEMBERED_SIZE, Operation
from backline.dialects.answers import ErrorForm, hidden_error, respond_json
from backline.wire.application import Buffer, HttpRequest
from backline_client.values.errors import BacklineError, InvalidArgument, NotFound
from backline_client.values.memo import Memo
from backline_client.values.spelling import nearest

Handler: TypeAlias = Callable[[HttpRequest], None]
#: What one dialect says on a route that several share: a status, and the keys of a document.
Part: TypeAlias = tuple[int, Mapping[str, object]]
#: The maximum number of paths whose operations are cached; see also MAX_REMEMBERED_SIZE.
_MAX_REMEMBERED = 4096
#: The maximum length in bytes of a path; real names are far shorter.
_MAX_PATH_SIZE = 8192
#: A route of the dialect of TensorFlow Serving, which a server may leave out.
_PREDICT = ("v1", "models", "{}:predict")
#: The target of OPTIONS, for which the caller is not even identified.
FREE = AccessTarget(Scope.PUBLIC)


class MethodNotAllowed(BacklineError):
    """Raised when a path has handlers, but none for the request's method."""

    http_status = 405
    grpc_code = 12

    def __init__(self, message: str, allow: bytes) -> None:
        super().__init__(message)
        self.allow = allow


class _Route(NamedTuple):
    scope: Scope
    handler: Callable[..., None]
    further: tuple[str, ...]
    lists: bool
    #: The segment before the name of the model.
    before_model: str = "models"
    errors: ErrorForm | None = None
    model_of: Callable[[Buffer], str] | None = None


class _Methods(dict[bytes, Operation]):
    """The operations of a path by method."""

    websocket: bool = False


class _Announced(NamedTuple):
    """Routes of which only the methods and patterns are known until one of them is requested."""

    owner: str
    methods: Mapping[tuple[str, ...], frozenset[bytes]]
    websockets: frozenset[tuple[str, ...]]
    shared: frozenset[tuple[str, ...]]
    add_routes: Callable[[Router], None]


class _Joined:
    """Responds with what several dialects say on the same route: all keys in one document, with the highest
    status. The first error stands for all.
    """

    def __init__(self) -> None:
        self.parts: list[Callable[..., Part]] = []

    def __call__(self, *arguments: Any) -> None:
        said = [part(*arguments) for part in self.parts]
        document = {key: value for _, keys in said for key, value in keys.items()}
        respond_json(arguments[-1], document, max(status for status, _ in said))


class Router:
    """Matches paths to patterns such as "/v2/models/{}/ready", where `{}` is any one segment.

    After `{}`, a segment may have a fixed ending, as in "/v1/models/{}:predict". Such a pattern takes
    precedence over one without the ending. HEAD works wherever GET does (the wire drops the body), and
    OPTIONS works on every path that has a route.
    """

    def __init__(
        self, changing: Callable[[Callable[..., None]], Callable[..., None]] = lambda it: it
    ) -> None:
        """`changing` wraps the handlers of routes with a scope in CHANGING."""
        self._changing = changing
        self._patterns: dict[tuple[str, ...], dict[bytes, _Route]] = {}
        #: The patterns that have a segment with a fixed ending.
        self._with_endings: list[tuple[str, ...]] = []
        #: The number of segments of the longest pattern.
        self._most_segments = 0
        self._resolved: Memo[bytes, _Methods] = Memo(_MAX_REMEMBERED)
        #: Functions, not called yet, that add further routes.
        self._later: list[Callable[[Router], None]] = []
        #: The patterns for which functions in `_later` must not add routes.
        self._closed: frozenset[tuple[str, ...]] = frozenset()
        #: The announced routes that have not been added yet, by pattern.
        self._announced: dict[tuple[str, ...], list[_Announced]] = {}
        #: The patterns at which several dialects may respond to GET.
        self._shared: set[tuple[str, ...]] = set()
        #: The announced routes that are being added.
        self._adding: _Announced | None = None
        self._websockets: set[tuple[str, ...]] = set()

    def add(
        self,
        scope: Scope,
        method: str,
        pattern: str,
        handler: Callable[..., None],
        *further: str,
        lists: bool = False,
        before_model: str = "models",
        errors: ErrorForm | None = None,
        model_of: Callable[[Buffer], str] | None = None,
    ) -> None:
        """Routes `method` on `pattern` to `handler(*names, *further, request)`.

        `names` are the percent-decoded segments at each `{}`. `scope` is the permission that callers need
        for the model whose name follows the segment `before_model`; the gate, not the router, checks it. A
        route that `lists` models is open to callers who may use only some models; the handler then leaves out
        all other models. `errors` is the form of errors, by default {"error": message}. `model_of` returns
        the name of the model from the body, for a path without one; without a name ("") the caller needs the
        scope for every model. It is not called if callers need no keys. Raises ValueError for a route that is
        already taken or was not announced, and for a pattern that a function passed to `add_later` may not
        use.
        """
        if scope in CHANGING:
            handler = self._changing(handler)
        segments = _pattern(pattern)
        if self._adding is not None and method.encode() not in self._adding.methods.get(segments, ()):
            raise ValueError(
                f"{method} {pattern} is not among the routes of the record of {self._adding.owner}"
            )
        if segments in self._closed:
            raise ValueError(
                f"{method} {pattern} is added too late: requests for this path have been resolved without it"
            )
        methods = self._reserve(segments)
        for name in (method.encode(), *([b"HEAD"] if method == "GET" else [])):
            if name in methods:
                raise ValueError(f"{method} {pattern} is routed twice")
            methods[name] = _Route(scope, handler, further, lists, before_model, errors, model_of)

    def join(self, scope: Scope, pattern: str, part: Callable[..., Part], *, lists: bool = False) -> None:
        """Adds to the response to GET on `pattern` what `part(*names, request)` returns. All parts of a
        pattern have the same `scope` and `lists`; see `add`.
        """
        route = self._patterns.get(_pattern(pattern), {}).get(b"GET")
        if route is None:
            joined = _Joined()
            self.add(scope, "GET", pattern, joined, lists=lists)
        elif isinstance(route.handler, _Joined):
            joined = route.handler
        else:
            raise ValueError(f"GET {pattern} is routed twice")
        joined.parts.append(part)

    def add_later(self, add_routes: Callable[[Router], None]) -> None:
        """Calls `add_routes` at the first request whose path no route added before matches, so that modules
        that only these routes need are imported late.

        `add_routes` must not add routes for patterns that already have some.
        """
        self._later.append(add_routes)

    def announce(
        self,
        owner: str,
        routes: Iterable[str],
        add_routes: Callable[[Router], None],
        websockets: Iterable[str] = (),
        shared: Iterable[str] = (),
    ) -> None:
        """Reserves `routes`, such as "POST /models/{}", for `add_routes`, which is called at the first
        request for one of them.

        `websockets` are the patterns at which GET accepts WebSocket handshakes, and `shared` those of the
        `routes` to which others may add with `join`. `owner` names the origin of the routes in error texts.
        If `add_routes` fails, the error is logged, and requests for these routes are answered with status
        500. Raises ValueError for a route that is already taken, and for a pattern for which requests have
        been resolved already.
        """
        accepting = frozenset(map(_pattern, websockets))
        methods: dict[tuple[str, ...], frozenset[bytes]] = dict.fromkeys(accepting, frozenset((b"GET",)))
        for route in routes:
            method, _, path = route.partition(" ")
            segments = _pattern(path)
            methods[segments] = methods.get(segments, frozenset()) | {method.encode()}
        joining = frozenset(_pattern(route.partition(" ")[2]) for route in shared)
        for segments, asked in methods.items():
            taken = self._taken(segments) - ({b"GET"} if segments in joining & self._shared else set())
            if segments in self._closed or not asked.isdisjoint(taken):
                raise ValueError(f"{owner} cannot serve /{'/'.join(segments)}, which is already taken")
        announced = _Announced(owner, methods, accepting, joining, add_routes)
        self._websockets |= accepting
        self._shared |= joining
        for segments in methods:
            self._announced.setdefault(segments, []).append(announced)
            self._reserve(segments)

    def expects(self, method: str, pattern: str) -> bool:
        """Returns whether the routes that are being added were announced with this one."""
        return self._adding is not None and method.encode() in self._adding.methods.get(_pattern(pattern), ())

    def _taken(self, segments: tuple[str, ...]) -> set[bytes]:
        """Returns the methods of a pattern that have a route, or are announced."""
        methods = set(self._patterns.get(segments, ()))
        return methods.union(*(one.methods[segments] for one in self._announced.get(segments, ())))

    def _reserve(self, segments: tuple[str, ...]) -> dict[bytes, _Route]:
        """Returns the routes of a pattern, which may be new."""
        known = self._patterns.get(segments)
        if known is not None:
            return known
        self._most_segments = max(self._most_segments, len(segments))
        if any(_ending(segment) for segment in segments):
            self._with_endings.append(segments)
        created: dict[bytes, _Route] = {}
        self._patterns[segments] = created
        return created

    def _add_announced(self, announced: _Announced) -> None:
        for segments in announced.methods:
            self._announced[segments].remove(announced)
            if not self._announced[segments]:
                del self._announced[segments]
        self._adding = announced
        try:
            announced.add_routes(self)
        except Exception as error:
            failed = partial(_fail, hidden_error(f"the routes of {announced.owner}", error))
            for segments, methods in announced.methods.items():
                known = self._patterns[segments]  # has what other dialects say on a shared route
                known |= {one: _Route(Scope.PUBLIC, failed, (), False) for one in methods if one not in known}
        finally:
            self._adding = None
        for segments in announced.methods:
            # The dialect serves this route only with other options.
            if not self._patterns[segments] and segments not in self._announced:
                del self._patterns[segments]
                if segments in self._with_endings:
                    self._with_endings.remove(segments)

    def _add_later(self) -> bool:
        """Calls the first of the functions passed to `add_later` that has not been called yet. Returns False
        if there is none.
        """
        if not self._later:
            return False
        self._closed = frozenset(self._patterns)
        self._later.pop(0)(self)
        self._closed = frozenset()
        return True

    def routes(self) -> Iterator[tuple[str, str, Scope]]:
        """Yields all routes as method, pattern and scope. HEAD is left out, because HEAD works wherever GET
        does.
        """
        while self._add_later():
            pass
        while self._announced:
            self._add_announced(next(iter(self._announced.values()))[0])
        for segments, methods in self._patterns.items():
            for method, route in methods.items():
                if method != b"HEAD":
                    yield method.decode(), "/" + "/".join(segments), route.scope

    def resolve(self, request: HttpRequest) -> Operation:
        """Returns what a request asks for.

        Raises NotFound, MethodNotAllowed, or InvalidArgument for a malformed path.
        """
        methods = self._resolved.get(request.path) or self._find(request.path)  # the call is rarely needed
        operation = None if methods is None else methods.get(request.method)
        return operation or self._unrouted(request.method, request.path, methods)

    def check(self, method: bytes, path: bytes) -> None:
        """Raises what `resolve` would for a request with this method and path."""
        methods = self._find(path)
        if methods is None or method not in methods:
            self._unrouted(method, path, methods)

    def target(self, method: bytes, path: bytes) -> AccessTarget | None:
        """Returns the target of a request (scope and model), or None if no handler takes the request."""
        try:
            methods = self._find(path)
        except InvalidArgument:
            return None
        return None if methods is None else _target_of(methods.get(method))

    def takes_websocket(self, path: bytes) -> bool:
        """Returns whether a path accepts WebSocket handshakes."""
        try:
            methods = self._find(path)
        except InvalidArgument:
            return False
        return methods is not None and methods.websocket

    def _find(self, path: bytes) -> _Methods | None:
        """Returns the handlers of a path, or None if there are none.

        Anybody may send any path, so the cost of a path without handlers is bounded. Raises InvalidArgument
        for a malformed path.
        """
        known = self._resolved.get(path)
        if known is not None:
            return known
        found = self._match(path)
        while found is None and self._add_later():
            found = self._match(path)
        return found

    def _match(self, path: bytes) -> _Methods | None:
        """Returns the handlers of a path among the routes added so far, or None if no route matches."""
        if path == b"*":
            return _Methods()
        if len(path) > _MAX_PATH_SIZE or path.count(b"/") > self._most_segments + 1:
            return None
        segments = _segments(path)
        for pattern in (*self._with_endings, *self._patterns):
            names = _names(pattern, segments)
            if names is not None:
                if pattern in self._announced:
                    self._add_announced(self._announced[pattern][0])
                    return self._match(path)
                methods, path = self._patterns[pattern], bytes(path)
                bound = _Methods()
                bound.websocket = pattern in self._websockets
                for method, route in methods.items():
                    model = _model(route.before_model, pattern, segments)
                    if route.lists or route.model_of is not None:
                        model = ANY_MODEL
                    target = AccessTarget(route.scope, model, api_of_route(pattern, route.scope))
                    handler = partial(route.handler, *names, *route.further)
                    bound[method] = Operation(
                        handler, target, path, method, model_of=route.model_of, errors=route.errors
                    )
                if len(path) <= MAX_REMEMBERED_SIZE:
                    self._resolved.keep(path, bound)
                return bound
        return None

    def _unrouted(self, method: bytes, path: bytes, methods: _Methods | None) -> Operation:
        """Returns the operation OPTIONS. Raises NotFound for an unknown path, otherwise MethodNotAllowed."""
        if methods is None:
            raise NotFound(self._not_found(method, path))
        allow = b", ".join(
            sorted([*methods, b"OPTIONS"]) if methods else [b"GET", b"HEAD", b"OPTIONS", b"POST"]
        )
        if method == b"OPTIONS":
            handler: Handler = lambda asked: asked.respond(204, [(b"allow", allow)])  # noqa: E731
            return Operation(handler, FREE, path, method)
        shown = f"{method[:32].decode('latin-1')} {path[:256].decode('latin-1')}"
        raise MethodNotAllowed(f"Method Not Allowed: {shown} (allowed: {allow.decode()})", allow)

    def _not_found(self, method: bytes, path: bytes) -> str:
        """Returns the error text for an unknown path, which names a similar route for this method if there is
        one.
        """
        segments = _segments(path[:_MAX_PATH_SIZE], "replace")
        asked = "/" + "/".join(segments)
        text = f"Not Found: {method[:32].decode('latin-1')} {asked[:256]}"
        if segments[:2] == ["v1", "models"] and len(segments) > 2 and _PREDICT not in self._patterns:
            return f"{text}. {_instead_of_v1(segments[2:])}"
        # Model names may be long and resemble anything, so only the fixed segments are compared.
        routes: dict[str, str] = {}
        for pattern in self._patterns:
            if len(pattern) != len(segments) or method not in self._taken(pattern):
                continue
            pairs = list(zip(pattern, segments, strict=True))
            fixed = "/".join(segment for expected, segment in pairs if not expected.startswith("{}"))
            wanted = "/".join(part for part in pattern if not part.startswith("{}"))
            if nearest(fixed, [wanted], 1, 0.8, whole=True) and all(
                segment.endswith(_ending(expected)) for expected, segment in pairs
            ):
                filled = "/" + "/".join(
                    segment if expected.startswith("{}") else expected for expected, segment in pairs
                )
                routes[filled] = filled
        near = nearest(asked, routes, whole=True) if len(asked) <= 256 else []
        return f"{text} (did you mean {near[0]}?)" if near else text


def _pattern(path: str) -> tuple[str, ...]:
    return tuple(path.strip("/").split("/"))


def _target_of(operation: Operation | None) -> AccessTarget | None:
    return None if operation is None else operation.target


def _fail(error: BacklineError, *_: object) -> None:
    raise error.with_traceback(None)


def _ending(expected: str) -> str:
    """Returns the fixed ending of a variable segment of a pattern; "" if there is none."""
    return expected.removeprefix("{}") if expected.startswith("{}") else ""


def _names(pattern: tuple[str, ...], segments: list[str]) -> list[str] | None:
    """Returns what stands in a path for each `{}` of a pattern; None if the path does not match."""
    if len(pattern) != len(segments):
        return None
    names = []
    for expected, segment in zip(pattern, segments, strict=True):
        if expected.startswith("{}"):
            ending = _ending(expected)
            if len(segment) <= len(ending) or not segment.endswith(ending):
                return None
            names.append(segment.removesuffix(ending))
        elif expected != segment:
            return None
    return names


def _model(before_model: str, pattern: tuple[str, ...], segments: list[str]) -> str | None:
    """Returns the name of the model in a path: the variable segment that follows `before_model`."""
    for before, expected, segment in zip(pattern, pattern[1:], segments[1:], strict=False):
        if before == before_model and expected.startswith("{}"):
            return segment.removesuffix(_ending(expected))
    return None


def _instead_of_v1(segments: list[str]) -> str:
    """Returns advice for a request to a TensorFlow Serving route, given the path's segments after
    /v1/models.
    """
    model, *more = (segment.partition(":")[0] for segment in segments)
    route = f"/v2/models/{model}"
    if len(more) > 1 and more[0] in {"versions", "labels"}:
        route += f"/versions/{more[1]}"
    if ":" in segments[-1]:
        instead = f"inference is POST {route}/infer"
    elif segments[-1] == "metadata":
        instead = f"metadata is GET {route}"
    else:
        instead = f"the state of a model is GET {route}/ready"
    return (
        "The REST protocol of TensorFlow Serving (v1 of KServe) is not served, because --dialects leaves it"
        f" out; in the Open Inference Protocol, {instead}"
    )


def _segments(path: bytes, errors: str = "strict") -> list[str]:
    if len(path) > 1 and path.endswith(b"/"):
        path = path[:-1]
    try:
        return [
            unquote_to_bytes(segment).decode(errors=errors) for segment in path.removeprefix(b"/").split(b"/")
        ]
    except UnicodeDecodeError:
        raise InvalidArgument("the path is not UTF-8 after percent-decoding; encode it as UTF-8") from None
