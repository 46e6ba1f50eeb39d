"""Which models wait for which: exactly the calls that would close a cycle are found."""

from __future__ import annotations

import itertools
from graphlib import CycleError, TopologicalSorter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backline.engine.config.model_config import EnsembleStep, ModelConfig
from backline.engine.engine import Engine
from backline.engine.model import Model
from backline.lifecycle.call_graph import CallGraph, Node, Wait, called
from backline_client.values.errors import Unavailable

NODES = [(name, "1") for name in "abcde"]
NODE = st.sampled_from(NODES)
#: Successive calls, of a model or an ensemble with its steps, and which call in flight ends after each.
TURNS = st.lists(
    st.tuples(st.lists(st.tuples(NODE, NODE), min_size=1, max_size=3), st.none() | st.integers(0, 20)),
    max_size=30,
)


def is_circular(waits: list[Wait]) -> bool:
    graph: dict[Node, set[Node]] = {}
    for waiting, awaited in waits:
        graph.setdefault(waiting, set()).add(awaited)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return True
    return False


@given(TURNS)
def test_a_cycle_is_found_exactly_when_there_would_be_one(
    turns: list[tuple[list[Wait], int | None]],
) -> None:
    graph = CallGraph()
    under_way: list[list[Wait]] = []
    for waits, ended in turns:
        there = [wait for call in under_way for wait in call]
        cycle = graph.cycle(waits)

        assert bool(cycle) == is_circular([*there, *waits])
        if cycle:
            assert cycle[0] == cycle[-1]
            assert set(itertools.pairwise(cycle)) <= {*there, *waits}
        else:
            graph.add(waits)
            under_way.append(waits)
        if ended is not None and ended < len(under_way):
            graph.remove(under_way.pop(ended))


@given(st.lists(st.tuples(NODE, NODE), max_size=20))
def test_nothing_is_left_of_calls_that_have_ended(waits: list[Wait]) -> None:
    graph = CallGraph()
    graph.add(waits)
    graph.remove(waits)

    assert not any(graph.cycle([(a, b)]) for a in NODES for b in NODES if a != b)


def test_calls_in_opposite_directions_cannot_deadlock() -> None:
    graph = CallGraph()
    graph.add([(("a", "1"), ("b", "1"))])

    assert graph.cycle([(("b", "1"), ("a", "1"))]) == [("b", "1"), ("a", "1"), ("b", "1")]


def test_a_step_without_a_ready_version_is_unavailable() -> None:
    engine = Engine()
    engine.add(Model("m", "1", ModelConfig("m"), reason="unloaded"))

    with pytest.raises(Unavailable, match="unloaded"):
        called(engine, EnsembleStep("m", "", {}, {}))
