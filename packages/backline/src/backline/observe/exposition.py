"""Writes Prometheus' text format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/).

The library prometheus_client creates an object per sample, which is too slow for thousands of samples. Here
each metric is a template into which numbers are filled.
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


#: Up to this number, floats represent every whole number exactly.
_EXACT = 2**53


def comment(name: str, kind: str, text: str) -> str:
    """Returns the HELP and TYPE lines of a metric; `kind` is counter, gauge, histogram or summary."""
    return f"# HELP {name} {text.translate(_HELP)}\n# TYPE {name} {kind}\n"


def label_text(labels: Iterable[tuple[str, str]]) -> str:
    """Returns the text between the braces of a sample. Names must be valid; values are escaped."""
    return ",".join([f'{name}="{value.translate(_LABEL)}"' for name, value in labels])


def number(value: float) -> str:
    """Formats a value for Prometheus, which reads numbers as Go does."""
    if value in (inf, -inf):
        return "+Inf" if value > 0 else "-Inf"
    if isnan(value):
        return "NaN"
    # Whole numbers have no exponent, as in Triton, because scripts compare counters as text.
    return str(int(value)) if value == int(value) and abs(value) < _EXACT else repr(value)


#: Matches characters that the name of a label cannot contain. They are replaced, because an invalid label of
#: one model must not make the whole page unreadable.
_INVALID = r"^(?=\d)|[^a-zA-Z0-9_]"


def exposed(family: Family) -> Iterator[str]:
    """Yields the text of a metric that models define: first the comment lines, then each sample."""
    yield comment(family.name, family.kind, family.description)
    write = _histogram if family.kind == "histogram" else _value
    for labels, sample in tuple(family.samples.items()):  # models may add samples during this loop
        # Prometheus rejects the whole page if one sample has two labels of the same name. Two names may
        # become the same when they are corrected, and the buckets of a histogram have the label "le".
        named = {re.sub(_INVALID, "_", name): value for name, value in labels}
        if family.kind == "histogram" and "le" in named:
            named["le_"] = named.pop("le")
        yield write(family.name, tuple(named.items()), sample)


def _value(name: str, labels: Labels, sample: Sample) -> str:
    return f"{_labelled(name, labels)} {number(sample.value)}\n"


def _histogram(name: str, labels: Labels, sample: Sample) -> str:
    bounds = [*(f"{bound:g}" for bound in sample.bounds), "+Inf"]
    buckets = [
        f"{_labelled(f'{name}_bucket', sorted((*labels, ('le', bound))))} {count}\n"
        # A histogram without buckets has no counts, so the lengths may differ.
        for bound, count in zip(bounds, accumulate(sample.counts), strict=False)
    ]
    count, total = sum(sample.counts), number(sample.value)
    lines = (
        *buckets,
        f"{_labelled(f'{name}_count', labels)} {count}\n",
        f"{_labelled(f'{name}_sum', labels)} {total}\n",
    )
    return "".join(lines)


def _labelled(name: str, labels: Labels | list[tuple[str, str]]) -> str:
    return f"{name}{{{label_text(labels)}}}" if labels else name
