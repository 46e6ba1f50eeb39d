"""Numbers and sizes in bytes as people write them."""

from __future__ import annotations

import pytest

from backline.engine.numbers import format_bytes, parse_bytes, parse_whole

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1073741824", 1 << 30),
        ("2GiB", 2 << 30),
        ("2 gib", 2 << 30),
        ("500MB", 500_000_000),
        ("1.5M", 3 << 19),
        ("7k", 7 << 10),
        ("0", 0),
        ("1TiB", 1 << 40),
        ("12B", 12),
    ],
)
def test_sizes_parse_with_the_usual_units(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "-1", "2 potatoes", "1e9", "2 G i B", "1,5G", pytest.param("9" * 500 + ".5", id="long")],
)
def test_an_invalid_size_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size; expected .* 2GiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (300 * MIB, "300 MiB"), (1023 * MIB, "1023 MiB"), (3 << 29, "1.5 GiB")],
)
def test_sizes_are_formatted_readably(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize("text", ["0", "7", "007", "10"])
def test_whole_numbers_within_the_range_parse(text: str) -> None:
    assert parse_whole(text, 0, 10) == int(text)


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1.0", " 1", "1_0", "\u0661", "11", pytest.param("9" * 5000, id="long")]
)
def test_other_texts_and_numbers_outside_the_range_do_not_parse(text: str) -> None:
    assert parse_whole(text, 0, 10) is None
