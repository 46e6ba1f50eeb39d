"""Changes by request: loads, unloads, labels."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backline.lifecycle.wanted import Target
from backline.repository.local import LocalRepository
from backline_client.values.control import LabelMove, Overrides
from backline_client.values.errors import BacklineError, Internal, InvalidArgument, NotFound, Unavailable
from support import models

Homes = Callable[..., Any]
WHO = "Ada"


def versions(repository: Path, *names: str, policy: str = "") -> None:
    """Versions of add1, each of which adds its own number."""
    for name in names:
        models.add1(repository, version=name, constant=float(name))
    if policy:
        (repository / "add1" / "config.pbtxt").write_text(policy)


# loading and unloading


NAMES_OF_NO_MODEL = [
    "{outside}",
    "../outside",
    "..",
    ".",
    ".hidden",
    "__pycache__",
    "a\0b",
    "a\nb",
    "a\\b",
    "a/b",
    "x" * 256,
    "ü" * 128,
]


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        (
            "poll",
            "explicit model load / unload is not allowed if polling is enabled: this server's mode is poll; ",
        ),
        (
            "none",
            "explicit model load / unload is not allowed if polling is enabled: this .* mode is none, .*; ",
        ),
    ],
)
def test_models_are_loaded_by_request_in_mode_explicit_only(
    home: Homes, repository: Path, mode: str, why: str
) -> None:
    async def scenario() -> None:
        versions(repository, "1")
        async with home(repository, mode=mode) as server:
            for change in (server.lifecycle.load, server.lifecycle.unload):
                with pytest.raises(Unavailable, match=f"^{why}start it with --model-control-mode explicit$"):
                    await change("add1", who=WHO)
            assert await server.answer() == 1

    asyncio.run(scenario())


def test_a_request_for_a_model_that_is_not_loaded_says_how_to_load_it(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1")
        async with home(repository, mode="explicit") as server:
            with pytest.raises(
                NotFound,
                match=r"'add1' is not found: .*; to load it: backline models load add1$",
            ):
                await server.answer()

    asyncio.run(scenario())


def test_mode_explicit_starts_with_the_named_models(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        for name in ("a", "b"):
            models.add1(repository, name)
        async with home(repository, mode="explicit", load_models=("a",)) as server:
            assert server.states("a") == {"1": "READY"}
            assert server.states("b") == {}
            assert server.engine.names() == ["a", "b"]
            assert server.engine.ready

    asyncio.run(scenario())


def test_a_star_starts_with_all_models(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        for name in ("a", "b"):
            models.add1(repository, name)
        async with home(repository, mode="explicit", load_models=("*",)) as server:
            assert server.states("a") == server.states("b") == {"1": "READY"}

    asyncio.run(scenario())


def test_a_missing_initial_model_is_reported(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        models.add1(repository, "a")
        async with home(repository, mode="explicit", load_models=("c",)) as server:
            assert "model not found in any model repository; available: a" in server.engine.find("c").reason
            assert not server.engine.ready

    asyncio.run(scenario())


def test_a_model_is_loaded_and_unloaded(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        async with home(repository, mode="explicit") as server:
            versions(repository, "1", "2")
            await server.lifecycle.load("add1", who=WHO)
            assert await server.answer() == 2
            await server.lifecycle.unload("add1", who=WHO)
            with pytest.raises(Unavailable):
                await server.answer()
            await server.until(lambda: server.states() == {"2": "UNAVAILABLE"})
            assert server.engine.find("add1").reason == "unloaded"
            assert server.engine.ready
            await server.lifecycle.load("add1", who=WHO)
            assert await server.answer() == 2
            changes = [
                (change.action, change.version, change.before, change.who)
                for change in await server.history()
            ]
            assert changes == [("load", "2", "", WHO), ("unload", "", "2", WHO), ("load", "2", "", WHO)]

    asyncio.run(scenario())


def test_an_unchanged_model_is_not_loaded_again(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1", "2", policy="version_policy { all {} }")
        async with home(repository, mode="explicit", load_models=("*",)) as server:
            kept = server.engine.find("add1", "1")
            models.add1(repository, version="2", constant=20)
            await server.lifecycle.load("add1", who=WHO)
            assert server.engine.find("add1", "1") is kept
            assert await server.answer() == 20

    asyncio.run(scenario())


def test_changed_files_are_ignored_until_a_load(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1")
        async with home(repository, mode="explicit", load_models=("*",)) as server:
            versions(repository, "2")
            await server.lifecycle.refresh()
            assert await server.answer() == 1
            await server.lifecycle.load("add1", who=WHO)
            assert await server.answer() == 2

    asyncio.run(scenario())


def test_a_load_with_one_failed_version_changes_nothing(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1", "2", policy="version_policy { all {} }")
        async with home(repository, mode="explicit", load_models=("*",)) as server:
            models.add1(repository, version="1", constant=10)
            (repository / "add1" / "2" / "model.onnx").write_bytes(b"broken")
            with pytest.raises(
                InvalidArgument,
                match=r"load failed for model 'add1': version 2 is at UNAVAILABLE state: .*model\.onnx",
            ):
                await server.lifecycle.load("add1", who=WHO)
            assert (await server.answer(version="1"), await server.answer(version="2")) == (1, 2)
            assert server.states() == {"1": "READY", "2": "READY"}
            assert "model.onnx" in server.engine.find("add1", "2").reason
            assert server.engine.ready
            assert (await server.history())[0].action == "fail"

            models.add1(repository, version="2", constant=20)
            await server.lifecycle.load("add1", who=WHO)
            assert (await server.answer(version="1"), await server.answer(version="2")) == (10, 20)
            assert server.engine.find("add1", "2").reason == ""

    asyncio.run(scenario())


def test_a_first_load_that_fails_is_listed_with_its_reason(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        (repository / "add1" / "1").mkdir(parents=True)
        (repository / "add1" / "1" / "model.onnx").write_bytes(b"broken")
        async with home(repository, mode="explicit") as server:
            for _ in range(2):
                with pytest.raises(InvalidArgument, match="load failed"):
                    await server.lifecycle.load("add1", who=WHO)
            assert server.states() == {"1": "UNAVAILABLE"}
            assert "model.onnx" in server.engine.find("add1").reason
            assert server.engine.ready

    asyncio.run(scenario())


def test_an_unknown_model_cannot_be_loaded_or_unloaded(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1")
        async with home(repository, mode="explicit") as server:
            with pytest.raises(
                NotFound,
                match=r"failed to load 'nope', failed to poll from model repository: .*available: add1",
            ):
                await server.lifecycle.load("nope", who=WHO)
            with pytest.raises(NotFound, match="failed to unload 'nope'"):
                await server.lifecycle.unload("nope", who=WHO)
            assert server.engine.names() == ["add1"]

    asyncio.run(scenario())


def test_a_failed_load_ends_readiness_where_asked_for(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        models.add1(repository, "serving")
        (repository / "add1" / "1").mkdir(parents=True)
        (repository / "add1" / "1" / "model.onnx").write_bytes(b"broken")
        (repository / "unreadable").mkdir()
        (repository / "unreadable" / "config.pbtxt").write_text("max_batch_sise: 4")
        options: dict[str, Any] = {"mode": "explicit", "load_models": ("serving",)}
        async with home(repository, control_as_triton=True, **options) as server:
            with pytest.raises(InvalidArgument, match="max_batch_sise"):
                await server.lifecycle.load("unreadable", who=WHO)
            assert server.engine.ready
            with pytest.raises(InvalidArgument, match="load failed"):
                await server.lifecycle.load("add1", who=WHO)
            assert not server.engine.ready

            models.add1(repository)
            await server.lifecycle.load("add1", who=WHO)
            assert server.engine.ready
            (repository / "add1" / "1" / "model.onnx").write_bytes(b"broken")
            with pytest.raises(InvalidArgument, match="load failed"):
                await server.lifecycle.load("add1", who=WHO)
            assert server.engine.ready, "the previous files still serve"

    asyncio.run(scenario())


def test_the_text_of_a_load_that_cannot_begin_says_so_once(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        (repository / "empty").mkdir(parents=True)
        (repository / "empty" / "config.pbtxt").write_text('backend: "onnxruntime"')
        async with home(repository, mode="explicit", load_models=("nope",)) as server:
            with pytest.raises(
                BacklineError,
                match=r"^failed to load 'nope', failed to poll from model repository: model not found in any",
            ):
                await server.lifecycle.load("nope", who=WHO)
            with pytest.raises(
                InvalidArgument,
                match=r"^load failed for model 'empty': at least one version must be available .*'empty': '",
            ):
                await server.lifecycle.load("empty", overrides=Overrides("{}"), who=WHO)

    asyncio.run(scenario())


def test_one_version_outside_the_policy_is_loaded_and_unloaded(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1", "2", "3")
        async with home(repository, mode="explicit", load_models=("*",)) as server:
            await server.lifecycle.load("add1", "1", who=WHO)
            assert (await server.answer(), await server.answer(version="1")) == (3, 1)
            await server.lifecycle.unload("add1", "3", who=WHO)
            assert await server.answer() == 1
            with pytest.raises(NotFound, match="version 2 is not loaded; available: 1"):
                await server.lifecycle.unload("add1", "2", who=WHO)
            with pytest.raises(NotFound, match="version 9 does not exist; available: 1, 2, 3"):
                await server.lifecycle.load("add1", "9", who=WHO)
            await server.lifecycle.load("add1", who=WHO)  # exactly what the policy selects
            await server.until(lambda: server.states() == {"1": "UNAVAILABLE", "3": "READY"})

    asyncio.run(scenario())


def test_a_later_version_can_be_loaded_or_promoted_alone(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1")
        async with home(repository, mode="explicit", load_models=("*",)) as server:
            models.add1(repository, version="1", constant=10)
            versions(repository, "2", "3")
            await server.lifecycle.load("add1", "2", who=WHO)
            assert (await server.answer(version="1"), await server.answer(version="2")) == (1, 2)
            await server.lifecycle.move_label(LabelMove("promote", "add1", version="3"), who=WHO)
            assert (await server.answer(), await server.answer(version="1")) == (3, 1)

    asyncio.run(scenario())


def test_one_version_of_an_unloaded_model_is_loaded_alone(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1", "2")
        async with home(repository, mode="explicit") as server:
            await server.lifecycle.load("add1", "1", who=WHO)
            assert server.states() == {"1": "READY"}

    asyncio.run(scenario())


def test_concurrent_loads_of_one_model_are_serialised(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1", "2", "3")
        async with home(repository, mode="explicit") as server:
            await asyncio.gather(
                *(server.lifecycle.load("add1", version, who=WHO) for version in ("1", "2", "3"))
            )
            assert server.states() == {"1": "READY", "2": "READY", "3": "READY"}

    asyncio.run(scenario())


# overrides


@pytest.mark.parametrize("undone_by", ["unload", "change"])
def test_the_configuration_of_a_load_is_kept_until_an_unload_or_a_change_of_files(
    home: Homes, repository: Path, undone_by: str
) -> None:
    async def scenario() -> None:
        versions(repository, "1", "2")
        async with home(repository, mode="explicit", load_models=("*",)) as server:
            text = json.dumps({"max_batch_size": 3, "version_policy": {"specific": {"versions": [1]}}})
            await server.lifecycle.load("add1", overrides=Overrides(text), who=WHO)
            assert await server.answer() == 1
            assert server.engine.find("add1").max_batch_size == 3
            with pytest.raises(InvalidArgument, match="config"):
                await server.lifecycle.load("add1", overrides=Overrides("{"), who=WHO)
            assert await server.answer() == 1
            await server.lifecycle.load("add1", who=WHO)
            assert await server.answer() == 1
            if undone_by == "unload":
                await server.lifecycle.unload("add1", who=WHO)
            else:
                versions(repository, "3")
            await server.lifecycle.load("add1", who=WHO)
            assert await server.answer() == (2 if undone_by == "unload" else 3)

    asyncio.run(scenario())


def test_a_load_can_bring_files(home: Homes, repository: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        content = models.add1(tmp_path / "sent", constant=42).read_bytes()
        versions(repository, "1")
        async with home(repository, mode="explicit", load_models=("*",)) as server:
            sent = Overrides("{}", {"7/model.onnx": content})
            await server.lifecycle.load("add1", overrides=sent, who=WHO)
            assert await server.answer() == 42
            assert server.engine.served_versions("add1") == ["7"]
            await server.lifecycle.load("new", overrides=sent, who=WHO)
            assert await server.answer("new") == 42
            await server.lifecycle.unload("new", who=WHO)
            await server.until(lambda: server.engine.names() == ["add1"])
            with pytest.raises(InvalidArgument, match="load failed"):
                await server.lifecycle.load(
                    "broken", overrides=Overrides("{}", {"1/model.onnx": b"no"}), who=WHO
                )
            assert server.engine.names() == ["add1"]
            assert await server.answer() == 42
            await server.lifecycle.load("add1", who=WHO)
            assert await server.answer() == 1
            place = server.lifecycle._overriding._root
            assert os.listdir(place) == []
        assert not place.exists()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/x",
        "1/../../x",
        "",
        ".",
        "1\\x",
        "a\0b",
        "1/.x",
        ".git/x",
        "1/__pycache__/x",
        "1//x",
        "1/",
        "x" * 256,
    ],
)
def test_files_stay_in_their_folder(home: Homes, repository: Path, path: str) -> None:
    async def scenario() -> None:
        async with home(repository, mode="explicit") as server:
            with pytest.raises(InvalidArgument, match="does not name a file inside the model's folder"):
                await server.lifecycle.load("m", overrides=Overrides("{}", {path: b"x"}), who=WHO)

    asyncio.run(scenario())
    assert list(repository.iterdir()) == []


@pytest.mark.parametrize("name", NAMES_OF_NO_MODEL)
def test_a_load_with_files_writes_nothing_outside_its_folder(
    home: Homes, repository: Path, tmp_path: Path, name: str
) -> None:
    """A load creates a folder with the model's name, which must not be a path."""
    outside = tmp_path / "outside"
    sent = Overrides("{}", {"1/model.onnx": b"x"})

    async def scenario() -> None:
        async with home(repository, mode="explicit") as server:
            for change in (
                server.lifecycle.load(name.format(outside=outside), overrides=sent, who=WHO),
                server.lifecycle.load(name.format(outside=outside), who=WHO),
                server.lifecycle.unload(name.format(outside=outside), who=WHO),
                server.lifecycle.move_label(
                    LabelMove("promote", name.format(outside=outside), version="1"), who=WHO
                ),
            ):
                with pytest.raises(InvalidArgument, match=r"^the name of the model "):
                    await change

    asyncio.run(scenario())
    assert not outside.exists()
    assert list(repository.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "version", "files"),
    [
        ("{}", "2", {"1/model.onnx": b"x"}),
        ("{}", "", {"1/model.onnx": b"x"}),
        ("{}", "", {"1/nothing": b"x"}),
        ("{}", "", {"a": b"x", "a/b": b"x"}),
        ('{"name": "other"}', "", {"1/model.onnx": b"x"}),
        ("{", "", {"1/model.onnx": b"x"}),
    ],
    ids=["no such version", "broken", "no model", "file and folder", "another's name", "no JSON"],
)
def test_a_failed_load_leaves_no_files(
    home: Homes, repository: Path, config: str, version: str, files: dict[str, bytes]
) -> None:
    async def scenario() -> None:
        async with home(repository, mode="explicit") as server:
            with pytest.raises((InvalidArgument, NotFound)):
                await server.lifecycle.load("m", version, overrides=Overrides(config, files), who=WHO)
            assert os.listdir(server.lifecycle._overriding._root) == []

    asyncio.run(scenario())


