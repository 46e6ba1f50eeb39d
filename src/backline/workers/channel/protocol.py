"""What a server and its worker process say to each other: frames over three Unix socket pairs, large tensors in shared memory.

A frame is a prefix of 12 bytes, a header and a payload:

    offset  size
    0       1     kind, see `Kind`
    1       3     zero
    4       4     length of the header, little-endian
    8       4     length of the payload, little-endian
    12            the header: a msgpack array, the fields of the kind's struct below in order
                  the payload: the bytes of small tensors, one after the other

A worker has three channels. On the data channel the server sends LOAD once and then EXECUTE, the worker answers LOADED or FAILED and then
RESULT. The control channel is read by a thread of its own on the worker's side, so that it works while a model computes: PING and PONG
(with the blocks of shared memory that each gives back), CANCEL, STOP, and CREDIT for further responses.

On the third channel it is the worker that asks, from any thread: CALL has another model of the server answer, ASK is about models. The
server answers with RESPONSE, each the last one or not, and with ENDED where there is no response to come; DROP and MORE are the worker's
CANCEL and CREDIT. A call is for requests of the worker that are open: their deadline and priority hold for it, and it ends when nobody
waits for them any more.

Tensors travel in parts: the tensors of several requests that have equal names, datatypes and trailing shapes are one column each, so that
a model which takes a batch gets it without a copy. Elements are in the row-major little-endian form of the Open Inference Protocol (BYTES:
a 4-byte length before each element). A column lies in the payload of its frame, or in shared memory, see `arena`.

Beside calls a worker tells things there that nobody answers: MEASURE, LOG, LIMIT and READY.

No message can execute anything: there is no pickle, and the server checks what a worker says as it checks what a client says.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from backline.engine.joining import Joining

Parameter: TypeAlias = str | int | float | bool
Buffer: TypeAlias = bytes | bytearray | memoryview

PREFIX = struct.Struct("<B3xII")
#: Responses that a model of many may give to one request before the server asks for more.
WINDOW = 16
#: A frame that claims to be larger than this is none: large tensors do not travel in frames.
MAX_FRAME = 1 << 30
#: The exit status of a worker that cannot speak with the server any more (EX_PROTOCOL of sysexits.h).
CONNECTION_LOST = 76


class Kind(IntEnum):
    """What a frame is."""

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


class Spec(msgspec.Struct, array_like=True):
    """An input or output: `shape` without the batch dimension, -1 where it varies.

    `reshape` is what the model has in its place, if that is another.
    """

    name: str
    datatype: str
    shape: list[int]
    optional: bool = False
    reshape: list[int] | None = None


class WorkerLoad(msgspec.Struct, array_like=True):
    """What a worker is to load: `adapter` is the function ("module:name") that makes a WorkerModel of this message.

    `path` is the model's file, `folder` the model's folder above its versions; `instance` is the name of the worker's, and `device_kind`
    and `device_index` say where it is to compute; `inputs`, `outputs` and `max_batch_size` are those of the
    configuration, None where it has none. `configuration` is all of it with its defaults, the JSON of an inference.ModelConfig; with
    `complete` a model that can add to it does so first, and is loaded by another worker then.
    With `joining` each request comes as a part of its own; a model that wants them joined does it by these rules and says that it `joins`.
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


class WorkerLoaded(msgspec.Struct, array_like=True):
    """What a worker has loaded. `shape`s are without the batch dimension where `max_batch_size` is above 0.

    `decoupled` models give any number of responses. `concurrency` is how many batches it takes at once. A `deferred` model may answer
    requests after it is done with their batch, while it has the next one. `completed` is the configuration of a model that was
    only asked to complete it, and runs nothing. Requests of a model that is `joined_if_asked` run together only where its configuration
    has `dynamic_batching`. The fields after `warnings` are what the model says of itself, None where it says nothing.
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


class Failed(msgspec.Struct, array_like=True):
    """Why a load failed, for people: `message` with the line of the model's file, `details` the whole traceback."""

    message: str
    details: str = ""


class Column(msgspec.Struct, array_like=True):
    """The tensors of one name of all requests of a part, one after the other. `shape` is of all together.

    With `at` below 0 its `size` bytes follow those of the columns before it in the payload; else they are in shared memory at this offset.
    """

    name: str
    datatype: str
    shape: list[int]
    size: int
    at: int = -1


class RequestNote(msgspec.Struct, array_like=True, omit_defaults=True):
    """What a request says beside its tensors. `timeout` are the seconds left until nobody waits for it, 0 for no such moment.

    `queue_timeout_us` are the microseconds that it wants to wait in a queue at most, 0 for any time. `trace` is where in a trace it stands,
    as engine.tracing.Trace.context.
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


class Part(msgspec.Struct, array_like=True):
    """Tensors of requests with these numbers. `rows` are those of each in the columns; empty for one request, whose tensors are whole.

    In a RESULT a part answers its requests: for the last time unless `more`.
    """

    numbers: list[int]
    rows: list[int]
    columns: list[Column]
    parameters: dict[str, Parameter] = {}
    more: bool = False


class Execute(msgspec.Struct, array_like=True):
    """Requests to run together; each has a number that is its own as long as the worker lives.

    `notes` is empty when none has anything to say. `block` is the shared memory that the columns are in, -1 for none. `returned` are blocks
    of the worker that the server needs no more.
    """

    batch: int
    parts: list[Part]
    notes: list[RequestNote] = []
    block: int = -1
    returned: list[int] = []


class RequestFailure(msgspec.Struct, array_like=True):
    """One request has failed: `kind` is the name of a class of backline.engine.errors."""

    number: int
    kind: str
    message: str
    retry_after: float | None = None


class Result(msgspec.Struct, array_like=True):
    """Answers. `done` says that the worker is free for the next batch: requests whose answers are still to come have later RESULTs.

    `ended` are requests that get no further response, `rescheduled` those of iterative sequences that the model wants to have again.
    `block` is the shared memory of the columns, -1 for none. `kept` says that the model still holds inputs in the block of the EXECUTE: a
    PONG gives it back. The moments are of the system's monotonic clock, in ns.
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


