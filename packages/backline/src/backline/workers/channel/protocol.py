"""The messages between the server and a worker process: frames over three Unix socket pairs, and large
tensors in shared memory.

A frame is a prefix of 12 bytes, a header and a payload:

    offset  size
    0       1     kind, see `Kind`
    1       3     zero
    4       4     length of the header, little-endian
    8       4     length of the payload, little-endian
    12            the header: a msgpack array of the fields, in order, of the kind's struct below
                  the payload: the bytes of small tensors, concatenated

A worker has three channels.

- Data: the server sends LOAD, and then an EXECUTE for each batch. The worker responds to LOAD with LOADED or
  FAILED, and to EXECUTE with RESULT.
- Control: the worker reads this channel on a separate thread, so that it receives messages even while the
  model computes. The channel carries PING and PONG (both return blocks of shared memory), CANCEL, STOP, and
  CREDIT for further responses.
- Calls: the worker sends on this channel from any thread. CALL calls another model of the server, and ASK
  asks about models or for a load or unload. The server sends each response as a RESPONSE, with a flag in the
  last one, or sends ENDED if no response follows. DROP and MORE do for calls what CANCEL and CREDIT do for
  requests. A call belongs to open requests of the worker: it inherits their deadline and priority, and is
  cancelled when all these requests are cancelled. MEASURE, LOG, LIMIT and READY get no response, except a
  MEASURE that waits for a value or an error.

Tensors are sent in parts. A part joins requests whose tensors agree in name, datatype and all dimensions but
the first. Tensors of the same name are concatenated into a column, so that a model that takes batches gets
them without a copy. Elements are in the row-major little-endian form of the Open Inference Protocol (BYTES: a
4-byte length before each element). A column is in the payload of its frame, or in shared memory (see
`arena`).

A worker runs code that the server does not trust. No message can make the receiver execute code (pickle is
not used), and the server validates messages from workers as strictly as messages from clients.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from math import isfinite
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from backline.engine.config.joining import Joining
from backline_client.values import errors
from backline_client.values.decodable import decodable
from backline_client.values.errors import BacklineError, Internal

Parameter: TypeAlias = str | int | float | bool
Buffer: TypeAlias = bytes | bytearray | memoryview

PREFIX = struct.Struct("<B3xII")
#: The number of responses that a decoupled model may send for one request before the server grants further
#: credit. Likewise, a model that a worker calls is paused while this many of its responses are unread.
WINDOW = 16
#: The maximum size of a frame in bytes, without its prefix. Large tensors are sent in shared memory.
MAX_FRAME = 1 << 30
#: The exit status of a worker that has lost its channel to the server (EX_PROTOCOL of sysexits.h).
CONNECTION_LOST = 76


class Kind(IntEnum):
    """The kinds of messages, by their number in a frame's prefix."""

    LOAD = 1
    LOADED = 2
    FAILED = 3
    EXECUTE = 4
    RESULT = 5
    PING = 16
    PONG = 17
    CANCEL = 18
    STOP = 19
    CREDIT = 20
    CALL = 32
    ASK = 33
    DROP = 34
    MORE = 35
    RESPONSE = 36
    ENDED = 37
    MEASURE = 38
    LOG = 39
    LIMIT = 40
    READY = 41


@decodable
class Spec(msgspec.Struct, array_like=True):
    """An input or output of a model. `shape` excludes the batch dimension, and has -1 for variable
    dimensions. `reshape` is the shape that the model sees, if it differs from `shape`. `json`, `media`,
    `labels` and `column` are as in TensorSpec.
    """

    name: str
    datatype: str
    shape: list[int]
    optional: bool = False
    reshape: list[int] | None = None
    json: str = ""
    media: str = ""
    labels: list[str] = []
    column: bool = False


