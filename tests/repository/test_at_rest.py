"""When files that may still be written count as complete."""

from __future__ import annotations

import pytest

from backline.repository.local import AT_REST, LONGEST_REST, FilesAtRest, Seen


class Copy:
    """A file that grows, with a clock that the test sets."""

    def __init__(self, *, edited: bool = False) -> None:
        self.files = FilesAtRest(edited=edited)
        self.now = 1000.0
        self.written = 1000.0
        self.size = 0

    def write(self, after: float) -> None:
        self.now += after
        self.written = self.now
        self.size += 1

    def wait(self, after: float = 0.0, ahead: float = 0.0) -> float:
        """The wait, seen some seconds later; the writer's clock may be ahead of ours."""
        self.now += after
        return self.files.wait([Seen("m", str(self.size), self.now - self.written - ahead)], self.now)


def test_a_file_written_long_ago_is_complete() -> None:
    copy = Copy()
    assert copy.wait(after=3600) == 0


def test_a_new_file_is_complete_after_a_second_without_a_change() -> None:
    copy = Copy()
    assert copy.wait(after=0.4) == pytest.approx(AT_REST - 0.4)
    assert copy.wait(after=AT_REST - 0.4) == 0


@pytest.mark.parametrize("pause", [0.7, 1.5, 4.0])
def test_a_file_that_has_grown_slowly_must_rest_longer_than_its_pauses(pause: float) -> None:
    copy = Copy()
    copy.wait()
    for _ in range(9):
        copy.write(after=pause)
        assert copy.wait(after=0.2) > pause - 0.2
    assert copy.wait(after=min(4 * pause, LONGEST_REST)) == 0


def test_a_file_that_is_edited_again_and_again_is_complete_a_second_after_each_change() -> None:
    copy = Copy(edited=True)
    copy.wait()
    for _ in range(3):
        copy.write(after=5.0)
        assert copy.wait() == pytest.approx(AT_REST)


def test_a_pause_that_is_too_long_ends_a_copy() -> None:
    copy = Copy()
    copy.wait()
    copy.write(after=3600)
    assert copy.wait() == pytest.approx(AT_REST)
    copy.write(after=10)
    assert copy.wait() == pytest.approx(LONGEST_REST)


def test_a_clock_that_is_ahead_delays_a_file_no_longer_than_one_that_is_right() -> None:
    copy = Copy()
    assert copy.wait(ahead=3600) == pytest.approx(AT_REST)
    assert copy.wait(after=AT_REST, ahead=3600) == 0
