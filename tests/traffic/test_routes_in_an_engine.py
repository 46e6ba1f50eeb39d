"""Routes of an embedded engine: declared, changed, rolled back, and applied to requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backline.embedded.embedded import Embedded
from backline.engine.ticket import Ticket
from backline.lifecycle.options import ALL_MODELS, LifecycleOptions
from backline.plugins.traffic.route import Bandit, Route, Rule, Shadow
from backline.plugins.traffic.routes import Routes, open_routes
from backline.plugins.traffic.shadow import Compared, Mirror
from backline_client.client.aio import AsyncClient
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Forbidden, InvalidArgument, NotFound
from backline_client.values.messages import InferRequest, InferResponse, SequenceStep
from backline_client.values.tensor import Tensor
from support import models

ALL = "version_policy: { all {} }\n"
FAILING = """
from backline.model import FP32


class Failing:
    def predict(self, INPUT0: FP32[-1, 16]) -> FP32[-1, 16]:
        raise RuntimeError("broken")
"""
SLEEPING = """
import asyncio
from backline.model import FP32


class Sleeping:
    async def predict(self, INPUT0: FP32[-1, 16]) -> FP32[-1, 16]:
        await asyncio.sleep(5)
        return INPUT0
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """add1 with versions 1 and 2, which add 1 and 2, and a model that always fails."""
    folder = tmp_path / "models"
    models.add1(folder)
    models.add1(folder, version="2", constant=2.0)
    (folder / "add1" / "config.pbtxt").write_text(ALL)
    for name, code in (("failing", FAILING), ("sleeping", SLEEPING)):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.py").write_text(code)
    return folder


