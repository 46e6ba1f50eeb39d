"""Recordings: the next answered requests are kept for warm-up, and serving is not affected."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from backline.engine.config.model_config import ModelConfig
from backline.engine.engine import Engine
from backline.engine.model import NOT_SERVED, Model, ModelState, Serving
from backline.engine.request_check import RequestCheck
from backline.engine.ticket import Ticket
from backline.observe.prediction_log import read_log
from backline.observe.recording import Recorder, recorded_file
from backline_client.values.datatypes import DataType
from backline_client.values.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.tensor import Tensor


class Echo:
    """A queue that responds immediately and refuses negative numbers."""

    pending = 0

    def submit(self, ticket: Ticket) -> None:
        request = ticket.request
        if request.inputs["x"].data.min() < 0:
            ticket.complete(None, InvalidArgument("negative"))
        else:
            ticket.complete(InferResponse("m", "1", request.id, list(request.inputs.values())), None)


class Home:
    """A ready version and its recorder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = Engine()
        self.model = Model("m", "1", ModelConfig("m"))
        spec = TensorSpec("x", DataType.INT32, (-1, 2))
        self.check = RequestCheck("m", Signature((spec,), (spec,)), 4, strict=False)
        self.model.serving = Serving(self.check, Echo())
        self.model.state = ModelState.READY
        self.engine.add(self.model)
        self.engine.refresh()
        self.recorder = Recorder(self.engine, folder)

    async def ask(self, value: int, width: int = 2) -> InferResponse:
        data = np.full((1, width), value, np.int32)
        request = InferRequest("m", {"x": Tensor("x", DataType.INT32, data.shape, data)})
        response = await self.engine.infer(request)
        data[:] = 99  # like a reused receive buffer
        return response

    def recorded(self) -> list[int]:
        return [int(request.inputs["x"].data[0, 0]) for request in read_log(recorded_file(self.folder, "m"))]


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_exactly_the_next_answered_requests_are_recorded(tmp_path: Path) -> None:
    async def scenario() -> None:
        home = Home(tmp_path)
        await home.ask(1)
        assert home.recorder.start("m", count=2).state == "recording"
        for value in (2, 3, 4):
            await home.ask(value)
        state = await home.recorder.stop("m")
        assert (state.state, state.recorded, state.bytes) == ("done", 2, 16)
        assert home.recorded() == [2, 3]
        assert home.model.serving.check is home.check

    run(scenario)


def test_requests_that_fail_or_do_not_fit_are_not_recorded(tmp_path: Path) -> None:
    async def scenario() -> None:
        home = Home(tmp_path)
        home.recorder.start("m", count=1)
        with pytest.raises(InvalidArgument, match="negative"):
            await home.ask(-1)
        with pytest.raises(InvalidArgument, match="unexpected shape"):
            await home.ask(1, width=3)
        await home.ask(5)
        await home.recorder.stop("m")
        assert home.recorded() == [5]

    run(scenario)


def test_stopping_keeps_what_was_recorded(tmp_path: Path) -> None:
    async def scenario() -> None:
        home = Home(tmp_path)
        home.recorder.start("m", count=100)
        await home.ask(7)
        state = await home.recorder.stop("m")
        assert (state.state, state.recorded, state.reason) == ("done", 1, "the recording was stopped")
        assert home.recorded() == [7]
        assert home.model.serving.check is home.check

    run(scenario)


def test_a_recording_ends_at_its_byte_limit(tmp_path: Path) -> None:
    async def scenario() -> None:
        home = Home(tmp_path)
        home.recorder.start("m", count=100, max_bytes=20)
        for value in (1, 2, 3):
            await home.ask(value)
        state = await home.recorder.stop("m")
        assert (state.recorded, state.reason) == (2, "the limit of 20 bytes is reached")
        assert home.recorded() == [1, 2]

    run(scenario)


def test_an_empty_recording_keeps_the_previous_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        home = Home(tmp_path)
        home.recorder.start("m", count=1)
        await home.ask(1)
        await home.recorder.stop("m")
        home.recorder.start("m", count=1)
        state = await home.recorder.stop("m")
        assert (state.state, state.reason) == ("failed", "no request was recorded: the recording was stopped")
        assert home.recorded() == [1]

    run(scenario)


def test_unloading_the_version_ends_the_recording(tmp_path: Path) -> None:
    async def scenario() -> None:
        home = Home(tmp_path)
        home.recorder.start("m", count=10)
        await home.ask(1)
        home.model.serving = NOT_SERVED
        state = await home.recorder.stop("m")
        assert (state.state, state.reason) == ("done", "the version was unloaded")
        assert home.model.serving is NOT_SERVED

    run(scenario)


def test_one_recording_per_model_at_a_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        home = Home(tmp_path)
        home.recorder.start("m", count=1)
        with pytest.raises(AlreadyExists, match="are already being recorded"):
            home.recorder.start("m", count=1)

    run(scenario)


def test_impossible_recordings_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        home = Home(tmp_path)
        for count in (0, 1001):
            with pytest.raises(InvalidArgument, match=f"count is {count}, expected 1 to 1000"):
                home.recorder.start("m", count=count)
        with pytest.raises(NotFound, match="'other' is not found"):
            home.recorder.start("other", count=1)
        with pytest.raises(NotFound, match="no requests of model 'm' have been recorded"):
            home.recorder.state("m")
        home.model.state = ModelState.UNAVAILABLE
        with pytest.raises(Unavailable, match="not at ready state"):
            home.recorder.start("m", count=1)

    run(scenario)


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "warmup").write_text("a file where the folder should be")
        home = Home(tmp_path)
        home.recorder.start("m", count=1)
        await home.ask(1)
        with pytest.raises(Exception, match=r"warmup/m\.tfrecord' cannot be written"):
            await home.recorder.stop("m")

    run(scenario)


def test_a_model_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    assert recorded_file(tmp_path, "../../etc/x").parent == tmp_path / "warmup"
