"""What a client sends at the end of the block of a sequence, after a call that failed."""

from __future__ import annotations

from typing import Any

import pytest

from backline_client.client.sequences import AsyncSequence, RequestSequence
from backline_client.values.errors import InvalidArgument


class Listener:
    """Stands in for a model: keeps the inputs of each call, and whether the call ends its sequence."""

    name = "listener"

    def __init__(self) -> None:
        self.heard: list[tuple[Any, dict[str, Any], bool]] = []

    def __call__(self, word: str, *, parameters: dict[str, Any], **options: Any) -> None:
        if word == "refused":
            raise InvalidArgument("the model refuses this word")
        given = {name: value for name, value in parameters.items() if not name.startswith("sequence_")}
        self.heard.append((word, {**options, **given}, parameters["sequence_end"]))


class AsyncListener(Listener):
    async def __call__(self, *inputs: Any, **options: Any) -> None:  # type: ignore[override]
        super().__call__(*inputs, **options)


HEARD = [("first", {"timeout": 5, "loud": True}, False), ("first", {"timeout": 5, "loud": True}, True)]


def test_the_end_of_a_block_sends_the_last_inputs_that_the_server_took() -> None:
    model = Listener()
    with RequestSequence(model) as say:  # type: ignore[arg-type]
        say("first", timeout=5, parameters={"loud": True})
        with pytest.raises(InvalidArgument):
            say("refused")
    assert model.heard == HEARD


async def test_the_end_of_an_asynchronous_block_sends_the_last_inputs_that_the_server_took() -> None:
    model = AsyncListener()
    async with AsyncSequence(model) as say:  # type: ignore[arg-type]
        await say("first", timeout=5, parameters={"loud": True})
        with pytest.raises(InvalidArgument):
            await say("refused")
    assert model.heard == HEARD
