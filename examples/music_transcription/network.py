"""Runs the note detection network on all windows of a recording, several at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import windows

# The names of basic-pitch's tensors.
INPUT = "serving_default_input_2:0"
SOUNDING = "StatefulPartitionedCall:1"
ONSET = "StatefulPartitionedCall:2"

#: A function that takes a window, float32 [1, 43844, 1], and returns the outputs by name; SOUNDING and ONSET
#: are float32 [1, 172, 88].
Network = Callable[[np.ndarray], Mapping[str, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Heard:
    """The probabilities that each of 88 pitches sounds or starts, float32 [frames, 88].

    The other fields say how they were computed: the number of windows and of requests in flight, and the
    seconds taken.
    """

    sounding: np.ndarray
    onset: np.ndarray
    windows: int
    in_flight: int
    seconds: float


def hear(samples: np.ndarray, network: Network, in_flight: int) -> Heard:
    """Runs the network on all windows of samples [n] at 22,050 Hz, with `in_flight` concurrent requests.

    Raises the first error that the network raises.
    """
    started = time.perf_counter()
    answers = list(_answers(windows.cut(samples), network, in_flight))
    seconds = time.perf_counter() - started
    sounding = windows.join([answer[0] for answer in answers], len(samples))
    onset = windows.join([answer[1] for answer in answers], len(samples))
    return Heard(sounding, onset, len(answers), in_flight, seconds)


def _answers(
    cut: Iterator[np.ndarray], network: Network, in_flight: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    def ask(window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outputs = network(window)
        return outputs[SOUNDING], outputs[ONSET]

    with ThreadPoolExecutor(in_flight, thread_name_prefix="request") as pool:
        waiting: deque[Future[tuple[np.ndarray, np.ndarray]]] = deque()
        try:
            for window in cut:
                if len(waiting) > in_flight:  # one more window is kept ready to send
                    yield waiting.popleft().result()
                waiting.append(pool.submit(ask, window))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
