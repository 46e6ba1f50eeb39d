"""A deployment on a cluster of three nodes in this machine (`make test-ray`)."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backline.client import connect, connect_async
from backline.client.errors import BacklineError, InvalidArgument, Unavailable
from backline.ray import Deployment, deployment
from backline.ray.deployment import open_ports_warning
from support.repositories import put
from support.server import ServerProcess, serve

if os.environ.get("BACKLINE_TESTS_RAY") != "1":
    pytest.skip("starts a cluster, which takes a minute: make test-ray", allow_module_level=True)
ray = pytest.importorskip("ray")

pytestmark = pytest.mark.timeout(400)

ONE = np.ones((1, 1), np.float32)
ECHO = """backend: "identity" max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""
#: Requests per second that are sent while replicas come and go.
RATE = 200


@dataclass
class Load:
    """Sends requests to a URL during a `with` block, at a constant rate, and counts what becomes of them."""

    url: str
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    async def _run(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        async with connect_async(self.url, timeout=20) as client:

            async def ask() -> None:
                try:
                    await client["echo"](ONE)
                    self.answered += 1
                except BacklineError as error:
                    self.failures.append(f"{type(error).__name__}: {error}")

            while not self._ended.is_set():
                task = asyncio.create_task(ask())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                await asyncio.sleep(1 / RATE)
            await asyncio.gather(*tasks)

    def __enter__(self) -> Load:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        assert self._thread is not None
        self._thread.join()


def until(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (BacklineError, ray.exceptions.RayError, TimeoutError):
            pass
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


@dataclass
class Cluster:
    """The nodes, a deployment on them with two replicas, and a server in front of it."""

    nodes: Any
    workers: list[Any]
    repository: Path
    front: ServerProcess
    deployed: Deployment

    def deploy(self, **changes: Any) -> None:
        changes = {"replicas": 2, "ray_actor_options": {"num_cpus": 1}, **changes}
        deployment(str(self.repository), **changes).wait_ready(120)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    from ray.cluster_utils import Cluster as Nodes

    folder = tmp_path_factory.mktemp("ray")
    put(folder / "models" / "echo" / "config.pbtxt", ECHO)
    put(folder / "models" / "echo" / "1" / "empty", "")
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    workers = [nodes.add_node(num_cpus=2) for _ in range(2)]
    try:
        ray.init(address=nodes.address, namespace="another", log_to_driver=False)
        options = ("--engine", "ray", "--ray-address", nodes.address, "--ray-replicas", "2")
        asked = '{"num_cpus": 1}'
        with serve(
            folder / "models", folder / "log", *options, "--ray-actor-options", asked, ready=False
        ) as front:
            until(lambda: "Ready: 1 of 1" in front.output)
            yield Cluster(nodes, workers, folder / "models", front, Deployment("backline", 2))
    finally:
        ray.shutdown()
        nodes.shutdown()


def test_the_front_answers_for_the_replicas(cluster: Cluster) -> None:
    with connect(cluster.front.grpc_url) as client:
        assert client["echo"](ONE)["y"][0, 0] == 1
        assert [(entry.name, entry.version) for entry in client.models()] == [("echo", "1")]
    assert len(cluster.deployed.states()) == 2


def test_a_client_finds_the_replicas_by_the_name_of_the_deployment(cluster: Cluster) -> None:
    with connect("ray://backline") as client:
        assert client["echo"](ONE)["y"][0, 0] == 1


def test_a_killed_replica_costs_no_request_and_comes_back(cluster: Cluster) -> None:
    victim = cluster.deployed.states()[0].pid
    with Load(cluster.front.grpc_url) as load:
        os.kill(victim, signal.SIGKILL)
        until(
            lambda: victim not in (pids := [one.pid for one in cluster.deployed.states()]) and len(pids) == 2
        )

    assert (load.failures, load.answered > 0) == ([], True)


def test_a_new_revision_rolls_through_the_replicas_without_losing_a_request(cluster: Cluster) -> None:
    before = {one.pid for one in cluster.deployed.states()}
    with Load(cluster.front.grpc_url) as load:
        cluster.deploy(revision="2")

    after = {one.pid for one in cluster.deployed.states()}
    assert (load.failures, load.answered > 0) == ([], True)
    assert len(after) == 2
    assert not before & after


def test_more_and_fewer_replicas_cost_no_request(cluster: Cluster) -> None:
    with Load(cluster.front.grpc_url) as load:
        cluster.deploy(revision="2", replicas=3)
        assert len(cluster.deployed.states()) == 3
        cluster.deploy(revision="2", replicas=2)
        until(lambda: len(cluster.deployed.states()) == 2)

    assert (load.failures, load.answered > 0) == ([], True)


def test_a_lost_node_costs_no_request(cluster: Cluster) -> None:
    def nodes() -> set[str]:
        return {one.node for one in cluster.deployed.states()}

    victim = next((one for one in cluster.workers if one.node_id in nodes()), None)
    assert victim is not None, "the replicas are spread over the nodes"
    with Load(cluster.front.grpc_url) as load:
        cluster.nodes.remove_node(victim, allow_graceful=False)
        until(lambda: victim.node_id not in nodes() and len(cluster.deployed.states()) == 2)

    assert (load.failures, load.answered > 0) == ([], True)


def test_the_load_asks_for_more_replicas(cluster: Cluster) -> None:
    cluster.deploy(revision="busy", replicas=1, max_replicas=2, target_in_flight=0.01)
    with Load(cluster.front.grpc_url) as load:
        until(lambda: len(cluster.deployed.states()) == 2)

    assert (load.failures, load.answered > 0) == ([], True)


@pytest.mark.parametrize("token", [False, True])
def test_a_cluster_that_asks_for_no_token_causes_a_warning(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, token: bool
) -> None:
    from ray._private.authentication import authentication_utils

    monkeypatch.setattr(authentication_utils, "is_token_auth_enabled", lambda: token)

    assert ("RAY_AUTH_MODE=token" in open_ports_warning()) == (not token)


def test_a_deleted_deployment_is_gone(cluster: Cluster) -> None:
    cluster.deployed.delete()

    with pytest.raises(Unavailable, match="Ray runs no deployment named 'backline'"):
        cluster.deployed.urls()


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="max_replicas not below replicas"):
        deployment("models", replicas=3, max_replicas=2)
