"""Asks the models, all at once, each with its own deadline, retries and fallback."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any

import numpy as np

from backline_client.client.aio import AsyncClient
from backline_client.client.errors import BacklineError, InvalidArgument, Unavailable


@dataclass(frozen=True, slots=True)
class Question:
    """A model to ask, the seconds that its answer may take, and the model to ask if it does not answer."""

    model: str
    seconds: float
    fallback: str = ""


QUESTIONS = {
    "notes": Question("notes", 30, fallback="melody"),
    "key": Question("key", 10),
    "tempo": Question("tempo", 10),
    "kind": Question("speech", 20),
}
#: The number of requests to a model that refuses them as busy or not ready, and the seconds between them.
_ATTEMPTS = 3
_PAUSE = 0.1


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a model and the version that gave it; or None, and the reason why there is no result."""

    value: Any
    model: str
    version: str = ""
    reason: str = ""

    def answer(self) -> dict[str, Any]:
        """Returns the fields that are not empty, for JSON. `value` is always included."""
        return {name: value for name, value in asdict(self).items() if value or name == "value"}


async def analyse(client: AsyncClient, recording: bytes) -> dict[str, Finding]:
    """Returns what each model finds in a recording, a file of any format that the models read.

    Raises InvalidArgument if the file is not a recording.
    """
    findings = await asyncio.gather(*(_find(client, question, recording) for question in QUESTIONS.values()))
    return dict(zip(QUESTIONS, findings, strict=True))


async def _find(client: AsyncClient, question: Question, recording: bytes) -> Finding:
    reasons = []
    for model in filter(None, (question.model, question.fallback)):
        try:
            value, version = await _ask(client, model, recording, question.seconds)
        except InvalidArgument:
            raise  # another model could not read the file either
        except BacklineError as error:
            reasons.append(error.message)
        else:
            return Finding(value, model, version, "; ".join(reasons))
    return Finding(None, question.model, reason="; ".join(reasons))


async def _ask(client: AsyncClient, model: str, recording: bytes, seconds: float) -> tuple[Any, str]:
    """Returns a model's answer and version. The client itself sends requests of lost servers to others."""
    end = monotonic() + seconds
    left = _ATTEMPTS
    while True:
        try:
            result = await client[model](np.array([recording], object), timeout=max(end - monotonic(), 0.001))
        except Unavailable as error:
            left -= 1
            pause = error.retry_after or _PAUSE
            if not left or monotonic() + pause > end:
                raise
        else:
            return result["output"][0], result.model_version
        await asyncio.sleep(pause)