def test_only_leftovers_of_killed_servers_are_removed_at_start(
    home: Homes, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    models.add1(tmp_path / "other", constant=5)
    content = (tmp_path / "other" / "add1" / "1" / "model.onnx").read_bytes()
    killed = """
import os, signal
from backline_client.values.control import Overrides
from backline.lifecycle.overriding import OverridingFiles
OverridingFiles()._write("m", "{}", Overrides("{}", {"1/model.onnx": b"x"}))
os.kill(os.getpid(), signal.SIGKILL)
"""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (temporary / "backline-loads-link").symlink_to(outside)

    async def scenario() -> None:
        async with home(repository, mode="explicit") as living:
            sent = Overrides("{}", {"1/model.onnx": content})
            await living.lifecycle.load("add1", overrides=sent, who=WHO)
            own = living.lifecycle._overriding._root
            await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", killed],
                env={**os.environ, "TMPDIR": str(temporary)},
                check=False,
            )
            assert len(list(temporary.glob("*/*/models/m/1/model.onnx"))) == 1
            async with home(repository, mode="explicit", state_folder=tmp_path / "state 2"):
                assert sorted(temporary.iterdir()) == sorted([own, temporary / "backline-loads-link"])
            assert next(own.glob("*/models/add1/1/model.onnx")).read_bytes() == content

    asyncio.run(scenario())
    assert (outside / "kept").exists()


