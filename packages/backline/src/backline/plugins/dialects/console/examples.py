"""Serves inputs for trying out a model: examples from the model's folder, and recorded requests."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from backline.access.scope import Scope
from backline.dialects.answers import respond_json
from backline.dialects.bodies.values import value_of
from backline.dialects.deferred import DeferredAnswers
from backline.dialects.router import Router
from backline.engine.engine import Engine
from backline.engine.model import Model
from backline.observe.prediction_log import read_log
from backline.observe.recording import Recorder
from backline.wire.application import Fields, HttpRequest
from backline_client.values.errors import NotFound

#: The maximum size in bytes of an example in JSON, and of a recorded request. A larger example is listed as a
#: problem; larger requests are left out.
_MAX_INPUTS = 256 * 1024
_MAX_FILE = 16 << 20
_MAX_RECORDED = 20
_INPUTS = ".json"
#: Security: the model's author chose the file, so a browser must not render it as a page of the console.
_FILE: Fields = (
    (b"content-type", b"application/octet-stream"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox"),
    (b"cache-control", b"no-cache"),
)


class Examples:
    """Registers the routes for examples and recorded requests. `recorder` knows where requests were recorded;
    it is None if requests cannot be recorded.
    """

    def __init__(self, engine: Engine, deferred: DeferredAnswers, recorder: Recorder | None) -> None:
        self._engine = engine
        self._deferred = deferred
        self._recorder = recorder

    def add_routes(self, router: Router) -> None:
        router.add(Scope.READ, "GET", "/v2/models/{}/examples", self._list)
        router.add(Scope.READ, "GET", "/v2/models/{}/examples/{}", self._file)
        if self._recorder is not None:
            # Recorded requests contain data from clients, so only an administrator may read them.
            router.add(Scope.ADMIN, "GET", "/v2/models/{}/recorded", self._recorded)

    def _list(self, name: str, request: HttpRequest) -> None:
        found = self._engine.find(name).examples
        work = asyncio.to_thread(lambda: [_described(path) for path in found if path.is_file()])
        self._answer(request, work)

    def _file(self, name: str, example: str, request: HttpRequest) -> None:
        # Only names from the scan of the repository are served, so no request can reach a file outside the
        # repository.
        path = next((path for path in self._engine.find(name).examples if path.name == example), None)
        if path is None:
            raise NotFound(f"model '{name}' has no example '{example[:64]}'")
        reading = asyncio.to_thread(_read, path, _MAX_FILE)
        self._deferred.answer(request, reading, lambda body: request.respond(200, _FILE, [body]))

    def _recorded(self, name: str, request: HttpRequest) -> None:
        assert self._recorder is not None, "the route exists only with a recorder"
        model = self._engine.find(name)
        file = self._recorder.file(name)
        self._answer(request, asyncio.to_thread(_recorded_inputs, model, file))

    def _answer(self, request: HttpRequest, work: Coroutine[Any, Any, list[dict[str, Any]]]) -> None:
        self._deferred.answer(request, work, lambda found: respond_json(request, {"examples": found}))


def _read(path: Path, most: int) -> bytes:
    """Reads a file. Raises NotFound if the file cannot be read or has more than `most` bytes."""
    try:
        with path.open("rb") as file:
            body = file.read(most + 1)
    except OSError as error:
        raise NotFound(f"the example '{path.name}' cannot be read: {error.strerror}") from None
    if len(body) > most:
        raise NotFound(f"the example '{path.name}' has more than {most} bytes")
    return body


def _described(path: Path) -> dict[str, Any]:
    """Returns an example as JSON: its `name`, and either its `inputs` by name, the `file` that is its only
    input, or the `problem` with it.
    """
    if path.suffix != _INPUTS:
        return {"name": path.name, "file": path.name}
    try:
        inputs = msgspec.json.decode(_read(path, _MAX_INPUTS))
    except NotFound as error:
        return {"name": path.stem, "problem": error.public_message}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return {"name": path.stem, "problem": f"it is not JSON: {error}"}
    if not isinstance(inputs, dict):
        return {"name": path.stem, "problem": "expected a JSON object with the inputs by name"}
    return {"name": path.stem, "inputs": inputs}


def _recorded_inputs(model: Model, file: Path) -> list[dict[str, Any]]:
    """Returns the first recorded requests as JSON: the number of each as its `name`, and its `inputs` by
    name. Requests above _MAX_INPUTS are left out. The list is empty if the file does not exist.
    """
    if not file.is_file():
        return []
    documents = frozenset(spec.name for spec in model.signature.inputs if spec.json)
    found = []
    for one in islice(read_log(file), _MAX_RECORDED):
        if sum(tensor.data.nbytes for tensor in one.inputs.values()) > _MAX_INPUTS:
            continue
        inputs = {name: value_of(tensor, json=name in documents) for name, tensor in one.inputs.items()}
        found.append({"name": str(one.number), "inputs": inputs})
    return found
