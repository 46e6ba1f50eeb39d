"""The remote lane: models that other servers serve, reached through a server in front of them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from backline.engine.ticket import Ticket
from backline.plugins.fleet.backend import RemoteModel
from backline.plugins.fleet.description import open_remote
from backline.plugins.fleet.lane import RemoteLane
from backline.workers.batch import Batch
from backline.workers.instance import Instance
from backline_client.client import Client, connect, connect_async
from backline_client.client.errors import BacklineError, DeadlineExceeded, InvalidArgument
from backline_client.values.errors import Cancelled
from backline_client.values.messages import InferRequest
from support import models
from support.repositories import put
from support.server import ServerProcess, free_ports, metrics_page, serve
from support.waiting import until

ONES = np.ones((1, 16), np.float32)
REPEAT = """backend: "repeat" model_transaction_policy { decoupled: true }
input [
  { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] }, { name: "DELAY" data_type: TYPE_UINT32 dims: [ -1 ] },
  { name: "WAIT" data_type: TYPE_UINT32 dims: [ 1 ] }
]
output [
  { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] }, { name: "IDX" data_type: TYPE_UINT32 dims: [ 1 ] }
]
"""
TWICE = """platform: "ensemble" max_batch_size: 64
input [ { name: "x" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 16 ] } ]
ensemble_scheduling { step [
  { model_name: "add1" model_version: -1
    input_map { key: "INPUT0" value: "x" } output_map { key: "OUTPUT0" value: "z" } },
  { model_name: "add1" model_version: -1
    input_map { key: "INPUT0" value: "z" } output_map { key: "OUTPUT0" value: "y" } }
] }
"""


def waits(repository: Path, milliseconds: int, *, queue: int = 100) -> Path:
    """A repository with the model `echo`, whose runs take this long, and whose queue is this long."""
    put(
        repository / "echo" / "config.pbtxt",
        f"""backend: "identity" max_batch_size: 1 instance_group [ {{ count: 4 }} ]
        dynamic_batching {{ default_queue_policy {{ max_queue_size: {queue} }} }}
        input [ {{ name: "x" data_type: TYPE_FP32 dims: [ 1 ] }} ]
        output [ {{ name: "y" data_type: TYPE_FP32 dims: [ 1 ] }} ]
        parameters {{ key: "execute_delay_ms" value {{ string_value: "{milliseconds}" }} }}""",
    )
    put(repository / "echo" / "1" / "empty", "")
    return repository


def remote(repository: Path, model: str, urls: str, more: str = "") -> Path:
    """A repository with a model that the servers at `urls` serve."""
    parameter = f'parameters {{ key: "urls" value {{ string_value: "{urls}" }} }}'
    put(repository / model / "config.pbtxt", f'backend: "remote" {parameter} {more}')
    put(repository / model / "1" / "empty", "")
    return repository


@dataclass
class Fleet:
    """A server in front, and the two servers that run its models."""

    front: ServerProcess
    behind: tuple[ServerProcess, ServerProcess]


@pytest.fixture(scope="module", params=["http", "grpc"])
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    models.add1(folder / "models")
    put(folder / "models" / "repeat" / "config.pbtxt", REPEAT)
    put(folder / "models" / "repeat" / "1" / "empty", "")
    with serve(folder / "models", folder / "a") as a, serve(folder / "models", folder / "b") as b:
        urls = ",".join(one.url if request.param == "http" else one.grpc_url for one in (a, b))
        for model in ("add1", "repeat"):
            remote(folder / "front", model, urls)
        put(folder / "front" / "twice" / "config.pbtxt", TWICE)
        (folder / "front" / "twice" / "1").mkdir()
        with serve(folder / "front", folder / "front.log") as front:
            yield Fleet(front, (a, b))


@pytest.fixture
def client(fleet: Fleet) -> Iterator[Client]:
    with connect(fleet.front.grpc_url, timeout=20) as connected:
        yield connected


def test_a_remote_model_answers_as_it_does_there(fleet: Fleet, client: Client) -> None:
    with connect(fleet.behind[0].url) as there:
        assert client["add1"].metadata().inputs == there["add1"].metadata().inputs
        np.testing.assert_array_equal(client["add1"](ONES)["OUTPUT0"], there["add1"](ONES)["OUTPUT0"])


def test_both_servers_get_requests(fleet: Fleet, client: Client) -> None:
    for _ in range(100):
        client["add1"](ONES)

    for server in fleet.behind:
        with connect(server.url) as there:
            assert there["add1"].statistics()[0]["inference_stats"]["success"]["count"] > 0
    assert client["add1"].statistics()[0]["inference_stats"]["success"]["count"] >= 10


def test_a_remote_model_is_a_step_of_an_ensemble(client: Client) -> None:
    assert client["twice"](ONES)["y"][0, 0] == 3


def _numbers(count: int, delay: int) -> dict[str, np.ndarray]:
    return {
        "IN": np.arange(count, dtype=np.int32),
        "DELAY": np.full(count, delay, np.uint32),
        "WAIT": np.zeros(1, np.uint32),
    }


def test_streams_pass_through(client: Client) -> None:
    parts = [part["OUT"][0] for part in client["repeat"].stream(_numbers(20, 0))]

    assert parts == list(range(20))


def test_a_stream_that_its_client_leaves_ends_on_the_other_server(fleet: Fleet, client: Client) -> None:
    stream = client["repeat"].stream(_numbers(1000, 20))
    next(stream)
    stream.close()

    end = time.monotonic() + 10  # the stream itself would last 20 s
    while not sum(map(_cancelled, fleet.behind)):
        assert time.monotonic() < end
        time.sleep(0.05)


def _cancelled(server: ServerProcess) -> float:
    return sum(
        value
        for name, value in metrics_page(server).items()
        if name.startswith("backline_responses_total{") and 'outcome="cancelled"' in name
    )


def test_an_error_of_the_other_server_is_passed_on(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="expected IN and DELAY shape to match"):
        list(client["repeat"].stream(_numbers(3, 0) | {"DELAY": np.zeros(2, np.uint32)}))


# servers that fail


async def _ask(
    url: str,
    *,
    callers: int,
    each: int,
    after: int = -1,
    then: signal.Signals | None = None,
    victim: ServerProcess | None = None,
) -> int:
    """Asks `echo` from several callers; after a number of responses the victim gets a signal. Returns the
    number of responses.
    """
    answered = 0
    async with connect_async(url, timeout=20) as client:

        async def caller() -> None:
            nonlocal answered
            for _ in range(each):
                await client["echo"](np.ones((1, 1), np.float32))
                answered += 1
                if answered == after and victim is not None and then is not None:
                    victim.process.send_signal(then)

        await asyncio.gather(*(caller() for _ in range(callers)))
    return answered


def _served(server: ServerProcess) -> int:
    with connect(server.url) as client:
        count: int = client["echo"].statistics()[0]["inference_stats"]["success"]["count"]
    return count


@contextlib.contextmanager
def _echoes(folder: Path, *repositories: Path, more: str = "") -> Iterator[Fleet]:
    with contextlib.ExitStack() as stack:
        a, b = (stack.enter_context(serve(one, folder / f"{one.name}.log")) for one in repositories)
        front = remote(folder / "front", "echo", f"{a.grpc_url},{b.grpc_url}", more)
        yield Fleet(stack.enter_context(serve(front, folder / "front.log")), (a, b))


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_failed_server_costs_no_idempotent_request(tmp_path: Path, sent: signal.Signals) -> None:
    repositories = (waits(tmp_path / "a", 2), waits(tmp_path / "b", 2))
    with _echoes(tmp_path, *repositories) as fleet:
        victim = fleet.behind[1]
        asked = _ask(fleet.front.url, callers=8, each=50, after=100, then=sent, victim=victim)
        try:
            assert asyncio.run(asked) == 400
        finally:
            victim.process.send_signal(signal.SIGCONT)


def test_a_slow_server_gets_few_requests(tmp_path: Path) -> None:
    with _echoes(tmp_path, waits(tmp_path / "a", 5), waits(tmp_path / "b", 200)) as fleet:
        asyncio.run(_ask(fleet.front.url, callers=4, each=20))
        before = [_served(server) for server in fleet.behind]
        asyncio.run(_ask(fleet.front.url, callers=4, each=100))
        fast, slow = (_served(server) - begin for server, begin in zip(fleet.behind, before, strict=True))

    assert slow <= 0.05 * (fast + slow)


def test_requests_that_a_full_server_refuses_go_to_the_other(tmp_path: Path) -> None:
    with _echoes(tmp_path, waits(tmp_path / "a", 5), waits(tmp_path / "b", 50, queue=1)) as fleet:
        assert asyncio.run(_ask(fleet.front.url, callers=24, each=10)) == 240


def test_a_deadline_holds_although_the_other_server_takes_longer(tmp_path: Path) -> None:
    with (
        _echoes(tmp_path, waits(tmp_path / "a", 400), waits(tmp_path / "b", 400)) as fleet,
        connect(fleet.front.grpc_url) as client,
    ):
        client["echo"].metadata()  # The time to connect does not count against the deadline.
        with pytest.raises(DeadlineExceeded):
            client["echo"](np.ones((1, 1), np.float32), timeout=0.1)


def test_a_server_in_front_of_a_hung_server_stops_within_its_exit_timeout(tmp_path: Path) -> None:
    one = 'parameters { key: "max_in_flight" value { string_value: "1" } }'
    x = np.ones((1, 1), np.float32)
    with contextlib.ExitStack() as stack:
        behind = stack.enter_context(serve(waits(tmp_path / "a", 1), tmp_path / "a.log"))
        repository = remote(tmp_path / "front", "echo", behind.grpc_url, one)
        front = stack.enter_context(serve(repository, tmp_path / "log", "--exit-timeout-secs", "0.5"))
        client = stack.enter_context(connect(front.grpc_url))
        client["echo"](x)
        behind.process.send_signal(signal.SIGSTOP)
        stack.callback(behind.process.send_signal, signal.SIGCONT)
        callers = stack.enter_context(ThreadPoolExecutor(2))
        asked = [callers.submit(client["echo"], x) for _ in range(2)]
        pending = 'nv_inference_pending_request_count{model="echo",version="1"}'
        until(lambda: metrics_page(front)[pending] == 1)  # the other request is at the hung server

        began = time.monotonic()
        assert front.stop() == 0
        assert time.monotonic() - began < 10
        for one_asked in asked:
            with pytest.raises(BacklineError):
                one_asked.result(20)


# loading


def test_a_model_whose_servers_are_away_loads_if_its_configuration_describes_it(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    described = (
        'max_batch_size: 8 input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]'
        ' output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]'
    )
    remote(tmp_path / "front", "away", url)
    remote(tmp_path / "front", "described", url, described)

    with serve(tmp_path / "front", tmp_path / "log", ready=False) as front:
        front.wait_started()
        with connect(front.url) as client:
            assert not client["away"].ready()
            assert client["described"].ready()

    assert f"model 'away' cannot be described by {url}" in front.output


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("sequence_batching { }", "has sequence_batching, which a remote model cannot have"),
        ('parameters { key: "max_in_flight" value { string_value: "no" } }', "'max_in_flight'"),
    ],
    ids=["sequences", "number"],
)
def test_settings_that_a_remote_model_cannot_have_are_refused(
    tmp_path: Path, more: str, message: str
) -> None:
    remote(tmp_path / "front", "echo", "http://127.0.0.1:9", more)

    with serve(tmp_path / "front", tmp_path / "log", ready=False) as front:
        front.wait_started()

    assert message in front.output


def test_a_request_cancelled_before_it_began_frees_its_instance() -> None:
    async def scenario() -> None:
        remote = RemoteModel("http://127.0.0.1:9", "m", max_in_flight=1)
        transport = open_remote(remote, idempotent=True)
        lane = RemoteLane("m", "1", remote, transport, ("y",), time_limit=1.0, responses=None)
        batch = Batch([Ticket(InferRequest("m", {}), lambda *_: None)], 1, 0, off_loop=True)
        freed: asyncio.Future[Instance] = asyncio.get_running_loop().create_future()
        (instance,) = lane.instances
        instance.run(batch, lambda instance, _: freed.set_result(instance))
        batch.abandon()
        assert await asyncio.wait_for(freed, 10) is instance
        assert isinstance(batch.outcomes[0], Cancelled)
        assert not batch.executed
        await lane.close()

    asyncio.run(scenario())
