"""Writes the next requests that a version completes to a file, which later loads use for the warm-up.

Only a version that is being recorded reports its requests, so other versions are not slowed down.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import quote

from msgspec import Struct

from backline.engine.engine import Engine
from backline.engine.model import Model
from backline.engine.ticket import Listener, Ticket
from backline.observe.prediction_log import encode_record
from backline_client.system.private_file import replacement
from backline_client.values.errors import (
    AlreadyExists,
    BacklineError,
    Internal,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from backline_client.values.messages import InferResponse
from backline_client.values.tensor import Tensor

log = logging.getLogger("backline.observe")

MAX_COUNT = 1000
#: The default for `max_bytes`, the limit for the total size, in bytes, of the requests in a recording.
DEFAULT_BYTES = 64 << 20
#: The maximum value of `max_bytes`.
MAX_BYTES = 1 << 30

State = Literal["recording", "writing", "done", "failed"]


def recorded_file(folder: Path, model: str) -> Path:
    """Returns the path of the file with a model's recorded requests. prediction_log defines its format."""
    return folder.joinpath("warmup", quote(model, safe="") + ".tfrecord")


class RecordingState(Struct, frozen=True):
    """The progress of a recording: `recorded` of `count` requests, with `bytes` bytes in total. `reason` says
    why the recording ended early or failed, or that a request was too large to be recorded.
    """

    model: str
    version: str
    state: State
    count: int
    recorded: int
    bytes: int
    file: str
    reason: str = ""


#: The inputs of a request, and the outputs that it requests.
_Kept: TypeAlias = tuple[Mapping[str, Tensor], tuple[str, ...] | None]


