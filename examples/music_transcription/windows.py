"""A recording cut into the windows that the network takes, and the network's answers joined again.

The network hears 43,844 samples (1.99 s) and answers with 172 frames, one every 256 samples, frame k centred on sample 256 k. Near both
ends of a window it hears half of what it needs, so windows overlap, and 15 frames are cut from each end of an answer. Windows start a
whole number of frames apart (142, what is left of an answer): so the joined frames lie on one even grid, and times do not drift.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

SAMPLE_RATE = 22_050
FRAME_SAMPLES = 256
FRAME_RATE = SAMPLE_RATE / FRAME_SAMPLES
WINDOW_SAMPLES = 43_844
WINDOW_FRAMES = 172
MARGIN_FRAMES = 15
KEPT_FRAMES = WINDOW_FRAMES - 2 * MARGIN_FRAMES
STRIDE_SAMPLES = KEPT_FRAMES * FRAME_SAMPLES


def frame_count(sample_count: int) -> int:
    """The frames of a recording: one for each 256 samples begun."""
    return math.ceil(sample_count / FRAME_SAMPLES)


def window_count(sample_count: int) -> int:
    """The windows of a recording."""
    return math.ceil(frame_count(sample_count) / KEPT_FRAMES)


def cut(samples: np.ndarray) -> Iterator[np.ndarray]:
    """The windows of samples [n] at 22,050 Hz, each float32 [1, 43844, 1], silence where the recording has not begun or is over."""
    for index in range(window_count(len(samples))):
        start = index * STRIDE_SAMPLES - MARGIN_FRAMES * FRAME_SAMPLES
        window = np.zeros(WINDOW_SAMPLES, np.float32)
        heard = samples[max(start, 0) : start + WINDOW_SAMPLES]
        offset = max(-start, 0)
        window[offset : offset + len(heard)] = heard
        yield window.reshape(1, WINDOW_SAMPLES, 1)


def join(answers: Iterable[np.ndarray], sample_count: int) -> np.ndarray:
    """The frames [frame_count, pitches] of a recording from the answers to its windows, each [1, 172, pitches], in order."""
    kept = [answer[0, MARGIN_FRAMES : MARGIN_FRAMES + KEPT_FRAMES] for answer in answers]
    return np.concatenate(kept)[: frame_count(sample_count)]
