"""TorchServe's management API, and its routes: which models and versions are served, and how."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final

import msgspec

from backline.access.scope import Scope
from backline.dialects.deferred import control_of
from backline.dialects.documents import read_pairs
from backline.dialects.json_scan import MAX_DOCUMENT
from backline.dialects.open_inference.repository import asking, permission_of, who_asks
from backline.dialects.plugin import DialectContext
from backline.dialects.router import Router
from backline.engine.engine import Engine
from backline.engine.model import Model
from backline.engine.numbers import parse_whole
from backline.plugins.dialects.torchserve.errors import (
    Conflict,
    DefaultVersion,
    ModelNotFound,
    ModelVersionNotFound,
    check_known,
    error_form,
    is_registered,
)
from backline.plugins.dialects.torchserve.inference import respond_pretty
from backline.plugins.dialects.torchserve.requests import (
    BODY,
    DESCRIBE,
    EXPLAIN,
    body_tensor,
    content_of,
    fields_of,
    is_archive,
)
from backline.wire.application import HttpRequest, UnaryCall
from backline_client.values.control import STABLE, LabelMove
from backline_client.values.errors import InvalidArgument, NotFound, PayloadTooLarge, Unsupported
from backline_client.values.messages import InferRequest
from backline_client.values.names import version_order

_WHAT: Final = "changing models by request"
PAGE: Final = 100
#: The version in a path that stands for all versions.
_ALL: Final = "all"
#: The parameters of a registration. Those that are settings of the model are not taken from requests.
_URL, _NAME = "url", "model_name"
_KNOWN: Final = (_URL, _NAME, "initial_workers", "synchronous")


class Management:
    """What the management API does, over REST and gRPC alike: its methods return documents."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(self, limit: int, first: int, identity: Any) -> dict[str, Any]:
        """Returns a page of the models that the caller may see, in TorchServe's form."""
        names = [
            name
            for name in self._engine.names()
            if is_registered(self._engine, name) and (identity is None or identity.may(Scope.READ, name))
        ]
        last = min(first + min(limit, PAGE), len(names))
        page = {"nextPageToken": str(last)} if last < len(names) else {}
        models = [
            {"modelName": name, "modelUrl": _url(self._engine.find(name))} for name in names[first:last]
        ]
        return {**page, "models": models}

    def versions(self, name: str, version: str) -> list[Model]:
        """Returns the versions to describe."""
        every = version == _ALL
        check_known(self._engine, name, "" if every else version)
        if every:
            return sorted(self._engine.versions(name), key=lambda model: version_order(model.version))
        return [self._engine.find(name, version)]

    async def customized(
        self, models: Sequence[Model], fields: Mapping[bytes, bytes], identity: Any
    ) -> list[dict[str, Any]]:
        """Describes versions, with what the handlers of archives say about them."""
        if identity is not None:
            for model in models:
                identity.require(Scope.INFER, model.name)  # the handler runs
        return [
            {**described(model), "customizedMetadata": await self._customized(model, fields, identity)}
            for model in models
        ]

    async def _customized(self, model: Model, fields: Mapping[bytes, bytes], identity: Any) -> Any:
        """Returns what the handler of an archive says about its model; None for other models."""
        if not is_archive(model) or model.decoupled or not model.ready:
            return None
        asked = InferRequest(
            model.name,
            {BODY: body_tensor(model, b"")},
            model.version,
            parameters={**fields_of(fields), EXPLAIN: "False", DESCRIBE: "True"},
        )
        admit = None if identity is None else identity.follow
        async with self._engine.stream(asked, admit=admit) as responses:
            return _decoded(content_of(await anext(aiter(responses))))

    async def register(self, asked: Mapping[str, str], caller: HttpRequest | UnaryCall) -> str:
        control = control_of(self._engine, _WHAT)
        for name in asked:
            if name not in _KNOWN:
                raise InvalidArgument(
                    f"parameter '{name[:64]}' cannot be given in a request: set it in the model's"
                    " model-config.yaml or config.pbtxt"
                )
        url = asked.get(_URL, "")
        if not url:
            raise InvalidArgument("Parameter url is required.")
        if ".." in PurePosixPath(url).parts:
            raise ModelNotFound(f"Relative path is not allowed in url: {url}")
        if "/" in url:
            raise Unsupported(
                f"the server registers models from its repositories, not from '{url[:256]}': add the model to"
                " a repository, and send the name of its archive as url"
            )
        name = asked.get(_NAME) or model_at(url)
        served = self._engine.served_versions(name) if self._engine.is_known(name) else []
        if served:
            raise Conflict(f"Model version {served[-1]} is already registered for model {name}")
        try:
            await control.load(name, **asking(caller))
        except NotFound as error:
            raise ModelNotFound(f"Model not found at: {url}: {error.message}") from None
        model = self._engine.find(name)
        count = _instances(model)
        return f'Model "{name}" Version: {model.version} registered with {count} initial workers'

    async def unregister(self, name: str, version: str, caller: HttpRequest | UnaryCall) -> str:
        control = control_of(self._engine, _WHAT)
        check_known(self._engine, name, version)
        if version:
            version = self._engine.find(name, version).version
            default = self._engine.find(name).version
            if version == default and len(self._engine.served_versions(name)) > 1:
                raise DefaultVersion(f"Cannot remove default version for model {name}")
        await control.unload(name, version, who=who_asks(caller), may_change=permission_of(caller))
        return f'Model "{name}" unregistered'

    async def set_default(self, name: str, version: str, caller: HttpRequest | UnaryCall) -> str:
        control = control_of(self._engine, _WHAT)
        check_known(self._engine, name)
        missing = f"Model version {version} does not exist for model {name}"
        if not version:  # only over gRPC
            raise ModelVersionNotFound(missing)
        try:
            await control.move_label(LabelMove("promote", name, STABLE, version), who=who_asks(caller))
        except NotFound:
            raise ModelVersionNotFound(missing) from None
        return f'Default version successfully updated for model "{name}" to "{version}"'

    def scale(self, name: str, version: str, least: int, most: int) -> str:
        """Checks whether a model has the number of workers that a request asks for."""
        check_known(self._engine, name, version)
        if most < least:
            raise InvalidArgument("max_worker cannot be less than min_worker.")
        count = _instances(self._engine.find(name, version))
        if not least <= count <= most:
            raise Unsupported(
                f"model '{name}' has {count} workers, and requests cannot change that: set minWorkers in its"
                " model-config.yaml, or the count of its instance_group in config.pbtxt, and load it again"
            )
        which = f", version: {version}" if version else ""
        return f"Workers scaled to {count} for model: {name}{which}"


