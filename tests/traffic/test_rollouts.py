"""Rollouts of an embedded engine: what keeps to the guard is promoted, what breaks it is rolled back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from backline.embedded.embedded import Embedded
from backline.lifecycle.options import ALL_MODELS, LifecycleOptions
from backline.plugins.traffic.route import Rollout, Route, check_route
from backline.plugins.traffic.routes import RouteChange, Routes, open_routes
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Tensor

MODEL = """
import os
import numpy as np
from backline.model import FP32

KEPT = []


class Candidate:
    count = 0

    def predict(self, INPUT0: FP32[1, 16]) -> FP32[1, 16]:
        self.count += 1
        y = INPUT0 + 1
        {code}
        return y.astype("float32")
"""
GUARD = "errors<1%, distance<0.001, memory<1.5x"
#: What each faulty version does, and the clause that it breaks.
FAULTS = {
    "failing": ("raise RuntimeError('planted')", "errors<1%"),
    "crashing": ("if INPUT0[0, 0] == 3: os._exit(3)", "errors<1%"),
    "wrong": ("y = y * 1.01", "distance<0.001"),
    "nan": ("y = y * np.nan", "distance<0.001"),
    "growing": ("KEPT.append(b'x' * 5_000_000)", "memory<1.5x"),
}


@asynccontextmanager
async def served(folder: Path, **codes: str) -> AsyncIterator[tuple[Embedded, Routes]]:
    """An engine with a base and a version for each of `codes`, as models of their own."""
    for name, code in {"base": "pass", **codes}.items():
        (folder / "models" / name / "1").mkdir(parents=True)
        (folder / "models" / name / "1" / "model.py").write_text(MODEL.format(code=code))
    options = LifecycleOptions(
        mode="explicit", load_models=(ALL_MODELS,), state_folder=folder / "state", isolate="never"
    )
    embedded = Embedded([folder / "models"], options)
    async with embedded:
        yield embedded, open_routes(embedded.engine, embedded.state_folder)


async def send_until_changed(embedded: Embedded, routes: Routes, revision: int) -> RouteChange:
    """Sends requests, which all must succeed, until the route has another revision."""
    number = 0
    while routes.revision("notes") == revision:
        data = np.full((1, 16), number % 7, np.float32)
        tensor = Tensor("INPUT0", DataType.FP32, data.shape, data)
        response = await embedded.engine.infer(
            InferRequest("notes", {"INPUT0": tensor}, id=f"request-{number}")
        )
        assert response.outputs[0].shape == (1, 16)
        number += 1
    return routes.history("notes")[-1]


def rollout(to: str, *steps: float, guard: str = GUARD) -> Route:
    return Route({"base@1": 1}, rollout=Rollout(to, guard, steps, 0.0, 30))


async def test_a_version_that_keeps_to_the_guard_is_promoted_step_by_step(tmp_path: Path) -> None:
    async with served(tmp_path, good="y = y * (1 + 1e-7)") as (embedded, routes):
        change = await routes.put("notes", rollout("good", 0, 20, 50), "ada", None)

        change = await send_until_changed(embedded, routes, change.revision)

        assert (change.action, change.who, change.route) == ("promote", "guard", Route({"good": 1}))
        assert "has kept to the guard" in change.detail
        back = await routes.rollback("notes", "ada", None)
        assert back.route == Route({"base@1": 1})


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_faulty_version_is_rolled_back_with_the_reason_and_no_client_notices(
    tmp_path: Path, fault: str
) -> None:
    code, clause = FAULTS[fault]
    async with served(tmp_path, faulty=code) as (embedded, routes):
        # A memory that grows takes more requests than a step of 30.
        route = rollout("faulty", 0, 20) if fault != "growing" else rollout("faulty", *range(20))
        change = await routes.put("notes", route, "ada", None)

        change = await send_until_changed(embedded, routes, change.revision)

        assert (change.action, change.route) == ("guard", Route({"base@1": 1}))
        assert f"'faulty' has broken '{clause}'" in change.detail
        assert fault == "growing" or "request-" in change.detail
        assert routes.front("notes").run is None


async def test_clients_do_not_meet_the_errors_of_a_version_without_copies(tmp_path: Path) -> None:
    async with served(tmp_path, faulty="raise RuntimeError('planted')") as (embedded, routes):
        route = Route({"base@1": 1}, rollout=Rollout("faulty", "errors<1%", (50.0,), 0.0, 30, mirror=0))
        change = await routes.put("notes", route, "ada", None)

        change = await send_until_changed(embedded, routes, change.revision)

        assert change.action == "guard"
        assert "planted" in change.detail


async def test_a_rollout_of_a_model_makes_a_route_and_a_rollback_ends_it(tmp_path: Path) -> None:
    async with served(tmp_path, good="pass") as (_, routes):
        await routes.roll_out("base", Rollout("good", GUARD), "ada", 0)
        assert routes.route("base").targets == {"base@1": 1}
        assert routes.front("base").run is not None

        await routes.rollback("base", "ada", None)

        assert routes.route("base") == Route({"base@1": 1})
        assert routes.front("base").run is None


async def test_a_rollout_continues_if_something_else_of_the_route_changes(tmp_path: Path) -> None:
    async with served(tmp_path, good="pass") as (_, routes):
        await routes.put("notes", rollout("good", 0, 20), "ada", None)
        run = routes.front("notes").run

        await routes.put(
            "notes",
            Route({"base@1": 1}, fallback=["base@1"], rollout=rollout("good", 0, 20).rollout),
            "ada",
            1,
        )

        assert routes.front("notes").run is run


async def test_the_audit_log_has_the_end_of_a_rollout(tmp_path: Path) -> None:
    async with served(tmp_path, faulty="raise RuntimeError('planted')") as (embedded, routes):
        change = await routes.put("notes", rollout("faulty", 0, 20), "ada", None)
        await send_until_changed(embedded, routes, change.revision)
        control = embedded.engine.control
        assert control is not None

        async with asyncio.timeout(20):
            while True:
                page = await control.audit(10, 0.0, "", form=lambda page: page)
                found = [one for one in page.entries if "route 'notes'" in getattr(one, "route", "")]
                if found:
                    break
                await asyncio.sleep(0.01)

        assert found[0].model == "notes"
        assert "has broken 'errors<1%'" in found[0].detail


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        (Rollout("m@2", "errors"), "'errors' is not a clause"),
        (Rollout("m@1", "errors<1%"), "among the targets already"),
        (Rollout("m@2", "errors<1%", ()), "steps are percentages"),
        (Rollout("m@2", "errors<1%", (5.0, 5.0)), "each above the one before"),
        (Rollout("m@2", "errors<1%", (5.0, 101.0)), "steps are percentages"),
        (Rollout("m@2", "errors<1%", (0.0, 5.0), mirror=0), "need copies: set mirror"),
        (Rollout("m@2", "distance<1%", (5.0,), mirror=0), "need copies: set mirror"),
        (Rollout("m@2", "errors<1%", bake_seconds=-1), "expected bake_seconds"),
        (Rollout("m@2", "errors<1%", requests=0), "requests from 1"),
        (Rollout("m@2", "errors<1%", mirror=2), "share is 2"),
    ],
)
def test_an_invalid_rollout_is_refused(asked: Rollout, wrong: str) -> None:
    with pytest.raises(InvalidArgument, match=wrong):
        check_route("m", Route({"m@1": 1}, rollout=asked))
