"""A deployment on a cluster of three nodes in this machine (`make test-ray`)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from backline.access.keys import hash_key
from backline.plugins.ray import Deployment, ServeScaler, deployment
from backline.plugins.ray.deployment import open_ports_warning
from backline_client.client import connect, connect_async
from backline_client.client.errors import BacklineError, InvalidArgument, PermissionDenied, Unavailable
from support.repositories import put
from support.server import ServerProcess, free_ports, serve

if os.environ.get("TESTS_RAY") != "1":
    pytest.skip("starts a cluster, which takes a minute: make test-ray", allow_module_level=True)
ray = pytest.importorskip("ray")

pytestmark = pytest.mark.timeout(400)

ONE = np.ones((1, 1), np.float32)
ECHO = """backend: "identity" max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""
SUMS = """max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "sum" data_type: TYPE_FP32 dims: [ 1 ] } ]
sequence_batching { max_sequence_idle_microseconds: 300000000
  state [ { input_name: "before" output_name: "sum" data_type: TYPE_FP32 dims: [ 1 ] } ] }
"""
#: Requests per second that are sent while replicas come and go.
RATE = 200


@dataclass
class Load:
    """Sends requests to a URL during a `with` block, at a constant rate, and counts what becomes of them.

    Prints the counts at the end, as `make test-ray` shows them.
    """

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
        print(f"{self.answered} requests answered, {len(self.failures)} failed")


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
    dashboard: str

    def deploy(self, **changes: Any) -> None:
        changes = {"replicas": 2, "ray_actor_options": {"num_cpus": 1}, **changes}
        deployment(str(self.repository), **changes).wait_ready(120)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    from ray.cluster_utils import Cluster as Nodes

    folder = tmp_path_factory.mktemp("ray")
    put(folder / "models" / "echo" / "config.pbtxt", ECHO)
    put(folder / "models" / "echo" / "1" / "empty", "")
    nodes = Nodes(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": True, "dashboard_port": free_ports(1)[0]},
    )
    workers = [nodes.add_node(num_cpus=2) for _ in range(2)]
    try:
        connected = ray.init(address=nodes.address, namespace="another", log_to_driver=False)
        options = ("--engine", "ray", "--ray-address", nodes.address, "--ray-replicas", "2")
        asked = '{"num_cpus": 1}'
        with serve(
            folder / "models", folder / "log", *options, "--ray-actor-options", asked, ready=False
        ) as front:
            until(lambda: "Ready: 1 of 1" in front.output)
            dashboard = f"http://{connected.dashboard_url}"
            yield Cluster(nodes, workers, folder / "models", front, Deployment("backline", 2), dashboard)
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
        cluster.deploy(revision="2", replicas=4)
        assert len(cluster.deployed.states()) == 4
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
    cluster.deploy(revision="2", replicas=1)  # makes room
    options: dict[str, Any] = {"ray_actor_options": {"num_cpus": 1}, "target_in_flight": 0.01}
    busy = deployment(str(cluster.repository), name="busy", replicas=1, max_replicas=2, **options)
    busy.wait_ready(120)
    assert len(busy.states()) == 1

    with Load("ray://busy") as load:
        until(lambda: len(busy.states()) == 2)
    busy.delete()

    assert (load.failures, load.answered > 0) == ([], True)


def test_ray_serve_scales_an_application_by_the_load_of_the_replicas(cluster: Cluster) -> None:
    """The application calls the models of the deployment, so both need more replicas for more requests."""
    from ray import serve as ray_serve

    @ray_serve.deployment(ray_actor_options={"num_cpus": 0})
    class Offers:
        def __call__(self) -> str:
            return "offer"

    def running() -> list[int]:
        """The numbers of the application's replicas in each state."""
        return list(ray_serve.status().applications["shop"].deployments["Offers"].replica_states.values())

    cluster.deploy(revision="scaled", replicas=1, target_in_flight=0.01)
    scaler = ServeScaler("shop", "Offers", "ray://backline", max_replicas=2, dashboard=cluster.dashboard)
    try:
        ray_serve.run(Offers.bind(), name="shop", route_prefix=None, external_scaler_enabled=True)
        with Load(cluster.front.grpc_url) as load:
            until(lambda: scaler.step() == 2)
        until(lambda: running() == [2])

        assert (load.failures, load.answered > 0) == ([], True)

        ray_serve.run(Offers.bind(), name="shop", route_prefix=None)
        with pytest.raises(InvalidArgument, match="set external_scaler_enabled to true"):
            scaler.step()
    finally:
        ray_serve.shutdown()


def test_a_cluster_that_asks_for_no_token_causes_a_warning(cluster: Cluster) -> None:
    assert "set RAY_AUTH_MODE=token on all nodes" in open_ports_warning()


def test_a_cluster_with_a_token_causes_no_warning() -> None:
    program = (
        "from backline.plugins.ray.deployment import open_ports_warning; print(repr(open_ports_warning()))"
    )
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t0ken" * 8}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    )

    assert ended.stdout.strip() == "''"


