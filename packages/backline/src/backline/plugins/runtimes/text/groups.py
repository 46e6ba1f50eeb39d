"""Divides the texts of a batch into runs of similar lengths, so that little time is spent on padding."""

from __future__ import annotations

from collections.abc import Sequence

#: The maximum number of tokens, with padding, of a run of several texts. In larger runs, intermediate results
#: leave the processor's cache, and a run costs more for each token.
MAX_TOKENS = 512
#: The maximum number of texts in a run, which bounds the time that dividing them takes.
_MAX_TEXTS = 64


def divide(lengths: Sequence[int], overhead: float, most: int = MAX_TOKENS) -> list[list[int]]:
    """Returns the indices of the texts in each run, longest texts first.

    The runs take the least time in total, if a run of n texts takes as long as `overhead` tokens and n times
    the tokens of its longest text. No run of several texts has more than `most` tokens.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    # best[n] is the least time for the first n texts, and taken[n] the number of texts in the last run of it.
    best, taken = [0.0], [0]
    for end in range(1, len(order) + 1):
        cheapest, count = float("inf"), 1
        for size in range(1, min(end, _MAX_TEXTS) + 1):
            start = end - size
            tokens = size * lengths[order[start]]
            if size > 1 and tokens > most:
                break
            cost = best[start] + overhead + tokens
            if cost < cheapest:
                cheapest, count = cost, size
        best.append(cheapest)
        taken.append(count)
    runs: list[list[int]] = []
    end = len(order)
    while end:
        runs.append(order[end - taken[end] : end])
        end -= taken[end]
    return runs[::-1]
