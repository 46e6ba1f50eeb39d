"""Prometheus' text format, version 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/), for samples by the thousand.

The exposition library makes an object of every sample and a line of every object; here a family is a template, filled with numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, isnan

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