@decodable
class WorkerLoad(msgspec.Struct, array_like=True):
    """LOAD: the model that a worker loads.

    `adapter` names the kind of model, "python", or a module whose function `load` creates the
    model from `job`, which the server has encoded for this function. `path` is the model's file, and `folder`
    is the model's folder, which contains its versions. `instance` is the name of the worker's instance, and
    `device_kind` and `device_index` say where it computes. `inputs`, `outputs` and `max_batch_size` come from
    the configuration; `max_batch_size` and `idempotent` are None if not configured. `configuration` is the
    whole configuration with defaults, as the JSON of an inference.ModelConfig.

    With `complete`, a model that can complete its own configuration does only that; another worker then loads
    the model. With `joining`, each request arrives as a separate part. A model that takes several requests
    together joins them by these rules, and sets WorkerLoaded.joins.

    The worker may poll for up to `busy_poll` seconds before it sleeps.
    """

    adapter: str
    name: str
    version: str
    path: str
    folder: str
    instance: str = ""
    device_kind: Literal["cpu", "gpu", "model"] = "cpu"
    device_index: int = 0
    max_batch_size: int | None = None
    inputs: list[Spec] = []
    outputs: list[Spec] = []
    parameters: dict[str, str] = {}
    configuration: str = "{}"
    complete: bool = False
    joining: Joining | None = None
    job: bytes = b""
    busy_poll: float = 0.0
    idempotent: bool | None = None


@decodable
class WorkerLoaded(msgspec.Struct, array_like=True):
    """LOADED: describes the loaded model. Shapes exclude the batch dimension if `max_batch_size` is above 0.

    A `decoupled` model sends any number of responses. `concurrency` is the number of batches that the worker
    takes at the same time. A `deferred` model may respond to requests after their batch has ended, while it
    runs the next batch. `completed` is the completed configuration if LOAD asked for one; such a worker runs
    no batches. Requests to a `joined_if_asked` model run together only if its configuration has
    `dynamic_batching` or `sequence_batching`. `threads_per_run` is the number of cores that one run occupies,
    or 0 for all. Fields that may be None are settings in the model's code. None means that the code does not
    set the field, so the server decides.
    """

    inputs: list[Spec]
    outputs: list[Spec]
    max_batch_size: int = 0
    decoupled: bool = False
    concurrency: int = 1
    platform: str = "python"
    warnings: list[str] = []
    instances: int | None = None
    idempotent: bool | None = None
    execution_timeout_seconds: float | None = None
    joins: bool = False
    max_queue_delay_us: int | None = None
    deferred: bool = False
    completed: str = ""
    joined_if_asked: bool = False
    threads_per_run: int = 1


@decodable
class Failed(msgspec.Struct, array_like=True):
    """FAILED: the load has failed. `message` says why, and names the line in the model's file. `details` is
    the traceback.
    """

    message: str
    details: str = ""


@decodable
class Column(msgspec.Struct, array_like=True):
    """The concatenated tensors of one name, from all requests of a part. `shape` includes all of them.

    If `at` is negative, the `size` bytes follow the previous column in the payload; otherwise they are in
    shared memory at this offset.
    """

    name: str
    datatype: str
    shape: list[int]
    size: int
    at: int = -1


@decodable
class RequestNote(msgspec.Struct, array_like=True, omit_defaults=True):
    """The properties of a request, other than its tensors.

    `timeout` is the number of seconds until the request's deadline, or 0 for none; `timeout` and `priority`
    are set only in a CALL. `queue_timeout_us` is the maximum time that the request may wait in a queue, in
    microseconds, or 0 for no limit. `trace` is the request's trace context (Trace.context).
    """

    id: str = ""
    parameters: dict[str, Parameter] = {}
    outputs: list[str] | None = None
    sequence: int | str = 0
    sequence_start: bool = False
    sequence_end: bool = False
    timeout: float = 0.0
    priority: int = 0
    queue_timeout_us: int = 0
    trace: str = ""


@decodable
class Part(msgspec.Struct, array_like=True):
    """The tensors of the requests with these `numbers`. `rows` has the number of rows of each request in the
    columns, and is empty for a single request.

    In a RESULT, a part holds one response to each of its requests. This is the last response to the request,
    unless `more` is set.
    """

    numbers: list[int]
    rows: list[int]
    columns: list[Column]
    parameters: dict[str, Parameter] = {}
    more: bool = False


@decodable
class Execute(msgspec.Struct, array_like=True):
    """EXECUTE: requests to run together. A request's number is unique for the lifetime of the worker.

    `notes` is empty if all notes would have default values. `block` is the offset of the block of shared
    memory that holds the columns, or -1 if there is none. `returned` lists blocks of the worker that the
    server no longer uses.
    """

    batch: int
    parts: list[Part]
    notes: list[RequestNote] = []
    block: int = -1
    returned: list[int] = []


@decodable
class RequestFailure(msgspec.Struct, array_like=True):
    """The failure of one request. `kind` is the name of a class in backline_client.values.errors.
    `retry_after` is the time in seconds after which the client may retry, or None if that is unknown.
    """

    number: int
    kind: str
    message: str
    retry_after: float | None = None


