"""Lets clients change models: Triton's model repository extension, plus versions, labels and history."""

from __future__ import annotations

import asyncio
import binascii
import contextlib
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any, TypedDict

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from backline.access.scope import Scope
from backline.dialects.answers import encode_json, respond_encoded, respond_json
from backline.dialects.deferred import DeferredAnswers, caller_name, control_of
from backline.dialects.documents import read_document, read_message, read_query, suggestion
from backline.dialects.json_scan import MAX_DOCUMENT, check_keys
from backline.dialects.off_loop import LARGE
from backline.dialects.open_inference.grpc.wire_format import split_load
from backline.dialects.open_inference.metadata import model_index, visible_to
from backline.dialects.router import Router
from backline.engine.engine import Engine
from backline.wire.application import HttpRequest, UnaryCall
from backline.wire.peers import address_of
from backline_client.values.control import (
    ANY_VERSION,
    LONGEST_PAGE,
    STABLE,
    Attempt,
    Change,
    Control,
    LabelMove,
    MayChange,
    Overrides,
    Page,
    RepositoryState,
    may_change_all,
    unreadable,
)
from backline_client.values.decodable import decodable
from backline_client.values.errors import InvalidArgument, NotFound, PayloadTooLarge, Unsupported
from backline_client.values.private_places import for_clients
from backline_client.values.tensor import Buffer

CONFIG = "config"
FILE = "file:"
#: The maximum length of a configuration in characters. Decoding this many characters holds the interpreter's
#: lock for about 10 ms.
MAX_CONFIG = 256 * 1024
DEPENDENTS = "unload_dependents"
#: The maximum size of a load request without its files, in bytes.
_MAX_LOAD = MAX_CONFIG + MAX_DOCUMENT
_BACKSLASH = b"\\"
#: The beginning of Triton's HTTP error for an unknown load parameter.
_UNKNOWN_OVER_HTTP = "unexpected error on creating Triton parameter: "
#: The length in bytes of the longest escape in a JSON string, such as \u003d for "=".
_LONGEST_ESCAPE = 6
#: The number of base64 characters decoded at a time, so that other threads can run in between.
_PIECE = 1 << 20
_LOADING = "loading and unloading models by request"
_LABELS = "moving labels by request"


@decodable
class IndexDocument(Struct, forbid_unknown_fields=True):
    ready: bool = False


@decodable
class ParametersDocument(Struct, forbid_unknown_fields=True):
    parameters: dict[str, Any] = {}


@decodable
class LoadDocument(Struct, forbid_unknown_fields=True):
    """The parameters of a load. Their values are decoded later, because the values may be large files."""

    parameters: dict[str, Raw] = {}


@decodable
class VersionDocument(Struct, forbid_unknown_fields=True):
    """A label's new version and its expected current version. Each may be a number or a string."""

    version: str | int
    expected: str | int = ANY_VERSION


@decodable
class RollbackDocument(Struct, forbid_unknown_fields=True):
    label: str = STABLE


@decodable
class ExpectedQuery(Struct, forbid_unknown_fields=True):
    expected: str = ANY_VERSION


@decodable
class HistoryQuery(Struct, forbid_unknown_fields=True):
    model: str = ""
    limit: int = 100
    cursor: str = ""


@decodable
class AuditQuery(Struct, forbid_unknown_fields=True):
    """The query parameters of the audit log. `after` is in seconds since 1970."""

    limit: int = 100
    after: float = 0.0
    cursor: str = ""


