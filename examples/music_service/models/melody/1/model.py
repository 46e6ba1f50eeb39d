"""The melody of a recording, a note at a time, by autocorrelation. It is cheap, but hears no chords."""

from __future__ import annotations

from itertools import groupby

import numpy as np

from backline.model import Audio

_RATE = 16_000
_FRAME, _HOP = 2048, 512
#: The lags, in samples, of the pitches from 1,000 Hz down to 70 Hz.
_LAGS = slice(_RATE // 1000, _RATE // 70)
_CLEAR = 0.5
_SHORTEST_FRAMES = 3
_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def predict(recording: Audio[_RATE]) -> list:
    found = []
    at = 0
    for midi, run in groupby(_pitches(recording)):
        frames = len(list(run))
        if midi and frames >= _SHORTEST_FRAMES:
            start, end = at * _HOP / _RATE, (at + frames) * _HOP / _RATE
            name = f"{_NAMES[midi % 12]}{midi // 12 - 1}"
            found.append({"note": name, "midi": midi, "start": round(start, 3), "end": round(end, 3)})
        at += frames
    return found


def _pitches(samples: np.ndarray) -> list[int]:
    """Returns the MIDI number of each frame, or 0 where no pitch is clear."""
    padded = np.pad(samples, (_FRAME // 2, _FRAME))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(_FRAME), 2 * _FRAME)) ** 2
    correlation = np.fft.irfft(power)[:, : _FRAME // 2]
    loudness = correlation[:, 0]
    search = correlation[:, _LAGS]
    lag = search.argmax(axis=1) + _LAGS.start
    clear = (search.max(axis=1) > _CLEAR * loudness) & (loudness > 1e-4 * loudness.max())
    midi = np.round(69 + 12 * np.log2(_RATE / lag / 440)).astype(int)
    return np.where(clear, midi, 0).tolist()
