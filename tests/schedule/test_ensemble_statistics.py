"""What an ensemble counts: its own requests, and the summed times of its steps, as in Triton."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from backline.embedded.embedded import Embedded
from backline.engine.model import Serving
from backline.engine.statistics import ModelStatistics
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Tensor
from support.embedded import start
from support.reading import CUT, SIDE, Asked, reader, recogniser

PICTURES = np.random.default_rng(3).normal(0, 0.3, (3, 1, SIDE, SIDE)).astype(np.float32)
STEPS = ("detect", "crop", "recognise")


def of(program: Embedded, name: str) -> ModelStatistics:
    return program.engine.find(name).statistics


def times(*statistics: ModelStatistics) -> tuple[int, int, int]:
    """The total nanoseconds of input, inference and output."""
    return (
        sum(one.compute_input.ns for one in statistics),
        sum(one.compute_infer.ns for one in statistics),
        sum(one.compute_output.ns for one in statistics),
    )


def ensemble(
    repository: Path, name: str, outputs: dict[str, int], *steps: tuple[str, dict[str, str], dict[str, str]]
) -> None:
    """Writes an ensemble with the input "cut"; each of the `outputs` has a rank-1 shape."""
    text = (
        'platform: "ensemble"\nmax_batch_size: 8\n'
        f'input {{ name: "cut" data_type: TYPE_FP32 dims: [ {CUT} ] }}\n'
    )
    text += "".join(
        f'output {{ name: "{one}" data_type: TYPE_FP32 dims: [ {size} ] }}\n' for one, size in outputs.items()
    )
    written = []
    for model, inputs, made in steps:
        maps = [f'input_map {{ key: "{key}" value: "{value}" }}' for key, value in inputs.items()]
        maps += [f'output_map {{ key: "{key}" value: "{value}" }}' for key, value in made.items()]
        written.append(f'step {{ model_name: "{model}" model_version: -1 {" ".join(maps)} }}')
    text += f"ensemble_scheduling {{ {' '.join(written)} }}\n"
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(text)


def cut(model: str, rows: int = 1) -> InferRequest:
    data = np.ones((rows, CUT), np.float32)
    return InferRequest(model, {"cut": Tensor("cut", DataType.FP32, data.shape, data)})


async def test_an_ensemble_counts_as_one_execution_with_the_times_of_its_steps(tmp_path: Path) -> None:
    program = await start(reader(tmp_path / "models"))

    for rows in (3, 1):
        asked = Asked(PICTURES[:rows])
        program.engine.submit(asked.ticket)
        await asked.done
    together = [Asked(PICTURES[:1]) for _ in range(4)]
    for asked in together:
        program.engine.submit(asked.ticket)
    await asyncio.gather(*(asked.done for asked in together))

    read = of(program, "read")
    assert times(read) == times(*(of(program, step) for step in STEPS))
    assert min(times(read)) > 0
    assert (read.success.count, read.queue.count, read.compute_infer.count) == (6, 6, 6)
    assert (read.inference_count, read.execution_count) == (8, 6)
    assert {size: batch.compute_infer.count for size, batch in read.batches.items()} == {3: 1, 1: 5}
    assert sum(batch.compute_infer.ns for batch in read.batches.values()) == read.compute_infer.ns
    # The waits of its steps are not its queue time, but part of its total time.
    assert read.queue.ns + sum(of(program, step).success.ns for step in STEPS) <= read.success.ns
    await program.stop()


async def test_a_nested_ensemble_passes_on_its_sums(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    recogniser(repository)
    step = {"crop": "cut"}, {"classes": "text"}
    ensemble(repository, "inner", {"text": 2}, ("recognise", *step))
    ensemble(
        repository,
        "outer",
        {"one": 2, "two": 2},
        ("inner", {"cut": "cut"}, {"text": "one"}),
        ("recognise", {"crop": "cut"}, {"classes": "two"}),
    )
    program = await start(repository)

    await program.engine.infer(cut("outer", 2))

    # One batch of both, whose time counts for each.
    assert times(of(program, "outer")) == times(of(program, "recognise"))
    assert times(of(program, "outer")) == tuple(2 * ns for ns in times(of(program, "inner")))
    assert of(program, "recognise").execution_count == 1
    await program.stop()


async def test_parts_of_a_split_step_count_towards_its_times(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    recogniser(repository)
    (repository / "recognise" / "model.toml").write_text(
        "max_batch_size = 2\nenable_large_batch_splitting = true\n"
    )
    ensemble(repository, "split", {"text": 2}, ("recognise", {"crop": "cut"}, {"classes": "text"}))
    program = await start(repository)

    await program.engine.infer(cut("split", 5))

    assert times(of(program, "split")) == times(of(program, "recognise"))
    assert (of(program, "recognise").execution_count, of(program, "split").execution_count) == (3, 1)
    await program.stop()


async def test_each_step_of_an_ensemble_is_counted(tmp_path: Path) -> None:
    program = await start(reader(tmp_path / "models"))
    engine = program.engine
    calls = of(program, "read").calls

    asked = Asked(PICTURES[:1])
    engine.submit(asked.ticket)
    await asked.done
    late = Asked(PICTURES[:1])
    late.ticket.deadline = 0.0
    engine.submit(late.ticket)
    with pytest.raises(BacklineError, match="'detect'"):
        await late.done
    detect = engine.find("detect")
    serving = detect.serving
    queue = SimpleNamespace(submit=serving.queue.submit, pending=0)  # runs no request at once
    detect.serving = Serving(serving.check, queue)
    gone = Asked(PICTURES[:1])
    engine.submit(gone.ticket)
    gone.ticket.cancel()

    counts = {name: (one.success.count, one.fail.count, one.cancel.count) for name, one in calls.items()}
    assert counts == {"detect": (1, 1, 1), "crop": (1, 0, 0), "recognise": (1, 0, 0)}
    assert all(one.success.ns > 0 for one in calls.values())
    assert sum(one.success.ns for one in calls.values()) < of(program, "read").success.ns
    read = of(program, "read")
    assert (read.success.count, read.fail.count, read.cancelled) == (1, 1, 1)
    await program.stop()