def sums(path: Path) -> None:
    """Writes a model that returns the sum of a sequence's inputs, which is its state."""
    x, before, after = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in ("x", "before", "sum")
    )
    graph = helper.make_graph([helper.make_node("Add", ["x", "before"], ["sum"])], "g", [x, before], [after])
    put(path / "config.pbtxt", SUMS)
    (path / "1").mkdir()
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        path / "1" / "model.onnx",
    )


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_a_sequence_moves_with_its_state_or_is_refused_with_advice(
    cluster: Cluster, tmp_path: Path, kept: bool
) -> None:
    sums(tmp_path / "sums")
    options: dict[str, Any] = {"replicas": 2, "ray_actor_options": {"num_cpus": 1}}
    deployment(str(tmp_path), keep_sequences=kept, **options).wait_ready(120)
    with connect(cluster.front.grpc_url, timeout=20) as client:
        until(lambda: [entry.name for entry in client.models()] == ["sums"])
        sequences = [client["sums"].sequence() for _ in range(4)]
        for _ in range(3):  # each on its replica
            values = [one(ONE)["sum"][0, 0] for one in sequences]
        assert values == [3, 3, 3, 3]

        deployment(str(tmp_path), keep_sequences=kept, revision="2", **options).wait_ready(120)

        if kept:
            assert [one(ONE, end=True)["sum"][0, 0] for one in sequences] == [4, 4, 4, 4]
        else:
            for one in sequences:
                with pytest.raises(
                    InvalidArgument, match="begin the sequence again, or deploy with keep_sequences"
                ):
                    one(ONE)
    cluster.deploy(revision="whole")


def test_each_replica_of_shards_has_a_part_of_the_models(cluster: Cluster, tmp_path: Path) -> None:
    """Three models of 1 GB and replicas of 2 GB. The replicas change from all models to shards and back while
    requests arrive.
    """
    memory = 'parameters { key: "backline.ray_actor_options.memory" value { string_value: "1e9" } }'
    for name in ("echo", "second", "third"):
        put(tmp_path / name / "config.pbtxt", ECHO + memory)
        put(tmp_path / name / "1" / "empty", "")
    options: dict[str, Any] = {"ray_actor_options": {"num_cpus": 1, "memory": 2_000_000_000}}
    options |= {"replicas": 1, "shards": True}

    with Load(cluster.front.grpc_url) as load:
        deployment(str(tmp_path), **options).wait_ready(120)
        states = cluster.deployed.states()
        assert sorted(sorted(name for name, _ in one.models) for one in states) == [
            ["echo", "second"],
            ["third"],
        ]
        with connect(cluster.front.grpc_url) as client:
            until(lambda: [entry.ready for entry in client.models()] == [True] * 3)
            for name in ("echo", "second", "third"):
                assert client[name](ONE)["y"][0, 0] == 1
        with connect("ray://backline/third") as client:
            assert client["third"](ONE)["y"][0, 0] == 1
        with pytest.raises(InvalidArgument, match="ray://backline/MODEL for one model"):
            connect("ray://backline").models()

        third = next(one for one in states if dict(one.models).keys() == {"third"})
        os.kill(third.pid, signal.SIGKILL)  # its model is placed again, wherever Ray starts the replica
        until(
            lambda: (
                third.pid not in (pids := [one.pid for one in cluster.deployed.states()]) and len(pids) == 2
            )
        )
        with connect(cluster.front.grpc_url) as client:
            until(lambda: client["third"](ONE)["y"][0, 0] == 1)

        cluster.deploy(revision="whole")

    assert (load.failures, load.answered > 0) == ([], True)
    assert len(cluster.deployed.urls()) == 2


def test_keys_and_labels_reach_the_replicas(cluster: Cluster, tmp_path: Path) -> None:
    put(tmp_path / "models" / "echo" / "config.pbtxt", ECHO + "version_policy { all {} }")
    for version in ("1", "2"):
        put(tmp_path / "models" / "echo" / version / "empty", "")
    keys = {name: f"bk_{name}".ljust(32, "x") for name in ("front", "caller", "operator")}
    scopes = {"front": '"infer", "read"', "caller": '"infer", "read"', "operator": '"read", "manage"'}
    tables = (
        f'[[keys]]\nname = "{name}"\nsha256 = "{hash_key(key)}"\nscopes = [{scopes[name]}]\n'
        for name, key in keys.items()
    )
    put(tmp_path / "keys.toml", "".join(tables))
    options = ("--engine", "ray", "--ray-name", "keyed", "--ray-actor-options", '{"num_cpus": 0.5}')
    options += ("--auth", str(tmp_path / "keys.toml"), "--labels", "repository")
    environment = {"RAY_ADDRESS": cluster.nodes.address, "BACKLINE_KEY": keys["front"]}
    try:
        with serve(
            tmp_path / "models", tmp_path / "log", *options, ready=False, environment=environment
        ) as front:
            until(lambda: "Ready: 2 of 2" in front.output)
            with connect(front.grpc_url, api_key=keys["caller"]) as client:
                assert client["echo"](ONE)["y"][0, 0] == 1
            with connect("ray://keyed", api_key=keys["caller"]) as client:
                assert client["echo"](ONE)["y"][0, 0] == 1
            with connect("ray://keyed") as client, pytest.raises(PermissionDenied):
                client["echo"](ONE)

            with connect(front.url, api_key=keys["operator"]) as client:
                client.set_label("echo", "canary", "2")
            with connect("ray://keyed", api_key=keys["caller"]) as client:
                until(lambda: client.model("echo", "canary")(ONE)["y"][0, 0] == 1)
    finally:
        Deployment("keyed", 1).delete()


def test_a_deleted_deployment_is_gone(cluster: Cluster) -> None:
    cluster.deployed.delete()

    with pytest.raises(Unavailable, match="Ray runs no deployment named 'backline'"):
        cluster.deployed.urls()


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="max_replicas not below replicas"):
        deployment("models", replicas=3, max_replicas=2)
