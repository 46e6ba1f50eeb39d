"""The load with which attacks are compared: honest clients that each have one request in flight."""

from __future__ import annotations

import selectors
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from time import monotonic

from attacks import bytes_on_the_wire as wire
from attacks.arena import Sampler, collect, honest_client, in_process
from attacks.honest import GrpcCaller, HttpCaller
from attacks.target import Target

#: The maximum number of connections: with more, the clients would only measure how long they queue.
CONNECTIONS = 32
#: Seconds until a large request must be answered.
PATIENCE = 30.0


def _take_turns(target: Target, connections: int, duration: float, control: Connection) -> None:
    """Runs closed-loop clients. Each sends its next request when it has the response to the previous one."""
    request = wire.add1_request(*target.key_field)
    selector = selectors.DefaultSelector()
    control.send("loaded")
    control.recv()
    end = monotonic() + duration
    for _ in range(connections):
        connection = target.connect()
        selector.register(connection, selectors.EVENT_READ, connection)
        connection.sendall(request)
    answered = 0
    while monotonic() < end:
        for key, _ in selector.select(0.1):
            connection = key.data
            # An answer is far smaller than this, and arrives in one piece.
            if not connection.recv(65536):
                raise RuntimeError("the server closed a connection of the valid load")
            connection.sendall(request)
            answered += 1
    control.send(answered)


def valid_p99(target: Target, connections: int, duration: float, *, image: bool = False) -> float:
    """Returns the honest client's p99 in milliseconds while others send valid requests on `connections`."""
    count = min(connections, CONNECTIONS)
    process, load = in_process(_take_turns, target, count, duration)
    with honest_client(target, image=image) as client:
        begin = monotonic()
        load.send("go")
        load.recv()
        end = monotonic()
        log = collect(client)
    process.join(5)
    if log.errors:
        raise RuntimeError(f"errors under valid load: {log.errors[0].error}")
    return log.between(begin, end).quantile(0.99)


def _send_large(
    target: Target, protocol: str, connections: int, duration: float, control: Connection
) -> None:
    """Runs closed-loop clients that send large requests."""
    request, message = wire.large_request(*target.key_field), wire.large_message()
    callers = [
        HttpCaller(target, request, PATIENCE) if protocol == "HTTP" else GrpcCaller(target, message, PATIENCE)
        for _ in range(connections)
    ]
    control.send("loaded")
    control.recv()
    end = monotonic() + duration

    def run(caller: HttpCaller | GrpcCaller) -> int:
        answered = 0
        while monotonic() < end:
            caller()
            answered += 1
        return answered

    with ThreadPoolExecutor(connections) as threads:
        control.send(sum(threads.map(run, callers)))


def valid_growth(target: Target, protocol: str, connections: int, duration: float) -> float:
    """Returns how many MiB more the server takes while clients send valid requests of almost 64 MiB."""
    process, load = in_process(_send_large, target, protocol, connections, duration)
    sampler = Sampler(target.pid)
    sampler.start()
    load.send("go")
    try:
        load.recv()
    except EOFError:
        raise RuntimeError(f"errors under valid load with large bodies over {protocol}") from None
    finally:
        watch = sampler.stop()
    process.join(5)
    return watch.growth
