"""Prometheus' text format, version 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/), for samples by the thousand.

The exposition library makes an object of every sample and a line of every object; here a family is a template, filled with numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import accumulate
from math import inf, isnan

from backline.engine.custom_metrics import Family, Labels, Sample

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_LABEL = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_HELP = str.maketrans({"\\": "\\\\", "\n": "\\n"})


def comment(name: str, kind: str, text: str) -> str:
    """The two comment lines before the samples of a metric; `kind` is counter, gauge, histogram."""
    return f"# HELP {name} {text.translate(_HELP)}\n# TYPE {name} {kind}\n"


def label_text(labels: Iterable[tuple[str, str]]) -> str:
    """What stands between the braces of a sample: names that are valid, values of any kind."""
    return ",".join([f'{name}="{value.translate(_LABEL)}"' for name, value in labels])


def number(value: float) -> str:
    """A value as Go's parser reads it."""
    if value in (inf, -inf):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if isnan(value) else repr(value)


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
