"""Changes of a repository's files while the server runs."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict

from backline.dialects.open_inference.configuration import model_configuration
from backline.workers.batch import Batch
from backline.workers.here.execution import Execution
from backline_client.values.control import Overrides
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument, NotFound
from backline_client.values.messages import InferRequest, SequenceStep
from backline_client.values.tensor import Tensor
from support import models

Homes = Callable[..., Any]
ADD1 = models.add1


def configure(repository: Path, text: str, model: str = "add1") -> None:
    (repository / model).mkdir(exist_ok=True)
    (repository / model / "config.pbtxt").write_text(text)


def request() -> InferRequest:
    """A request for the model `python`."""
    return InferRequest("python", {"x": Tensor("x", DataType.INT64, (1,), np.array([1]))})


async def until(reached: Callable[[], object]) -> None:
    """Waits for a condition that nothing signals."""
    async with asyncio.timeout(30):
        while not reached():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def break_file(repository: Path, version: str) -> None:
    file = repository / "add1" / version / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"not a model")


def move(folder: Path, name: str) -> Path:
    return folder.rename(folder.with_name(name))


def test_a_new_version_takes_the_place_of_the_old(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        ADD1(repository, version="1", constant=1)
        async with home(repository, mode="poll") as server:
            ADD1(repository, version="2", constant=2)
            await server.lifecycle.refresh()
            assert await server.answer() == 2
            await server.until(lambda: server.states() == {"1": "UNAVAILABLE", "2": "READY"})
            assert server.engine.find("add1", "1").reason == "unloaded"
            assert server.engine.ready

    asyncio.run(scenario())


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_and_says_why(
    home: Homes, repository: Path
) -> None:
    async def scenario() -> None:
        ADD1(repository, version="1")
        async with home(repository, mode="poll") as server:
            break_file(repository, "2")
            await server.lifecycle.refresh()
            assert await server.answer() == 1
            assert server.states() == {"1": "READY", "2": "UNAVAILABLE"}
            assert "2/model.onnx" in server.engine.find("add1", "2").reason
            assert server.engine.ready
            assert [change.action for change in await server.history("add1")] == ["fail"]
            ADD1(repository, version="2", constant=2)
            await server.lifecycle.refresh()
            assert await server.answer() == 2

    asyncio.run(scenario())


def test_the_server_stays_ready_while_something_new_is_loaded(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        ADD1(repository)
        async with home(repository, mode="poll") as server:
            ready: list[bool] = []
            server.engine.watch(lambda: ready.append(server.engine.ready))
            ADD1(repository, version="2")
            ADD1(repository, "other")
            await server.lifecycle.refresh()
            assert "LOADING" not in server.states().values()
            assert len(ready) > 1
            assert all(ready)

    asyncio.run(scenario())


def test_new_files_of_a_version_are_served_and_counted_on(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        ADD1(repository, constant=1)
        async with home(repository, mode="poll") as server:
            await server.answer()
            ADD1(repository, constant=7)
            await server.lifecycle.refresh()
            assert await server.answer() == 7
            assert server.engine.find("add1").statistics.success.count == 2
            break_file(repository, "1")
            await server.lifecycle.refresh()
            assert await server.answer() == 7
            assert "model.onnx" in server.engine.find("add1").reason
            assert server.engine.ready

    asyncio.run(scenario())


def test_instances_and_policy_change_without_a_load(
    home: Homes, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        for version in "12":
            ADD1(repository, version=version, constant=float(version))
        configure(repository, "max_batch_size: 8")
        async with home(repository, mode="poll") as server:
            model = server.engine.find("add1")
            configure(
                repository,
                "max_batch_size: 8 instance_group { count: 3 } version_policy { all {} } dynamic_batching {"
                " max_queue_delay_microseconds: 50000 default_queue_policy { max_queue_size: 1 } }",
            )
            await server.lifecycle.refresh()
            assert server.engine.find("add1") is model
            assert model.placement.instances == 3
            answers = await asyncio.gather(server.answer(), server.answer(), return_exceptions=True)
            assert "maximum queue size of 1" in str(answers[1])
            assert server.states() == {"1": "READY", "2": "READY"}
            assert await server.answer() == 2

    asyncio.run(scenario())


PYTHON = """
import os
import time

