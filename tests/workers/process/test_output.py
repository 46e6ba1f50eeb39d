"""What a worker prints becomes records of the log."""

from __future__ import annotations

import asyncio
import logging
import os
import traceback
from collections.abc import Sequence

import pytest

from backline.workers.process.output import WorkerOutput


def fail(depth: int = 2) -> None:
    if depth:
        fail(depth - 1)
    raise ValueError("too loud")


def text_of(*, chained: bool = False) -> str:
    """A traceback as Python prints it."""
    try:
        try:
            fail()
        except ValueError as error:
            if not chained:
                raise
            raise KeyError("lost") from error
    except Exception:
        return traceback.format_exc()


def records(writes: Sequence[str], caplog: pytest.LogCaptureFixture) -> list[str]:
    """The messages logged for texts that a worker writes one after the other."""

    async def scenario() -> None:
        reading, writing = os.pipe()
        output = WorkerOutput(reading, "model", logging.WARNING, asyncio.get_running_loop())
        for text in writes:
            os.write(writing, text.encode())
            output.read()
        os.close(writing)
        output.read()

    caplog.clear()
    asyncio.run(scenario())
    return [record.getMessage() for record in caplog.records]


def test_each_line_is_a_record(caplog: pytest.LogCaptureFixture) -> None:
    assert records(["one\n  two\n\nth", "ree"], caplog) == ["model: one", "model:   two", "model: three"]


@pytest.mark.parametrize("chained", [False, True])
def test_a_traceback_is_one_record(caplog: pytest.LogCaptureFixture, chained: bool) -> None:
    text = text_of(chained=chained)
    assert records([f"before\n{text}after\n"], caplog) == [
        "model: before",
        f"model: {text.rstrip()}",
        "model: after",
    ]


@pytest.mark.parametrize("place", [10, 60, 150])
def test_a_traceback_in_two_pieces_is_one_record(caplog: pytest.LogCaptureFixture, place: int) -> None:
    text = text_of()
    assert records([text[:place], text[place:]], caplog) == [f"model: {text.rstrip()}"]


def test_two_tracebacks_are_two_records(caplog: pytest.LogCaptureFixture) -> None:
    text = text_of()
    assert records([text, text], caplog) == [f"model: {text.rstrip()}"] * 2


def test_an_unfinished_traceback_is_logged_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []

    async def scenario() -> None:
        reading, writing = os.pipe()
        output = WorkerOutput(reading, "model", logging.WARNING, asyncio.get_running_loop())
        os.write(writing, b"Traceback (most recent call last):\n  in a file\n")
        logged = asyncio.Event()
        monkeypatch.setattr(output, "_log", lambda text, **_: (messages.append(text), logged.set()))
        await asyncio.wait_for(logged.wait(), 10)
        output.close()
        os.close(writing)

    asyncio.run(scenario())
    assert messages == ["Traceback (most recent call last):\n  in a file"]
