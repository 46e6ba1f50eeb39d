"""Runs an open loop over gRPC with grpcio's asyncio client, for up to about a thousand calls per second."""

from __future__ import annotations

import asyncio
from time import monotonic

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from harness.open_loop import Fate, Fates, send_steadily

#: The number of calls in flight per connection. It is below the limits of servers, because grpcio silently
#: queues calls above those limits.
CALLS_PER_CONNECTION = 100


class GrpcClients:
    """Clients that spread ModelInfer calls over several connections. An outcome is the name of a call's
    status code.
    """

    def __init__(self, port: int, message: bytes, *, connections: int = 48) -> None:
        # Without this option, all channels to one address share a connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) for _ in range(connections)]
        self.stubs = [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in self.channels]
        self.busy = [0] * connections
        self.request = service_pb2.ModelInferRequest.FromString(message)
        self.fates = Fates()
        self.tasks: set[asyncio.Task[None]] = set()

    async def _call(self, due: float) -> None:
        place = min(range(len(self.busy)), key=self.busy.__getitem__)
        self.busy[place] += 1
        sent = monotonic()
        try:
            await self.stubs[place].ModelInfer(self.request, timeout=300)
            what = "OK"
        except grpc.aio.AioRpcError as error:
            what = error.code().name
        self.busy[place] -= 1
        self.fates.all.append(Fate(what, due, sent, monotonic()))

    def send(self, due: float) -> None:
        if min(self.busy) >= CALLS_PER_CONNECTION:
            self.fates.all.append(Fate("not sent: the client has no connection left", due, due, due))
            return
        task = asyncio.get_running_loop().create_task(self._call(due))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def closed_loop(self, clients: int, seconds: float) -> float:
        """Returns the number of successful calls that `clients` closed-loop clients make per second."""
        started = monotonic()
        done = 0

        async def client() -> None:
            nonlocal done
            while monotonic() - started < seconds:
                await self._call(monotonic())
                done += self.fates.all[-1].what == "OK"

        await asyncio.gather(*(client() for _ in range(clients)))
        return done / (monotonic() - started)

    async def open_loop(self, rate: float, seconds: float) -> None:
        """Sends `rate` calls per second for `seconds`. Returns after sending the last one."""
        await send_steadily(self.send, rate, seconds)

    async def settle(self, seconds: float) -> int:
        """Waits up to `seconds` for all calls to end. Returns how many have not ended."""
        if self.tasks:
            await asyncio.wait(set(self.tasks), timeout=seconds)
        return len(self.tasks)

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()
