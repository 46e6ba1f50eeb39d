"""When batches are formed: at the end of the loop's turn, or after the batch that made a step ready."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from backline.engine.ticket import Ticket
from backline.schedule import turn as module
from backline.schedule.turn import Turn
from backline_client.values.messages import InferRequest

REQUEST = Ticket(InferRequest("m", {}), lambda *_: None)


def soon(turn: Turn, run: Callable[[], None]) -> None:
    turn.soon(run, asyncio.get_running_loop())


def step(turn: Turn, run: Callable[[], None]) -> None:
    """A request to a step, whose queue forms a batch for it."""
    turn.submit_step(lambda _: soon(turn, run), REQUEST)


async def test_requests_from_outside_wait_for_the_end_of_the_turn() -> None:
    turn, calls = Turn(), []

    step(turn, lambda: calls.append("batch"))
    at_once = list(calls)
    await asyncio.sleep(0)

    assert (at_once, calls) == ([], ["batch"])


async def test_steps_follow_the_completed_batch_while_others_wait() -> None:
    turn, calls = Turn(), []

    first = turn.begin_completions()
    soon(turn, lambda: calls.append("another's"))
    step(turn, lambda: calls.append("step"))
    while_answering = list(calls)
    turn.end_completions(asyncio.get_running_loop())
    follows = list(calls)
    await asyncio.sleep(0)

    assert (first, while_answering, follows, calls) == (True, [], ["step"], ["step", "another's"])


async def test_a_chain_of_steps_runs_in_one_turn_without_recursion(monkeypatch) -> None:
    monkeypatch.setattr(module, "LONGEST_NS", 1 << 60)  # on a busy machine, the chain may take long
    turn, depth, deepest, runs = Turn(), 0, 0, 0

    def run() -> None:
        nonlocal depth, deepest, runs
        depth, runs = depth + 1, runs + 1
        deepest = max(deepest, depth)
        first = turn.begin_completions()
        if runs < 50:
            step(turn, run)
        if first:
            turn.end_completions(asyncio.get_running_loop())
        depth -= 1

    run()

    assert runs == 50
    assert deepest == 2  # the first batch, and the one that follows


async def test_steps_that_follow_for_too_long_let_the_sockets_have_their_turn(monkeypatch) -> None:
    monkeypatch.setattr(module, "LONGEST_NS", 0)
    turn, calls = Turn(), []

    turn.begin_completions()
    step(turn, lambda: calls.append("step"))
    turn.end_completions(asyncio.get_running_loop())
    at_once = list(calls)
    await asyncio.sleep(0)

    assert (at_once, calls) == ([], ["step"])


async def test_a_failing_dispatch_does_not_block_the_others() -> None:
    turn, calls = Turn(), []

    def fail() -> None:
        raise ZeroDivisionError

    turn.begin_completions()
    step(turn, fail)
    step(turn, lambda: calls.append("other"))
    try:
        turn.end_completions(asyncio.get_running_loop())
    except ZeroDivisionError:
        calls.append("failed")
    await asyncio.sleep(0)

    assert calls == ["failed", "other"]
    assert turn.begin_completions()
