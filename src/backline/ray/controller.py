"""The controller of a deployment: an actor that keeps as many replicas running as the load needs."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.util import list_named_actors

from backline.client.ray_directory import NAMESPACE
from backline.ray.plan import ReplicaMember, next_steps, wanted_replicas
from backline.ray.replica import Replica
from backline.ray.spec import ReplicaSpec, ReplicaState

log = logging.getLogger("backline.ray")

#: Seconds between two checks of the replicas, and the time in seconds that a replica may take to report its
#: state.
_LOOK = 0.5
_ANSWER_WITHIN = 2.0
#: Seconds between removing a replica from the list and stopping it. Clients read the list every second.
_GRACE = 2.5
#: Maximum time, in seconds, for a replica to complete its requests before it is killed.
_DRAIN = 35.0
#: The maximum number of concurrent calls to a replica's actor methods. The server itself runs on another
#: thread.
_CALLS = 4


class Controller:
    """Starts, replaces and stops replicas, which are detached actors named after the deployment.

    The controller needs no persistent state: if Ray restarts it elsewhere, it finds the replicas by their
    names.
    """

    async def __init__(self, name: str, spec: ReplicaSpec, least: int, most: int) -> None:  # type: ignore[misc]
        self._prefix = f"{name}/replica/"
        self._spec = spec
        self._least, self._most = least, most
        self._members: list[ReplicaMember] = []
        #: Whether the controller has found the replicas that existed before it started.
        self._looked = asyncio.Event()
        #: Replicas that are being stopped.
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def urls(self) -> Sequence[str]:
        """Returns the URLs of the replicas that accept requests."""
        await self._looked.wait()
        return [one.state.url for one in self._serving() if one.state is not None]

    async def states(self) -> Sequence[ReplicaState]:
        """Returns the states of the replicas that accept requests and have the current specification."""
        return [one.state for one in self._serving() if one.current and one.state is not None]

    async def settled(self) -> bool:
        """Returns whether there are enough replicas, all with the current specification and accepting
        requests, and none is being stopped.
        """
        serving = self._serving()
        return (
            len(serving) == len(self._members) >= self._least
            and all(one.current for one in serving)
            and not self._leaving
        )

    async def stop(self) -> None:
        """Stops all replicas once they have completed their requests."""
        self._task.cancel()
        for member in self._members:
            self._retire(member.name, grace=0.0)
        if self._leaving:
            await asyncio.wait(self._leaving.values())

    def _serving(self) -> list[ReplicaMember]:
        return [one for one in self._members if one.ready and one.name not in self._leaving]

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
            except Exception:
                log.exception("the replicas could not be checked; the next check follows")
            await asyncio.sleep(_LOOK)

    async def _look(self) -> None:
        # In all namespaces, because this process is in the namespace of the program that made the deployment.
        actors = list_named_actors(all_namespaces=True)
        named = (one["name"] for one in actors if one["namespace"] == NAMESPACE)
        names = sorted(name for name in named if name.startswith(self._prefix))
        for name in [name for name in self._leaving if name not in names]:
            del self._leaving[name]
        current = self._prefix + self._spec.digest
        staying = [name for name in names if name not in self._leaving]
        before = {one.name: one.state for one in self._members}
        states = await asyncio.gather(*(self._state(name, before.get(name)) for name in staying))
        self._members = [
            ReplicaMember(name, name.startswith(current), state)
            for name, state in zip(staying, states, strict=True)
        ]
        wanted = wanted_replicas(self._members, self._least, self._most)
        steps = next_steps(self._members, wanted)
        self._looked.set()
        for _ in range(steps.start):
            self._start()
        for name in steps.stop:
            self._retire(name)

    async def _state(self, name: str, before: ReplicaState | None) -> ReplicaState | None:
        """Returns the state that a replica reports, or `before` if it does not answer in time. Clients find
        out for themselves whether it still accepts requests.
        """
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                state: ReplicaState = await ray.get_actor(name, namespace=NAMESPACE).state.remote()
                return state
        except TimeoutError:
            return before
        except (ray.exceptions.RayError, ValueError):
            return None  # the replica is starting, or has ended

    def _start(self) -> None:
        options: dict[str, Any] = {"num_cpus": 1, "scheduling_strategy": "SPREAD", **self._spec.actor_options}
        ray.remote(Replica).options(
            name=f"{self._prefix}{self._spec.digest}/{uuid.uuid4().hex[:8]}",
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=-1,
            max_concurrency=_CALLS,
            **options,
        ).remote(self._spec)

    def _retire(self, name: str, grace: float = _GRACE) -> None:
        self._leaving[name] = asyncio.get_running_loop().create_task(self._stop(name, grace))

    async def _stop(self, name: str, grace: float) -> None:
        await asyncio.sleep(grace)
        with suppress(ValueError):  # the replica has ended
            actor = ray.get_actor(name, namespace=NAMESPACE)
            with suppress(ray.exceptions.RayError, TimeoutError):
                async with asyncio.timeout(_DRAIN):
                    await actor.stop.remote()
            ray.kill(actor, no_restart=True)
