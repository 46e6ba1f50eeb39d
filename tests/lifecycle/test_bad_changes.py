"""Hostile and mistaken changes: each ends with a clear error and leaves served models alone."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from backline.lifecycle.audit_log import AuditLog
from backline.lifecycle.labels.store import open_labels
from backline_client.values.control import LabelMove
from backline_client.values.errors import Internal, InvalidArgument, NotFound, Unavailable
from support import models
from support.labels import move
from support.repositories import unprivileged_folder
from support.server import serve

Homes = Callable[..., Any]
WHO = "Ada"


def endless(repository: Path, name: str = "endless") -> None:
    """A model whose run takes longer than any caller waits."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["x", "x"], ["sum"])],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, None),
        ],
    )
    models.save(
        repository / name / "1" / "model.onnx",
        [helper.make_node("Loop", ["count", "go", "INPUT0"], ["OUTPUT0"], body=body)],
        [("INPUT0", TensorProto.FLOAT, ["N", 16])],
        [("OUTPUT0", TensorProto.FLOAT, ["N", 16])],
        [
            helper.make_tensor("count", TensorProto.INT64, [], [2**60]),
            helper.make_tensor("go", TensorProto.BOOL, [], [True]),
        ],
    )


def test_a_load_that_never_ends_does_not_block_the_exit(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    models.add1(repository)
    endless(repository)
    options = (
        "--model-control-mode",
        "explicit",
        "--load-model",
        "*",
        "--no-strict-readiness",
        "--state-dir",
        str(tmp_path / "state"),
    )
    with serve(repository, tmp_path / "log", *options, ready=False) as server:
        while "loaded add1" not in server.output:
            assert server.process.poll() is None, server.output
        assert server.stop(15) == 0
        assert "Traceback" not in server.output
        assert "Stopped" in server.output


def test_an_unload_ends_a_load_that_never_ends(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        models.add1(repository)
        async with home(repository, mode="explicit", load_models=("add1",), load_threads=1) as server:
            (repository / "slow" / "1").mkdir(parents=True)
            models.add1(repository, "slow")
            begun, release = asyncio.Event(), asyncio.Event()
            fetch = server.lifecycle._sources._repositories[str(repository)].fetch

            async def slow_fetch(model: Any, *rest: Any) -> Any:
                if model.name == "slow":
                    begun.set()
                    await release.wait()
                return await fetch(model, *rest)

            server.lifecycle._sources._repositories[str(repository)].fetch = slow_fetch
            loading = asyncio.create_task(server.lifecycle.load("slow", who=WHO))
            await begun.wait()
            await server.lifecycle.unload("slow", who=WHO)
            with pytest.raises(Unavailable, match="the load of 'slow' was aborted by a request to unload it"):
                await loading
            release.set()
            await server.lifecycle.load("slow", who=WHO)
            assert await server.answer("slow") == await server.answer("add1") == 1

    asyncio.run(scenario())


def test_a_retried_load_says_when_and_which_attempt(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        models.add1(repository)
        async with home(repository, mode="poll", load_retries=2) as server:
            file = repository / "add1" / "2" / "model.onnx"
            file.parent.mkdir()
            file.write_bytes(b"not a model")
            looking = asyncio.create_task(server.lifecycle.refresh())
            await server.until(lambda: server.states().get("2") == "UNAVAILABLE")
            (reason,) = [one.reason for one in server.engine.models() if one.version == "2"]
            assert reason.endswith("; trying again in 1 s (attempt 2 of 3)")
            assert await server.answer() == 1
            looking.cancel()

    asyncio.run(scenario())


def test_a_folder_name_that_is_not_utf8_does_not_hide_other_changes(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        models.add1(repository)
        async with home(repository, mode="poll") as server:
            models.add1(repository, "bad")
            os.rename(os.fsencode(repository / "bad"), os.fsencode(repository) + b"/bad\xff")
            models.add1(repository, version="2", constant=2)
            await server.lifecycle.refresh()
            assert await server.answer() == 2
            (bad,) = [one for one in server.engine.models() if one.name != "add1"]
            assert bad.name == "bad\\udcff"
            assert "rename the folder" in bad.reason

    asyncio.run(scenario())


def test_a_name_with_a_line_break_cannot_forge_a_line_of_the_log(
    home: Homes, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        models.add1(repository, "a\nERROR forged")
        async with home(repository):
            pass

    caplog.set_level(logging.INFO, "backline")
    asyncio.run(scenario())
    assert any("rename the folder" in record.getMessage() for record in caplog.records)
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_a_folder_in_place_of_a_configuration_is_reported(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        models.add1(repository)
        async with home(repository, mode="poll") as server:
            (repository / "add1" / "config.pbtxt").mkdir()
            await server.lifecycle.refresh()
            assert any(
                "config.pbtxt' is a folder; expected a configuration file" in one.reason
                for one in server.engine.models()
            )
            assert await server.answer() == 1

    asyncio.run(scenario())


def test_recorded_requests_that_cannot_be_read_do_not_stop_a_load(
    home: Homes, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(folder: Path) -> None:
        models.add1(folder / "models")
        (folder / "state" / "warmup").mkdir(parents=True)
        (folder / "state" / "warmup").chmod(0)
        async with home(folder / "models") as server:
            assert await server.answer() == 1
        (folder / "state" / "warmup").chmod(0o700)

    with unprivileged_folder() as folder:
        asyncio.run(scenario(folder))
    assert "warm-up runs without the requests recorded there" in caplog.text


def test_labels_that_cannot_be_stored_are_unchanged() -> None:
    with unprivileged_folder() as folder:
        store = open_labels("", [], folder)
        store.move(move("canary", "", "1"), "")
        for mode in (0o500, 0):
            folder.chmod(mode)
            with pytest.raises(
                Internal, match=r"labels\.json' cannot be written: Permission denied.*--state-dir"
            ):
                store.move(move("canary", "1", "2"), "1")
        folder.chmod(0o700)
        assert store.of("m") == open_labels("", [], folder).of("m") == {"canary": "1"}


def test_audit_log_lines_with_wrong_types_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").write_text(
        '{"time":"x","who":3,"action":"load","model":"add1"}\n'
        '{"time":1,"who":"Ada","action":"load","model":"add1"}\n'
    )
    assert [change.who for change in AuditLog(tmp_path).history("add1").entries] == ["Ada"]


@pytest.mark.parametrize("label", [".", "..", "", "a/b", "a\0b", "x" * 256])
def test_a_label_unusable_in_a_url_is_refused(home: Homes, repository: Path, label: str) -> None:
    async def scenario() -> None:
        models.add1(repository)
        async with home(repository, mode="poll") as server:
            with pytest.raises(InvalidArgument, match=r"cannot be a label|at most 255 characters"):
                await server.lifecycle.move_label(LabelMove("label", "add1", label, "1"), who=WHO)
            assert server.lifecycle.labels("add1") == {}

    asyncio.run(scenario())


def test_huge_names_are_not_repeated_in_full(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        models.add1(repository)
        async with home(repository, mode="explicit", load_models=("add1",)) as server:
            for refused in (
                server.lifecycle.load("x" * 100_000, who=WHO),
                server.lifecycle.unload("x" * 100_000, who=WHO),
                server.lifecycle.load("add1", "9" * 100_000, who=WHO),
                server.lifecycle.move_label(LabelMove("promote", "add1", version="9" * 100_000), who=WHO),
                server.lifecycle.move_label(LabelMove("rollback", "x" * 100_000), who=WHO),
            ):
                with pytest.raises((InvalidArgument, NotFound)) as caught:
                    await refused
                assert len(caught.value.message) < 600

    asyncio.run(scenario())


def test_the_history_names_the_cause_of_loads_and_unloads_in_mode_poll(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        models.add1(repository)
        async with home(repository, mode="poll") as server:
            (repository / "add1" / "model.toml").write_text("idle_unload_seconds = 0.05\n")
            await server.lifecycle.refresh()
            await server.until(lambda: server.states() == {"1": "ON_DEMAND"})
            assert await server.answer() == 1
            await server.until(lambda: server.states() == {"1": "ON_DEMAND"})
            told = {(change.action, change.who, change.detail) for change in await server.history("add1")}
            assert {("remove", "idle limit", "unloaded after it was idle"), ("add", "request", "")} <= told

    asyncio.run(scenario())
