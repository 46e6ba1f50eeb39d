"""The metrics that models keep themselves, as Prometheus reads them: under the names and labels that the models give."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate

from backline.engine.custom_metrics import Family, Labels, Sample
from backline.observe.exposition import comment, label_text, number

#: What the name of a label cannot have: one model's fault must not make the page unreadable.
_INVALID = re.compile(r"^(?=\d)|[^a-zA-Z0-9_]")


def exposed(family: Family) -> Iterator[str]:
    """The text of a family in pieces: its comment lines, then each sample."""
    yield comment(family.name, family.kind, family.description)
    write = _histogram if family.kind == "histogram" else _value
    for labels, sample in tuple(family.samples.items()):  # there may be more of them by the next piece
        yield write(family.name, tuple((_INVALID.sub("_", name), value) for name, value in labels), sample)


def _value(name: str, labels: Labels, sample: Sample) -> str:
    return f"{_labelled(name, labels)} {number(sample.value)}\n"


def _histogram(name: str, labels: Labels, sample: Sample) -> str:
    bounds = [*(f"{bound:g}" for bound in sample.bounds), "+Inf"]
    buckets = [
        f"{_labelled(f'{name}_bucket', sorted((*labels, ('le', bound))))} {count}\n"
        for bound, count in zip(
            bounds, accumulate(sample.counts), strict=False
        )  # without buckets nothing is counted
    ]
    count, total = sum(sample.counts), number(sample.value)
    return f"{''.join(buckets)}{_labelled(f'{name}_count', labels)} {count}\n{_labelled(f'{name}_sum', labels)} {total}\n"


def _labelled(name: str, labels: Labels | list[tuple[str, str]]) -> str:
    return f"{name}{{{label_text(labels)}}}" if labels else name