class _KeepIfAnswered(Listener):
    """A listener that keeps a request only if the request succeeds, because a recorded request that fails
    would make the warm-up fail.
    """

    __slots__ = ("_kept", "_recording", "_size")

    def __init__(self, recording: LiveRecording, kept: _Kept, size: int) -> None:
        self._recording = recording
        self._kept = kept
        self._size = size

    def ended(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        if response is not None:
            self._recording.keep(self._kept, self._size)


class LiveRecording:
    """A recording of one version. All methods must be called on the event loop; a thread writes the file."""

    def __init__(self, model: Model, count: int, max_bytes: int, file: Path) -> None:
        self._model = model
        self._check = model.serving.check
        self._count = count
        self._max_bytes = max_bytes
        self._file = file
        self._kept: list[_Kept] = []
        self._recorded = 0
        self._bytes = 0
        self._state: State = "recording"
        self._reason = ""
        self._writing: asyncio.Task[None] | None = None
        model.recording = self

    @property
    def state(self) -> RecordingState:
        self._end_if_unloaded()
        return RecordingState(
            self._model.name,
            self._model.version,
            self._state,
            self._count,
            self._recorded,
            self._bytes,
            str(self._file),
            self._reason,
        )

    async def stop(self) -> None:
        """Ends the recording early, with the requests recorded so far. Returns once the file has been
        written.
        """
        self._end_if_unloaded()
        if self._state == "recording":
            self._end("the recording was stopped")
        if self._writing is not None:
            await asyncio.shield(self._writing)

    def _end_if_unloaded(self) -> None:
        if self._state == "recording" and self._model.serving.check is not self._check:
            self._end("the version was unloaded")

    def accepted(self, ticket: Ticket) -> None:
        """Records a request if its size is within the limit, and if it later succeeds; see
        engine.model.Recording.
        """
        request = ticket.request
        size = sum(_size(tensor) for tensor in request.inputs.values())
        if size > self._max_bytes - self._bytes:
            if not self._bytes:
                self._reason = (
                    f"a request of {size} bytes was skipped: the limit is {self._max_bytes} bytes in total"
                )
            elif size <= self._max_bytes:
                self._end(f"the limit of {self._max_bytes} bytes is reached")
            return
        # The tensors are copied, because their buffers are reused for other requests.
        inputs = {
            name: Tensor(name, t.datatype, t.shape, t.data.copy()) for name, t in request.inputs.items()
        }
        ticket.listen(_KeepIfAnswered(self, (inputs, request.outputs), size))

    def keep(self, kept: _Kept, size: int) -> None:
        # Other requests may have used up the limit since `accepted` checked the size of this request.
        if self._state != "recording" or self._bytes + size > self._max_bytes:
            return
        self._kept.append(kept)
        self._recorded += 1
        self._bytes += size
        if self._recorded == self._count:
            self._end("")

    def _end(self, reason: str) -> None:
        if self._model.recording is self:
            self._model.recording = None
        self._reason = reason or self._reason
        kept, self._kept = self._kept, []
        if not kept:
            self._state = "failed"
            self._reason = f"no request was recorded: {self._reason}"
            return
        self._state = "writing"
        self._writing = asyncio.get_running_loop().create_task(self._write(kept))

    async def _write(self, kept: list[_Kept]) -> None:
        try:
            await asyncio.to_thread(_write_file, self._file, self._model.name, kept)
            self._state = "done"
        except OSError as error:
            self._state = "failed"
            self._reason = f"'{self._file}' cannot be written: {error.strerror or error}"
            log.error("lost the recorded requests of model '%s': %s", self._model.name, self._reason)


class Recorder:
    """The recordings of a server, at most one per model. `folder` is the server's state folder. All methods
    must be called on the event loop.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine = engine
        self._folder = folder
        self._recordings: dict[str, LiveRecording] = {}

    def start(
        self, model: str, version: str = "", *, count: int, max_bytes: int = DEFAULT_BYTES
    ) -> RecordingState:
        """Starts to record the next `count` requests that succeed. The new recording replaces an earlier
        recording of the model.

        Raises NotFound or Unavailable if the version cannot be used, InvalidArgument if a number is out of
        range, and AlreadyExists while another recording of the model is in progress.
        """
        if not 1 <= count <= MAX_COUNT:
            raise InvalidArgument(f"count is {count}, expected 1 to {MAX_COUNT}")
        if not 1 <= max_bytes <= MAX_BYTES:
            raise InvalidArgument(f"max_bytes is {max_bytes}, expected 1 to {MAX_BYTES}")
        found = self._engine.find_ready(model, version)
        if found.on_demand:
            raise Unavailable(
                f"model '{found.name}' version {found.version} is not loaded: {found.reason}", retry_after=1
            )
        before = self._recordings.get(model)
        if before is not None and before.state.state in ("recording", "writing"):
            raise AlreadyExists(
                f"requests of model '{model}' are already being recorded; stop that recording first"
            )
        recording = self._recordings[model] = LiveRecording(found, count, max_bytes, self.file(model))
        return recording.state

    def file(self, model: str) -> Path:
        """Returns the path of the file with the model's recorded requests. The file exists once a recording
        is done.
        """
        return recorded_file(self._folder, model)

    def state(self, model: str) -> RecordingState:
        """Returns the state of a model's current or last recording. Raises NotFound if there is none."""
        return self._find(model).state

    async def stop(self, model: str) -> RecordingState:
        """Ends a recording early, with the requests recorded so far. Returns once the file has been written.

        Raises NotFound if the model has no recording, and Internal if the file cannot be written.
        """
        recording = self._find(model)
        await recording.stop()
        state = recording.state
        if state.state == "failed" and state.recorded:
            raise Internal(state.reason)
        return state

    def _find(self, model: str) -> LiveRecording:
        found = self._recordings.get(model)
        if found is None:
            raise NotFound(
                f"no requests of model '{model[:256]}' have been recorded since the server started; start a"
                " recording first"
            )
        return found


def _size(tensor: Tensor) -> int:
    if tensor.datatype.itemsize:
        return tensor.data.nbytes
    return sum(len(element) + 4 for element in tensor.data.flat)


def _write_file(file: Path, model: str, kept: list[_Kept]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replacement(file, durable=True) as new, new.open("wb") as output:
        for one in kept:
            output.write(encode_record(model, *one))
