"""Metrics of loads, states, memory and labels."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backline.engine.config.model_config import ModelConfig
from backline.engine.engine import Engine
from backline.engine.model import Model, ModelState
from backline.observe.metrics import Metrics


@pytest.fixture
def engine() -> Engine:
    """A model with two versions, one of which was never ready."""
    engine = Engine()
    for version, state in (("1", ModelState.READY), ("2", ModelState.UNAVAILABLE)):
        model = Model("add1", version, ModelConfig("add1"))
        model.state = state
        engine.add(model)
    return engine


def samples(engine: Engine, name: str) -> dict[tuple[str, ...], float]:
    """The values of a metric by its label values, in the order of label names."""
    _, text = asyncio.run(Metrics(engine).page())
    families = text_string_to_metric_families(b"".join(text).decode())
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


def test_each_version_has_one_state(engine: Engine) -> None:
    states = samples(engine, "backline_model_state")
    assert states == {("add1", "READY", "1"): 1, ("add1", "UNAVAILABLE", "2"): 1}


def test_an_on_demand_version_is_ready(engine: Engine) -> None:
    assert samples(engine, "backline_model_ready") == {("add1", "1"): 1, ("add1", "2"): 0}
    engine.find("add1", "2").on_demand = True
    assert samples(engine, "backline_model_ready")["add1", "2"] == 1


def test_memory_per_version(engine: Engine) -> None:
    engine.find("add1", "1").memory_bytes = 12_345_678
    assert samples(engine, "backline_model_memory_bytes") == {("add1", "1"): 12_345_678, ("add1", "2"): 0}


def test_labels_point_to_versions(engine: Engine) -> None:
    engine.set_labels("add1", {"stable": "1", "canary": "2"})
    assert samples(engine, "backline_model_label") == {("stable", "add1", "1"): 1, ("canary", "add1", "2"): 1}


def test_loads_are_counted_with_failures_and_seconds(engine: Engine) -> None:
    engine.record_load("add1", 0.5, succeeded=True)
    engine.record_load("add1", 0.25, succeeded=True)
    engine.record_load("add1", 9.0, succeeded=False)
    assert samples(engine, "backline_model_loads_total") == {("add1", "success"): 2, ("add1", "failure"): 1}
    assert samples(engine, "backline_model_load_seconds_total") == {("add1",): 0.75}
