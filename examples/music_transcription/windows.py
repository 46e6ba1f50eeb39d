"""Splits a recording into the network's windows, and joins the network's outputs.

The network takes 43,844 samples (1.99 s) and returns 172 frames, one for each 256 samples; frame k is centred
on sample 256 k. Near both ends of a window the network lacks context, so 15 frames are cut from each end of
an output. Windows therefore overlap: they start 142 frames apart, the number of frames that remain.
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
    return math.ceil(sample_count / FRAME_SAMPLES)


def window_count(sample_count: int) -> int:
    return math.ceil(frame_count(sample_count) / KEPT_FRAMES)


def cut(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the windows of samples [n] at 22,050 Hz, each float32 [1, 43844, 1]. Silence fills both ends."""
    for index in range(window_count(len(samples))):
        start = index * STRIDE_SAMPLES - MARGIN_FRAMES * FRAME_SAMPLES
        window = np.zeros(WINDOW_SAMPLES, np.float32)
        heard = samples[max(start, 0) : start + WINDOW_SAMPLES]
        offset = max(-start, 0)
        window[offset : offset + len(heard)] = heard
        yield window.reshape(1, WINDOW_SAMPLES, 1)


def join(answers: Iterable[np.ndarray], sample_count: int) -> np.ndarray:
    """Joins the outputs [1, 172, pitches] of all windows, in order, into frames [frame_count, pitches]."""
    kept = [answer[0, MARGIN_FRAMES : MARGIN_FRAMES + KEPT_FRAMES] for answer in answers]
    return np.concatenate(kept)[: frame_count(sample_count)]
