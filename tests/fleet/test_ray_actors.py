"""How the actors of a deployment treat errors of Ray, which Ray itself does not produce on demand
(`make test-ray`).
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from backline.schedule.sequences.state_store import StateKey
from backline_client.values.errors import Unavailable

ray = pytest.importorskip("ray")

from backline.plugins.ray import controller as controller_module  # noqa: E402
from backline.plugins.ray.controller import Controller  # noqa: E402
from backline.plugins.ray.plan import ReplicaMember  # noqa: E402
from backline.plugins.ray.states import RayStateStore  # noqa: E402

KEY = StateKey("m", "1", 1)


async def test_a_replica_that_cannot_be_ended_at_once_is_ended_later(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[str] = []
    killed: list[str] = []

    class Actor:
        stop = SimpleNamespace(remote=lambda: asyncio.sleep(0, stopped.append("replica")))

    def kill(actor: object, no_restart: bool) -> None:
        killed.append("replica")
        if len(killed) < 3:
            raise ray.exceptions.RaySystemError("the control service does not answer")

    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: Actor)
    monkeypatch.setattr(ray, "kill", kill)
    monkeypatch.setattr(controller_module, "list_named_actors", lambda all_namespaces: [])
    monkeypatch.setattr(controller_module, "_LOOK", 0.001)
    controller = Controller.__new__(Controller)
    await controller.__init__("d", (), 1, 1)  # type: ignore[misc]
    controller._members = [ReplicaMember("d/replica/x/1", "x", None)]

    await controller.stop()

    assert (len(stopped), len(killed)) == (1, 3)


class Keeper:
    """An actor whose calls all succeed, or all fail with `error`."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.put = self.take = self.drop = SimpleNamespace(remote=self._answer)

    def _answer(self, *_: object) -> Any:
        answered: Future[None] = Future()
        if self._error is None:
            answered.set_result(None)
        else:
            answered.set_exception(self._error)
        return SimpleNamespace(future=lambda: answered)


async def test_the_actor_of_states_is_looked_up_on_a_thread_and_only_when_it_may_have_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop_thread = threading.current_thread()
    found = [Keeper(), Keeper(ray.exceptions.ActorDiedError()), ValueError("no such actor")]
    looked_up: list[bool] = []

    def get_actor(name: str, namespace: str) -> Keeper:
        looked_up.append(threading.current_thread() is loop_thread)
        actor = found.pop()
        if isinstance(actor, Exception):
            raise actor
        return actor

    monkeypatch.setattr(ray, "get_actor", get_actor)
    store = await asyncio.to_thread(RayStateStore, "d/states")

    async def found_again() -> None:
        assert store._finding is not None
        await store._finding

    for expected in ("no such actor", "ctor"):
        with pytest.raises(Unavailable, match=expected):
            await store.put(KEY, {}, 1.0)
        await found_again()
    for _ in range(3):
        await store.put(KEY, {}, 1.0)
        assert await store.take(KEY) is None
        store.drop(KEY)

    assert looked_up == [False] * 3