class RepositoryRoutes:
    """The handlers of the routes that list and change models."""

    def __init__(self, engine: Engine, deferred: DeferredAnswers) -> None:
        self._engine = engine
        self._deferred = deferred

    def add_routes(self, router: Router) -> None:
        for method in ("GET", "POST"):
            router.add(Scope.READ, method, "/v2/repository/index", self._index, lists=True)
            router.add(Scope.READ, method, "/v2/repository/{}/index", self._index_of, lists=True)
        for action, handler in (("load", self._load), ("unload", self._unload)):
            router.add(Scope.MANAGE, "POST", f"/v2/repository/models/{{}}/{action}", handler, "")
            router.add(Scope.MANAGE, "POST", f"/v2/repository/models/{{}}/versions/{{}}/{action}", handler)
            router.add(Scope.MANAGE, "POST", f"/v2/repository/{{}}/models/{{}}/{action}", refuse_repository)
        router.add(Scope.MANAGE, "POST", "/v2/repository/refresh", self._refresh)
        router.add(Scope.READ, "GET", "/v2/repository/locations", self._locations)
        router.add(Scope.READ, "GET", "/v2/repository/history", self._history)
        router.add(Scope.READ, "GET", "/v2/audit", self._audit)
        router.add(Scope.READ, "GET", "/v2/models/{}/labels", self._labels)
        router.add(Scope.MANAGE, "PUT", "/v2/models/{}/labels/{}", self._set_label)
        router.add(Scope.MANAGE, "DELETE", "/v2/models/{}/labels/{}", self._remove_label)
        router.add(Scope.MANAGE, "POST", "/v2/models/{}/promote", self._promote)
        router.add(Scope.MANAGE, "POST", "/v2/models/{}/rollback", self._rollback)

    # Triton's routes

    def _index(self, request: HttpRequest) -> None:
        asked = read_document(IndexDocument, request.body if request.method == b"POST" else b"")
        respond_json(request, model_index(self._engine, visible_to(request.identity), only_ready=asked.ready))

    def _index_of(self, repository: str, request: HttpRequest) -> None:
        """Lists the models of all repositories, whichever one the path names, as Triton does over HTTP."""
        self._index(request)

    def _load(self, model: str, version: str, request: HttpRequest) -> None:
        control = control_of(self._engine, _LOADING)
        body, asked_by = request.body, asking(request)
        request.body = b""  # the body may be as large as the model, so it is freed before the load

        async def load() -> None:
            nonlocal body
            if len(body) > LARGE:
                overrides = await asyncio.to_thread(_parse_overrides, model, body)
            else:
                overrides = _parse_overrides(model, body)
            body = b""
            await control.load(model, version, overrides=overrides, **asked_by)

        self._deferred.answer(request, load(), partial(_respond_empty, request))

    def _unload(self, model: str, version: str, request: HttpRequest) -> None:
        control = control_of(self._engine, _LOADING)
        dependents = dependents_from_json(read_document(ParametersDocument, request.body).parameters)
        change = control.unload(
            model, version, dependents=dependents, who=who_asks(request), may_change=permission_of(request)
        )
        if not version:
            change = _if_known(change)
        self._deferred.answer(request, change, partial(_respond_empty, request))

    # routes that Triton lacks

    def _refresh(self, request: HttpRequest) -> None:
        control = control_of(self._engine, "refreshing the repository by request")
        self._deferred.answer(request, control.refresh(), partial(_respond_empty, request))

    def _locations(self, request: HttpRequest) -> None:
        states = control_of(self._engine, "the list of repositories").repositories()
        respond_json(request, {"repositories": [_for_clients(state) for state in states]})

    def _history(self, request: HttpRequest) -> None:
        control = control_of(self._engine, "the history of changes")
        asked = read_query(HistoryQuery, request.query)
        _check_page(asked.limit)
        read = partial(control.history, asked.model, asked.limit, asked.cursor)
        work = partial(read, form=partial(_encode_page, "changes"))
        self._deferred.answer_in_turn(request, "the history", work, partial(respond_encoded, request))

    def _audit(self, request: HttpRequest) -> None:
        control = control_of(self._engine, "the audit log")
        asked = read_query(AuditQuery, request.query)
        _check_page(asked.limit)
        read = partial(control.audit, asked.limit, asked.after, asked.cursor)
        work = partial(read, form=partial(_encode_page, "entries"))
        self._deferred.answer_in_turn(request, "the audit log", work, partial(respond_encoded, request))

    def _labels(self, model: str, request: HttpRequest) -> None:
        self._engine.check_known(model)
        respond_json(request, {"name": model, "labels": self._engine.labels(model)})

    def _set_label(self, model: str, label: str, request: HttpRequest) -> None:
        control = control_of(self._engine, _LABELS)
        asked = read_document(VersionDocument, request.body)
        self._move(
            control, LabelMove("label", model, label, str(asked.version), str(asked.expected)), request
        )

    def _remove_label(self, model: str, label: str, request: HttpRequest) -> None:
        control = control_of(self._engine, _LABELS)
        asked = read_query(ExpectedQuery, request.query)
        self._move(control, LabelMove("unlabel", model, label, expected=asked.expected), request)

    def _promote(self, model: str, request: HttpRequest) -> None:
        control = control_of(self._engine, _LABELS)
        asked = read_document(VersionDocument, request.body)
        move = LabelMove("promote", model, STABLE, str(asked.version), str(asked.expected))
        self._move(control, move, request)

    def _rollback(self, model: str, request: HttpRequest) -> None:
        control = control_of(self._engine, _LABELS)
        asked = read_document(RollbackDocument, request.body)
        self._move(control, LabelMove("rollback", model, asked.label), request)

    def _move(self, control: Control, move: LabelMove, request: HttpRequest) -> None:
        change = control.move_label(move, who=who_asks(request))
        self._deferred.answer(request, change, partial(respond_json, request))


