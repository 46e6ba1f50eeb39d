"""Writes Triton's trace file: a JSON array with the events recorded for each request."""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from backline.observe.tracing.settings import TraceSetting
from backline.observe.tracing.trace import RECEIVED, Exchange, RequestTrace, numbered
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.tensor import Tensor

#: The maximum number of elements of a tensor that are written; the other elements are left out.
MAX_ELEMENTS = 16 * 1024


def tensor_document(tensor: Tensor) -> dict[str, str]:
    """Returns a tensor's name, elements, shape and datatype, all as text.

    Floats have six significant digits, as in C++. Elements of type BYTES are in double quotes, with invalid
    UTF-8 replaced. If the tensor has more than MAX_ELEMENTS elements, "..." stands in for the rest.
    """
    elements = tensor.data.reshape(-1)
    first = elements[:MAX_ELEMENTS]
    if tensor.datatype is DataType.BF16:  # the upper 16 bits of an FP32
        first = (first.astype(np.uint32) << 16).view(np.float32)
    texts = [_text(element) for element in first.tolist()]
    if elements.size > MAX_ELEMENTS:
        texts.append("...")
    return {
        "name": tensor.name,
        "data": ",".join(texts),
        "shape": ",".join(map(str, tensor.shape)),
        "dtype": tensor.datatype.name,
    }


def _text(element: Any) -> str:
    if isinstance(element, bytes):
        return f'"{element.decode(errors="replace")}"'
    if isinstance(element, bool):
        return str(int(element))
    return f"{element:g}" if isinstance(element, float) else str(element)


log = logging.getLogger("backline.observe")

#: Completed traces are written once their total size, in bytes, exceeds this.
_MAX_KEPT = 1 << 20
#: The maximum number of writes that wait for the disk; the traces of further writes are lost.
_MAX_WRITES = 8
#: The maximum time, in seconds, for writing the remaining traces when the server stops.
_FAREWELL = 5.0
_encode = msgspec.json.Encoder().encode


class TraceEntry:
    """The lines of a request in the file. `id` is a serial number; `entries` has the entries of all requests
    in the same exchange.
    """

    __slots__ = ("entries", "id", "lines")

    def __init__(self, id: int, entries: list[TraceEntry] | None = None) -> None:
        self.id = id
        self.lines: list[bytes] = []
        self.entries = entries if entries is not None else []
        self.entries.append(self)

    def add(self, **what: Any) -> None:
        self.lines.append(_encode({"id": self.id, **what}))

    def stamp(self, name: str, ns: int) -> None:
        if ns:
            self.add(timestamps=[{"name": name, "ns": ns}])


