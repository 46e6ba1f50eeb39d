"""Which models get a copy whose runs use several cores, and what users see of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backline.engine.config.model_config import ModelConfig
from backline.engine.model import Model
from backline.lifecycle.loading import loaded_here, measurement_file
from backline.plugins.runtimes.onnx import runtime as onnxruntime
from backline.plugins.runtimes.onnx.runtime import OnnxModel, OnnxRuntime
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Internal, InvalidArgument
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Tensor
from support.models import add1
from support.networks import FLOAT, build, floats, node

Homes = Callable[..., Any]
SHAPE = (256, 512)


def slow(repository: Path, text: str = "") -> Path:
    """Writes a model whose runs take at least 3 ms on one core."""
    layers = 12
    names = ["X", *(f"h{index}" for index in range(1, layers)), "Y"]
    nodes = [node("MatMul", [names[index], "W"], [names[index + 1]]) for index in range(layers)]
    path = build(
        repository / "slow" / "1" / "model.onnx",
        nodes,
        [("X", FLOAT, SHAPE)],
        [("Y", FLOAT, SHAPE)],
        {"W": floats(512, 512) / np.float32(23)},
    )
    if text:
        (repository / "slow" / "model.toml").write_text(text)
    return path


def served(home: Homes, repository: Path, **options: Any) -> Model:
    async def scenario() -> Model:
        async with home(repository, **options) as server:
            model: Model = server.engine.find("slow")
            data = np.ones(SHAPE, np.float32)
            request = InferRequest("slow", {"X": Tensor("X", DataType.FP32, data.shape, data)})
            alone = await server.engine.infer(request)
            together = await asyncio.gather(*(server.engine.infer(request) for _ in range(3)))
            for response in together:
                np.testing.assert_allclose(
                    response.outputs[0].data, alone.outputs[0].data, rtol=1e-4, atol=1e-5
                )
            return model

    return asyncio.run(scenario())


def reason(model: Model) -> str:
    assert model.placement is not None
    return model.placement.reason


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Makes the machine look as if it had two cores and spread runs took no time; returns the timed runs."""
    times: list[float] = []

    def time_spread(*_: object) -> float:
        times.append(1e-6)
        return times[-1]

    monkeypatch.setattr(loaded_here, "usable_cores", lambda: 2)
    monkeypatch.setattr(loaded_here, "time_spread", time_spread)
    return times


@pytest.mark.usefixtures("timed")
def test_a_slow_model_that_gains_from_cores_uses_them_for_runs_that_are_alone(
    home: Homes, repository: Path
) -> None:
    slow(repository)

    model = served(home, repository, compute_threads=2)

    assert reason(model).endswith("while no other run is in progress, a run uses 2 cores and takes 1 us")
    assert model.scheduling.endswith("alone on 2 cores")


@pytest.mark.parametrize("loads", [0, 1], ids=["to be timed", "to be served"])
def test_a_model_is_served_without_a_copy_that_cannot_be_loaded(
    home: Homes, repository: Path, timed: list[float], monkeypatch: pytest.MonkeyPatch, loads: int
) -> None:
    spread, left = OnnxModel.spread, [loads]

    def run_out_of_memory(model: OnnxModel, threads: int) -> OnnxModel | None:
        if not left[0]:
            raise Internal("there is not enough memory")
        left[0] -= 1
        return spread(model, threads)

    monkeypatch.setattr(OnnxModel, "spread", run_out_of_memory)
    slow(repository)

    assert "no other run is in progress" not in reason(served(home, repository, compute_threads=2))
    assert len(timed) == loads


