"""Finds the known names that are similar to a misspelt name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

#: The number of characters of a name that are compared. It is limited because the time grows with the product
#: of the lengths.
_COMPARED: Final = 64
#: The factor that reduces the similarity if a name matches only some words of a longer name: "inputs" is more
#: similar to "input" than to "variable_length_inputs".
_PART: Final = 0.8
#: The minimum length, in characters, of names that are compared with parts of longer names.
_SHORTEST_PART: Final = 3
_BETWEEN_WORDS: Final = r"[-_.:/ ]+"


def nearest(
    name: str, known: Iterable[str], limit: int = 1, cutoff: float = 0.6, *, whole: bool = False
) -> list[str]:
    """Returns at most `limit` of the known names, the most similar first.

    The similarity is 1 for equal names and 0 for names without a letter in common. A letter that is inserted,
    left out, replaced or swapped with its neighbour counts as one difference. Case, and the kind of
    separators between words, do not matter. Unless `whole` is set, a name is also compared with each sequence
    of words in a longer name: "prot" is similar to "--http-port".
    """
    plain = _plain(name)
    best: list[tuple[float, str]] = []
    for other in dict.fromkeys(known):
        score = _similarity(plain, _plain(other), cutoff, whole=whole)
        if score < cutoff or (len(best) == limit and score <= best[-1][0]):
            continue
        best = sorted([*best, (score, other)], key=lambda found: -found[0])[:limit]
        if len(best) == limit:
            cutoff = best[-1][0]  # from now on, only more similar names count
    return [other for _, other in best]


def _plain(name: str) -> str:
    return re.sub(_BETWEEN_WORDS, "-", name[:_COMPARED].casefold()).strip("-")


def _similarity(name: str, other: str, cutoff: float, *, whole: bool) -> float:
    best = _alike(name, other, cutoff)
    if not whole and len(name) >= _SHORTEST_PART and len(other) > len(name):
        best = max(best, *(_PART * _alike(name, part, cutoff / _PART) for part in _parts(other)), 0.0)
    return best


def _parts(name: str) -> Iterator[str]:
    """Yields all sequences of consecutive words in a name, except the whole name: "http" and "port" for
    "http-port".
    """
    words = name.split("-")
    for start in range(len(words)):
        for end in range(start + 1, len(words) + 1):
            if end - start < len(words):
                yield "-".join(words[start:end])


def _alike(one: str, other: str, cutoff: float) -> float:
    """Returns the similarity of two names, as `nearest` defines it; 0 if it is below the cutoff."""
    longest = max(len(one), len(other))
    if not longest:
        return 1.0
    most = int(longest * (1 - cutoff) + 1e-9)
    # The difference in length, and the number of letters in `one` that `other` lacks, are lower bounds for
    # the distance, and take little time to compute.
    if abs(len(one) - len(other)) > most or (Counter(one) - Counter(other)).total() > most:
        return 0.0
    distance = _distance(one, other, most)
    return 1 - distance / longest if distance <= most else 0.0


def _distance(one: str, other: str, most: int) -> int:
    """Returns the optimal string alignment distance of two names: the number of edits and swaps of
    neighbouring letters that turn one into the other.

    If the distance is above `most`, the result may be any number above `most`.
    """
    before: list[int] = []
    above = list(range(len(other) + 1))
    for row, letter in enumerate(one, 1):
        line = [row]
        for column, wanted in enumerate(other, 1):
            least = min(above[column] + 1, line[-1] + 1, above[column - 1] + (letter != wanted))
            if row > 1 and column > 1 and letter == other[column - 2] and one[row - 2] == wanted:
                least = min(least, before[column - 2] + 1)
            line.append(least)
        if min(line) > most and min(above) > most:  # a swap uses the row before the last
            return most + 1
        before, above = above, line
    return above[-1]