@decodable
class Result(msgspec.Struct, array_like=True):
    """RESULT: responses to requests of one batch. `done` means that the worker is free for the next batch;
    the responses that are still missing then follow in later RESULT messages.

    `ended` lists requests that get no further response, and `rescheduled` lists requests of iterative
    sequences that the model wants to run again. `block` is as in EXECUTE. `kept` means that the model still
    uses inputs in the block of the EXECUTE; a PONG or CALL returns that block later. `began_ns` and `ran_ns`
    are the times when the run began and ended, in nanoseconds of the system's monotonic clock.
    """

    batch: int
    parts: list[Part] = []
    failures: list[RequestFailure] = []
    ended: list[int] = []
    done: bool = False
    block: int = -1
    kept: bool = False
    began_ns: int = 0
    ran_ns: int = 0
    rescheduled: list[int] = []


@decodable
class NumberList(msgspec.Struct, array_like=True):
    """A list of numbers, whose meaning depends on the kind of the message.

    CANCEL: cancelled requests. PING and PONG: the offsets of returned blocks, which are in the receiver's
    half. CREDIT: a request, and the number of further responses that the worker may send to it. DROP: calls
    that the worker has abandoned. MORE: a call, and the number of further responses that the server may send
    to it. LIMIT: the model's limit on the resident memory of its worker, in bytes, sent before LOADED.
    """

    numbers: list[int]


@decodable
class WorkerCall(msgspec.Struct, array_like=True):
    """CALL: a call of another model of the server. `number` is unique for the lifetime of the worker.

    `requests` are the worker's requests for which the call is made, empty if unknown. With `stream`, the call
    may get any number of responses. `note` describes the call itself. `queue_timeout` is in seconds, or 0 for
    the model's default. `returned` lists blocks of the server that the worker no longer uses. If `requests`
    is empty, `traced` lists the requests to whose traces the call belongs.
    """

    number: int
    requests: list[int]
    model: str
    version: str
    columns: list[Column]
    note: RequestNote
    block: int = -1
    stream: bool = False
    queue_timeout: float = 0.0
    returned: list[int] = []
    traced: list[int] = []


@decodable
class Ask(msgspec.Struct, array_like=True):
    """ASK: asks about a model, or for a load or unload. ENDED carries the answer.

    `what` is "ready", "describe", "load" or "unload". "ready" asks about a model or, without a name, about
    the server. For a load, `config` replaces the configuration, and `files` are UINT8 columns, named by path,
    with the contents of all files of the model. `requests` are as in WorkerCall: once all of them are
    cancelled, the worker stops waiting, but a load or unload that has begun still completes.
    """

    number: int
    what: str
    model: str = ""
    version: str = ""
    config: str | None = None
    files: list[Column] = []
    block: int = -1
    dependents: bool = False
    requests: list[int] = []


@decodable
class Measure(msgspec.Struct, array_like=True):
    """MEASURE: a change or query of a metric that the model defines. `kind` is empty unless `action` is
    "declare".

    If `number` is not 0, ENDED carries the answer. `bounds` are the upper bounds of a histogram's buckets.
    """

    action: Literal["declare", "create", "increment", "set", "observe", "value"]
    name: str
    labels: dict[str, str] = {}
    bounds: list[float] = []
    value: float = 0.0
    kind: Literal["", "counter", "gauge", "histogram"] = ""
    description: str = ""
    number: int = 0


@decodable
class Log(msgspec.Struct, array_like=True):
    """LOG: a line for the server's log, at a level of Python's logging."""

    level: int
    text: str


@decodable
class Readiness(msgspec.Struct, array_like=True):
    """READY: why the model reports that it is not ready; empty if it is ready."""

    reason: str


@decodable
class Response(msgspec.Struct, array_like=True):
    """RESPONSE: a response to a call. `returned` lists blocks of the worker that the server no longer
    uses.
    """

    number: int
    model: str
    version: str
    id: str
    columns: list[Column]
    parameters: dict[str, Parameter] = {}
    block: int = -1
    last: bool = True
    returned: list[int] = []


