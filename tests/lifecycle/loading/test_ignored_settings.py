"""Settings without effect on a model because of how it runs give warnings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.models import add1
from support.repositories import put

HERE = "it is for models in worker processes"
WORKER = "the model runs in worker processes"
STREAM = "the model sends any number of responses, on its own threads"


def _of_here(model: Path) -> str:
    add1(model.parent, model.name)
    return ""


def _of_workers(model: Path) -> str:
    put(
        model / "1" / "model.py",
        "class Model:\n    def predict(self, text: str) -> str:\n        return text\n",
    )
    return ""


def _of_streams(model: Path) -> str:
    (model / "1").mkdir(parents=True)
    tensors = "".join(
        f'{kind} = {{ name = "{kind[:-3].upper()}", data_type = "INT32", dims = [1] }}\n'
        for kind in ("input", "output")
    )
    return f'backend = "square"\nmodel_transaction_policy.decoupled = true\n{tensors}'


def _warnings(repository: Path, home: Any, caplog: pytest.LogCaptureFixture) -> list[str]:
    async def scenario() -> None:
        async with home(repository) as one:
            assert one.states("m") == {"1": "READY"}

    asyncio.run(scenario())
    return [record.message for record in caplog.records]


@pytest.mark.parametrize(
    ("make", "setting", "why"),
    [
        (_of_here, 'python = "3.13"', HERE),
        (_of_here, "memory_limit_bytes = 1000000000", HERE),
        (_of_workers, 'lane = "thread"', WORKER),
        (_of_workers, "lone_run_threads = 2", WORKER),
        (_of_streams, "cpus = [0]", STREAM),
        (_of_streams, 'lane = "thread"', STREAM),
        (_of_streams, "execution_timeout_seconds = 5", STREAM),
    ],
)
def test_a_setting_without_effect_is_named(
    make: Callable[[Path], str],
    setting: str,
    why: str,
    home: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tmp_path / "models" / "m"
    put(model / "model.toml", make(model) + setting)
    assert _warnings(tmp_path / "models", home, caplog) == [
        f"model.toml of 'm': {setting.partition(' ')[0]} has no effect: {why}"
    ]


def test_the_lane_of_a_model_in_workers_does_not_decide_about_its_devices(
    home: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "models" / "m"
    put(model / "model.toml", _of_workers(model) + 'lane = "inline"\ninstance_group = { kind = "KIND_GPU" }')
    ignored, missing = _warnings(tmp_path / "models", home, caplog)
    assert ignored == f"model.toml of 'm': lane has no effect: {WORKER}"
    assert "asks for a GPU" in missing
