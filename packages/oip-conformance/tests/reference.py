"""A small server that keeps the protocol, and that can be told to break it in one place.

It serves the suite's models over REST and gRPC, with every profile. `fault` is the name of what it does wrong; each
place that asks for a fault says what would be right.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc

from oip_conformance import rpc
from oip_conformance.row import Failure
from oip_conformance.suite_models import MODELS, SuiteModel
from oip_conformance.tensors import DATATYPES, Tensor, read_raw

#: Where Linux shows shared memory as files.
MEMORY = Path("/dev/shm")
LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ["classification", "sequence", "model_repository", "system_shared_memory", "binary_tensor_data"]


class Refused(Exception):
    """A request cannot be answered: the status of HTTP, and the message."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


@dataclass
class Request:
    """An inference request, from either transport."""

    model: SuiteModel
    version: str
    inputs: list[Tensor]
    outputs: list[tuple[str, dict[str, Any]]]
    parameters: dict[str, Any]
    id: str = ""


@dataclass
class Reference:
    """The server."""

    fault: str = ""
    loaded: set[str] = field(default_factory=lambda: {m.name for m in MODELS.values() if not m.optional})
    sums: dict[Any, int] = field(default_factory=dict)
    stats: dict[str, dict[str, int]] = field(default_factory=dict)
    regions: dict[str, dict[str, Any]] = field(default_factory=dict)
    log: dict[str, Any] = field(
        default_factory=lambda: {"log_info": True, "log_verbose_level": 0, "log_format": "default"}
    )
    trace: dict[str, Any] = field(
        default_factory=lambda: {
            "trace_level": ["OFF"],
            "trace_rate": "1000",
            "trace_count": "-1",
            "log_frequency": "0",
        }
    )
    model_trace: dict[str, dict[str, Any]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    last_id: str = ""

    def is_(self, fault: str) -> bool:
        return self.fault == fault

    # Models

    def model(self, name: str, version: str | None) -> tuple[SuiteModel, str]:
        if self.is_("case-ignored"):
            name = name.lower()
        model = MODELS.get(name)
        if model is None:
            raise Refused(404, f"unknown model '{name}'")
        if name not in self.loaded:
            raise Refused(404, f"model '{name}' is not loaded")
        if version and version not in model.versions:
            if not self.is_("unknown-version-served"):
                raise Refused(404, f"model '{name}' has no version '{version}'")
            version = None
        if self.is_("version-ignored"):
            version = None
        return model, version or model.versions[-1]

    def check(self, request: Request) -> None:
        """Raises Refused unless the inputs are what the model needs."""
        model = request.model
        names = [tensor.name for tensor in request.inputs]
        if self.is_("twice-accepted"):
            request.inputs = list({tensor.name: tensor for tensor in request.inputs}.values())
        elif len(set(names)) != len(names):
            raise Refused(400, "an input is given twice")
        ports = {port.name: port for port in model.inputs}
        for name in names:
            if name not in ports:
                raise Refused(400, f"the model has no input '{name}'")
        for port in model.inputs:
            if port.name not in names:
                if not self.is_("missing-as-zeros"):
                    raise Refused(400, f"input '{port.name}' is missing")
                request.inputs.append(Tensor(port.name, port.datatype, (1, 4), [0.0] * 4))
        batches = set()
        for tensor in request.inputs:
            port = ports[tensor.name]
            shape = model.shape(port)
            if tensor.datatype != port.datatype and not self.is_("datatype-unchecked"):
                raise Refused(400, f"input '{tensor.name}' is {port.datatype}")
            fits = len(shape) == len(tensor.shape) and all(
                w in (-1, g) for w, g in zip(shape, tensor.shape, strict=True)
            )
            if not fits and not (self.is_("width-unchecked") and len(shape) == len(tensor.shape)):
                raise Refused(400, f"input '{tensor.name}' has the shape {list(shape)}")
            if self.is_("empty-refused") and 0 in tensor.shape:
                raise Refused(400, "an empty tensor")
            batches.add(tensor.shape[0] if model.batch else 0)
        if len(batches) > 1 or max(batches) > model.batch:
            raise Refused(400, "the batches differ, or are too large")

    def respond(self, request: Request) -> Iterator[list[Tensor]]:
        """The responses to a request: one, or for a decoupled model any number."""
        self.check(request)
        given = {tensor.name: tensor for tensor in request.inputs}
        first = request.inputs[0]
        name = request.model.name
        counts = self.stats.setdefault(name, {"inferences": 0, "success": 0, "fail": 0})
        if name == "repeat":
            for index, value in enumerate(given["INPUT"].data):
                time.sleep(given["DELAY"].data[0] / 1000)
                if value < 0:
                    if self.is_("stream-error-dropped"):
                        return
                    raise Refused(500, "an element is negative")
                if not (self.is_("response-dropped") and index == 1):
                    yield [Tensor("OUTPUT", "INT32", (1,), [value])]
            return
        if name == "failing":
            counts["fail" if not self.is_("fail-as-success") else "success"] += 1
            raise Refused(500, "this model fails for every request")
        if name == "slow":
            time.sleep(first.data[0] / 1000)
        found = self.compute(request, given)
        counts["success"] += 1
        counts["inferences"] += first.shape[0] if request.model.batch and not self.is_("counts-requests") else 1
        yield found

    def compute(self, request: Request, given: dict[str, Tensor]) -> list[Tensor]:
        name, first = request.model.name, request.inputs[0]
        if name == "sum":
            left, right = (given["LEFT"], given["RIGHT"]) if not self.is_("inputs-by-position") else request.inputs
            pairs = list(zip(left.data, right.data, strict=True))
            total, difference = [a + b for a, b in pairs], [a - b for a, b in pairs]
            if self.is_("outputs-swapped"):
                total, difference = difference, total
            if self.is_("rows-swapped") and first.shape[0] > 1:
                total = total[-4:] + total[4:-4] + total[:4]
            return [Tensor("SUM", "FP32", left.shape, total), Tensor("DIFFERENCE", "FP32", left.shape, difference)]
        if name == "strings":
            joined = [a + b for a, b in zip(given["LEFT"].data, given["RIGHT"].data, strict=True)]
            return [Tensor("JOINED", "BYTES", first.shape, joined)]
        if name == "versioned":
            return [replace(first, name="OUTPUT", data=[value + int(request.version) for value in first.data])]
        if name == "text":
            return [Tensor("text_output", "BYTES", (1,), [first.data[0].decode().upper().encode()])]
        if name == "sequence":
            return [replace(first, name="OUTPUT", data=[self.accumulate(request.parameters, first.data[0])])]
        shape = first.shape[::-1] if self.is_("shape-reversed") else first.shape
        data = first.data
        if self.is_("int64-through-double") and first.datatype == "INT64":
            data = [int(float(value)) for value in data]
        if self.is_("int8-unsigned") and first.datatype == "INT8":
            data = [value % 256 for value in data]
        if self.is_("fp64-through-fp32") and first.datatype == "FP64":
            data = [struct.unpack("f", struct.pack("f", value))[0] if abs(value) < 1e38 else value for value in data]
        if self.is_("text-truncated") and first.datatype == "BYTES":
            data = [item[:65536] for item in data]
        return [Tensor("OUTPUT", first.datatype, shape, data)]

    def accumulate(self, parameters: dict[str, Any], value: int) -> int:
        id, start = parameters.get("sequence_id", 0), parameters.get("sequence_start", False)
        if (start and not id) or (not start and id not in self.sums):
            raise Refused(400, "a sequence begins with sequence_start, and has an id")
        if self.is_("sequences-shared"):
            id = 1
        start = start and not (self.is_("start-ignored") and id in self.sums)
        self.sums[id] = value + (0 if start else self.sums.get(id, 0))
        return self.sums[id]

    def chosen(self, request: Request, found: list[Tensor]) -> list[tuple[Tensor, dict[str, Any]]]:
        """The outputs that a request names, in its order, with its parameters; all of them if it names none."""
        tensors = {tensor.name: tensor for tensor in found}
        if not request.outputs or self.is_("choice-ignored"):
            return [(tensor, {}) for tensor in (found[:1] if self.is_("first-output-only") else found)]
        if self.is_("unknown-output-ignored"):
            return [(tensors[name], p) for name, p in request.outputs if name in tensors]
        for name, _ in request.outputs:
            if name not in tensors:
                raise Refused(400, f"the model has no output '{name}'")
        return [(tensors[name], parameters) for name, parameters in request.outputs]

    def classes(self, tensor: Tensor, count: int) -> Tensor:
        rows = []
        for start in range(0, len(tensor.data), 4):
            order = sorted(range(4), key=lambda i: tensor.data[start + i], reverse=not self.is_("classes-ascending"))
            rows += [f"{tensor.data[start + i]:f}:{i}".encode() for i in order[:count]]
        return Tensor(tensor.name, "BYTES", (tensor.shape[0], count), rows)

    # Shared memory

    def place(self, parameters: dict[str, Any]) -> tuple[Path, int, int]:
        """The file of a region, where a tensor starts in it, and how many bytes it may have."""
        region = self.regions.get(parameters["shared_memory_region"])
        size, offset = parameters.get("shared_memory_byte_size"), parameters.get("shared_memory_offset", 0)
        if region is None or size is None:
            raise Refused(400, "a tensor needs a registered region and a size")
        if offset + size > region["byte_size"] and not self.is_("region-unchecked"):
            raise Refused(400, "the tensor reaches beyond its region")
        start = region["offset"] + (0 if self.is_("offset-ignored") else offset)
        return MEMORY / region["key"].lstrip("/"), start, size

    def from_memory(self, entry: dict[str, Any], datatype: str, shape: tuple[int, ...]) -> Tensor:
        path, start, size = self.place(entry["parameters"])
        return read_raw(entry["name"], datatype, shape, path.read_bytes().ljust(256, b"\0")[start : start + size])

    def to_memory(self, parameters: dict[str, Any], data: bytes) -> None:
        path, start, size = self.place(parameters)
        if size < len(data):
            raise Refused(400, "the output needs more bytes")
        with path.open("r+b") as file:
            file.seek(start)
            file.write(data)

    def register(self, name: str, region: dict[str, Any]) -> None:
        path = MEMORY / region["key"].lstrip("/")
        if not path.is_file() or region["offset"] + region["byte_size"] > path.stat().st_size:
            raise Refused(400, f"there is no memory '{region['key']}' of this size")
        self.regions[name] = {"name": name, **region}

    # Repository

    def index(self, ready: bool) -> list[dict[str, str]]:
        hide = ready or self.is_("unloaded-hidden")
        return [
            {"name": model.name, "version": version, "state": "READY" if model.name in self.loaded else "UNAVAILABLE"}
            for model in MODELS.values()
            if model.name in self.loaded or not hide
            for version in model.versions
        ]

    def load(self, name: str) -> None:
        if name not in MODELS and not self.is_("unknown-loaded"):
            raise Refused(400, f"the repository has no model '{name}'")
        if not self.is_("load-without-effect"):
            self.loaded.add(name)

    def unload(self, name: str) -> None:
        if not self.is_("unload-without-effect"):
            self.loaded.discard(name)


class Handler(BaseHTTPRequestHandler):
    """REST."""

    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    def do_HEAD(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    @property
    def s(self) -> Reference:
        reference: Reference = self.server.reference
        return reference

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        coding = self.headers.get("Content-Encoding", "identity")
        if coding == "gzip":
            try:
                return gzip.decompress(body)
            except (OSError, EOFError, zlib.error):
                raise Refused(400, "the body is not gzip") from None
        if coding != "identity":
            raise Refused(415, f"unknown content coding '{coding}'")
        return body

    def _send(self, status: int, body: Any = b"", *headers: tuple[str, str]) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        fields = dict([("Content-Type", "application/json"), ("Content-Length", str(len(data))), *headers])
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, body: bytes) -> dict[str, Any]:
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            raise Refused(400, "the body is not JSON") from None
        if not isinstance(document, dict):
            raise Refused(400, "the body is not an object")
        return document

    def _handle(self) -> None:
        try:
            try:
                body = self._body()
                if not self._route(self.path.strip("/").split("/"), body):
                    self._send(200 if self.s.is_("any-route") else 404, {"error": "no such route"})
            except (Refused, Failure) as error:
                status = error.status if isinstance(error, Refused) else 400
                if self.s.is_("error-as-200") and status == 500:
                    status = 200
                self._send(status, {"detail" if self.s.is_("error-as-detail") else "error": str(error)})
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError, struct.error) as error:
                self._send(400, {"error": f"the request is not well-formed: {error}"})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _route(self, parts: list[str], body: bytes) -> bool:
        s, get = self.s, self.command in ("GET", "HEAD")
        match parts:
            case ["v2"] if get:
                document: dict[str, Any] = {"name": "reference", "version": "1", "extensions": EXTENSIONS}
                if s.is_("extensions-missing"):
                    del document["extensions"]
                self._send(200, {**document, **({"version": 1} if s.is_("version-a-number") else {})})
            case ["v2", "health", "live"] if get:
                self._send(503 if s.is_("not-live") else 200)
            case ["v2", "health", "ready"] if get:
                self._send(503 if s.is_("not-ready") else 200)
            case ["v2", "models", "stats"] if get:
                self._send(200, {"model_stats": [self._stats(name) for name in sorted(s.loaded)]})
            case ["v2", "models", model, "versions", version, *rest]:
                return self._model(model, version, rest, body)
            case ["v2", "models", model, *rest]:
                return self._model(model, None, rest, body)
            case ["v2", "repository", "index"] if not get:
                ready = self._json(body).get("ready", False) if body else False
                self._send(200, s.index(ready))
            case ["v2", "repository", "models", model, "load"] if not get:
                s.load(model)
                self._send(200)
            case ["v2", "repository", "models", model, "unload"] if not get:
                s.unload(model)
                self._send(200)
            case ["v2", "systemsharedmemory", *rest]:
                return self._memory(rest, body)
            case ["v2", "logging"]:
                self._settings(s.log, body, {"log_info": bool, "log_verbose_level": int, "log_format": str})
            case ["v2", "trace", "setting"]:
                self._trace(s.trace, body)
            case _:
                return False
        return True

    def _settings(self, settings: dict[str, Any], body: bytes, kinds: dict[str, type]) -> None:
        changes = self._json(body) if body else {}
        for name, value in changes.items():
            if type(value) is not kinds.get(name):
                raise Refused(400, f"'{name}' is no such setting, or of another type")
        changed = {**settings, **changes}
        if not self.s.is_("log-not-kept"):
            settings.update(changes)
        self._send(200, changed)

    def _trace(self, settings: dict[str, Any], body: bytes, model: str | None = None) -> None:
        changes = self._json(body) if body else {}
        own = self.s.model_trace.setdefault(model, {}) if model else settings
        for name, value in changes.items():
            if name == "trace_level" and not set(value) <= {"OFF", "TIMESTAMPS", "TENSORS"}:
                raise Refused(400, "an unknown trace_level")
            if name == "trace_rate" and value is not None and not str(value).isdigit():
                raise Refused(400, "trace_rate is a number")
            if value is None and model:
                if not self.s.is_("null-ignored"):
                    own.pop(name, None)
            else:
                own[name] = value
                if self.s.is_("model-trace-global"):
                    settings[name] = value
        self._send(200, {**settings, **own})

    def _memory(self, rest: list[str], body: bytes) -> bool:
        s = self.s
        match rest:
            case ["status"]:
                self._send(200, list(s.regions.values()))
            case ["region", name, "status"]:
                if name not in s.regions:
                    raise Refused(404, f"no region '{name}'")
                self._send(200, [s.regions[name]])
            case ["region", name, "register"]:
                s.register(name, {"offset": 0, **self._json(body)})
                self._send(200)
            case ["region", name, "unregister"]:
                if not s.is_("unregister-without-effect"):
                    s.regions.pop(name, None)
                self._send(200)
            case ["unregister"]:
                s.regions.clear()
                self._send(200)
            case _:
                return False
        return True

    def _stats(self, name: str) -> dict[str, Any]:
        counts = self.s.stats.get(name, {"inferences": 0, "success": 0, "fail": 0})
        return {
            "name": name,
            "version": MODELS[name].versions[-1],
            "last_inference": int(time.time() * (1 if self.s.is_("seconds") else 1000)),
            "inference_count": counts["inferences"],
            "execution_count": counts["success"],
            "inference_stats": {kind: {"count": counts[kind], "ns": 0} for kind in ("success", "fail")},
        }

    def _model(self, name: str, version: str | None, rest: list[str], body: bytes) -> bool:
        s, get = self.s, self.command in ("GET", "HEAD")
        if rest == ["ready"] and get:
            if s.is_("unknown-ready") and (name not in MODELS or version == "99"):
                self._send(200)
                return True
            model, _ = s.model(name, version)
            if s.is_("model-not-ready"):
                raise Refused(503, "not ready")
            self._send(200, {"name": name, "ready": not s.is_("ready-says-false")})
            return True
        if not rest and get:
            if s.is_("unknown-metadata") and name not in MODELS:
                self._send(200, {"name": name, "platform": "", "inputs": [], "outputs": []})
                return True
            model, _ = s.model(name, version)
            self._send(200, self._metadata(model))
            return True
        model, served = s.model(name, version)
        match rest:
            case ["stats"] if get:
                self._send(200, {"model_stats": [self._stats(name)]})
            case ["config"] if get:
                ports = [{"name": port.name} for port in model.inputs]
                self._send(200, {"name": name, "max_batch_size": model.batch, "input": ports})
            case ["trace", "setting"]:
                self._trace(s.trace, body, name)
            case ["infer"] if not get:
                self._infer(model, served, body)
            case ["generate"] if not get:
                responses = list(self._generated(model, served, body))
                if len(responses) != 1:
                    raise Refused(400, "generate needs exactly one response")
                self._send(200, responses[0])
            case ["generate_stream"] if not get:
                self._events(self._generated(model, served, body))
            case _:
                return False
        return True

    def _metadata(self, model: SuiteModel) -> dict[str, Any]:
        s = self.s

        def tensors(ports: Any) -> list[dict[str, Any]]:
            prefix = "TYPE_" if s.is_("datatype-with-prefix") else ""
            return [
                {
                    "name": port.name,
                    "datatype": prefix + port.datatype,
                    "shape": [0 if size < 0 and s.is_("variable-as-zero") else size for size in model.shape(port)],
                }
                for port in ports
            ]

        versions: list[Any] = list(model.versions)
        if s.is_("versions-as-numbers"):
            versions = list(map(int, versions))
        if s.is_("one-version-listed"):
            versions = versions[-1:]
        document = {
            "name": "model" if s.is_("metadata-other-name") else model.name,
            "versions": versions,
            "platform": "reference",
            "inputs": tensors(model.inputs),
            "outputs": tensors(model.outputs[:1] if s.is_("output-not-listed") else model.outputs),
        }
        if s.is_("platform-missing"):
            del document["platform"]
        return document

    def _tensor(self, entry: dict[str, Any], blobs: list[bytes]) -> Tensor:
        """The tensor of an entry of `inputs`; `blobs` holds what is left of the binary data."""
        s = self.s
        name, datatype = entry["name"], entry["datatype"]
        if datatype not in DATATYPES:
            raise Refused(400, f"unknown datatype '{datatype}'")
        if any(type(size) is not int for size in entry["shape"]):
            raise Refused(400, "a size in the shape is no whole number")
        if any(size < 0 for size in entry["shape"]) and not s.is_("negative-as-its-amount"):
            raise Refused(400, "a size in the shape is negative")
        shape = tuple(map(abs, entry["shape"]))
        parameters = entry.get("parameters") or {}
        if "shared_memory_region" in parameters:
            if "data" in entry:
                raise Refused(400, "a tensor in shared memory has no data")
            return s.from_memory(entry, datatype, shape)
        if "binary_data_size" in parameters:
            size = parameters["binary_data_size"]
            if "data" in entry or not 0 <= size <= len(blobs[0]):
                raise Refused(400, f"input '{name}': a wrong binary_data_size, or data beside it")
            data, blobs[0] = blobs[0][:size], blobs[0][size:]
            if s.is_("short-binary-padded") and datatype != "BYTES":
                data = data.ljust(math.prod(shape) * DATATYPES[datatype].size, b"\0")
            return read_raw(name, datatype, shape, data)
        if datatype in ("FP16", "BF16"):
            raise Refused(400, f"{datatype} has no form in JSON")
        items = _flat(entry["data"])
        if s.is_("nested-refused") and items != entry["data"]:
            raise Refused(400, "data is nested")
        if s.is_("short-padded"):
            items += [0] * (math.prod(shape) - len(items))
        if s.is_("long-cut"):
            items = items[: math.prod(shape)]
        if len(items) != math.prod(shape):
            raise Refused(400, f"input '{name}': {len(items)} elements for the shape {list(shape)}")
        kinds: dict[str, Callable[[Any], Any]] = {"BYTES": self._text, "BOOL": _bool, "FP32": float, "FP64": float}
        tensor = Tensor(name, datatype, shape, [kinds.get(datatype, _integer)(item) for item in items])
        tensor.raw()
        return tensor

    def _text(self, item: str) -> bytes:
        return item.encode("ascii", "replace") if self.s.is_("text-as-ascii") else item.encode()

    def _infer(self, model: SuiteModel, version: str, body: bytes) -> None:
        s = self.s
        length = self.headers.get(LENGTH)
        if length == "0":
            if len(model.inputs) != 1:
                raise Refused(400, "a raw request needs a model with one input")
            port = model.inputs[0]
            tensor = read_raw(port.name, port.datatype, (len(body) // DATATYPES[port.datatype].size,), body)
            document: dict[str, Any] = {"parameters": {"binary_data_output": True}}
            inputs = [tensor]
        else:
            if length is not None and (not length.isdigit() or int(length) > len(body)):
                raise Refused(400, f"{LENGTH} is wrong")
            end = len(body) if length is None else int(length)
            if s.is_("bad-json-as-empty") and not body.endswith(b"}"):
                self._send(200, {"model_name": model.name, "outputs": []})
                return
            document, blobs = self._json(body[:end]), [body[end:]]
            entries = document["inputs"]
            if s.is_("binary-in-model-order"):
                order = [port.name for port in model.inputs]
                entries = sorted(entries, key=lambda entry: order.index(entry["name"]))
            inputs = [self._tensor(entry, blobs) for entry in entries]
            if not inputs:
                raise Refused(400, "no inputs")
            if blobs[0] and not s.is_("tail-ignored"):
                raise Refused(400, "bytes after the last tensor")
        outputs = [(entry["name"], entry.get("parameters") or {}) for entry in document.get("outputs") or []]
        parameters = document.get("parameters") or {}
        request = Request(model, version, inputs, outputs, parameters, document.get("id", ""))
        if not isinstance(request.id, str):
            raise Refused(400, "the id is no string")
        if s.is_("ids-shared"):
            s.last_id = request.id
            time.sleep(0.002)
            request.id = s.last_id
        responses = list(s.respond(request))
        if len(responses) != 1:
            raise Refused(400, "this model answers on streams only")
        self._answer(request, s.chosen(request, responses[0]))

    def _answer(self, request: Request, chosen: list[tuple[Tensor, dict[str, Any]]]) -> None:
        s = self.s
        entries, blobs = [], []
        default = request.parameters.get("binary_data_output", False)
        for tensor, parameters in chosen:
            if count := parameters.get("classification"):
                tensor = s.classes(tensor, count)
            entry = tensor.entry()
            binary = parameters.get("binary_data", default)
            if s.is_("binary-not-overridden"):
                binary = default
            if "shared_memory_region" in parameters:
                s.to_memory(parameters, tensor.raw())
                if s.is_("memory-and-data"):
                    entry["data"] = tensor.json_data()
            elif binary:
                blobs.append(self._raw(tensor))
                off = 1 if s.is_("size-off-by-one") else 0
                entry["parameters"] = {"binary_data_size": len(blobs[-1]) + off}
            else:
                if tensor.datatype in ("FP16", "BF16"):
                    raise Refused(400, f"{tensor.datatype} has no form in JSON")
                entry["data"] = (
                    [int(x) for x in tensor.data]
                    if s.is_("bool-as-number") and tensor.datatype == "BOOL"
                    else ([x.decode() for x in tensor.data] if tensor.datatype == "BYTES" else tensor.data)
                )
            entries.append(entry)
        answer: dict[str, Any] = {
            "model_name": request.model.name,
            "model_version": request.version,
            "outputs": entries,
        }
        if request.id and not s.is_("id-missing"):
            answer["id"] = request.id.strip() if s.is_("id-stripped") else request.id
        if s.is_("model-name-missing"):
            del answer["model_name"]
        if not blobs:
            self._send(200, answer)
            return
        text = json.dumps(answer).encode()
        headers = [("Content-Type", "application/octet-stream")]
        if not s.is_("header-missing"):
            headers.append((LENGTH, str(len(text))))
        self._send(200, text + b"".join(blobs), *headers)

    def _raw(self, tensor: Tensor) -> bytes:
        data = tensor.raw()
        if self.s.is_("big-endian") and tensor.datatype == "INT32":
            return struct.pack(f">{len(tensor.data)}i", *tensor.data)
        if self.s.is_("true-as-255") and tensor.datatype == "BOOL":
            return data.replace(b"\x01", b"\xff")
        return data

    def _generated(self, model: SuiteModel, version: str, body: bytes) -> Iterator[dict[str, Any]]:
        document = self._json(body)
        inputs = []
        for port in model.inputs:
            items = _flat(document[port.name])
            items = [item.encode() for item in items] if port.datatype == "BYTES" else items
            inputs.append(Tensor(port.name, port.datatype, (len(items),), items))
        head = {"model_name": model.name, "model_version": version}
        for found in self.s.respond(Request(model, version, inputs, [], {})):
            values = {tensor.name: tensor.json_data()[0] for tensor in found}
            if self.s.is_("text-renamed"):
                values = {name.replace("text_", ""): value for name, value in values.items()}
            yield {**head, **values}

    def _events(self, responses: Iterator[dict[str, Any]]) -> None:
        s = self.s
        if s.is_("events-at-the-end"):
            responses = iter(list(responses))
        first = next(responses, None)
        kind = "application/json" if s.is_("events-as-json") else "text/event-stream; charset=utf-8"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            while first is not None:
                self.wfile.write(b"data: " + json.dumps(first).encode() + b"\n\n")
                first = next(responses, None)
        except Refused as error:
            self.wfile.write(b"data: " + json.dumps({"error": str(error)}).encode() + b"\n\n")


def _flat(data: Any) -> list[Any]:
    return [leaf for item in data for leaf in _flat(item)] if isinstance(data, list) else [data]


def _bool(item: Any) -> bool:
    if not isinstance(item, bool):
        raise Refused(400, "a BOOL element is true or false")
    return item


def _integer(item: Any) -> int:
    if type(item) is not int:
        raise Refused(400, "an element is no whole number")
    return item


class Calls(grpc.GenericRpcHandler):
    """gRPC."""

    def __init__(self, reference: Reference) -> None:
        self.s = reference

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]
        method, call = rpc.METHODS.get(name), getattr(self, name, None)
        if method is None or call is None:
            return None
        kind = type(rpc.message(method.input_type.rpartition(".")[2]))
        coding = kind.FromString, lambda response: response.SerializeToString()
        if name == "ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(self._stream, *coding)
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._guarded(call, request, context), *coding
        )

    def _guarded(self, call: Callable[[Any], Any], request: Any, context: Any) -> Any:
        try:
            return call(request)
        except (Refused, Failure) as error:
            status = error.status if isinstance(error, Refused) else 400
            codes = {404: grpc.StatusCode.NOT_FOUND, 500: grpc.StatusCode.INTERNAL}
            context.abort(codes.get(status, grpc.StatusCode.INVALID_ARGUMENT), str(error))

    def ServerLive(self, _: Any) -> Any:
        return rpc.message("ServerLiveResponse", live=True)

    def ServerReady(self, _: Any) -> Any:
        return rpc.message("ServerReadyResponse", ready=True)

    def ModelReady(self, request: Any) -> Any:
        self.s.model(request.name, request.version)
        return rpc.message("ModelReadyResponse", ready=True)

    def ServerMetadata(self, _: Any) -> Any:
        return rpc.message("ServerMetadataResponse", name="reference", version="1", extensions=EXTENSIONS)

    def ModelMetadata(self, request: Any) -> Any:
        model, _ = self.s.model(request.name, request.version)
        tensors = [
            [rpc.message("TensorMetadata", name=p.name, datatype=p.datatype, shape=model.shape(p)) for p in ports]
            for ports in (model.inputs, model.outputs)
        ]
        return rpc.message(
            "ModelMetadataResponse", name=model.name, versions=model.versions, inputs=tensors[0], outputs=tensors[1]
        )

    def ModelConfig(self, request: Any) -> Any:
        model, _ = self.s.model(request.name, request.version)
        config = rpc.message("ModelConfig", name=model.name, max_batch_size=model.batch)
        return rpc.message("ModelConfigResponse", config=config)

    def ModelStatistics(self, request: Any) -> Any:
        counts = self.s.stats.get(request.name, {"inferences": 0, "success": 0, "fail": 0})
        success = rpc.message("StatisticDuration", count=counts["success"])
        entry = rpc.message(
            "ModelStatistics",
            name=request.name,
            inference_count=counts["inferences"],
            execution_count=counts["success"],
            inference_stats=rpc.message("InferStatistics", success=success),
        )
        return rpc.message("ModelStatisticsResponse", model_stats=[entry])

    def RepositoryIndex(self, request: Any) -> Any:
        models = [rpc.message("ModelIndex", **entry) for entry in self.s.index(request.ready)]
        return rpc.message("RepositoryIndexResponse", models=models)

    def RepositoryModelLoad(self, request: Any) -> Any:
        self.s.load(request.model_name)
        return rpc.message("Empty")

    def RepositoryModelUnload(self, request: Any) -> Any:
        self.s.unload(request.model_name)
        return rpc.message("Empty")

    def SystemSharedMemoryStatus(self, request: Any) -> Any:
        regions = {name: rpc.message("SharedMemoryRegion", **region) for name, region in self.s.regions.items()}
        return rpc.message("SharedMemoryStatusResponse", regions=regions)

    def SystemSharedMemoryRegister(self, request: Any) -> Any:
        region = {"key": request.key, "offset": request.offset, "byte_size": request.byte_size}
        self.s.register(request.name, region)
        return rpc.message("Empty")

    def SystemSharedMemoryUnregister(self, request: Any) -> Any:
        self.s.regions.pop(request.name, None)
        return rpc.message("Empty")

    def LogSettings(self, _: Any) -> Any:
        kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
        settings = {n: rpc.message("LogSettingValue", **{kinds[type(v)]: v}) for n, v in self.s.log.items()}
        return rpc.message("LogSettingsMessage", settings=settings)

    def TraceSetting(self, _: Any) -> Any:
        settings = {
            name: rpc.message("TraceSettingValue", value=value if isinstance(value, list) else [value])
            for name, value in self.s.trace.items()
        }
        return rpc.message("TraceSettingResponse", settings=settings)

    def ModelInfer(self, message: Any) -> Any:
        responses = list(self._responses(message))
        if len(responses) != 1:
            raise Refused(400, "this model answers on streams only")
        return responses[0]

    def ModelStreamInfer(self, message: Any) -> Any:
        raise NotImplementedError("handled by _stream")

    def _stream(self, messages: Iterator[Any], context: Any) -> Iterator[Any]:
        for message in messages:
            try:
                for response in self._responses(message):
                    if self.s.is_("stream-id-missing"):
                        response.id = ""
                    yield rpc.message("ModelStreamInferResponse", infer_response=response)
            except (Refused, Failure) as error:
                if not self.s.is_("stream-error-as-nothing"):
                    head = rpc.message("ModelInferResponse", id=message.id)
                    yield rpc.message("ModelStreamInferResponse", error_message=str(error), infer_response=head)

    def _responses(self, message: Any) -> Iterator[Any]:
        s = self.s
        if s.is_("unknown-model-served") and message.model_name not in MODELS:
            yield rpc.message("ModelInferResponse", model_name=message.model_name)
            return
        model, version = s.model(message.model_name, message.model_version)
        parameters = {name: getattr(v, str(v.WhichOneof("parameter_choice"))) for name, v in message.parameters.items()}
        outputs = [(entry.name, {}) for entry in message.outputs]
        request = Request(model, version, self._inputs(message), outputs, parameters, message.id)
        for found in s.respond(request):
            chosen = [tensor for tensor, _ in s.chosen(request, found)]
            raw = [tensor.raw() for tensor in chosen]
            yield rpc.message(
                "ModelInferResponse",
                model_name=model.name,
                model_version=version,
                id="" if s.is_("grpc-id-missing") else request.id,
                outputs=[rpc.input_entry(tensor, typed=False) for tensor in chosen],
                raw_output_contents=raw[::-1] if s.is_("raw-outputs-reversed") else raw,
            )

    def _inputs(self, message: Any) -> list[Tensor]:
        s = self.s
        if not message.inputs:
            raise Refused(400, "no inputs")
        raw = list(message.raw_input_contents)
        found = []
        in_memory = 0
        for entry in message.inputs:
            shape = tuple(entry.shape)
            if any(size < 0 for size in shape) or entry.datatype not in DATATYPES:
                raise Refused(400, "a negative size, or an unknown datatype")
            if "shared_memory_region" in entry.parameters:
                place = {n: getattr(v, str(v.WhichOneof("parameter_choice"))) for n, v in entry.parameters.items()}
                found.append(s.from_memory({"name": entry.name, "parameters": place}, entry.datatype, shape))
                in_memory += 1
                continue
            if raw and entry.contents.ByteSize() and not s.is_("mixed-accepted"):
                raise Refused(400, "raw and typed contents in one request")
            index = len(found) - in_memory
            if index < len(raw):
                data = raw[index]
                if s.is_("raw-short-padded") and entry.datatype != "BYTES":
                    data = data.ljust(math.prod(shape) * DATATYPES[entry.datatype].size, b"\0")
                found.append(read_raw(entry.name, entry.datatype, shape, data))
                continue
            field = DATATYPES[entry.datatype].contents
            data = list(getattr(entry.contents, field)) if field else []
            if len(data) != math.prod(shape):
                raise Refused(400, f"input '{entry.name}': {len(data)} elements for the shape {list(shape)}")
            if s.is_("typed-int8-masked") and entry.datatype == "INT8":
                data = [value & 127 for value in data]
            found.append(Tensor(entry.name, entry.datatype, shape, data))
        if raw and len(raw) != len(found) - in_memory and not s.is_("mixed-accepted"):
            raise Refused(400, "raw contents for each input, or for none")
        return found


@contextlib.contextmanager
def reference_server(fault: str = "") -> Iterator[tuple[str, str]]:
    """Runs the server; yields its URL and its gRPC address."""
    reference = Reference(fault)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    http = Server(("127.0.0.1", 0), Handler)
    http.reference = reference  # type: ignore[attr-defined]
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    options = (("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0))
    calls = grpc.server(ThreadPoolExecutor(8), handlers=(Calls(reference),), options=options)
    port = calls.add_insecure_port("127.0.0.1:0")
    calls.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}", f"127.0.0.1:{port}"
    finally:
        http.shutdown()
        http.server_close()
        calls.stop(0).wait()
