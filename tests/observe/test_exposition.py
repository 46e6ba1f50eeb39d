"""The text in which metrics of models appear on the page."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backline.engine.custom_metrics import CustomMetrics
from backline.observe.exposition import exposed


@pytest.mark.parametrize(
    ("kind", "labels", "expected"),
    [
        ("counter", {"a-b": "1", "a.b": "2"}, {"a_b"}),
        ("histogram", {"le": "1", "a": "2"}, {"le_", "a", "le"}),
    ],
    ids=["corrected to the same name", "the label of buckets"],
)
def test_no_sample_has_two_labels_of_one_name(kind: str, labels: dict[str, str], expected: set[str]) -> None:
    metrics = CustomMetrics()
    metrics.declare("model", "seen", kind, "Seen.")  # type: ignore[arg-type]
    metrics.observe("seen", labels, [1.0] if kind == "histogram" else [], 0.5)
    (family,) = metrics

    text = "".join(exposed(family))

    names = [label for line in text.splitlines() if "{" in line for label in named(line)]
    assert set(names) == expected
    assert all(len(named(line)) == len(set(named(line))) for line in text.splitlines() if "{" in line)
    assert [*text_string_to_metric_families(text)]


def named(line: str) -> list[str]:
    """The names of the labels of a sample."""
    inner = line[line.index("{") + 1 : line.index("}")]
    return [label.partition("=")[0] for label in inner.split(",")]
