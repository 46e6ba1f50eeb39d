"""Which model files are tried in a separate process before the server loads them, and when again."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import pickle
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from backline.lifecycle.loading import measurement_file, version_load
from backline.lifecycle.loading.isolation import trial_processes
from backline.lifecycle.loading.isolation.fork_server import NICENESS
from backline.lifecycle.loading.isolation.messages import (
    Passed,
    TrialJob,
    decode_report,
    encode_report,
)
from backline.lifecycle.loading.isolation.trial_processes import TrialLimits, TrialProcesses
from backline.lifecycle.loading.loaded import Measured
from backline.lifecycle.loading.run_time import RunTimes
from backline.lifecycle.loading.version_load import VersionContent
from backline.lifecycle.options import LifecycleOptions
from backline.lifecycle.overriding import Overrides
from backline_client.values.errors import BacklineError, InvalidArgument
from support import models
from support.server import serve
from support.waiting import until

Homes = Callable[..., Any]


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that are tried in another process, in order."""
    names: list[str] = []
    try_out = TrialProcesses.try_out

    def noted(self: TrialProcesses, job: TrialJob, *rest: Any) -> Passed:
        names.append(job.config.name)
        return try_out(self, job, *rest)

    monkeypatch.setattr(TrialProcesses, "try_out", noted)
    return names


async def placement(home: Homes, repository: Path, **options: Any) -> str:
    """Serves add1 once; returns where and why it ran there."""
    async with home(repository, **options) as server:
        assert await server.answer() == 1
        placed = server.engine.find("add1").placement
        assert placed is not None
        return f"{placed.lane}, {placed.reason}"


def test_a_file_that_passed_its_trial_needs_none_at_the_next_start(
    home: Homes, repository: Path, tried: list[str]
) -> None:
    models.add1(repository)

    found = [asyncio.run(placement(home, repository, isolate="new")) for _ in range(3)]

    assert tried == ["add1"]
    assert len(set(found)) == 1


class Segfault:
    """A pickle of this reads memory at address 0 when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ctypes.string_at, (0,)


def test_a_local_file_that_crashes_its_runtime_does_not_end_a_server_with_default_options(
    repository: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    models.add1(repository)
    (repository / "bad" / "1").mkdir(parents=True)
    (repository / "bad" / "1" / "model.pkl").write_bytes(pickle.dumps(Segfault()))
    options = (f"--isolate={LifecycleOptions().isolate}", "--trust-pickle", "--no-strict-readiness")

    with serve(repository, tmp_path / "log", *options, f"--state-dir={tmp_path / 'state'}") as server:
        server.wait_started(120)
        assert server.process.poll() is None
        assert "model.pkl' (SIGSEGV); the server is not affected" in server.output


def test_a_known_file_is_not_read_for_its_digest_at_the_next_start(
    home: Homes, repository: Path, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it was too new to be recognised by its times at the first start, if it is large."""
    models.add1(repository)
    monkeypatch.setattr(measurement_file, "_SMALL", 0)
    asyncio.run(placement(home, repository, isolate="new"))
    monkeypatch.setattr(version_load, "_SETTLED_NS", 0)
    asyncio.run(placement(home, repository, isolate="new"))

    monkeypatch.setattr(VersionContent, "digest", property(lambda _: pytest.fail("it was read")))
    asyncio.run(placement(home, repository, isolate="new"))
    assert tried == ["add1"]


