"""The rules of `backline tritonserver` where Triton's differ from those of `backline serve`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backline.dialects.open_inference.configuration import model_configuration
from backline.dialects.open_inference.metadata import model_index, visible_to
from backline.dialects.open_inference.statistics import model_statistics
from backline_client.values.control import LOG_SETTINGS
from backline_client.values.errors import NotFound, Unavailable
from support import models

Homes = Callable[..., Any]
WHO = "Ada"
TRITON = {"control_as_triton": True, "onnx_as_triton": True}
COMPLETE = (
    "max_batch_size: 4 input { name: 'INPUT0' data_type: TYPE_FP32 dims: 16 }"
    " output { name: 'OUTPUT0' data_type: TYPE_FP32 dims: 16 }"
)


async def test_a_server_is_live_once_its_repository_exists(home: Homes, repository: Path) -> None:
    late = repository / "late"
    async with home(late, await_repositories=True, **TRITON) as server:
        assert (server.engine.live, server.engine.ready) == (False, False)
        for refused in (
            lambda: server.engine.find("add1"),
            lambda: model_index(server.engine, visible_to(None), only_ready=False),
            lambda: list(model_statistics(server.engine, "", "", visible_to(None))),
        ):
            with pytest.raises(Unavailable, match=r"^Server not ready: .*/late' does not exist$"):
                refused()

        models.add1(repository / "hidden")
        (repository / "hidden").rename(late)
        await server.until(lambda: server.engine.ready)

        assert server.engine.live


@pytest.mark.parametrize("as_triton", [True, False])
async def test_a_folder_that_cannot_be_read_does_not_end_readiness(
    home: Homes, repository: Path, as_triton: bool
) -> None:
    models.add1(repository)
    models.add1(repository, name="wrong")
    (repository / "wrong" / "config.pbtxt").write_text("max_batch_size: -1")
    async with home(repository, control_as_triton=as_triton) as server:
        assert server.engine.ready is as_triton


async def test_a_model_that_fails_to_load_ends_readiness(home: Homes, repository: Path) -> None:
    models.add1(repository)
    (repository / "add1" / "1" / "model.onnx").write_bytes(b"no model")
    async with home(repository, **TRITON) as server:
        assert (server.engine.live, server.engine.ready) == (True, False)


SLOW = """
import time

class Model:
    def load(self):
        time.sleep(0.7)

    def predict(self, x: int) -> int:
        return x
"""


async def test_an_unload_waits_for_the_load_in_progress(home: Homes, repository: Path) -> None:
    (repository / "slow" / "1").mkdir(parents=True)
    (repository / "slow" / "1" / "model.py").write_text(SLOW)
    async with home(repository, mode="explicit", **TRITON) as server:
        loading = asyncio.create_task(server.lifecycle.load("slow", who=WHO))
        await server.until(lambda: server.states("slow") == {"1": "LOADING"})

        await server.lifecycle.unload("slow", who=WHO)

        assert loading.done()
        await loading  # it has succeeded
        assert server.engine.loads["slow"].succeeded == 1
        await server.until(lambda: server.states("slow") == {"1": "UNAVAILABLE"})


@pytest.mark.parametrize(
    ("group", "count"),
    [
        ("", 2),
        ("instance_group { kind: KIND_CPU }", 2),
        ("instance_group { kind: KIND_CPU count: 1 }", 1),
        ("instance_group [ { kind: KIND_CPU }, { kind: KIND_CPU count: 1 } ]", 3),
    ],
)
async def test_a_group_of_an_onnx_model_without_a_count_has_two_instances(
    home: Homes, repository: Path, group: str, count: int
) -> None:
    models.add1(repository)
    config = repository / "add1" / "config.pbtxt"
    config.write_text(COMPLETE + group)
    async with home(repository, mode="poll", **TRITON) as server:
        assert server.engine.find("add1").placement.instances == count
        shown = model_configuration(server.engine, "add1", "").instance_group
        assert sum(one.count for one in shown) == count

        config.write_text(COMPLETE + "instance_group { kind: KIND_CPU count: 5 }")
        await server.lifecycle.refresh()
        assert server.engine.find("add1").placement.instances == 5
        config.write_text(COMPLETE + group)
        await server.lifecycle.refresh()
        assert server.engine.find("add1").placement.instances == count


async def test_a_model_whose_name_says_its_backend_shows_the_name_of_its_file(
    home: Homes, repository: Path
) -> None:
    (repository / "quick.identity" / "1").mkdir(parents=True)
    models.add1(repository)
    async with home(repository, **TRITON) as server:
        names = [
            model_configuration(server.engine, name, "").default_model_filename
            for name in ("quick.identity", "add1")
        ]
    assert names == ["model.identity", "model.onnx"]


async def test_settings_of_the_log_change_in_mode_none(home: Homes, repository: Path) -> None:
    async with home(repository, **TRITON) as server:
        server.lifecycle.check_changeable(LOG_SETTINGS)
        with pytest.raises(Unavailable, match="models cannot be changed by request"):
            server.lifecycle.check_changeable("models")
    async with home(repository) as server:
        with pytest.raises(Unavailable, match="the settings of the log cannot be changed by request"):
            server.lifecycle.check_changeable(LOG_SETTINGS)


async def test_lines_of_the_log_about_faults_begin_with_tritons_texts(
    home: Homes, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models.add1(repository)
    fault = "dynamic_batching { preferred_batch_size: 8 }"
    (repository / "add1" / "config.pbtxt").write_text(COMPLETE + fault)
    (repository / "none").mkdir()
    (repository / "none" / "config.pbtxt").write_text('backend: "onnxruntime"')
    for name, text in (("garbled", "name 3"), ("zero", "version_policy { latest { num_versions: 0 } }")):
        models.add1(repository, name=name)
        (repository / name / "config.pbtxt").write_text(text)
    async with home(repository, mode="explicit", load_models=("*",), **TRITON) as server:
        with pytest.raises(NotFound):
            await server.lifecycle.load("nowhere", who=WHO)

    lines = [record.getMessage() for record in caplog.records]
    garbled = "Poll failed for model directory 'garbled': failed to read text proto"
    zero = "failed to load model 'zero': at least one version must be available under the version policy"
    for begin in (
        "Poll failed for model directory 'add1': dynamic batching preferred size must be <= max batch size",
        "failed to load model 'none': at least one version must be available under the version policy of",
        f"{garbled} from {repository}/garbled/config.pbtxt:1:6: Expected",
        f"{zero} of model 'zero': version_policy.latest.num_versions is 0, expected the number of newest",
        "failed to poll model 'nowhere': model not found in any model repository",
    ):
        assert any(line.startswith(begin) for line in lines), lines