class ManagementService:
    """Registers the routes of the management API."""

    def __init__(self, context: DialectContext) -> None:
        self._management = Management(context.engine)
        self._deferred = context.deferred

    def add_routes(self, router: Router) -> None:
        add = partial(router.add, errors=error_form)
        add(Scope.READ, "GET", "/models", self._list, lists=True)
        add(Scope.MANAGE, "POST", "/models", self._register)
        for pattern, further in (("/models/{}", ("",)), ("/models/{}/{}", ())):
            add(Scope.READ, "GET", pattern, self._describe, *further)
            add(Scope.MANAGE, "PUT", pattern, self._scale, *further)
            add(Scope.MANAGE, "DELETE", pattern, self._unregister, *further)
        add(Scope.MANAGE, "PUT", "/models/{}/{}/set-default", self._set_default)

    def _list(self, request: HttpRequest) -> None:
        """Lists models. As in TorchServe, numbers that are none, or out of range, are replaced by the
        default.
        """
        query = read_pairs(request.query)
        limit, first = _number(query, "limit", PAGE), _number(query, "next_page_token", 0)
        respond_pretty(request, self._management.page(limit, first, request.identity))

    def _describe(self, name: str, version: str, request: HttpRequest) -> None:
        query = read_pairs(request.query)
        models = self._management.versions(name, version)
        if query.get("customized", "").lower() != "true":
            respond_pretty(request, [described(model) for model in models])
            return
        told = self._management.customized(models, request.headers, request.identity)
        self._deferred.answer(request, told, partial(respond_pretty, request))

    def _register(self, request: HttpRequest) -> None:
        self._change(request, self._management.register(_asked(request), request))

    def _unregister(self, name: str, version: str, request: HttpRequest) -> None:
        self._change(request, self._management.unregister(name, version, request))

    def _set_default(self, name: str, version: str, request: HttpRequest) -> None:
        self._change(request, self._management.set_default(name, version, request))

    def _change(self, request: HttpRequest, work: Coroutine[Any, Any, str]) -> None:
        self._deferred.answer(request, work, lambda status: respond_pretty(request, {"status": status}))

    def _scale(self, name: str, version: str, request: HttpRequest) -> None:
        query = read_pairs(request.query)
        least = _number(query, "min_worker", 1)
        status = self._management.scale(name, version, least, _number(query, "max_worker", least))
        respond_pretty(request, {"status": status})


def model_at(url: str) -> str:
    """Returns the name of the model in an archive."""
    return url.removesuffix(".mar")


def _asked(request: HttpRequest) -> Mapping[str, str]:
    """Returns the parameters of a registration, which are in the query or in a JSON object.

    Raises InvalidArgument for malformed parameters.
    """
    given: Mapping[str, Any] = read_pairs(request.query)
    if request.body:
        if len(request.body) > MAX_DOCUMENT:
            raise PayloadTooLarge(f"the parameters have more than {MAX_DOCUMENT} bytes")
        found = _decoded(request.body)
        if not isinstance(found, dict):
            raise InvalidArgument("the body must be a JSON object of parameters, such as url")
        given = {**given, **found}
    return {name: str(value) for name, value in given.items()}


def _decoded(text: Any) -> Any:
    """Returns the value of JSON, or else the text."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return bytes(text).decode(errors="replace")


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    found = parse_whole(query.get(name, ""), 0, 2**31)
    return default if found is None else found


def _instances(model: Model) -> int:
    return 0 if model.placement is None or not model.answers else model.placement.instances


def _url(model: Model) -> str:
    return model.filename or model.name


def described(model: Model) -> dict[str, Any]:
    """Returns the description of a version. A key is left out if the server has nothing like it."""
    count = _instances(model)
    devices = () if model.placement is None else model.placement.places.devices
    on_gpu = any(device.kind == "gpu" for device in devices)
    return {
        "modelName": model.name,
        "modelVersion": model.version,
        "modelUrl": _url(model),
        "runtime": "python" if is_archive(model) else model.backend,
        "minWorkers": count,
        "maxWorkers": count,
        "batchSize": max(model.max_batch_size, 1),
        "maxBatchDelay": model.config.max_queue_delay_us // 1000,
        "deviceType": "gpu" if on_gpu else "cpu",
        "stateful": False,
        "workers": [
            {
                "id": str(9000 + number),
                "status": "READY" if model.ready else "UNLOADING",
                "memoryUsage": model.memory_bytes // count,
                "gpu": on_gpu,
            }
            for number in range(count)
        ],
        "jobQueueStatus": {"pendingRequests": model.serving.queue.pending},
    }
