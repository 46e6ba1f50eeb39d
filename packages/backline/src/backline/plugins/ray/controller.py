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

from backline.plugins.ray.plan import ReplicaMember, ShardTarget, next_steps, serves, wanted_replicas
from backline.plugins.ray.replica import Replica
from backline.plugins.ray.spec import ReplicaSpec, ReplicaState
from backline_client.client.ray_directory import NAMESPACE, ReplicaDirectory

log = logging.getLogger("backline.plugins.ray")

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
    """An actor that starts, replaces and stops replicas. The replicas are detached actors, named after the
    deployment.

    There is one specification for each shard, or a single specification if each replica has all models. Each
    specification has at least `least` and at most `most` replicas. The controller needs no persistent state:
    after Ray has restarted it, it finds the replicas by their names.
    """

    async def __init__(  # type: ignore[misc]
        self, name: str, specs: Sequence[ReplicaSpec], least: int, most: int
    ) -> None:
        self._prefix = f"{name}/replica/"
        self._specs = {spec.digest: spec for spec in specs}
        self._least, self._most = least, most
        self._members: list[ReplicaMember] = []
        #: Set once the controller has found the replicas that existed before it started.
        self._looked = asyncio.Event()
        #: Replicas that are being stopped.
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def directory(self) -> ReplicaDirectory:
        """Returns the replicas that accept requests, with their models."""
        await self._looked.wait()
        serving = [(one.state, one.models) for one in self._serving() if one.state is not None]
        return ReplicaDirectory(
            tuple((state.url, models) for state, models in serving),
            divided=len(self._specs) > 1,
            sockets=tuple((state.url, state.node, state.socket) for state, _ in serving if state.socket),
        )

    async def models(self) -> Sequence[tuple[str, str]]:
        """Returns the name and version of each model version that at least one replica has ready, sorted."""
        await self._looked.wait()
        return sorted(
            {model for one in self._serving() if one.state is not None for model in one.state.models}
        )

    async def states(self) -> Sequence[ReplicaState]:
        """Returns the states of the replicas that accept requests and have a current specification."""
        return [one.state for one in self._serving() if one.digest in self._specs and one.state is not None]

    async def settled(self) -> bool:
        """Returns whether there are enough replicas, all of them accept requests and have a current
        specification, and none is being stopped.
        """
        serving = self._serving()
        return (
            len(serving) == len(self._members)
            and all(one.digest in self._specs for one in serving)
            and all(sum(one.digest == digest for one in serving) >= self._least for digest in self._specs)
            and not self._leaving
        )

    async def stop(self) -> None:
        """Stops each replica as soon as it has completed its requests, or after _DRAIN seconds."""
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
                log.exception("the replicas could not be checked; they will be checked again")
            await asyncio.sleep(_LOOK)

    async def _look(self) -> None:
        # All namespaces are listed, because this process is in the namespace of the program that created the
        # deployment, and not in NAMESPACE.
        actors = list_named_actors(all_namespaces=True)
        named = (one["name"] for one in actors if one["namespace"] == NAMESPACE)
        names = sorted(name for name in named if name.startswith(self._prefix))
        for name in [name for name in self._leaving if name not in names]:
            del self._leaving[name]
        staying = [name for name in names if name not in self._leaving]
        before = {one.name: one.state for one in self._members}
        states = await asyncio.gather(*(self._state(name, before.get(name)) for name in staying))
        self._members = [
            ReplicaMember(name, name.removeprefix(self._prefix).partition("/")[0], state)
            for name, state in zip(staying, states, strict=True)
        ]
        steps = next_steps(self._members, [self._target(spec) for spec in self._specs.values()])
        self._looked.set()
        for digest in steps.start:
            self._start(self._specs[digest])
        for name in steps.stop:
            self._retire(name)

    def _target(self, spec: ReplicaSpec) -> ShardTarget:
        models = None if spec.models is None else frozenset(spec.models)
        target = ShardTarget(spec.digest, self._least, models)
        members = [one for one in self._members if serves(one, target)]
        return ShardTarget(
            spec.digest, wanted_replicas(members, spec.digest, self._least, self._most), models
        )

    async def _state(self, name: str, before: ReplicaState | None) -> ReplicaState | None:
        """Returns the state that a replica reports; None if the replica is starting or has ended. Returns
        `before` if the replica does not respond in time. Clients detect for themselves whether such a replica
        still accepts requests.
        """
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                state: ReplicaState = await ray.get_actor(name, namespace=NAMESPACE).state.remote()
                return state
        except TimeoutError:
            return before
        except (ray.exceptions.RayError, ValueError):
            return None  # the replica is starting, or has ended

    def _start(self, spec: ReplicaSpec) -> None:
        options: dict[str, Any] = {"num_cpus": 1, "scheduling_strategy": "SPREAD", **spec.actor_options}
        ray.remote(Replica).options(
            name=f"{self._prefix}{spec.digest}/{uuid.uuid4().hex[:8]}",
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=-1,
            max_concurrency=_CALLS,
            **options,
        ).remote(spec)

    def _retire(self, name: str, grace: float = _GRACE) -> None:
        self._leaving[name] = asyncio.get_running_loop().create_task(self._stop(name, grace))

    async def _stop(self, name: str, grace: float) -> None:
        await asyncio.sleep(grace)
        drained = False
        while True:
            try:
                actor = ray.get_actor(name, namespace=NAMESPACE)
                if not drained:
                    drained = True  # even if the call fails, because the replica is killed next
                    with suppress(ray.exceptions.RayError, TimeoutError):
                        async with asyncio.timeout(_DRAIN):
                            await actor.stop.remote()
                ray.kill(actor, no_restart=True)
                return
            except ValueError:  # the replica has ended
                return
            except ray.exceptions.RayError as error:
                # If the controller gave up, the replica would occupy resources of the cluster without ever
                # getting requests again.
                log.warning("the replica %s could not be stopped; trying again: %s", name, error)
            await asyncio.sleep(_LOOK)
