"""Notes from the two pictures that the network draws: how surely each pitch sounds, and how surely it begins, in each frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LOWEST_MIDI = 21
#: Semitones from a note to its overtones two to eight, as the piano's keys have them.
_OVERTONES = frozenset((12, 19, 24, 28, 31, 34, 36))
#: Onsets within this many frames belong to one stroke; a stroke reaches into the note picture this many frames before it.
_STROKE_FRAMES, _BEFORE_FRAMES = 3, 12
_STROKE_SECONDS = 0.04
_NEIGHBOURS = 64
_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


@dataclass(frozen=True, slots=True, order=True)
class Note:
    """A note: seconds from the start of the recording, MIDI number (60 is C4), and strength in 0 to 1."""

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
    """What counts as a note. Frames are 256 samples at 22,050 Hz, 11.6 ms."""

    #: A note begins where the onset picture has a peak as high as this.
    onset: float = 0.5
    #: A note sounds as long as the note picture is as high as this.
    sounding: float = 0.3
    #: Shorter notes are dropped.
    shortest_frames: int = 11
    #: A note goes on over dips of fewer frames than this.
    dip_frames: int = 11
    #: A pitch that sounds already is struck again if its onset is this large a part of the strongest onset at that time: every stroke
    #: shakes the onsets of the pitches held beside it a little.
    restrike: float = 0.85
    #: A note that sounds where an overtone of another would is that overtone if its strength is a smaller part of the other's than this.
    overtone: float = 0.6


def decode(
    sounding: np.ndarray, onset: np.ndarray, frame_rate: float, thresholds: Thresholds | None = None
) -> list[Note]:
    """The notes in posteriorgrams [frames, 88], lowest pitch A0 (MIDI 21), by time.

    A note begins at a peak of the onset picture, and ends where it has faded, or where the same pitch begins again.
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
    """Where a column is at least `least` and higher than before it, and not lower than after; the first and the last frame can be peaks."""
    edge = np.full((1, picture.shape[1]), -np.inf, picture.dtype)
    padded = np.concatenate((edge, picture, edge))
    return (picture >= least) & (picture > padded[:-2]) & (picture >= padded[2:])


def _shaken(sounding: np.ndarray, onset: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Where a pitch sounds already, and its onset is weak beside the strongest of its time."""
    strongest = onset.max(axis=1)
    padded = np.pad(strongest, _STROKE_FRAMES)
    strongest_near = np.lib.stride_tricks.sliding_window_view(padded, 2 * _STROKE_FRAMES + 1).max(axis=1)
    held = np.zeros_like(sounding, bool)
    held[_BEFORE_FRAMES:] = sounding[:-_BEFORE_FRAMES] >= thresholds.sounding
    return held & (onset < thresholds.restrike * strongest_near[:, None])


def _without_overtones(found: list[Note], part: float) -> list[Note]:
    """The notes but those that are a weak shadow, at the distance of an overtone, of a note that sounds when they begin."""
    # sorted by time: who shadows a note stands not far from it
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
    """For each frame and pitch, the first frame from there on where the pitch is quiet for `dip_frames` or to the end."""
    frames, pitches = quiet.shape
    ends = np.empty((frames, pitches), np.int64)
    run = np.full(pitches, dip_frames)  # after the last frame there is silence
    end = np.full(pitches, frames)
    for frame in range(frames - 1, -1, -1):
        run = np.where(quiet[frame], run + 1, 0)
        end = np.where(run >= dip_frames, frame, end)
        ends[frame] = end
    return ends