def test_a_hidden_repository_gives_its_name_to_a_namespace(home: Homes, tmp_path: Path) -> None:
    async def scenario() -> None:
        repository = tmp_path / ".models"
        for folder in (repository, tmp_path / "others"):
            models.add1(folder)
        async with home(repository, tmp_path / "others", mode="explicit", namespacing=True) as server:
            await server.lifecycle.load(".models.add1", who=WHO)
            assert await server.answer(".models.add1") == 1
            await server.lifecycle.unload(".models.add1", who=WHO)

    asyncio.run(scenario())


def test_a_load_that_is_cancelled_before_it_begins_does_not_block_the_next(
    home: Homes, repository: Path
) -> None:
    async def scenario() -> None:
        models.add1(repository)
        async with home(repository, mode="explicit", load_threads=2) as server:
            lifecycle = server.lifecycle
            source = lifecycle._holdings.source("add1")
            for _ in range(3):
                for target in (Target(source), None):
                    served = lifecycle._models["add1"]
                    served.target = target
                    lifecycle._executor.advance(("add1",))
                await asyncio.wait_for(lifecycle._models.settle(("add1",)), 10)
            await asyncio.wait_for(lifecycle.load("add1", who=WHO), 10)
            assert await server.answer() == 1

    asyncio.run(scenario())