class Program:
    def __init__(self, repository: Path, stack: AsyncExitStack) -> None:
        options = LifecycleOptions(
            mode="explicit",
            load_models=(ALL_MODELS,),
            state_folder=repository.with_name("state"),
            isolate="never",
        )
        self.embedded = Embedded([repository], options)
        self.client: AsyncClient
        self._stack = stack

    async def start(self) -> Program:
        self.client = await self._stack.enter_async_context(self.embedded)
        return self

    @property
    def routes(self) -> Routes:
        return open_routes(self.embedded.engine, self.embedded.state_folder)

    async def put(self, name: str, route: Route, expected: int | None = None) -> int:
        return (await self.routes.put(name, route, "ada", expected)).revision

    def request(self, name: str, **more: Any) -> InferRequest:
        data = np.zeros((1, 16), np.float32)
        return InferRequest(name, {"INPUT0": Tensor("INPUT0", DataType.FP32, data.shape, data)}, **more)

    async def added(self, name: str, **more: Any) -> float:
        """What the model that served a request has added."""
        response = await self.embedded.engine.infer(self.request(name, **more))
        return float(response.outputs[0].data[0, 0])

    def future(self, request: InferRequest, **settings: Any) -> tuple[Ticket, asyncio.Future[InferResponse]]:
        done: asyncio.Future[InferResponse] = asyncio.get_running_loop().create_future()

        def complete(_: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
            if error is not None:
                done.set_exception(error)
            else:
                assert response is not None
                done.set_result(response)

        ticket = Ticket(request, complete)
        for name, value in settings.items():
            setattr(ticket, name, value)
        self.embedded.engine.submit(ticket)
        return ticket, done


async def test_requests_are_spread_and_responses_name_the_version(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        await program.put("notes", Route({"add1@1": 3, "add1@2": 1}))

        answers = [await program.embedded.engine.infer(program.request("notes")) for _ in range(400)]

        versions = Counter(answer.model_version for answer in answers)
        assert {answer.model_name for answer in answers} == {"add1"}
        assert 230 < versions["1"] < 370  # 300, and eight times its standard deviation to both sides
        counts = {name: one.counts.requests for name, one in program.routes.front("notes").by_name.items()}
        assert counts == {"add1@1": versions["1"], "add1@2": versions["2"]}


async def test_a_route_may_have_the_name_of_a_model_whose_versions_remain_reachable(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        assert await program.added("add1") == 2

        await program.put("add1", Route({"add1@1": 1}))

        assert await program.added("add1") == 1
        assert await program.added("add1", model_version="2") == 2


async def test_a_client_calls_a_route_as_it_calls_a_model(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        await program.put("notes", Route({"add1@1": 1}))

        result = await program.client["notes"](np.zeros((1, 16), np.float32))
        metadata = await program.client["notes"].metadata()

        assert result["OUTPUT0"][0, 0] == 1
        assert [spec.name for spec in metadata.inputs] == ["INPUT0"]
        with pytest.raises(NotFound, match="it is a route, which has no versions"):
            await program.client.model("notes", "1")(np.zeros((1, 16), np.float32))


async def test_a_route_to_another_route_follows_it(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        await program.put("inner", Route({"add1@2": 1}))
        await program.put("outer", Route({"inner": 1}))

        assert await program.added("outer") == 2
        with pytest.raises(InvalidArgument, match="cycle"):
            await program.put("inner", Route({"outer": 1}))
        assert await program.added("outer") == 2


async def test_rules_see_header_fields_parameters_and_identities(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        rules = [
            Rule({"header:X-Tier": "beta"}, "add1@2"),
            Rule({"parameter:fast": "true"}, "add1@2"),
            Rule({"identity": "lab"}, "add1@2"),
        ]
        await program.put("notes", Route({"add1@1": 1}, rules))

        async def version(parameters: dict[str, Any] | None = None, **settings: Any) -> str:
            _, done = program.future(program.request("notes", parameters=parameters), **settings)
            return (await done).model_version

        assert await version() == "1"
        assert await version(fields={b"x-tier": b"beta"}) == "2"
        assert await version(fields={b"x-tier": b"alpha"}) == "1"
        assert await version({"fast": True}) == "2"
        assert await version(identity="lab") == "2"


async def test_a_failing_target_is_replaced_by_the_fallback(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        await program.put("notes", Route({"failing": 1}, fallback=["add1@1"]))

        assert [await program.added("notes") for _ in range(5)] == [1] * 5

        counts = program.routes.front("notes").by_name["failing"].counts
        assert (counts.requests, counts.failures, counts.fallbacks) == (5, 5, 5)


async def test_without_a_fallback_the_error_is_the_callers(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        await program.put("notes", Route({"failing": 1}, fallback=["failing"]))

        with pytest.raises(BacklineError, match="broken"):
            await program.added("notes")


async def test_a_request_that_does_not_fit_is_not_sent_to_the_fallback(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        await program.put("notes", Route({"add1@1": 1}, fallback=["add1@2"]))

        with pytest.raises(InvalidArgument, match="missing required input"):
            await program.embedded.engine.infer(InferRequest("notes", {}))

        assert program.routes.front("notes").by_name["add1@2"].counts.requests == 0


async def test_a_slow_target_is_left_after_the_timeout(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        await program.put("notes", Route({"sleeping": 1}, fallback=["add1@1"], timeout_ms=20))

        assert await program.added("notes") == 1


async def test_cancelling_a_request_cancels_what_stands_in_for_it(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        await program.put("notes", Route({"sleeping": 1}, fallback=["add1@1"]))
        ticket, done = program.future(program.request("notes"))

        ticket.cancel()

        assert not done.done()
        assert ticket.cancelled
        assert await program.added("add1", model_version="1") == 1


async def test_a_target_that_cannot_respond_gets_no_requests(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        await program.put("notes", Route({"add1@1": 1, "failing": 1}))

        await program.client.unload("failing")

        assert [await program.added("notes") for _ in range(50)] == [1] * 50


async def test_a_sequence_stays_with_its_target_until_it_ends(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        await program.put("notes", Route({"add1@1": 1, "add1@2": 1}))

        async def step(**step: Any) -> float:
            return await program.added("notes", sequence=SequenceStep(7, **step))

        first = await step(start=True)
        await program.put(
            "notes", Route({"add1@1": 1 if first == 2 else 0.0001, "add1@2": 1 if first == 1 else 0.0001})
        )
        assert [await step() for _ in range(20)] == [first] * 20
        assert await step(end=True) == first


async def test_changes_have_revisions_and_are_refused_if_somebody_else_was_faster(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        assert await program.put("notes", Route({"add1@1": 1}), 0) == 1
        assert await program.put("notes", Route({"add1@2": 1}), 1) == 2

        with pytest.raises(InvalidArgument, match="has revision 2, not 1: ada changed it"):
            await program.put("notes", Route({"add1@1": 1}), 1)

        assert await program.added("notes") == 2


async def test_repeated_rollbacks_go_back_further_and_survive_a_restart(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        for weights in ({"add1@1": 1.0}, {"add1@2": 1.0}, {"add1@1": 1.0, "add1@2": 1.0}):
            await program.put("notes", Route(weights))

        assert (await program.routes.rollback("notes", "ada", None)).route == Route({"add1@2": 1})
        assert (await program.routes.rollback("notes", "ada", None)).route == Route({"add1@1": 1})
        with pytest.raises(InvalidArgument, match="no earlier state"):
            await program.routes.rollback("notes", "ada", None)
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()

        assert await program.added("notes") == 1
        assert [one.action for one in program.routes.history("notes")] == ["set"] * 3 + ["rollback"] * 2


async def test_a_file_in_the_repository_declares_routes_that_requests_may_replace(repository: Path) -> None:
    (repository / "routes.toml").write_text('[notes]\ntargets = { "add1@1" = 1 }\n')
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        assert await program.added("notes") == 1

        await program.put("notes", Route({"add1@2": 1}))
        assert await program.added("notes") == 2
        await program.routes.rollback("notes", "ada", None)
        assert await program.added("notes") == 1
        await program.put("notes", Route({"add1@2": 1}))
        await program.routes.remove("notes", "ada", None)
        assert await program.added("notes") == 1
        with pytest.raises(InvalidArgument, match=r"declared in routes\.toml"):
            await program.routes.remove("notes", "ada", None)


async def test_a_removed_route_is_unknown_again(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        await program.put("notes", Route({"add1@2": 1}))

        await program.routes.remove("notes", "ada", None)

        with pytest.raises(NotFound, match="'notes' is not found"):
            await program.added("notes")
        await program.routes.rollback("notes", "ada", None)
        assert await program.added("notes") == 2


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("notes = 3", "routes.toml' is not valid: Expected `object`"),
        ('[notes]\ntargets = { "add1@1" = 1 }\nstiky = "identity"', "unknown field `stiky`"),
        ("[notes]\ntargets = { notes = 1 }", "is the route itself"),
        ("[notes", "is not valid"),
    ],
)
async def test_a_wrong_file_keeps_the_engine_from_starting_and_says_why(
    repository: Path, text: str, wrong: str
) -> None:
    (repository / "routes.toml").write_text(text)

    with pytest.raises(InvalidArgument, match=wrong):
        async with AsyncExitStack() as stack:
            await Program(repository, stack).start()


async def test_a_target_that_does_not_exist_is_refused(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()

        with pytest.raises(InvalidArgument, match=r"target 'add1@9': .*version 9 is not found"):
            await program.put("notes", Route({"add1@9": 1}))
        with pytest.raises(InvalidArgument, match="target 'nothing'"):
            await program.put("notes", Route({"add1@1": 1}, [Rule({"identity": "a"}, "nothing")]))


def watched(program: Program, name: str) -> tuple[Mirror, asyncio.Queue[Compared]]:
    """The mirror of a route, and the copies that have ended."""
    mirror = program.routes.front(name).mirror
    assert mirror is not None
    ended: asyncio.Queue[Compared] = asyncio.Queue()
    mirror.observe = ended.put_nowait
    return mirror, ended


async def test_a_shadow_gets_copies_whose_responses_are_compared(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        await program.put("notes", Route({"add1@1": 1}, shadow=Shadow("add1@2")))
        mirror, ended = watched(program, "notes")

        for number in range(10):
            assert await program.added("notes", id=f"request-{number}") == 1
            await ended.get()

        assert mirror.counts.compared.value == 10
        # |1 - 2| / (|1| + |2|) over equal elements
        assert mirror.counts.mean_distance == pytest.approx(1 / 3)
        assert {id for _, id in mirror.worst} == {f"request-{number}" for number in range(2, 10)}


async def test_a_failing_shadow_changes_nothing_for_the_caller(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        await program.put("notes", Route({"add1@1": 1}, shadow=Shadow("failing")))
        mirror, ended = watched(program, "notes")

        for _ in range(5):
            assert await program.added("notes", id="a") == 1
            await ended.get()

        assert mirror.counts.failed.value == 5
        assert mirror.errors[0][0] == "a"
        assert "broken" in mirror.errors[0][1]


async def test_a_slow_shadow_neither_delays_requests_nor_gathers_copies(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        await program.put("notes", Route({"add1@1": 1}, shadow=Shadow("sleeping", max_in_flight=1)))
        mirror, _ = watched(program, "notes")

        async with asyncio.timeout(10):
            assert [await program.added("notes") for _ in range(20)] == [1] * 20

        assert mirror.counts.skipped.value == 19
        assert mirror.counts.compared.value == 0
        await program.put("notes", Route({"add1@1": 1}))
        assert await program.added("notes") == 1


async def test_a_copy_has_the_inputs_of_its_original_even_if_their_buffer_is_reused(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        await program.put("notes", Route({"add1@1": 1}, shadow=Shadow("add1")))
        mirror, ended = watched(program, "notes")
        request = program.request("notes")
        data = request.inputs["INPUT0"].data

        data[...] = 5
        await program.embedded.engine.infer(request)
        data[...] = -1000
        await ended.get()

        assert mirror.counts.mean_distance == pytest.approx(1 / 13)  # 6 and 7


async def test_rewards_move_requests_to_the_better_target(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        await program.put("notes", Route({"add1@1": 1, "add1@2": 1}, bandit=Bandit("thompson")))
        front = program.routes.front("notes")

        for number in range(400):
            added = await program.added("notes", id=str(number))
            target = front.sent.take(str(number), "")
            front.reward(target, 0.9 if added == 2 else 0.1)

        assert front.by_name["add1@2"].counts.requests > 300


async def test_feedback_counts_once_and_only_from_the_sender(repository: Path) -> None:
    async with AsyncExitStack() as stack:
        program = await Program(repository, stack).start()
        await program.put("notes", Route({"add1@1": 1}))
        sent = program.routes.front("notes").sent
        _, done = program.future(program.request("notes", id="a"), identity="ada")
        await done

        with pytest.raises(Forbidden, match="only the sender"):
            sent.take("a", "eve")
        assert sent.take("a", "ada") == "add1@1"
        with pytest.raises(NotFound, match="no request with the id 'a'"):
            sent.take("a", "ada")
