"""Keeps the states of sequences in an actor, so that a state outlives the replica that runs the sequence."""

from __future__ import annotations

import asyncio
from typing import Any

import ray

from backline.schedule.sequences.state_store import MemoryStateStore, State, StateKey
from backline_client.client.ray_directory import NAMESPACE
from backline_client.values.errors import Unavailable

#: Maximum time, in seconds, for the actor to store or return a state.
_TIMEOUT = 2.0


class StateKeeper:
    """The actor that keeps the states of a deployment's sequences. The calls of each replica take effect in
    the order in which the replica made them.
    """

    def __init__(self) -> None:
        self._states = MemoryStateStore()

    async def put(self, key: StateKey, state: State, seconds: float) -> None:
        self._states.put(key, state, seconds)

    async def take(self, key: StateKey) -> State | None:
        return await self._states.take(key)

    async def drop(self, key: StateKey) -> None:
        self._states.drop(key)


class RayStateStore:
    """A StateStore that keeps its states in a StateKeeper.

    If the actor ends, Ray restarts it without states. Each sequence then stores its state again with its next
    request.
    """

    def __init__(self, keeper: str) -> None:
        """Creates a store that uses the StateKeeper whose actor has the name `keeper`. Blocks while Ray looks
        up the actor.
        """
        self._keeper = keeper
        #: The actor, or the error if Ray knows no such actor. Ray's look-up blocks, so the event loop must
        #: not do it for each call.
        self._actor = self._find()
        self._finding: asyncio.Task[None] | None = None

    def put(self, key: StateKey, state: State, seconds: float) -> asyncio.Future[None]:
        written = self._ask("put", key, state, seconds)
        return asyncio.get_running_loop().create_task(self._answer(written))

    async def take(self, key: StateKey) -> State | None:
        state: State | None = await self._answer(self._ask("take", key))
        return state

    def drop(self, key: StateKey) -> None:
        self._ask("drop", key)

    def _find(self) -> Any:
        try:
            return ray.get_actor(self._keeper, namespace=NAMESPACE)
        except (ray.exceptions.RayError, ValueError) as error:
            return error

    def _ask(self, method: str, *arguments: object) -> Any:
        """Calls a method of the actor. Returns a reference to the result, or the error if there is no such
        actor.
        """
        if isinstance(self._actor, Exception):
            self._find_again()
            return self._actor
        try:
            return getattr(self._actor, method).remote(*arguments)
        except (ray.exceptions.RayError, ValueError) as error:
            return error

    async def _answer(self, asked: Any) -> Any:
        try:
            if isinstance(asked, Exception):
                raise asked
            async with asyncio.timeout(_TIMEOUT):
                return await asyncio.wrap_future(asked.future())
        except (ray.exceptions.RayError, ValueError, TimeoutError) as error:
            if isinstance(error, ray.exceptions.ActorDiedError):  # a new actor may have the name by now
                self._find_again()
            reason = str(error).strip().partition("\n")[0] or f"no response within {_TIMEOUT:g} s"
            raise Unavailable(
                f"the states of sequences, in the actor '{self._keeper}', are unavailable: {reason}"
            ) from None

    def _find_again(self) -> None:
        """Looks up the actor again, on a thread, for the calls that follow."""
        if self._finding is None:
            self._finding = asyncio.get_running_loop().create_task(self._replace_actor())

    async def _replace_actor(self) -> None:
        try:
            self._actor = await asyncio.to_thread(self._find)
        finally:
            self._finding = None
