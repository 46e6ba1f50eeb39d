from __future__ import annotations

import numpy as np
import pytest
import windows
from hypothesis import given
from hypothesis import strategies as st


def _echo(window: np.ndarray) -> np.ndarray:
    """A stand-in network: each frame's value is the ramp's value at the frame's centre sample."""
    padded = np.concatenate((window[0, :, 0], np.zeros(windows.FRAME_SAMPLES, np.float32)))
    return padded[: windows.WINDOW_FRAMES * windows.FRAME_SAMPLES : windows.FRAME_SAMPLES].reshape(
        1, windows.WINDOW_FRAMES, 1
    )


@given(st.integers(1, 400_000))
def test_joined_frames_are_aligned_with_the_recording(sample_count: int) -> None:
    ramp = np.arange(sample_count, dtype=np.float32)

    joined = windows.join([_echo(window) for window in windows.cut(ramp)], sample_count)

    assert np.array_equal(joined[:, 0], ramp[:: windows.FRAME_SAMPLES])


@given(st.integers(1, 400_000))
def test_every_window_has_the_networks_input_shape(sample_count: int) -> None:
    cut = list(windows.cut(np.ones(sample_count, np.float32)))

    assert len(cut) == windows.window_count(sample_count)
    assert {(window.shape, window.dtype.name) for window in cut} == {((1, 43_844, 1), "float32")}


def test_the_first_window_starts_with_a_margin_of_silence() -> None:
    (window,) = windows.cut(np.ones(1000, np.float32))

    assert np.flatnonzero(window[0, :, 0]).tolist() == list(range(3840, 4840))


def test_times_do_not_drift_over_an_hour() -> None:
    hour = 3600 * windows.SAMPLE_RATE

    assert windows.frame_count(hour) / windows.FRAME_RATE == pytest.approx(3600, abs=1 / windows.FRAME_RATE)