@decodable
class Ended(msgspec.Struct, array_like=True):
    """ENDED: ends a call that gets no further response, or answers an ASK or MEASURE with `value`. For a
    failure, `kind`, `message` and `retry_after` are as in RequestFailure. `refused` means that a call was
    refused before it was queued.
    """

    number: int
    kind: str = ""
    message: str = ""
    retry_after: float | None = None
    value: Any = None
    refused: bool = False


@decodable
class Described(msgspec.Struct, array_like=True):
    """The answer to an ASK "describe": the model's inputs and outputs, with their full shapes, and the
    versions that take requests.
    """

    versions: list[str]
    platform: str
    inputs: list[Spec]
    outputs: list[Spec]


@decodable
class Empty(msgspec.Struct, array_like=True):
    """A message without fields, such as STOP."""


STRUCTS: dict[Kind, type[msgspec.Struct]] = {
    Kind.LOAD: WorkerLoad,
    Kind.LOADED: WorkerLoaded,
    Kind.FAILED: Failed,
    Kind.EXECUTE: Execute,
    Kind.RESULT: Result,
    Kind.PING: NumberList,
    Kind.PONG: NumberList,
    Kind.CANCEL: NumberList,
    Kind.STOP: Empty,
    Kind.CREDIT: NumberList,
    Kind.CALL: WorkerCall,
    Kind.ASK: Ask,
    Kind.DROP: NumberList,
    Kind.MORE: NumberList,
    Kind.RESPONSE: Response,
    Kind.ENDED: Ended,
    Kind.MEASURE: Measure,
    Kind.LOG: Log,
    Kind.LIMIT: NumberList,
    Kind.READY: Readiness,
}
_DECODERS = {kind.value: msgspec.msgpack.Decoder(struct) for kind, struct in STRUCTS.items()}
_KINDS = {kind.value: kind for kind in Kind}
_encode = msgspec.msgpack.Encoder().encode

Message = TypeVar("Message", bound=msgspec.Struct)


def failure_of(message: RequestFailure | Ended) -> BacklineError:
    """Returns the error that a message describes, or Internal if its kind is unknown."""
    kind = getattr(errors, message.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, BacklineError)):
        kind = Internal
    error: BacklineError = kind(message.message)
    # NaN and infinity cannot be sent to a client.
    if message.retry_after is not None and isfinite(message.retry_after):
        error.retry_after = message.retry_after
    error.refused = isinstance(message, Ended) and message.refused
    return error


class WorkerProtocolError(Exception):
    """Raised when the other side sends an invalid frame, or a frame that it may not send."""


def frame(kind: Kind, header: msgspec.Struct, payload: Sequence[Buffer] = ()) -> bytes:
    """Encodes a frame."""
    head = _encode(header)
    if not payload:
        return PREFIX.pack(kind, len(head), 0) + head
    return b"".join((PREFIX.pack(kind, len(head), sum(map(len, payload))), head, *payload))


class FrameSplitter:
    """A parser that splits received bytes into frames."""

    __slots__ = ("_needed", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()
        #: The number of bytes that the first frame in `_rest` needs to be complete, or 0 while its prefix is
        #: incomplete.
        self._needed = 0

    def feed(self, data: bytes | bytearray) -> list[tuple[Kind, Any, memoryview]]:
        """Returns the frames that `data` completes, as (kind, header, payload). Raises WorkerProtocolError
        for an invalid frame.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            data = self._rest
        self._needed = 0
        frames: list[tuple[Kind, Any, memoryview]] = []
        start, size = 0, len(data)
        while size - start >= PREFIX.size:
            kind, header, payload = PREFIX.unpack_from(data, start)
            if kind not in _KINDS:
                raise WorkerProtocolError(f"a frame of kind {kind}, which does not exist")
            if header + payload > MAX_FRAME:
                raise WorkerProtocolError(
                    f"a frame with {header + payload} bytes, more than the limit of {MAX_FRAME}"
                )
            body = start + PREFIX.size
            end = body + header + payload
            if end > size:
                self._needed = end - start
                break
            view = memoryview(data)
            try:
                message = _DECODERS[kind].decode(view[body : body + header])
            # RecursionError: a value that is nested too deeply.
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise WorkerProtocolError(f"a frame of kind {kind} is invalid: {error}") from None
            frames.append((_KINDS[kind], message, view[body + header : end]))
            start = end
        # The remaining bytes go to a new bytearray, because the old one cannot be resized while it is in use
        # as the payload of a frame.
        if start < size or self._rest:
            self._rest = bytearray(memoryview(data)[start:])
        return frames