class NumberList(msgspec.Struct, array_like=True):
    """Of CANCEL: requests for which nobody waits any more. Of PING and PONG: blocks of the other side's half that come back.

    Of CREDIT: a request, and how many further responses of it are welcome beside the WINDOW that every request begins with. Of DROP: calls
    whose answers the worker does not want any more. Of MORE: a call, and how many further responses are welcome, as for CREDIT.
    Of LIMIT: the bytes of memory that the worker may have resident, as its model says before it is loaded.
    """

    numbers: list[int]


class WorkerCall(msgspec.Struct, array_like=True):
    """Another model of the server is to answer; `number` is the call's own as long as the worker lives.

    `requests` are those of the worker for which it is made, empty where that is not known. `stream` says that any number of responses is
    welcome. `note` is about the call alone; `queue_timeout` are the seconds that it may wait in a queue, 0 for what the model says.
    `returned` are blocks of the server that the worker needs no more. `traced` are the requests whose traces it belongs
    to where it is not made for `requests`.
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


class Ask(msgspec.Struct, array_like=True):
    """A question about models, answered by ENDED.

    `what` is "ready" (a model, or without a name the server), "describe", "load" or "unload". For a load, `config`
    replaces the configuration, and `files` are the contents of all files of the model by path, as UINT8 columns.
    `requests` as in WorkerCall: once all of them are cancelled, the worker no longer waits. A load or unload that
    has begun still completes.
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


class Measure(msgspec.Struct, array_like=True):
    """A metric of the model's own: `action` is "declare", "create", "increment", "set", "observe" or "value".

    With a `number` it is answered by ENDED. `bounds` are the upper ones of a histogram's buckets.
    """

    action: str
    name: str
    labels: dict[str, str] = {}
    bounds: list[float] = []
    value: float = 0.0
    kind: str = ""
    description: str = ""
    number: int = 0


class Log(msgspec.Struct, array_like=True):
    """A line of the log, at a level of Python's logging."""

    level: int
    text: str


class Readiness(msgspec.Struct, array_like=True):
    """Of READY: why the model says that it is not ready; empty when it is."""

    reason: str


class Response(msgspec.Struct, array_like=True):
    """A response to a call. `returned` are blocks of the worker that the server needs no more."""

    number: int
    model: str
    version: str
    id: str
    columns: list[Column]
    parameters: dict[str, Parameter] = {}
    block: int = -1
    last: bool = True
    returned: list[int] = []


class Ended(msgspec.Struct, array_like=True):
    """There is no further response to a call, or this is the answer to an ASK: `value`, or a failure as RequestFailure has it."""

    number: int
    kind: str = ""
    message: str = ""
    retry_after: float | None = None
    value: Any = None


class Described(msgspec.Struct, array_like=True):
    """The `value` that ends an ASK to "describe": a model's inputs and outputs with full shapes, and its versions that answer."""

    versions: list[str]
    platform: str
    inputs: list[Spec]
    outputs: list[Spec]


class Empty(msgspec.Struct, array_like=True):
    """STOP."""


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


class WorkerProtocolError(Exception):
    """The other side said something that is no frame."""


def frame(kind: Kind, header: msgspec.Struct, payload: Sequence[Buffer] = ()) -> bytes:
    """The bytes of a frame, to be sent as they are."""
    head = _encode(header)
    if not payload:
        return PREFIX.pack(kind, len(head), 0) + head
    return b"".join((PREFIX.pack(kind, len(head), sum(map(len, payload))), head, *payload))


class FrameSplitter:
    """Cuts frames out of what a socket gives."""

    __slots__ = ("_needed", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()
        #: Bytes from which on the first frame of the rest is complete, as far as they are known.
        self._needed = 0

    def feed(self, data: bytes | bytearray) -> list[tuple[Kind, Any, memoryview]]:
        """The frames that are complete now: kind, header, payload. Raises WorkerProtocolError for what is no frame."""
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
            if header + payload > MAX_FRAME or kind not in _KINDS:
                raise WorkerProtocolError(f"a frame of kind {kind} with {header} and {payload} bytes")
            body = start + PREFIX.size
            end = body + header + payload
            if end > size:
                self._needed = end - start
                break
            view = memoryview(data)
            try:
                message = _DECODERS[kind].decode(view[body : body + header])
            except msgspec.MsgspecError as error:
                raise WorkerProtocolError(f"a frame of kind {kind}: {error}") from None
            frames.append((_KINDS[kind], message, view[body + header : end]))
            start = end
        self._rest = bytearray(memoryview(data)[start:])
        return frames
