"""Measures what a deployment on Ray adds to the latency of a single caller.

`python benchmarks/ray_latency.py` starts Ray on this machine and calls the model add1 in turn: on one server
that does not run on Ray, on a replica that does, and through the server in front of two replicas. Then it
starts Ray Serve with two replicas, and calls the model in turn on that server and through Serve's proxy.
Serve is started last because its processes take CPU time even without requests. In Serve, the model gets the
bytes of the tensor as the body, so that no protocol has to be parsed. h2load sends the requests, one after
the other.
"""

from __future__ import annotations

import contextlib
import logging
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median

import click
import numpy as np
from harness import h2load
from harness.environment import CannotRun
from harness.machine import machine
from harness.model import Model, model
from harness.peers.backline import serve_command
from harness.server_process import ServerProcess, answers_200, free_ports

from backline.plugins.ray import Deployment

#: The name of the deployment, and the number of its replicas and of Serve's.
NAME, REPLICAS = "latency", 2


@dataclass(frozen=True)
class Way:
    """A way to reach the model: `post` is the request for h2load, and `options` are h2load's options for the
    protocol.
    """

    name: str
    protocol: str
    post: h2load.Post
    options: tuple[str, ...]


def serve_application(asked: Model, route: str) -> object:
    """Returns the Serve application that runs the model on the bytes of its input."""
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response

    file, name, shape = str(asked.file), asked.input_name, asked.shape

    @serve.deployment(num_replicas=REPLICAS, max_ongoing_requests=100, ray_actor_options={"num_cpus": 1})
    class InServe:
        def __init__(self) -> None:
            import onnxruntime

            self._session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

        async def __call__(self, request: Request) -> Response:
            given = np.frombuffer(await request.body(), np.float32).reshape(shape)
            return Response(self._session.run(None, {name: given})[0].tobytes())

    return InServe.options(name=route).bind()


def ways_to(
    name: str, asked: Model, http_port: int, grpc_port: int, host: str = "127.0.0.1"
) -> Iterator[Way]:
    """Yields the ways to a server of Backline."""
    body, headers = asked.binary_request()
    post = h2load.Post(f"http://{host}:{http_port}/v2/models/{asked.name}/infer", body, headers)
    yield Way(name, "http", post, ("--h1",))
    call = h2load.grpc_post(grpc_port, asked.grpc_request())
    url = call.url.replace("127.0.0.1", host)
    yield Way(name, "grpc", h2load.Post(url, call.body, call.headers), ())


@contextlib.contextmanager
def started(asked: Model) -> Iterator[list[Way]]:
    """Starts Ray and the servers, and yields the ways to the model. Raises CannotRun without Ray."""
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise CannotRun(f"pip install 'ray[serve]': {error}") from None
    repository = asked.file.parents[2]
    servers: list[ServerProcess] = []
    ray.init(num_cpus=2 * REPLICAS + 2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        address = ray.get_runtime_context().gcs_address
        ways: list[Way] = []
        on_ray = ["--engine", "ray", "--ray-address", address, "--ray-name", NAME]
        for name, options in (("server", []), ("front", [*on_ray, "--ray-replicas", str(REPLICAS)])):
            http, grpc, metrics = free_ports(3)
            servers.append(
                ServerProcess(f"ray_{name}", [*serve_command(repository, http, grpc, metrics), *options])
            )
            servers[-1].wait_until(ready_at(http))
            ways += ways_to(name, asked, http, grpc)
        host, _, port = Deployment(NAME, REPLICAS).urls()[0].removeprefix("grpc://").rpartition(":")
        ways += ways_to("replica", asked, int(port), int(port), host)
        yield ways
    finally:
        for server in servers:
            server.end()
        with contextlib.suppress(Exception):
            Deployment(NAME, REPLICAS).delete()
        serve.shutdown()
        ray.shutdown()


def ready_at(port: int) -> Callable[[], bool]:
    return lambda: answers_200(f"http://127.0.0.1:{port}/v2/models/add1/ready")


def way_to_serve(asked: Model) -> Way:
    """Starts Ray Serve without its log of requests, and checks the first response."""
    from ray import serve

    (port,) = free_ports(1)
    quiet = {"enable_access_log": False, "log_level": "ERROR"}
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)
    serve.run(serve_application(asked, "add1"), route_prefix="/add1", logging_config=quiet)
    url, body = f"http://127.0.0.1:{port}/add1", asked.input.tobytes()
    with urllib.request.urlopen(urllib.request.Request(url, body)) as answer:
        if answer.read() != next(iter(asked.outputs.values())).tobytes():
            raise CannotRun("Ray Serve's response is wrong")
    return Way(
        "Ray Serve", "http", h2load.Post(url, body, {"content-type": "application/octet-stream"}), ("--h1",)
    )


def measure(way: Way, seconds: int) -> float:
    """Returns the median latency of a single caller in microseconds."""
    run = h2load.Load(way.post, [*way.options, "-c1", "-m1", f"-D{seconds}"])
    try:
        found = h2load.parse(run.finish(seconds + 60), [one.took * 1e6 for one in run.requests()])
    finally:
        run.end()
    if not found.requests or found.errors:
        raise CannotRun(f"{way.name}: {found.errors} of {found.requests} requests failed")
    return found.p50_us


@dataclass(frozen=True)
class Latency:
    """The median latencies of the rounds, and how much longer than those of the server without Ray over the
    same protocol, in microseconds.
    """

    way: Way
    took: list[float]
    added: list[float]


def in_turn(ways: Sequence[Way], rounds: int, seconds: int) -> list[Latency]:
    """Measures the ways in turn, in several rounds."""
    for way in ways:
        measure(way, 1)
    found = [{(way.name, way.protocol): measure(way, seconds) for way in ways} for _ in range(rounds)]
    return [
        Latency(
            way,
            [one[way.name, way.protocol] for one in found],
            [one[way.name, way.protocol] - one["server", way.protocol] for one in found],
        )
        for way in ways
    ]


def table(measured: Sequence[Latency]) -> Iterator[str]:
    """Yields the lines of the table. What a way adds is the median over the rounds."""
    yield "| over | asked | p50 us | added us | added in each round |"
    yield "| --- | --- | --- | --- | --- |"
    for one in sorted(measured, key=lambda one: (one.way.protocol, median(one.took))):
        line = f"| {one.way.protocol} | {one.way.name} | {median(one.took):.0f} |"
        if one.way.name == "server":
            yield f"{line} | |"
        else:
            yield f"{line} {median(one.added):+.0f} | {', '.join(f'{added:.0f}' for added in one.added)} |"


@click.command()
@click.option("--rounds", default=5, show_default=True, help="How often each way is measured.")
@click.option("--seconds", default=2, show_default=True, help="How long each way is measured in a round.")
def main(rounds: int, seconds: int) -> None:
    """Print the median latencies of a single caller with and without Ray."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    for name, value in machine().items():
        print(f"{name}: {value}")
    asked = model("add1")
    try:
        with started(asked) as ways:
            print(f"ray: {version('ray')}\n", flush=True)
            measured = in_turn(ways, rounds, seconds)
            server = next(way for way in ways if way.name == "server" and way.protocol == "http")
            measured += in_turn([server, way_to_serve(asked)], rounds, seconds)[1:]
    except CannotRun as error:
        raise click.ClickException(str(error)) from None
    print("\n".join(table(measured)))


if __name__ == "__main__":
    main()