def test_a_state_folder_that_cannot_be_written_costs_a_trial_at_each_start_and_one_line(
    home: Homes, repository: Path, tried: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("add1", "other"):
        models.add1(repository, name)
    folder = repository.parent / "a file"
    folder.write_text("")
    caplog.set_level(logging.INFO)

    for _ in range(2):
        asyncio.run(placement(home, repository, isolate="new", state_folder=folder))

    assert sorted(tried) == ["add1", "add1", "other", "other"]
    assert caplog.text.count("so models are tried and measured again at the next start") == 1


@pytest.mark.parametrize("kept", [b"", b"{}", b"[" * 100_000, b"\xff", None], ids=range(5))
def test_a_damaged_memory_of_trials_is_replaced(
    home: Homes, repository: Path, tried: list[str], kept: bytes | None
) -> None:
    models.add1(repository)
    asyncio.run(placement(home, repository, isolate="new"))
    (file,) = (repository.parent / "state" / "measured").iterdir()
    file.write_bytes(file.read_bytes()[:-40] if kept is None else kept)

    for _ in range(2):
        asyncio.run(placement(home, repository, isolate="new"))
    assert tried == ["add1"] * 2


def test_other_files_another_configuration_or_a_lost_memory_need_another_trial(
    home: Homes, repository: Path, tried: list[str]
) -> None:
    file = models.add1(repository)
    asyncio.run(placement(home, repository, isolate="new"))

    file.with_name("notes.txt").write_text("another file")
    asyncio.run(placement(home, repository, isolate="new"))
    (repository / "add1" / "config.pbtxt").write_text("max_batch_size: 4")
    asyncio.run(placement(home, repository, isolate="new"))
    shutil.rmtree(repository.parent / "state" / "measured")
    asyncio.run(placement(home, repository, isolate="new"))

    assert tried == ["add1"] * 4


def test_always_tries_at_each_load_and_never_at_none(home: Homes, repository: Path, tried: list[str]) -> None:
    models.add1(repository)

    asyncio.run(placement(home, repository, isolate="never"))
    assert tried == []
    asyncio.run(placement(home, repository, isolate="always"))
    asyncio.run(placement(home, repository, isolate="always"))
    assert tried == ["add1"] * 2


def test_files_of_a_load_request_are_tried_where_local_ones_are_not(
    home: Homes, repository: Path, tried: list[str]
) -> None:
    # Another file by its doc_string (field 6): what this server has loaded before needs no trial.
    content = models.add1(repository).read_bytes() + b"\x32\x05other"

    async def scenario() -> None:
        async with home(repository, mode="explicit", load_models=("add1",), isolate="remote") as server:
            assert tried == []
            sent = Overrides("{}", {"1/model.onnx": content})
            await server.lifecycle.load("add1", overrides=sent, who="Ada")
            assert await server.answer() == 1

    asyncio.run(scenario())
    assert tried == ["add1"]


def running_trials(of_others: Collection[psutil.Process]) -> list[psutil.Process]:
    """The trials of this process, except those that belong to processes of other tests."""
    found = []
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        for fork_server in set(psutil.Process().children()).difference(of_others):
            found += [one for one in fork_server.children(recursive=True) if os.getsid(one.pid) == one.pid]
    return found


def test_a_load_that_is_given_up_ends_its_process(home: Homes, repository: Path) -> None:
    models.endless(repository, "endless", grows=False)
    of_others = psutil.Process().children()

    async def scenario() -> None:
        async with home(repository, mode="explicit", isolate="new") as server:
            loading = asyncio.create_task(server.lifecycle.load("endless", who="Ada"))
            # A file that keeps cores busy must not delay others.
            nice = psutil.Process().nice() + NICENESS
            await asyncio.to_thread(
                until,
                lambda: (found := running_trials(of_others)) and all(one.nice() == nice for one in found),
                seconds=90,
            )
            await server.lifecycle.unload("endless", who="Ada")
            await asyncio.to_thread(until, lambda: not running_trials(of_others))
            with pytest.raises(BacklineError):
                await loading

    asyncio.run(scenario())


async def load_by_fork_server(server: Any) -> psutil.Process:
    """Loads add1, and returns the fork server that ran its trial."""
    before = set(psutil.Process().children())  # of other tests
    await server.lifecycle.load("add1", who="Ada")
    (fork_server,) = set(psutil.Process().children()) - before
    return fork_server


def test_a_fork_server_that_was_killed_is_started_again(home: Homes, repository: Path) -> None:
    models.add1(repository)

    async def scenario() -> None:
        async with home(repository, mode="explicit", isolate="always") as server:
            fork_server = await load_by_fork_server(server)
            fork_server.kill()
            fork_server.wait()
            await server.lifecycle.unload("add1", who="Ada")
            await server.lifecycle.load("add1", who="Ada")
            assert await server.answer() == 1

    asyncio.run(scenario())


def test_a_trial_that_ends_with_its_fork_server_does_not_blame_the_runtime(
    home: Homes, repository: Path
) -> None:
    models.endless(repository, "endless", grows=False)
    of_others = psutil.Process().children()

    async def scenario() -> None:
        async with home(repository, mode="explicit", isolate="new") as server:
            loading = asyncio.create_task(server.lifecycle.load("endless", who="Ada"))
            await asyncio.to_thread(until, lambda: running_trials(of_others), seconds=90)
            for fork_server in set(psutil.Process().children()).difference(of_others):
                fork_server.kill()
            with pytest.raises(BacklineError, match="was killed, perhaps because"):
                await loading

    asyncio.run(scenario())


def test_a_load_does_not_wait_forever_for_a_frozen_fork_server(
    home: Homes, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.add1(repository)

    async def scenario() -> None:
        async with home(repository, mode="explicit", isolate="always") as server:
            fork_server = await load_by_fork_server(server)
            await server.lifecycle.unload("add1", who="Ada")
            fork_server.suspend()
            with monkeypatch.context() as patch:
                patch.setattr(TrialLimits, "of", lambda *_, **__: TrialLimits(0.3, 1 << 40, 1 << 20))
                patch.setattr(trial_processes, "_LEAST_IMPORT", 0.3)
                with pytest.raises(BacklineError, match=r"start a trial within 0\.3 s.*--load-timeout-secs"):
                    await asyncio.wait_for(server.lifecycle.load("add1", who="Ada"), 20)
            fork_server.resume()
            await server.lifecycle.load("add1", who="Ada")
            assert await server.answer() == 1

    asyncio.run(scenario())


def test_an_import_does_not_count_as_time_of_the_trial(
    home: Homes, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.add1(repository)

    async def scenario() -> None:
        async with home(repository, mode="explicit", isolate="always") as server:
            fork_server = await load_by_fork_server(server)
            await server.lifecycle.unload("add1", who="Ada")
            monkeypatch.setattr(TrialLimits, "of", lambda *_, **__: TrialLimits(0.0, 1 << 40, 1 << 20))
            fork_server.suspend()
            loading = asyncio.create_task(server.lifecycle.load("add1", who="Ada"))
            await asyncio.sleep(0.5)
            assert not loading.done()
            fork_server.resume()
            with pytest.raises(BacklineError, match="did not finish loading"):
                await loading

    asyncio.run(scenario())


def test_the_fork_server_ends_when_it_is_idle(
    home: Homes, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.add1(repository)
    monkeypatch.setattr(trial_processes, "IDLE_SECONDS", 0.1)
    before = set(psutil.Process().children())  # of other tests

    async def scenario() -> None:
        async with home(repository, isolate="new") as server:
            assert await server.answer() == 1
            await asyncio.to_thread(until, lambda: not set(psutil.Process().children()) - before)

    asyncio.run(scenario())


def test_the_memory_budget_counts_the_fork_server_and_can_end_it(home: Homes, repository: Path) -> None:
    models.add1(repository)

    async def scenario() -> None:
        async with home(repository, isolate="new", memory_budget=4 << 30) as server:
            assert await server.answer() == 1
            shared = server.lifecycle._shared
            assert not shared.needs_fork_server(tried=False)
            assert shared.held(()).trials > 10 << 20
            shared.end_idle_fork_server()
            assert shared.held(()).trials == 0
            assert shared.needs_fork_server(tried=False)
            assert not shared.needs_fork_server(tried=True)

    asyncio.run(scenario())


GOOD = Passed(Measured(times=RunTimes({1: 0.001, 2: 0.0015})), ("cpu",))


@pytest.mark.parametrize(
    "report",
    [
        b"",
        b"null",
        b'{"type":"ended"}',
        b'{"type":"began","phase":"rm -rf"}',
        encode_report(GOOD).replace(b"0.0015", b"-1.0"),
        encode_report(GOOD).replace(b'"1":', b'"4":'),
        encode_report(GOOD).replace(b'"2":', b'"999999":'),
        encode_report(GOOD).replace(b'"elements":0', b'"elements":1000000000000000'),
        encode_report(GOOD).replace(b'["cpu"]', b"[]"),
        encode_report(GOOD)[:-1],
    ],
)
def test_a_report_that_no_trial_would_send_is_refused(report: bytes) -> None:
    assert decode_report(encode_report(GOOD)) == GOOD
    with pytest.raises((ValueError, msgspec.MsgspecError)):
        decode_report(report)


def test_an_error_of_a_trial_is_of_a_known_kind() -> None:
    known = decode_report(b'{"type":"refused","kind":"InvalidArgument","message":"it is empty"}')
    other = decode_report(b'{"type":"refused","kind":"ClassVar","message":"it is empty"}')

    assert isinstance(known.error(), InvalidArgument)  # type: ignore[union-attr]
    assert type(other.error()).__name__ == "Internal"  # type: ignore[union-attr]


def test_the_limit_of_memory_grows_with_the_files() -> None:
    small = TrialLimits.of(1 << 20, seconds=1, memory=None)
    large = TrialLimits.of(1 << 60, seconds=1, memory=None)

    assert small.memory <= large.memory < psutil.virtual_memory().total
    assert TrialLimits.of(1 << 60, seconds=1, memory=5).memory == 5