def _for_clients(state: RepositoryState) -> RepositoryState:
    return replace(
        state,
        location=for_clients(state.location),
        failures={model: for_clients(problem) for model, problem in state.failures.items()},
        problem=for_clients(state.problem),
    )


def _check_page(limit: int) -> None:
    if not 1 <= limit <= LONGEST_PAGE:
        raise InvalidArgument(
            f"limit is {limit}, expected 1 to {LONGEST_PAGE}; the cursor of a page leads to older entries"
        )


def _encode_page(name: str, page: Page[Change | Attempt]) -> bytes:
    """Encodes a page of the audit log; runs on the thread that reads the log."""
    # Entry by entry, so that the event loop runs in between.
    entries = b",".join(
        encode_json(replace(entry, detail=for_clients(entry.detail))) for entry in page.entries
    )
    return b'{"%b":[%b],"cursor":%b}' % (name.encode(), entries, encode_json(page.cursor))


def _parse_overrides(model: str, body: Buffer) -> Overrides | None:
    """Reads the overrides in a REST load request, whose files are base64.

    Raises InvalidArgument for an invalid request, and PayloadTooLarge for a configuration that is too large.
    """
    check_keys(body)
    config: str | None = None
    files: dict[str, Buffer] = {}
    for name, raw in read_document(LoadDocument, body, bounded=False).parameters.items():
        text = memoryview(raw)
        if not _is_string(raw):
            more = ": the configuration as JSON" if name == CONFIG else " of base64"
            raise InvalidArgument(
                "attempt to access JSON non-string as string: invalid value type for load parameter"
                f" '{name[:64]}', expected a string{more}"
            )
        _check_load_name(name, _UNKNOWN_OVER_HTTP)
        if name == CONFIG:
            check_config(len(text) // 6)  # JSON takes at most six bytes per character
            config = msgspec.json.decode(raw)
        else:
            files[_path(name)] = _decode_base64(name, text[1:-1])
    return _overrides(model, config, files)


def _is_string(raw: Raw) -> bool:
    return bytes(memoryview(raw)[:1]) == b'"'


def who_asks(caller: HttpRequest | UnaryCall) -> str:
    """Returns the name of a caller for the audit log."""
    fields = caller.headers if isinstance(caller, HttpRequest) else caller.metadata
    return caller_name(caller.peer, fields, "" if caller.identity is None else caller.identity.name)


def permission_of(caller: HttpRequest | UnaryCall) -> MayChange:
    """Returns the function that checks the caller's permission to change models that the route does not
    name; see MayChange.
    """
    identity = caller.identity
    return may_change_all if identity is None else partial(identity.require, Scope.MANAGE)


class _Asking(TypedDict):
    who: str
    caller: str
    may_change: MayChange


def asking(caller: HttpRequest | UnaryCall) -> _Asking:
    """Returns the arguments of Control.load that say who asks for the load."""
    identity = caller.identity
    if identity is None or identity.anonymous:
        known = f"address {address_of((caller.peer,))!r}"  # a host has a whole IPv6 network
    else:
        known = f"identity {identity.holder}"
    return {"who": who_asks(caller), "caller": known, "may_change": permission_of(caller)}


def _respond_empty(request: HttpRequest, _: None) -> None:
    request.respond(200, ())


def refuse_repository(*_: object) -> None:
    raise Unsupported("'repository_name' specification is not supported")


class RepositoryCalls:
    """The handlers of RepositoryModelLoad and RepositoryModelUnload; their responses are empty messages."""

    def __init__(self, engine: Engine, deferred: DeferredAnswers) -> None:
        self._engine = engine
        self._deferred = deferred

    def load(self, call: UnaryCall, received: Buffer) -> None:
        rest, files = split_load(received)
        asked = _read_message("RepositoryModelLoadRequest", rest, _MAX_LOAD)
        if not asked.model_name:
            raise InvalidArgument(unreadable("", "the name of the model is empty: set model_name"))
        control = control_of(self._engine, _LOADING)
        overrides = overrides_from_message(asked.model_name, asked.parameters, files)
        change = control.load(asked.model_name, overrides=overrides, **asking(call))
        self._deferred.answer(call, change, lambda _: call.reply(b""))

    def unload(self, call: UnaryCall, received: Buffer) -> None:
        asked = _read_message("RepositoryModelUnloadRequest", received)
        control = control_of(self._engine, _LOADING)
        dependents = dependents_from_message(asked.parameters)
        if not asked.model_name and self._engine.loads_by_request:  # no model: there is nothing to unload
            call.reply(b"")
            return
        change = control.unload(
            asked.model_name, dependents=dependents, who=who_asks(call), may_change=permission_of(call)
        )
        self._deferred.answer(call, _if_known(change), lambda _: call.reply(b""))


async def _if_known(unload: Awaitable[None]) -> None:
    """Unloads a model. As in Triton, succeeds for an unknown model, so that scripts can repeat an unload."""
    with contextlib.suppress(NotFound):
        await unload


def _read_message(kind: str, received: Buffer, limit: int = MAX_DOCUMENT) -> Any:
    asked = read_message(f"inference.{kind}", received, limit)
    if asked.repository_name:
        refuse_repository()
    return asked


def check_config(size: int) -> None:
    """Raises PayloadTooLarge if a configuration of `size` characters is too large."""
    if size > MAX_CONFIG:
        raise PayloadTooLarge(
            f"load parameter '{CONFIG}' has {size} characters, more than the {MAX_CONFIG} allowed"
            " for a configuration"
        )


def named_in_load(received: Buffer) -> str:
    """Returns the name of the model in a RepositoryModelLoadRequest.

    Raises InvalidArgument if the message is malformed, and PayloadTooLarge if it is too large without its
    files.
    """
    rest, _ = split_load(received)
    name: str = read_message("inference.RepositoryModelLoadRequest", rest, _MAX_LOAD).model_name
    return name


def overrides_from_message(
    model: str, parameters: Mapping[str, Any], contents: Mapping[str, Buffer]
) -> Overrides | None:
    """Reads the overrides in a RepositoryModelLoadRequest.

    `contents` has the files that `split_load` has taken out of the message; all other files are in
    `parameters`. Raises InvalidArgument if a parameter is unknown, of the wrong type or malformed, and
    PayloadTooLarge if the configuration is too large.
    """
    config: str | None = None
    files: dict[str, Buffer] = {_path(name): content for name, content in contents.items()}
    for name, value in parameters.items():
        _check_load_name(name)
        kind = "string_param" if name == CONFIG else "bytes_param"
        if value.WhichOneof("parameter_choice") != kind:
            raise InvalidArgument(f"invalid value type for load parameter '{name}', expected {kind}.")
        if name == CONFIG:
            config = value.string_param
        else:
            files[_path(name)] = value.bytes_param
    return _overrides(model, config, files)


def dependents_from_json(parameters: Mapping[str, Any]) -> bool:
    """Returns whether a REST unload request includes dependent models.

    Raises InvalidArgument for an unknown parameter or a value of the wrong type.
    """
    for name, value in parameters.items():
        _check_unload_name(name)
        if not isinstance(value, bool):
            raise InvalidArgument(f"invalid value type for '{DEPENDENTS}' parameter, expected true or false")
    return bool(parameters.get(DEPENDENTS, False))


def dependents_from_message(parameters: Mapping[str, Any]) -> bool:
    """Returns whether a RepositoryModelUnloadRequest includes dependent models.

    Raises InvalidArgument for an unknown parameter or a value of the wrong type.
    """
    for name, value in parameters.items():
        _check_unload_name(name)
        if value.WhichOneof("parameter_choice") != "bool_param":
            raise InvalidArgument(f"invalid value type for '{DEPENDENTS}' parameter, expected bool_param.")
    return DEPENDENTS in parameters and bool(parameters[DEPENDENTS].bool_param)


def _path(name: str) -> str:
    """Returns the path of a file, given the name of the file's parameter.

    As in Triton, an absolute path is relative to the model's folder.
    """
    return name.removeprefix(FILE).lstrip("/")


def _check_load_name(name: str, begin: str = "") -> None:
    """Raises InvalidArgument, with a text that starts with `begin`, for an unknown parameter of a load."""
    if name != CONFIG and not name.startswith(FILE):
        raise InvalidArgument(
            f"{begin}unrecognized load parameter '{name[:64]}'."
            f" {suggestion(name, (CONFIG, FILE + '1/model.onnx'))}"
        )


def _check_unload_name(name: str) -> None:
    if name != DEPENDENTS:
        raise InvalidArgument(
            f"unrecognized unload parameter '{name[:64]}'. {suggestion(name, (DEPENDENTS,))}"
        )


def _overrides(model: str, config: str | None, files: dict[str, Buffer]) -> Overrides | None:
    if files and config is None:
        reason = "Load parameter 'config' must be specified for model file override"
        raise InvalidArgument(unreadable(model, reason))
    if config is not None:
        check_config(len(config))
    if config is None:
        return None
    try:
        return Overrides(config, files)
    except InvalidArgument as error:
        raise InvalidArgument(unreadable(model, error.message)) from None


def _decode_base64(name: str, text: memoryview) -> Buffer:
    """Decodes the content of a file from the base64 in a JSON string.

    Works piece by piece: decoding or copying the whole content at once would hold the interpreter's lock, for
    hundreds of milliseconds if memory is scarce.
    """
    content, pending, kept = bytearray(), b"", b""
    try:
        for start in range(0, len(text), _PIECE):
            more = start + _PIECE < len(text)
            piece, pending = pending + bytes(text[start : start + _PIECE]), b""
            if _BACKSLASH in piece:  # JSON may escape any character; some encoders escape "/" and "="
                cut = piece.rfind(_BACKSLASH, -_LONGEST_ESCAPE) if more else -1
                if cut >= 0:
                    piece, pending = piece[:cut], piece[cut:]
                piece = msgspec.json.decode(b'"%b"' % piece, type=str).encode()
            piece = kept + piece
            whole = len(piece) // 4 * 4 if more else len(piece)
            kept = piece[whole:]
            content += binascii.a2b_base64(piece[:whole], strict_mode=True)
    except (ValueError, msgspec.DecodeError) as error:
        raise InvalidArgument(f"the value of load parameter '{name}' is not base64: {error}") from None
    return content
