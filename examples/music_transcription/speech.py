"""Detects speech with a second network, whose state the caller passes from one request to the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 16_000
_STEP_SAMPLES = 512
_CONTEXT_SAMPLES = 64
_SECTION_SECONDS = 4
_MOST_SECTIONS = 16

#: A function that takes `input` float32 [B, 576], `state` float32 [2, B, 128] and `sr` int64 [], and returns
#: `output` [B, 1] and `stateN` [2, B, 128].
Step = Callable[..., Mapping[str, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Speech:
    """The probability of speech in each 32 ms of a recording, float32 [steps], and the number of requests."""

    probability: np.ndarray
    requests: int

    @property
    def share(self) -> float:
        """The fraction of the recording that is speech."""
        return float((self.probability > 0.5).mean())


def detect(samples: np.ndarray, step: Step) -> Speech:
    """Runs the network over samples [n] at 16 kHz.

    Each step needs the previous step's state, so a recording is one long chain of requests. To shorten it, up
    to 16 sections of the recording run in parallel, as the rows of one request.
    """
    steps = math.ceil(len(samples) / _STEP_SAMPLES)
    sections = min(max(math.ceil(len(samples) / SAMPLE_RATE / _SECTION_SECONDS), 1), _MOST_SECTIONS)
    length = math.ceil(steps / sections)
    padded = np.zeros(_CONTEXT_SAMPLES + sections * length * _STEP_SAMPLES, np.float32)
    padded[_CONTEXT_SAMPLES : _CONTEXT_SAMPLES + len(samples)] = samples
    # Each step also gets the last 64 samples of the previous step.
    every = np.lib.stride_tricks.sliding_window_view(padded, _CONTEXT_SAMPLES + _STEP_SAMPLES)[
        ::_STEP_SAMPLES
    ]
    inputs = every.reshape(sections, length, _CONTEXT_SAMPLES + _STEP_SAMPLES)
    state = np.zeros((2, sections, 128), np.float32)
    rate = np.array(SAMPLE_RATE, np.int64)
    probability = np.empty((sections, length), np.float32)
    for index in range(length):
        answer = step(input=np.ascontiguousarray(inputs[:, index]), state=state, sr=rate)
        probability[:, index] = answer["output"][:, 0]
        state = answer["stateN"]
    return Speech(probability.reshape(-1)[:steps], length)