class TraceFile:
    """A TraceWriter for the format of Triton's trace file.

    Traces are written to FILE, which replaces an earlier file of that name. The closing bracket of its JSON
    array is written when the server stops. If `log_frequency` is n, each group of up to n traces is instead
    written to a separate file: FILE.0, FILE.1 and so on. When `trace_count` is reached at a `trace_rate` of
    1, the last traces also get a separate file. Files are written on a thread.
    """

    def __init__(self, path: Path) -> None:
        """Raises InvalidArgument if the file cannot be written."""
        folder_usable = path.parent.is_dir() and os.access(path.parent, os.W_OK)
        file_usable = not path.exists() or (path.is_file() and os.access(path, os.W_OK))
        if not (folder_usable and file_usable):
            raise InvalidArgument(
                f"the trace file '{path}' cannot be written: it and its folder must be writable by this user"
            )
        self._path = path
        self._ids = count(1)
        self._indices = count()
        #: Whether the writing of FILE has begun. Only the writing thread uses this attribute.
        self._begun = False
        #: The completed traces that have not been written yet, by log frequency.
        self._pending: dict[int, list[bytes]] = {}
        #: The total size, in bytes, of the traces in `_pending`, by log frequency.
        self._bytes: dict[int, int] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trace-file")
        self._writes = 0
        self._lost = 0

    def arrived(self, exchange: Exchange[TraceEntry]) -> TraceEntry:
        return TraceEntry(next(self._ids))

    def began(self, trace: RequestTrace[TraceEntry], request: InferRequest) -> TraceEntry:
        exchange, parent = trace.exchange, trace.parent
        top = parent is None
        entry = exchange.kept if top else TraceEntry(next(self._ids), exchange.kept.entries)
        if top and "TIMESTAMPS" in exchange.setting.trace_level:
            start, end = RECEIVED[exchange.protocol]
            entry.stamp(start, exchange.began_ns)
            entry.stamp(end, exchange.read_ns)
        head: dict[str, Any] = {
            "model_name": trace.model_name,
            "model_version": numbered(trace.model_version),
        }
        if trace.id:
            head["request_id"] = trace.id
        if parent is not None:
            head["parent_id"] = parent.kept.id
        entry.add(**head)
        if "TENSORS" in exchange.setting.trace_level:
            for tensor in request.inputs.values():
                entry.add(activity="TENSOR_QUEUE_INPUT", tensor=tensor_document(tensor))
        return entry

    def context(self, kept: TraceEntry) -> str:
        return "{}"

    def responded(self, request: RequestTrace[TraceEntry], response: InferResponse) -> None:
        if "TENSORS" in request.exchange.setting.trace_level:
            for tensor in response.outputs:
                request.kept.add(activity="TENSOR_BACKEND_OUTPUT", tensor=tensor_document(tensor))

    def ended(self, request: RequestTrace[TraceEntry]) -> None:
        entry, exchange = request.kept, request.exchange
        if "TIMESTAMPS" not in exchange.setting.trace_level:
            return
        entry.stamp("REQUEST_START", request.began_ns)
        entry.stamp("QUEUE_START", request.began_ns)
        for run in request.runs:
            entry.stamp("COMPUTE_START", run.started_ns)
            entry.stamp("COMPUTE_INPUT_END", run.gathered_ns)
            entry.stamp("COMPUTE_OUTPUT_START", run.ran_ns)
            entry.stamp("COMPUTE_END", run.ended_ns)
        if request.parent is None:
            entry.stamp("INFER_RESPONSE_COMPLETE", exchange.response_ns)
        entry.stamp("REQUEST_END", request.ended_ns)

    def answered(self, exchange: Exchange[TraceEntry]) -> None:
        entry, setting = exchange.kept, exchange.setting
        if "TIMESTAMPS" in setting.trace_level:
            if not entry.lines:  # the request could not be read
                start, end = RECEIVED[exchange.protocol]
                entry.stamp(start, exchange.began_ns)
                entry.stamp(end, exchange.read_ns)
            entry.stamp(f"{exchange.protocol}_SEND_START", exchange.send_ns or exchange.sent_ns)
            entry.stamp(f"{exchange.protocol}_SEND_END", exchange.sent_ns)
        self._keep(setting, b",".join(line for one in entry.entries for line in one.lines))

    # writing

    def _keep(self, setting: TraceSetting, trace: bytes) -> None:
        frequency = setting.log_frequency
        pending = self._pending.setdefault(frequency, [])
        pending.append(trace)
        self._bytes[frequency] = size = self._bytes.get(frequency, 0) + len(trace)
        setting.collected += 1
        complete = setting.trace_count == 0 and setting.collected == setting.seen
        if complete or (frequency and len(pending) >= frequency):
            self._write(frequency, indexed=True)
        elif size > _MAX_KEPT:
            self._write(frequency, indexed=bool(frequency))

    def flush(self) -> None:
        for frequency in tuple(self._pending):
            self._write(frequency, indexed=bool(frequency))

    def _write(self, frequency: int, *, indexed: bool) -> None:
        traces = self._pending.pop(frequency, [])
        self._bytes.pop(frequency, None)
        if not traces:
            return
        if self._writes >= _MAX_WRITES:
            if not self._lost:
                log.warning(
                    "traces are lost: '%s' is written too slowly; trace fewer requests (raise trace_rate)",
                    self._path,
                )
            self._lost += len(traces)
            return
        self._writes += 1
        index = next(self._indices) if indexed else None
        written = asyncio.get_running_loop().run_in_executor(self._thread, self._write_traces, traces, index)
        written.add_done_callback(self._written)

    def _written(self, _: asyncio.Future[None]) -> None:
        self._writes -= 1

    def _write_traces(self, traces: list[bytes], index: int | None) -> None:
        """Writes traces to the new file FILE.index, or to the end of FILE if `index` is None. Runs on the
        writing thread.
        """
        try:
            if index is not None:
                self._path.with_name(f"{self._path.name}.{index}").write_bytes(b"[%b]" % b",".join(traces))
                return
            with self._path.open("ab" if self._begun else "wb") as file:
                file.write((b"," if self._begun else b"[") + b",".join(traces))
            self._begun = True
        except OSError as error:
            log.error(
                "lost %d traces: '%s' cannot be written: %s", len(traces), self._path, error.strerror or error
            )

    def _finish(self) -> None:
        if self._begun:
            try:
                with self._path.open("ab") as file:
                    file.write(b"]")
            except OSError as error:
                log.error("the trace file '%s' is incomplete: %s", self._path, error.strerror or error)

    async def close(self) -> None:
        self.flush()
        ended = asyncio.get_running_loop().run_in_executor(self._thread, self._finish)
        self._thread.shutdown(wait=False)
        done, _ = await asyncio.wait((ended,), timeout=_FAREWELL)
        if not done or self._lost:
            log.error("lost %d traces: '%s' is written too slowly", self._lost, self._path)
