"""Decodes notes from the network's outputs, the probabilities that a pitch sounds, or starts, in a frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LOWEST_MIDI = 21
#: Semitones from a note to its overtones two to eight, rounded to the piano's keys.
_OVERTONES = frozenset((12, 19, 24, 28, 31, 34, 36))
#: The number of frames within which onsets belong to one stroke.
_STROKE_FRAMES = 3
#: A pitch counts as held at an onset if it sounded this many frames earlier: the network may detect a new
#: note before its onset.
_BEFORE_FRAMES = 12
_STROKE_SECONDS = 0.04
_NEIGHBOURS = 64
_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


@dataclass(frozen=True, slots=True, order=True)
class Note:
    """A note: its start and end in seconds, its MIDI number (60 is C4) and its strength from 0 to 1."""

    start: float
    midi: int
    end: float
    strength: float

    @property
    def name(self) -> str:
        return f"{_NAMES[self.midi % 12]}{self.midi // 12 - 1}"

    @property
    def length(self) -> float:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The limits that decide what counts as a note. A frame is 256 samples at 22,050 Hz, or 11.6 ms."""

    #: Minimum probability of an onset at its peak, where a note starts.
    onset: float = 0.5
    #: Minimum probability of sounding throughout a note.
    sounding: float = 0.3
    #: Minimum length of a note in frames.
    shortest_frames: int = 11
    #: Number of frames below `sounding` that end a note; shorter dips do not.
    dip_frames: int = 11
    #: The minimum onset with which a pitch that already sounds is struck again, as a fraction of the
    #: strongest onset at that time: every stroke slightly raises the onsets of held pitches.
    restrike: float = 0.85
    #: The strength below which a note at an overtone of another note is dropped, as a fraction of the other
    #: note's strength.
    overtone: float = 0.6


def decode(
    sounding: np.ndarray, onset: np.ndarray, frame_rate: float, thresholds: Thresholds | None = None
) -> list[Note]:
    """Returns the notes in the network's outputs [frames, 88], whose lowest pitch is A0 (MIDI 21), in time
    order.

    A note starts at an onset peak and ends where it fades or where the same pitch starts again.
    """
    thresholds = thresholds or Thresholds()
    frames = len(sounding)
    begins = _peaks(onset, thresholds.onset) & ~_shaken(sounding, onset, thresholds)
    ends = _fading(sounding < thresholds.sounding, thresholds.dip_frames)
    found: list[Note] = []
    for pitch in np.flatnonzero(begins.any(axis=0)):
        starts = np.flatnonzero(begins[:, pitch])
        for start, again in zip(starts, [*starts[1:], frames], strict=True):
            end = min(int(ends[start, pitch]), int(again))
            if end - start >= thresholds.shortest_frames:
                strength = float(sounding[start:end, pitch].mean())
                found.append(Note(start / frame_rate, int(pitch) + LOWEST_MIDI, end / frame_rate, strength))
    return _without_overtones(sorted(found), thresholds.overtone)


def _peaks(picture: np.ndarray, least: float) -> np.ndarray:
    """Returns a mask of the local maxima in each column that are at least `least`. Maxima may be in the first
    and last row.
    """
    edge = np.full((1, picture.shape[1]), -np.inf, picture.dtype)
    padded = np.concatenate((edge, picture, edge))
    return (picture >= least) & (picture > padded[:-2]) & (picture >= padded[2:])


def _shaken(sounding: np.ndarray, onset: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Returns a mask of the frames in which a pitch already sounds and its onset is weak compared with the
    strongest onset.
    """
    strongest = onset.max(axis=1)
    padded = np.pad(strongest, _STROKE_FRAMES)
    strongest_near = np.lib.stride_tricks.sliding_window_view(padded, 2 * _STROKE_FRAMES + 1).max(axis=1)
    held = np.zeros_like(sounding, bool)
    held[_BEFORE_FRAMES:] = sounding[:-_BEFORE_FRAMES] >= thresholds.sounding
    return held & (onset < thresholds.restrike * strongest_near[:, None])


def _without_overtones(found: list[Note], part: float) -> list[Note]:
    """Drops notes that are weak overtones of a note that is sounding when they start."""
    # The list is sorted by time, so only near neighbours can sound at the same time.
    return [
        note
        for index, note in enumerate(found)
        if not any(
            _shadows(other, note, part) for other in found[max(index - _NEIGHBOURS, 0) : index + _NEIGHBOURS]
        )
    ]


def _shadows(other: Note, note: Note, part: float) -> bool:
    sounds = other.start <= note.start + _STROKE_SECONDS and note.start < other.end
    return sounds and note.midi - other.midi in _OVERTONES and note.strength < part * other.strength


def _fading(quiet: np.ndarray, dip_frames: int) -> np.ndarray:
    """Returns, for each frame and pitch, the start of the next quiet run of `dip_frames`, or of a quiet run
    that lasts to the end.
    """
    frames, pitches = quiet.shape
    ends = np.empty((frames, pitches), np.int64)
    run = np.full(pitches, dip_frames)  # there is silence after the recording
    end = np.full(pitches, frames)
    for frame in range(frames - 1, -1, -1):
        run = np.where(quiet[frame], run + 1, 0)
        end = np.where(run >= dip_frames, frame, end)
        ends[frame] = end
    return ends
