"""What the trace file holds at which time, and what happens if it cannot be written."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from backline.engine.engine import Engine
from backline.engine.ticket import Ticket
from backline.observe.tracing import trace_file
from backline.observe.tracing.settings import TraceSetting
from backline.observe.tracing.trace import Exchange
from backline.observe.tracing.trace_file import MAX_ELEMENTS, TraceFile, tensor_document
from backline.workers.batch import Batch
from backline_client.values.datatypes import DataType
from backline_client.values.errors import Cancelled, InvalidArgument
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.tensor import Tensor


def _trace(file: TraceFile, setting: TraceSetting, id: str = "") -> None:
    """A request that completes immediately."""
    exchange = Exchange(file, Engine(), setting, "HTTP", "model", 1)
    request = Ticket(InferRequest("model", {}, id=id), lambda *_: None)
    request.trace = exchange.follow(request)
    request.complete(InferResponse("model", "1", id, []), None)


def _on(**settings: int) -> TraceSetting:
    return TraceSetting(("TIMESTAMPS",), 1, **settings)


def _ids(path: Path) -> list[str]:
    return [entry["request_id"] for entry in json.loads(path.read_text()) if "request_id" in entry]


def test_the_file_is_one_json_array_at_the_end(tmp_path: Path) -> None:
    async def run() -> None:
        file = TraceFile(tmp_path / "trace.json")
        for number in range(3):
            _trace(file, _on(), str(number))
            file.flush()
        await file.close()

    asyncio.run(run())

    assert _ids(tmp_path / "trace.json") == ["0", "1", "2"]


def test_no_traces_no_file(tmp_path: Path) -> None:
    async def run() -> None:
        await TraceFile(tmp_path / "trace.json").close()

    asyncio.run(run())

    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_file, "_MAX_KEPT", 2000)

    async def run() -> int:
        file = TraceFile(tmp_path / "trace.json")
        setting = _on()
        for number in range(10):
            _trace(file, setting, str(number))
            await asyncio.sleep(0.01)
        kept = sum(map(len, file._pending.get(0, ())))
        await file.close()
        return kept

    assert asyncio.run(run()) <= 2000
    assert _ids(tmp_path / "trace.json") == [str(number) for number in range(10)]


def test_traces_that_cannot_be_written_are_lost_with_a_log_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()

    async def run() -> None:
        file = TraceFile(folder / "trace.json")
        folder.rmdir()
        _trace(file, _on())
        await file.close()

    asyncio.run(run())

    assert "cannot be written" in caplog.text


@pytest.mark.parametrize("path", ["nowhere/trace.json", "."])
def test_an_unwritable_path_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot be written"):
        TraceFile(tmp_path / path)


def test_a_cancelled_request_is_written_once(tmp_path: Path) -> None:
    async def run() -> None:
        file = TraceFile(tmp_path / "trace.json")
        exchange = Exchange(file, Engine(), _on(), "GRPC", "model", 1)
        request = Ticket(InferRequest("model", {}, id="gone"), lambda *_: None)
        request.trace = exchange.follow(request)
        request.cancel()
        request.cancel()
        await file.close()

    asyncio.run(run())

    assert _ids(tmp_path / "trace.json") == ["gone"]


def test_an_exchange_ends_with_the_last_request_on_its_behalf(tmp_path: Path) -> None:
    """A call may outlive the request that made it."""

    async def run() -> int:
        file = TraceFile(tmp_path / "trace.json")
        exchange = Exchange(file, Engine(), _on(log_frequency=1), "HTTP", "model", 1)
        request = Ticket(InferRequest("model", {}, id="outer"), lambda *_: None)
        request.trace = exchange.follow(request)
        call = Ticket(InferRequest("other", {}, id="inner"), lambda *_: None)
        call.trace = request.trace.follow(call)
        request.complete(None, Cancelled("over"))
        early = len(file._pending)
        call.cancel()
        await file.close()
        return early

    assert asyncio.run(run()) == 0
    assert _ids(tmp_path / "trace.json.0") == ["outer", "inner"]


def test_a_run_of_a_derived_request_is_not_its_parents(tmp_path: Path) -> None:
    """A step that starts just after tracing is switched off shares the trace of its ensemble."""

    async def run() -> list[int]:
        exchange = Exchange(TraceFile(tmp_path / "trace.json"), Engine(), _on(), "HTTP", "model", 1)
        request = Ticket(InferRequest("model", {}), lambda *_: None)
        step = Ticket(InferRequest("step", {}), lambda *_: None)
        trace = request.trace = step.trace = exchange.follow(request)
        found = []
        for one in (step, request):
            batch = Batch([one], 1, 1)
            batch.executed = True
            trace.ran(batch)
            found.append(len(trace.runs))
        return found

    assert asyncio.run(run()) == [0, 1]


@pytest.mark.parametrize(
    ("datatype", "data", "text"),
    [
        (DataType.FP32, [0.1, 1e9, -2.5], "0.1,1e+09,-2.5"),
        (DataType.INT8, [-1, 7], "-1,7"),
        (DataType.BOOL, [True, False], "1,0"),
        (DataType.BF16, [0x3F80, 0x4000], "1,2"),
        (DataType.FP16, [0.5], "0.5"),
        (DataType.BYTES, [b"a", b'"\xff'], '"a",""\ufffd"'),
    ],
)
def test_text_of_tensors(datatype: DataType, data: list[object], text: str) -> None:
    array = np.array(data, datatype.dtype)

    assert tensor_document(Tensor("x", datatype, array.shape, array)) == {
        "name": "x",
        "data": text,
        "shape": str(len(data)),
        "dtype": datatype.name,
    }


def test_large_tensors_are_cut() -> None:
    array = np.zeros((2, MAX_ELEMENTS), np.int32)

    told = tensor_document(Tensor("x", DataType.INT32, array.shape, array))["data"].split(",")

    assert (len(told), told[-1]) == (MAX_ELEMENTS + 1, "...")
