"""What is remembered of open sequences, and who loses what when there are too many."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from backline_client.balance.open_sequences import OpenSequences


def test_a_caller_with_many_sequences_loses_its_own() -> None:
    sequences: OpenSequences[str] = OpenSequences(100)
    for number in range(3):
        sequences.keep(("few", number), "few", "kept")
    for number in range(1_000):
        sequences.keep(("many", number), "many", "")

    assert [sequences.get(("few", number)) for number in range(3)] == [("few", "kept")] * 3
    assert sequences.get(("many", 999 - 96)) is not None
    assert sequences.get(("many", 999 - 97)) is None


def test_a_sequence_that_is_kept_again_is_lost_last() -> None:
    sequences: OpenSequences[int] = OpenSequences(3)
    for number in (1, 2, 3, 1, 4):
        sequences.keep(number, "caller", number)

    assert [number for number in range(5) if sequences.get(number)] == [1, 3, 4]


@given(
    st.lists(
        st.tuples(st.sampled_from(["keep", "drop"]), st.integers(0, 12), st.sampled_from(["a", "b", "c"])),
        max_size=80,
    )
)
def test_the_store_is_bounded_and_the_caller_with_the_most_sequences_loses_one(
    steps: list[tuple[str, int, str]],
) -> None:
    most = 5
    sequences: OpenSequences[int] = OpenSequences(most)
    expected: dict[int, tuple[str, int]] = {}  # the sequence that was kept longest ago is first
    for step, (action, key, caller) in enumerate(steps):
        expected.pop(key, None)
        if action == "drop":
            sequences.drop(key)
        else:
            sequences.keep(key, caller, step)
            expected[key] = caller, step
            counts = Counter(caller for caller, _ in expected.values())
            lost = [key for key in expected if sequences.get(key) is None]
            assert len(lost) == (len(expected) > most)
            for one in lost:
                owner = expected[one][0]
                assert counts[owner] == max(counts.values())
                assert one == next(key for key, (caller, _) in expected.items() if caller == owner)
                del expected[one]
        assert len(sequences) == len(expected)
        assert all(sequences.get(key) == entry for key, entry in expected.items())