@pytest.mark.usefixtures("timed")
def test_a_model_fails_to_load_without_the_copy_that_its_configuration_asks_for(
    home: Homes, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out_of_memory(model: OnnxModel, threads: int) -> OnnxModel | None:
        raise Internal("there is not enough memory")

    monkeypatch.setattr(OnnxModel, "spread", run_out_of_memory)
    slow(repository, "lone_run_threads = 2")

    with pytest.raises(BacklineError, match="there is not enough memory"):
        served(home, repository, compute_threads=2)


def test_a_quick_model_is_not_timed_on_several_cores(
    home: Homes, repository: Path, timed: list[float]
) -> None:
    add1(repository)

    async def scenario() -> None:
        async with home(repository, compute_threads=2):
            pass

    asyncio.run(scenario())
    assert not timed


def test_what_was_measured_on_several_cores_is_remembered(
    home: Homes, repository: Path, timed: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurement_file, "LONG_RUN", 0.0)
    slow(repository)

    first, second = (served(home, repository, compute_threads=2) for _ in range(2))

    assert len(timed) == 1
    assert reason(second) == reason(first)


def test_what_could_not_be_measured_on_a_busy_machine_is_measured_at_the_next_start(
    home: Homes, repository: Path, timed: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurement_file, "LONG_RUN", 0.0)
    slow(repository)
    with monkeypatch.context() as busy:
        busy.setattr(loaded_here, "time_spread", lambda *_: None)
        assert "no other run" not in reason(served(home, repository, compute_threads=2))

    assert "no other run" in reason(served(home, repository, compute_threads=2))
    assert len(timed) == 1


@pytest.mark.parametrize("setting", ["lone_run_threads = 1", "parameters.intra_op_thread_count = 1"])
def test_the_configuration_switches_it_off(
    setting: str, home: Homes, repository: Path, timed: list[float]
) -> None:
    slow(repository, setting)

    model = served(home, repository, compute_threads=2)

    assert "no other run" not in reason(model)
    assert "alone" not in model.scheduling
    assert not timed


def test_a_configured_number_of_threads_is_used_without_a_measurement(
    home: Homes, repository: Path, timed: list[float]
) -> None:
    slow(repository, "lone_run_threads = 2")

    model = served(home, repository, compute_threads=2)

    assert reason(model).endswith("while no other run is in progress, a run uses 2 cores")
    assert not timed


def test_a_configured_number_of_threads_without_effect_causes_a_warning(
    home: Homes, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slow(repository, "lone_run_threads = 2\nparameters.intra_op_thread_count = 1")

    served(home, repository)

    assert [record.message for record in caplog.records if "lone_run_threads has no effect" in record.message]


def test_a_memory_budget_has_no_room_for_a_copy_that_is_not_configured(
    home: Homes, repository: Path, timed: list[float]
) -> None:
    slow(repository)

    assert "no other run" not in reason(served(home, repository, compute_threads=2, memory_budget=1 << 40))
    assert not timed


def test_no_run_uses_more_cores_than_the_server_may(
    home: Homes, repository: Path, timed: list[float]
) -> None:
    slow(repository)

    assert "no other run" not in reason(served(home, repository, compute_threads=1))
    assert not timed


def test_a_copy_gives_the_same_outputs(repository: Path) -> None:
    model = OnnxRuntime().load(slow(repository), ModelConfig("slow"))
    copy = model.spread(2)
    assert isinstance(copy, OnnxModel)
    inputs = {"X": floats(*SHAPE)}

    (expected,), (given,) = model.run(inputs, ["Y"]), copy.run(inputs, ["Y"])

    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)
    assert (model.threads_per_run, copy.threads_per_run) == (1, 2)


def test_no_copy_is_made_of_a_file_that_has_been_replaced_since(repository: Path, tmp_path: Path) -> None:
    path = slow(repository)
    model = OnnxRuntime().load(path, ModelConfig("slow"))
    slow(tmp_path / "other").replace(path)

    with pytest.raises(InvalidArgument, match="changed while it was being loaded, so a copy may differ"):
        model.spread(2)


def test_large_weights_are_copied_only_if_that_is_configured(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = slow(repository)
    monkeypatch.setattr(onnxruntime, "LARGEST_COPY", path.stat().st_size - 1)

    assert OnnxRuntime().load(path, ModelConfig("slow")).spread(2) is None
    assert OnnxRuntime().load(path, ModelConfig("slow", lone_run_threads=2)).spread(2) is not None
