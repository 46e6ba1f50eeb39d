from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from notes import Note
from score import compare


def _notes(*starts: tuple[float, int]) -> list[Note]:
    return [Note(start, midi, start + 0.5, 0.8) for start, midi in starts]


def test_identical_notes_score_one() -> None:
    melody = _notes((0.0, 60), (0.5, 62), (0.5, 55))

    score = compare(melody, melody)

    assert (score.precision, score.recall, score.f1) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("late", "pairs"), [(0.049, 1), (-0.049, 1), (0.051, 0), (-0.051, 0)])
def test_an_onset_counts_within_fifty_milliseconds(late: float, pairs: int) -> None:
    assert len(compare(_notes((1.0, 60)), _notes((1.0 + late, 60))).pairs) == pairs


@pytest.mark.parametrize("midi", [59, 61, 72])
def test_a_different_pitch_does_not_match(midi: int) -> None:
    assert compare(_notes((1.0, 60)), _notes((1.0, midi))).pairs == ()


def test_a_true_note_is_matched_at_most_once() -> None:
    score = compare(_notes((1.0, 60)), _notes((0.99, 60), (1.01, 60)))

    assert (len(score.pairs), score.precision, score.recall) == (1, 0.5, 1.0)


def test_a_found_note_is_matched_at_most_once() -> None:
    score = compare(_notes((0.99, 60), (1.01, 60)), _notes((1.0, 60)))

    assert (len(score.pairs), score.precision, score.recall) == (1, 1.0, 0.5)


def test_f1_is_the_harmonic_mean() -> None:
    score = compare(_notes((0.0, 60), (1.0, 60)), _notes((0.0, 60), (2.0, 60), (3.0, 60), (4.0, 60)))

    assert score.f1 == pytest.approx(2 * (0.25 * 0.5) / (0.25 + 0.5))


def test_nothing_found_scores_zero() -> None:
    score = compare(_notes((0.0, 60)), [])

    assert (score.precision, score.recall, score.f1) == (0.0, 0.0, 0.0)


_times = st.lists(st.integers(0, 12), max_size=5)


@given(_times, _times)
def test_the_matching_is_maximal(true_times: list[int], found_times: list[int]) -> None:
    true = _notes(*((time * 0.03, 60) for time in true_times))
    found = _notes(*((time * 0.03, 60) for time in found_times))

    few, many = sorted((true, found), key=len)
    largest = max(
        sum(abs(one.start - other.start) <= 0.05 for one, other in zip(few, order, strict=True))
        for order in itertools.permutations(many, len(few))
    )

    assert len(compare(true, found).pairs) == largest