def test_loads_of_files_that_clients_send_delay_neither_the_repository_nor_other_clients(
    home: Homes, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also, a client whose loads never end gets its turn once they are cancelled."""
    content = models.add1(repository).read_bytes()
    fetch = LocalRepository.fetch
    stuck: list[str] = []
    two_stuck = asyncio.Event()

    async def stuck_fetch(self: LocalRepository, model: Any, *rest: Any) -> Any:
        if model.name.startswith("stuck"):
            stuck.append(model.name)
            if len(stuck) == 2:
                two_stuck.set()
            await asyncio.Event().wait()
        return await fetch(self, model, *rest)

    monkeypatch.setattr(LocalRepository, "fetch", stuck_fetch)
    sent = Overrides("{}", {"1/model.onnx": content})

    async def scenario() -> None:
        async with home(repository, mode="explicit", load_threads=4) as server:
            load = server.lifecycle.load
            loads = [
                asyncio.create_task(load(f"stuck{number}", overrides=sent, who="Eve", caller="10.0.0.9"))
                for number in range(6)
            ]
            await asyncio.wait_for(two_stuck.wait(), 10)
            late = asyncio.create_task(load("late", overrides=sent, who="Ada", caller="10.0.0.9"))

            await asyncio.wait_for(load("add1", who="Eve", caller="10.0.0.9"), 10)
            await asyncio.wait_for(load("sent", overrides=sent, who="Eve", caller="10.0.0.1"), 10)
            assert await server.answer("sent") == await server.answer("add1") == 1
            assert len(stuck) == 2, "a caller has half of the four slots"
            assert not late.done(), "another name does not make another caller"

            for loading in loads:
                loading.cancel()
            await asyncio.wait_for(late, 10)
            assert await server.answer("late") == 1
            await asyncio.wait(loads)
            assert not server.lifecycle._executor._waiting

    asyncio.run(scenario())


def test_files_need_a_configuration(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        async with home(repository, mode="explicit") as server:
            with pytest.raises(
                InvalidArgument, match="Load parameter 'config' must be specified for model file override"
            ):
                await server.lifecycle.load("m", overrides=Overrides(None, {"1/model.onnx": b"x"}), who=WHO)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"parameters": {"EXECUTION_ENV_PATH": {"string_value": "{tmp}"}}}, "parameters[EXECUTION_ENV_PATH]"),
        ({"parameters": {"CACHE_DIR": {"string_value": "{tmp}/cache"}}}, "parameters[CACHE_DIR]"),
        (
            {
                "optimization": {
                    "execution_accelerators": {
                        "gpu_execution_accelerator": [
                            {"name": "tensorrt", "parameters": {"trt_extra_plugin_lib_paths": "{tmp}/x.so"}}
                        ]
                    }
                }
            },
            (
                "optimization.execution_accelerators.gpu_execution_accelerator[tensorrt]"
                ".parameters[trt_extra_plugin_lib_paths]"
            ),
        ),
    ],
)
def test_a_load_cannot_name_paths_on_the_server(
    home: Homes, repository: Path, config: dict[str, Any], field: str
) -> None:
    async def scenario() -> None:
        models.add1(repository)
        async with home(repository, mode="explicit") as server:
            for files in ({}, {"1/model.onnx": (repository / "add1" / "1" / "model.onnx").read_bytes()}):
                with pytest.raises(InvalidArgument, match="may name a file, program or address") as caught:
                    await server.lifecycle.load(
                        "add1", overrides=Overrides(json.dumps(config), files), who=WHO
                    )
                assert field in caught.value.message

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["backend", "platform"])
def test_a_load_cannot_send_a_file_of_the_server_to_an_address_of_its_choice(
    home: Homes, repository: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "secret").write_text("a secret of the server's user")
    places = {
        "urls": "",
        "model": "other",
        "version": "2",
        "ca": "/etc/passwd",
        "api_key_file": str(tmp_path / "secret"),
    }

    async def scenario() -> None:
        models.add1(repository)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.settimeout(0)
            places["urls"] = f"http://127.0.0.1:{listening.getsockname()[1]}"
            async with home(repository, mode="explicit") as server:
                for parameter, value in places.items():
                    config = {name: "remote", "parameters": {parameter: {"string_value": value}}}
                    with pytest.raises(InvalidArgument, match=f"{parameter}. says where a remote model runs"):
                        await server.lifecycle.load("add1", overrides=Overrides(json.dumps(config)), who=WHO)
            with pytest.raises(BlockingIOError):
                listening.accept()

    asyncio.run(scenario())


def test_a_load_cannot_choose_a_program_to_run(home: Homes, repository: Path, tmp_path: Path) -> None:
    """A local Python model is trusted, but not a load that configures it."""
    proof, program = tmp_path / "proof", tmp_path / "bin" / "python"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {proof}\n")
    program.chmod(0o755)
    file = repository / "echo" / "1" / "model.py"
    file.parent.mkdir(parents=True)
    file.write_text("class Model:\n    def predict(self, x: float) -> float:\n        return x\n")
    config = {"parameters": {"EXECUTION_ENV_PATH": {"string_value": str(tmp_path)}}}

    async def scenario() -> None:
        async with home(repository, mode="explicit") as server:
            with pytest.raises(InvalidArgument):
                await server.lifecycle.load("echo", overrides=Overrides(json.dumps(config)), who=WHO)

    asyncio.run(scenario())
    assert not proof.exists()


def test_a_load_may_repeat_paths_of_the_models_own_configuration(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        models.add1(repository)
        text = 'parameters { key: "CACHE_DIR" value { string_value: "/somewhere" } }'
        (repository / "add1" / "config.pbtxt").write_text(text)
        sent = {"max_batch_size": 2, "parameters": {"CACHE_DIR": {"string_value": "/somewhere"}}}
        async with home(repository, mode="explicit") as server:
            await server.lifecycle.load("add1", overrides=Overrides(json.dumps(sent)), who=WHO)
            assert server.engine.find("add1").max_batch_size == 2

    asyncio.run(scenario())


def test_a_policy_of_very_many_versions_is_refused(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        models.add1(repository)
        text = json.dumps({"version_policy": {"specific": {"versions": list(range(1, 100_001))}}})
        async with home(repository, mode="explicit") as server:
            with pytest.raises(
                InvalidArgument, match="names 100000 versions; at most 1000 are allowed"
            ) as caught:
                await server.lifecycle.load("add1", overrides=Overrides(text), who=WHO)
            assert len(caught.value.message) < 200

    asyncio.run(scenario())


# labels


def test_a_label_holds_its_version_when_the_policy_moves_on(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1")
        async with home(repository, mode="poll") as server:
            await server.lifecycle.move_label(LabelMove("label", "add1", "old", "1"), who=WHO)
            versions(repository, "2")
            await server.lifecycle.refresh()
            assert (await server.answer(), await server.answer(version="old")) == (2, 1)
            await server.lifecycle.move_label(LabelMove("unlabel", "add1", "old"), who=WHO)
            await server.until(lambda: server.states() == {"1": "UNAVAILABLE", "2": "READY"})

    asyncio.run(scenario())


def test_a_label_loads_its_version_first(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1", "2")
        async with home(repository, mode="poll", keep_previous_seconds=0) as server:
            change = await server.lifecycle.move_label(LabelMove("label", "add1", "canary", "1"), who=WHO)
            assert (change.version, change.before, change.label) == ("1", "", "canary")
            assert await server.answer(version="canary") == 1
            await server.lifecycle.move_label(LabelMove("label", "add1", "canary", "2"), who=WHO)
            assert await server.answer(version="canary") == 2
            await server.until(lambda: server.states() == {"1": "UNAVAILABLE", "2": "READY"})

    asyncio.run(scenario())


def test_promote_and_rollback_change_the_version_that_answers(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1", "2")
        async with home(repository, mode="poll") as server:
            await server.lifecycle.move_label(LabelMove("promote", "add1", version="1"), who=WHO)
            assert await server.answer() == 1
            await server.lifecycle.move_label(
                LabelMove("promote", "add1", version="2", expected="1"), who=WHO
            )
            assert await server.answer() == 2
            change = await server.lifecycle.move_label(LabelMove("rollback", "add1"), who="Grace")
            assert (change.action, change.version, change.before, change.who) == (
                "rollback",
                "1",
                "2",
                "Grace",
            )
            assert await server.answer() == 1
            actions = [change.action for change in await server.history("add1") if change.label]
            assert actions == ["rollback", "promote", "promote"]

    asyncio.run(scenario())


def test_a_label_that_never_moved_cannot_be_rolled_back(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1")
        async with home(repository, mode="poll") as server:
            await server.lifecycle.move_label(LabelMove("promote", "add1", version="1"), who=WHO)
            with pytest.raises(InvalidArgument, match="cannot be rolled back"):
                await server.lifecycle.move_label(LabelMove("rollback", "add1"), who=WHO)

    asyncio.run(scenario())


def test_a_label_moves_only_from_where_it_is_expected(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1", "2", policy="version_policy { all {} }")
        async with home(repository, mode="poll") as server:
            await server.lifecycle.move_label(LabelMove("label", "add1", "stable", "1", expected=""), who=WHO)
            for expected in ("", "2"):
                with pytest.raises(
                    InvalidArgument,
                    match=r"was expected to point to .*, but it points to version 1; nothing was changed",
                ):
                    await server.lifecycle.move_label(
                        LabelMove("label", "add1", "stable", "2", expected=expected), who=WHO
                    )
            with pytest.raises(InvalidArgument, match="was expected"):
                await server.lifecycle.move_label(
                    LabelMove("unlabel", "add1", "stable", expected="2"), who=WHO
                )
            moves = [
                server.lifecycle.move_label(LabelMove("label", "add1", "stable", "2", expected="1"), who=WHO)
                for _ in range(2)
            ]
            outcomes = await asyncio.gather(*moves, return_exceptions=True)
            assert [isinstance(outcome, InvalidArgument) for outcome in outcomes] == [False, True]
            assert server.lifecycle.labels("add1") == {"stable": "2"}

    asyncio.run(scenario())


def test_a_label_cannot_point_to_a_missing_version(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1", "2")
        async with home(repository, mode="poll") as server:
            with pytest.raises(NotFound, match=r"version 9 of 'add1', which does not exist; available: 1, 2"):
                await server.lifecycle.move_label(LabelMove("label", "add1", "stable", "9"), who=WHO)
            with pytest.raises(NotFound, match="unknown model"):
                await server.lifecycle.move_label(LabelMove("label", "nope", "stable", "1"), who=WHO)
            with pytest.raises(NotFound, match="has no label 'stable'"):
                await server.lifecycle.move_label(LabelMove("unlabel", "add1", "stable"), who=WHO)

    asyncio.run(scenario())


def test_a_label_does_not_move_to_a_version_that_cannot_be_loaded(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1", "2")
        (repository / "add1" / "1" / "model.onnx").write_bytes(b"broken")
        async with home(repository, mode="poll") as server:
            with pytest.raises(InvalidArgument, match=r"version 1 of 'add1' cannot be loaded: .*model\.onnx"):
                await server.lifecycle.move_label(LabelMove("label", "add1", "stable", "1"), who=WHO)
            assert server.lifecycle.labels("add1") == {}
            assert await server.answer() == 2

    asyncio.run(scenario())


def test_a_label_that_cannot_be_stored_is_not_moved(home: Homes, repository: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1", "2")
        async with home(repository, mode="poll") as server:
            shutil.rmtree(tmp_path / "state")  # after the check at start found it writable
            (tmp_path / "state").write_text("a file where the folder should be")
            with pytest.raises(Internal, match="--state-dir"):
                await server.lifecycle.move_label(LabelMove("label", "add1", "stable", "1"), who=WHO)
            assert server.lifecycle.labels("add1") == {}
            await server.until(lambda: server.states() == {"1": "UNAVAILABLE", "2": "READY"})

    asyncio.run(scenario())


@pytest.mark.parametrize("label", ["", " stable", "a/b", "a?b", "1", "\n"])
def test_a_label_needs_a_usable_name(home: Homes, repository: Path, label: str) -> None:
    async def scenario() -> None:
        versions(repository, "1")
        async with home(repository, mode="poll") as server:
            with pytest.raises(InvalidArgument, match="cannot be a label"):
                await server.lifecycle.move_label(LabelMove("label", "add1", label, "1"), who=WHO)

    asyncio.run(scenario())


def test_a_version_with_a_label_is_not_unloaded(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1", "2")
        async with home(repository, mode="explicit", load_models=("*",)) as server:
            await server.lifecycle.move_label(LabelMove("label", "add1", "stable", "1"), who=WHO)
            with pytest.raises(InvalidArgument, match="label 'stable' points to it"):
                await server.lifecycle.unload("add1", "1", who=WHO)
            assert await server.answer() == 1

    asyncio.run(scenario())


def test_labels_outlive_the_server(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1", "2", "3")
        async with home(repository, mode="poll") as server:
            await server.lifecycle.move_label(LabelMove("promote", "add1", version="1"), who=WHO)
        async with home(repository) as server:
            assert await server.answer() == 1
            with pytest.raises(Unavailable, match="--model-control-mode poll or explicit"):
                await server.lifecycle.move_label(LabelMove("promote", "add1", version="3"), who=WHO)

    asyncio.run(scenario())


def test_labels_set_by_request_override_those_of_the_configuration(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        label = 'parameters { key: "backline.labels.stable" value { string_value: "1" } }'
        versions(repository, "1", "2", policy=label)
        async with home(repository, mode="poll", keep_previous_seconds=0) as server:
            assert await server.answer() == 1
            with pytest.raises(
                InvalidArgument, match=r"set in the model's configuration: remove it there .*config\.pbtxt"
            ):
                await server.lifecycle.move_label(LabelMove("unlabel", "add1", "stable"), who=WHO)
            await server.lifecycle.move_label(LabelMove("promote", "add1", version="2"), who=WHO)
            assert await server.answer() == 2
            change = await server.lifecycle.move_label(LabelMove("unlabel", "add1", "stable"), who=WHO)
            assert (change.version, change.before) == ("1", "2")
            assert await server.answer() == 2  # until the other is loaded
            await server.lifecycle.refresh()
            assert await server.answer() == 1

    asyncio.run(scenario())


def test_a_request_unloads_the_last_version_that_serves(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        for version in ("1", "2"):
            models.add1(repository, version=version)
        (repository / "add1/2/model.onnx").write_bytes(b"broken")
        (repository / "add1/config.pbtxt").write_text("version_policy { all {} }")
        async with home(repository, mode="explicit", load_models=("add1",)) as server:
            assert server.states() == {"1": "READY", "2": "UNAVAILABLE"}
            await server.lifecycle.unload("add1", "1", who="Ada")
            await server.until(lambda: server.states()["1"] == "UNAVAILABLE")

    asyncio.run(scenario())
