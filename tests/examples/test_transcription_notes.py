from __future__ import annotations

import numpy as np
import pytest
from notes import Note, Thresholds, decode

RATE = 100.0  # frames per second: a frame is 10 ms


def _pictures(frames: int = 300) -> tuple[np.ndarray, np.ndarray]:
    return np.full((frames, 88), 0.05, np.float32), np.full((frames, 88), 0.05, np.float32)


def _play(
    pictures: tuple[np.ndarray, np.ndarray],
    midi: int,
    start: int,
    end: int,
    sounding: float = 0.8,
    onset: float = 0.95,
) -> None:
    """Adds a note: its frames to the first posteriorgram, and a peak of three frames to the second."""
    pictures[0][start:end, midi - 21] = sounding
    pictures[1][max(start - 1, 0) : start + 2, midi - 21] = onset / 2
    pictures[1][start, midi - 21] = onset


def _found(
    pictures: tuple[np.ndarray, np.ndarray], thresholds: Thresholds | None = None
) -> list[tuple[float, int, float]]:
    return [(note.start, note.midi, note.end) for note in decode(*pictures, RATE, thresholds)]


def test_a_note_begins_at_the_onset_peak_and_ends_where_it_fades() -> None:
    pictures = _pictures()
    _play(pictures, 60, 50, 110)

    (note,) = decode(*pictures, RATE)

    assert (note.start, note.midi, note.end) == (0.5, 60, 1.1)
    assert note.strength == pytest.approx(0.8)


@pytest.mark.parametrize("start", [0, 280])
def test_notes_at_the_edges_of_the_recording_are_found(start: int) -> None:
    pictures = _pictures()
    _play(pictures, 60, start, start + 20)

    assert _found(pictures) == [(start / RATE, 60, (start + 20) / RATE)]


@pytest.mark.parametrize("midi", [21, 108])
def test_the_lowest_and_the_highest_key_are_found(midi: int) -> None:
    pictures = _pictures()
    _play(pictures, midi, 50, 110)

    assert _found(pictures) == [(0.5, midi, 1.1)]


def test_notes_of_a_chord_are_found_together() -> None:
    pictures = _pictures()
    for midi in (60, 64, 67):
        _play(pictures, midi, 50, 110)

    assert [midi for _, midi, _ in _found(pictures)] == [60, 64, 67]


def test_a_note_struck_again_is_two_notes() -> None:
    pictures = _pictures()
    _play(pictures, 60, 50, 110)
    _play(pictures, 60, 90, 150)

    assert _found(pictures) == [(0.5, 60, 0.9), (0.9, 60, 1.5)]


def test_a_held_note_disturbed_by_another_onset_is_one_note() -> None:
    pictures = _pictures()
    _play(pictures, 60, 50, 150)
    _play(pictures, 65, 90, 150)
    pictures[1][90, 60 - 21] = 0.6

    assert _found(pictures) == [(0.5, 60, 1.5), (0.9, 65, 1.5)]


def test_a_short_dip_does_not_end_a_note() -> None:
    pictures = _pictures()
    _play(pictures, 60, 50, 150)
    pictures[0][90:100, 60 - 21] = 0.1

    assert _found(pictures) == [(0.5, 60, 1.5)]


def test_a_long_silence_ends_a_note() -> None:
    pictures = _pictures()
    _play(pictures, 60, 50, 150)
    pictures[0][90:101, 60 - 21] = 0.1

    assert _found(pictures) == [(0.5, 60, 0.9)]


@pytest.mark.parametrize(("length", "count"), [(10, 0), (11, 1)])
def test_notes_shorter_than_eleven_frames_are_dropped(length: int, count: int) -> None:
    pictures = _pictures()
    _play(pictures, 60, 50, 50 + length)

    assert len(_found(pictures)) == count


@pytest.mark.parametrize(("onset", "count"), [(0.49, 0), (0.5, 1)])
def test_onsets_below_the_threshold_start_no_note(onset: float, count: int) -> None:
    pictures = _pictures()
    _play(pictures, 60, 50, 110, onset=onset)

    assert len(_found(pictures)) == count


@pytest.mark.parametrize("interval", [12, 19, 24, 28])
def test_a_weak_overtone_is_not_a_note(interval: int) -> None:
    pictures = _pictures()
    _play(pictures, 48, 50, 150)
    _play(pictures, 48 + interval, 51, 90, sounding=0.4)

    assert _found(pictures) == [(0.5, 48, 1.5)]


def test_a_played_octave_is_found() -> None:
    pictures = _pictures()
    _play(pictures, 48, 50, 150)
    _play(pictures, 60, 50, 150, sounding=0.7)

    assert [midi for _, midi, _ in _found(pictures)] == [48, 60]


def test_a_weak_note_that_is_not_an_overtone_is_found() -> None:
    pictures = _pictures()
    _play(pictures, 48, 50, 150)
    _play(pictures, 55, 50, 150, sounding=0.4)

    assert [midi for _, midi, _ in _found(pictures)] == [48, 55]


def test_silence_has_no_notes() -> None:
    assert _found(_pictures()) == []


@pytest.mark.parametrize(("midi", "name"), [(21, "A0"), (60, "C4"), (66, "F#4"), (108, "C8")])
def test_notes_are_named_with_the_octave_of_middle_c_4(midi: int, name: str) -> None:
    assert Note(0.0, midi, 1.0, 0.5).name == name