def predict(x: int) -> int:
    time.sleep(0.002)
    return os.getpid()
"""


def test_the_number_of_worker_processes_changes_while_requests_run(home: Homes, repository: Path) -> None:
    """No request is lost, and nothing is loaded again."""

    async def scenario() -> None:
        (repository / "python" / "1").mkdir(parents=True)
        (repository / "python" / "1" / "model.py").write_text(PYTHON)
        configure(repository, "instance_group { count: 1 }", model="python")
        async with home(repository, mode="poll") as server:
            model = server.engine.find("python")
            stopped = asyncio.Event()

            async def ask() -> set[int]:
                pids = set()
                while not stopped.is_set():
                    response = await server.engine.infer(request())
                    pids.add(int(response.outputs[0].data[0]))
                return pids

            asking = [asyncio.create_task(ask()) for _ in range(6)]
            for count in (4, 2):
                configure(repository, f"instance_group {{ count: {count} }}", model="python")
                await server.lifecycle.refresh()
                await until(lambda count=count: model.placement.instances == count)
            stopped.set()
            seen = set().union(*await asyncio.gather(*asking))

            assert server.engine.find("python") is model
            assert server.engine.loads["python"].succeeded == 1
            assert len(seen) == 4
            assert "in 2 worker processes" in model.placement.reason
            stopped.clear()
            before = model.statistics.success.count
            asking = [asyncio.create_task(ask()) for _ in range(6)]
            await until(lambda: model.statistics.success.count > before + 50)
            stopped.set()
            assert len(set().union(*await asyncio.gather(*asking))) == 2

    asyncio.run(scenario())


def test_workers_that_cannot_start_leave_the_others_serving(
    home: Homes, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        (repository / "python" / "1").mkdir(parents=True)
        flag = repository.parent / "broken"
        broken = f"import os\nif os.path.exists({str(flag)!r}): raise ValueError('broken')\n"
        (repository / "python" / "1" / "model.py").write_text(broken + PYTHON)
        configure(repository, "instance_group { count: 1 }", model="python")
        async with home(repository, mode="poll") as server:
            model = server.engine.find("python")
            flag.touch()
            configure(repository, "instance_group { count: 3 }", model="python")
            await server.lifecycle.refresh()
            await until(lambda: "keeps its worker processes" in caplog.text)
            assert model.placement.instances == 1
            await server.engine.infer(request())

    asyncio.run(scenario())


COUNTING = """
import os
import time
import numpy as np
from backline.model import INT64, Request

class Model:
    def load(self):
        time.sleep(0.3)
        self.counts = {}

    def predict(self, x: int, request: Request) -> INT64[2]:
        self.counts[request.sequence] = self.counts.get(request.sequence, 0) + x
        return np.array([self.counts[request.sequence], os.getpid()])
