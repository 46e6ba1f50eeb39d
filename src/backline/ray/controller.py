"""The controller of a deployment: an actor that keeps the replicas at the number that the load needs."""

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

#: Seconds between looks at the replicas, and how long one may take to describe itself.
_LOOK = 0.5
_ANSWER_WITHIN = 2.0
#: Seconds between taking a replica out of the list and stopping it. Clients look the list up every second.
_GRACE = 2.5
#: Seconds that a replica gets to complete its requests.
_DRAIN = 35.0
#: Calls of one replica that may run at once: the server itself runs on another thread.
_CALLS = 4


class Controller:
    """Starts, replaces and stops replicas, which are detached actors with the name of the deployment.

    It has no state that must survive: if Ray restarts it elsewhere, it finds the replicas by their names.
    """

    async def __init__(self, name: str, spec: ReplicaSpec, least: int, most: int) -> None:  # type: ignore[misc]
        self._prefix = f"{name}/replica/"
        self._spec = spec
        self._least, self._most = least, most
        self._members: list[ReplicaMember] = []
        #: Whether the replicas that existed before this controller are known.
        self._looked = asyncio.Event()
        #: Replicas that are being stopped.
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def urls(self) -> Sequence[str]:
        """The addresses of the replicas that take requests."""
        await self._looked.wait()
        return [one.state.url for one in self._serving() if one.state is not None]

    async def states(self) -> Sequence[ReplicaState]:
        """The replicas of the present specification that take requests."""
        return [one.state for one in self._serving() if one.current and one.state is not None]

    async def settled(self) -> bool:
        """Whether all replicas have the present specification and take requests, as many as are wanted."""
        serving = self._serving()
        return (
            len(serving) == len(self._members) >= self._least
            and all(one.current for one in serving)
            and not self._leaving
        )

    async def stop(self) -> None:
        """Stops all replicas, once they have completed their requests."""
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
                log.exception("the replicas could not be looked at; the next look follows")
            await asyncio.sleep(_LOOK)

    async def _look(self) -> None:
        # Not only those of this process's namespace, which is the one of the program that deployed.
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
        """What a replica says. One that does not answer in time is as it was `before`: whether to send
        requests to it, clients find out themselves.
        """
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                state: ReplicaState = await ray.get_actor(name, namespace=NAMESPACE).state.remote()
                return state
        except TimeoutError:
            return before
        except (ray.exceptions.RayError, ValueError):
            return None  # it starts, or has ended

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
        with suppress(ValueError):  # it has ended
            actor = ray.get_actor(name, namespace=NAMESPACE)
            with suppress(ray.exceptions.RayError, TimeoutError):
                async with asyncio.timeout(_DRAIN):
                    await actor.stop.remote()
            ray.kill(actor, no_restart=True)