"""
SEQUENCES = (
    "sequence_batching { oldest { max_candidate_sequences: 4 } max_sequence_idle_microseconds: 60000000 }"
)


def step_in(number: int, *, start: bool = False, end: bool = False) -> InferRequest:
    return msgspec.structs.replace(request(), sequence=SequenceStep(number, start=start, end=end))


async def test_the_number_of_workers_that_remember_sequences_changes_while_sequences_are_open(
    home: Homes, repository: Path
) -> None:
    (repository / "python" / "1").mkdir(parents=True)
    (repository / "python" / "1" / "model.py").write_text(COUNTING)
    configure(repository, f"instance_group {{ count: 1 }} {SEQUENCES}", model="python")
    async with home(repository, mode="explicit", load_models=("python",)) as server:
        model = server.engine.find("python")

        async def count(number: int, **flags: bool) -> tuple[int, int]:
            response = await server.engine.infer(step_in(number, **flags))
            total, pid = response.outputs[0].data
            return int(total), int(pid)

        first = [(await count(number, start=True))[1] for number in (1, 2)]
        configure(repository, f"instance_group {{ count: 3 }} {SEQUENCES}", model="python")
        await server.lifecycle.load("python", who="Ada")
        assert (server.engine.find("python"), model.placement.instances) == (model, 3)
        assert [await count(number) for number in (1, 2)] == [(2, first[0]), (2, first[1])]
        others = [(await count(number, start=True))[1] for number in range(3, 7)]
        assert len({*first, *others}) == 3

        configure(repository, f"instance_group {{ count: 1 }} {SEQUENCES}", model="python")
        await server.lifecycle.load("python", who="Ada")
        assert model.placement.instances == 1
        pids = [*first, *others]
        assert [await count(number) for number in range(1, 7)] == [
            (3 if number < 3 else 2, pids[number - 1]) for number in range(1, 7)
        ]
        for number in range(1, 7):
            await count(number, end=True)
        await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in set(pids) - {first[0]}))
        assert (await count(9, start=True, end=True))[1] == first[0]
        assert server.engine.loads["python"].succeeded == 1


async def test_a_load_answers_when_the_new_instances_serve(home: Homes, repository: Path) -> None:
    (repository / "python" / "1").mkdir(parents=True)
    (repository / "python" / "1" / "model.py").write_text("import time\ntime.sleep(0.3)\n" + PYTHON)
    configure(repository, "instance_group { count: 1 }", model="python")
    async with home(repository, mode="explicit", load_models=("python",)) as server:
        model = server.engine.find("python")
        configure(repository, "instance_group { count: 3 }", model="python")

        await server.lifecycle.load("python", who="Ada")

        assert (server.engine.find("python"), model.placement.instances) == (model, 3)
        assert len(server.lifecycle.worker_pids()) == 3


async def test_a_load_fails_if_the_new_instances_cannot_start(home: Homes, repository: Path) -> None:
    flag = repository.parent / "broken"
    broken = f"import os\nif os.path.exists({str(flag)!r}): raise ValueError('broken')\n"
    (repository / "python" / "1").mkdir(parents=True)
    (repository / "python" / "1" / "model.py").write_text(broken + PYTHON)
    configure(repository, "instance_group { count: 1 }", model="python")
    async with home(repository, mode="explicit", load_models=("python",)) as server:
        model = server.engine.find("python")
        configure(repository, "instance_group { count: 3 }", model="python")
        flag.touch()

        with pytest.raises(InvalidArgument, match=r"load failed for model 'python': version 1 .*broken"):
            await server.lifecycle.load("python", who="Ada")

        assert (model.placement.instances, model.config.instance_groups[0].count) == (1, 1)
        flag.unlink()
        await server.lifecycle.load("python", who="Ada")
        assert model.placement.instances == 3


@pytest.mark.parametrize("text", ["", 'backend: "python"', SEQUENCES], ids=["onnx", "python", "sequences"])
async def test_a_models_own_configuration_with_one_more_instance_loads_nothing_again(
    home: Homes, repository: Path, text: str
) -> None:
    name = "python" if text else "add1"
    if text:
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.py").write_text(PYTHON)
        configure(repository, text, model=name)
    else:
        ADD1(repository)
    async with home(repository, mode="explicit", load_models=(name,)) as server:
        model = server.engine.find(name)
        for count in (2, 3):
            own = MessageToDict(
                model_configuration(server.engine, name, ""), preserving_proto_field_name=True
            )
            own["instance_group"][0]["count"] = count
            await server.lifecycle.load(name, overrides=Overrides(json.dumps(own), {}), who="Ada")
            assert (server.engine.find(name), model.placement.instances) == (model, count)
        if name == "add1":
            own["max_batch_size"] = own["dynamic_batching"]["preferred_batch_size"][0] = 3
            await server.lifecycle.load(name, overrides=Overrides(json.dumps(own), {}), who="Ada")
            assert server.engine.find(name) is not model
            assert server.engine.find(name).max_batch_size == 3


@pytest.mark.parametrize("name", ["add1", "python"])
async def test_without_its_instance_groups_a_model_runs_in_its_usual_number_of_instances(
    home: Homes, repository: Path, name: str
) -> None:
    if name == "python":
        (repository / name / "1").mkdir(parents=True)
        code = "class Model:\n    instances = 2\n    def predict(self, x: int) -> int:\n        return x\n"
        (repository / name / "1" / "model.py").write_text(code)
    else:
        ADD1(repository)
    settings = repository / name / "model.toml"
    async with home(repository, mode="poll") as server:
        model = server.engine.find(name)
        usual = model.placement.instances
        settings.write_text("[[instance_group]]\ncount = 4\n")
        await server.lifecycle.refresh()
        assert model.placement.instances == 4
        settings.write_text("")
        await server.lifecycle.refresh()
        assert (server.engine.find(name), model.placement.instances) == (model, usual)


def test_a_reload_of_the_same_files_is_not_measured_again(
    home: Homes, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        ADD1(repository)
        async with home(repository, mode="explicit", load_models=("add1",)) as server:
            before = server.engine.find("add1").placement

            def measured_again(*_: object) -> None:
                raise AssertionError("measured again")

            monkeypatch.setattr("backline.lifecycle.loading.loaded_here.probe_batching", measured_again)
            monkeypatch.setattr("backline.lifecycle.loading.loaded_here.measure", measured_again)
            await server.lifecycle.unload("add1", who="Ada")
            await server.lifecycle.load("add1", who="Ada")
            assert server.engine.find("add1").placement == before

    asyncio.run(scenario())


def test_a_configuration_that_becomes_wrong_changes_nothing(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        ADD1(repository)
        configure(repository, "max_batch_size: 8")
        async with home(repository, mode="poll") as server:
            configure(repository, "max_batch_sise: 8")
            await server.lifecycle.refresh()
            assert await server.answer() == 1
            assert server.states() == {"1": "READY", "-": "UNAVAILABLE"}
            assert "max_batch_size" in server.engine.find("add1", "-").reason
            assert server.engine.ready
            configure(repository, "max_batch_size: 4")
            await server.lifecycle.refresh()
            assert server.states() == {"1": "READY"}
            assert server.engine.find("add1").max_batch_size == 4

    asyncio.run(scenario())


def test_models_come_and_go_with_their_folders(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        ADD1(repository, "a")
        async with home(repository, mode="poll") as server:
            ADD1(repository, "b")
            shutil.rmtree(repository / "a")
            await server.lifecycle.refresh()
            assert await server.answer("b") == 1
            await server.until(lambda: server.engine.names() == ["b"])
            with pytest.raises(NotFound):
                await server.answer("a")
            assert {(change.action, change.model) for change in await server.history()} == {
                ("add", "b"),
                ("remove", "a"),
            }

    asyncio.run(scenario())


def test_models_of_a_vanished_repository_keep_serving(
    home: Homes, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        ADD1(repository)
        async with home(repository, mode="poll") as server:
            elsewhere = move(repository, "elsewhere")
            with caplog.at_level(logging.ERROR):
                await server.lifecycle.refresh()
                await server.lifecycle.refresh()
            assert await server.answer() == 1
            assert len(caplog.records) == 1
            assert "its models keep serving" in caplog.text
            move(elsewhere, repository.name)
            ADD1(repository, version="2", constant=2)
            await server.lifecycle.refresh()
            assert await server.answer() == 2

    asyncio.run(scenario())


def test_polling_notices_changes(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        ADD1(repository)
        async with home(repository, mode="poll", poll_seconds=0.02) as server:
            ADD1(repository, version="2", constant=2)
            await server.until(lambda: server.states().get("2") == "READY")
            assert await server.answer() == 2

    asyncio.run(scenario())


def test_requests_in_flight_keep_their_version(
    home: Homes, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute, gate = Execution.__call__, threading.Event()

    def execute_when_told(execution: Execution, batch: Batch) -> None:
        if execution._version == "1":
            gate.wait(10)
        execute(execution, batch)

    async def scenario() -> None:
        ADD1(repository)
        configure(repository, 'parameters { key: "backline.lane" value { string_value: "thread" } }')
        async with home(repository, mode="poll") as server:
            old = server.engine.find("add1")
            monkeypatch.setattr(Execution, "__call__", execute_when_told)
            waiting = [asyncio.ensure_future(server.answer()) for _ in range(5)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            ADD1(repository, version="2", constant=2)
            await server.lifecycle.refresh()
            assert await server.answer() == 2
            assert old.state.value == "UNLOADING"
            gate.set()
            assert await asyncio.gather(*waiting) == [1] * 5
            await server.until(lambda: server.states() == {"1": "UNAVAILABLE", "2": "READY"})

    asyncio.run(scenario())


def test_a_failed_load_is_retried_if_configured(
    home: Homes, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backline.lifecycle.loading import version_load

    load, attempts = version_load.load, []

    def fail_first(*arguments: Any) -> Any:
        attempts.append(arguments)
        if len(attempts) < 3:
            raise InvalidArgument("not yet")
        return load(*arguments)

    monkeypatch.setattr(version_load, "load", fail_first)
    monkeypatch.setattr("backline.lifecycle.executor._FIRST_PAUSE", 0.01)

    async def scenario() -> None:
        ADD1(repository)
        async with home(repository, load_retries=2) as server:
            assert await server.answer() == 1
            assert [(event.state.value, event.done) for event in server.events] == [
                ("UNAVAILABLE", 0),
                ("UNAVAILABLE", 0),
                ("READY", 1),
            ]

    asyncio.run(scenario())


def test_loads_run_in_parallel_up_to_the_limit(
    home: Homes, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backline.lifecycle.loading import version_load

    load, lock = version_load.load, threading.Lock()
    running, most = 0, 0

    def counted(*arguments: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            return load(*arguments)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(version_load, "load", counted)

    async def scenario() -> None:
        for number in range(12):
            ADD1(repository, f"model{number}")
        async with home(repository, load_threads=3) as server:
            assert all(model.answers for model in server.engine.models())
        assert 1 < most <= 3

    asyncio.run(scenario())


def test_a_model_on_demand_is_loaded_by_its_first_request(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        ADD1(repository, constant=3)
        configure(repository, 'parameters { key: "backline.load" value { string_value: "on_demand" } }')
        async with home(repository) as server:
            assert server.engine.ready
            assert server.states() == {"1": "ON_DEMAND"}
            assert await asyncio.gather(*(server.answer() for _ in range(20))) == [3] * 20
            assert server.states() == {"1": "READY"}
            assert server.engine.loads["add1"].succeeded == 1

    asyncio.run(scenario())


def test_namespaces_serve_models_of_one_name(home: Homes, tmp_path: Path) -> None:
    async def scenario() -> None:
        for constant, repository in ((1.0, "blue"), (2.0, "green")):
            ADD1(tmp_path / repository, constant=constant)
        async with home(tmp_path / "blue", tmp_path / "green", namespacing=True) as server:
            assert (await server.answer("blue.add1"), await server.answer("green.add1")) == (1, 2)

    asyncio.run(scenario())


@pytest.mark.parametrize("mode", ["none", "poll", "explicit"])
def test_a_repository_that_does_not_exist_yet_is_awaited(home: Homes, tmp_path: Path, mode: str) -> None:
    async def scenario() -> None:
        late, load_models = tmp_path / "late", ("add1",) if mode == "explicit" else ()
        async with home(late, mode=mode, load_models=load_models, await_repositories=True) as server:
            assert not server.engine.ready
            ADD1(tmp_path / "hidden")
            (tmp_path / "hidden").rename(late)
            await until(lambda: server.engine.ready)
            assert await server.answer() == 1

    asyncio.run(scenario())


def test_a_model_keeps_its_plain_name_while_no_other_repository_has_it(home: Homes, tmp_path: Path) -> None:
    async def scenario() -> None:
        ADD1(tmp_path / "blue", constant=1.0)
        (tmp_path / "green").mkdir()
        async with home(tmp_path / "blue", tmp_path / "green", mode="poll", namespacing=True) as server:
            assert await server.answer("add1") == 1
            ADD1(tmp_path / "green", constant=2.0)
            await server.lifecycle.refresh()
            assert (await server.answer("blue.add1"), await server.answer("green.add1")) == (1, 2)
            shutil.rmtree(tmp_path / "green" / "add1")
            await server.lifecycle.refresh()
            assert await server.answer("add1") == 1

    asyncio.run(scenario())


def test_a_label_of_the_configuration_moves_when_its_version_is_ready(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        label = 'parameters {{ key: "backline.labels.stable" value {{ string_value: "{}" }} }}'
        for version in "123":
            ADD1(repository, version=version, constant=float(version))
        configure(repository, label.format(1))
        async with home(repository, mode="poll") as server:
            assert await server.answer() == 1
            configure(repository, label.format(2))
            seen: set[float] = set()

            async def ask() -> None:
                while 2 not in seen:
                    seen.add(await server.answer())

            await asyncio.gather(ask(), server.lifecycle.refresh())
            assert seen <= {1, 2}
            await server.until(lambda: server.states() == {"1": "UNAVAILABLE", "2": "READY", "3": "READY"})

    asyncio.run(scenario())


def test_namespaces_must_differ(home: Homes, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"'models' for both .*one/models.*two/models"):
        home(tmp_path / "one" / "models", tmp_path / "two" / "models", namespacing=True)


def test_a_load_whose_version_disappears_is_cancelled(
    home: Homes, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backline.lifecycle.loading import version_load

    load, begun, go_on = version_load.load, threading.Event(), threading.Event()

    def load_when_told(*arguments: Any) -> Any:
        begun.set()
        go_on.wait(10)
        return load(*arguments)

    async def scenario() -> None:
        ADD1(repository)
        async with home(repository, mode="poll") as server:
            monkeypatch.setattr(version_load, "load", load_when_told)
            ADD1(repository, version="2", constant=2)
            looking = asyncio.ensure_future(server.lifecycle.refresh())
            await asyncio.to_thread(begun.wait, 10)
            shutil.rmtree(repository / "add1" / "2")
            await server.lifecycle.refresh()
            await looking
            go_on.set()
            assert server.states() == {"1": "READY"}
            assert await server.answer() == 1

    asyncio.run(scenario())


def test_a_slow_copy_fails_once_at_most(home: Homes, repository: Path, tmp_path: Path) -> None:
    pauses, pause = 4, 1.4  # longer than the second after which a file that has not grown counts as complete
    content = ADD1(tmp_path / "build", version="2", constant=2).read_bytes()
    size = -(-len(content) // pauses)

    def copy() -> None:
        file = repository / "add1" / "2" / "model.onnx"
        file.parent.mkdir()
        with file.open("wb", buffering=0) as target:
            for start in range(0, len(content), size):
                target.write(content[start : start + size])
                time.sleep(pause)

    async def scenario() -> None:
        ADD1(repository)
        async with home(repository, mode="poll") as server:
            await asyncio.to_thread(copy)
            await server.until(lambda: server.states().get("2") == "READY")
            actions = [change.action for change in await server.history("add1")]
            assert actions.count("fail") <= 1

    asyncio.run(scenario())
