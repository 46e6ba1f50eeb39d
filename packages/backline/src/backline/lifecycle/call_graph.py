"""The call graph: records which models wait for which others, to detect calls that would deadlock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from backline.engine.config.model_config import EnsembleStep
from backline.engine.engine import Engine
from backline.engine.model import Model

#: A model's name and version.
Node: TypeAlias = tuple[str, str]
#: The node that waits, and the node that it waits for.
Wait: TypeAlias = tuple[Node, Node]


class CallGraph:
    """Records which models wait for which other models. Its users add only waits that close no cycle, so
    calls cannot deadlock, even if each model has only one instance.
    """

    def __init__(self) -> None:
        self._waits: dict[Node, Counter[Node]] = {}

    def cycle(self, waits: Sequence[Wait]) -> list[Node]:
        """Returns the nodes of a cycle that these waits would close, with the first node repeated at the end;
        empty if they close none.
        """
        new: dict[Node, list[Node]] = {}
        for waiting, awaited in waits:
            new.setdefault(waiting, []).append(awaited)
        for waiting, awaited in waits:
            way = self._way(awaited, waiting, new)
            if way:
                return [waiting, *way]
        return []

    def _way(self, start: Node, end: Node, new: dict[Node, list[Node]]) -> list[Node]:
        """Returns the nodes on a path from `start` to `end`, both included, along waits in the graph and in
        `new`; empty if no path exists.
        """
        before: dict[Node, Node | None] = {start: None}
        reached = [start]
        for node in reached:
            if node == end:
                way: list[Node] = []
                step: Node | None = node
                while step is not None:
                    way.append(step)
                    step = before[step]
                return way[::-1]
            for further in (*self._waits.get(node, ()), *new.get(node, ())):
                if further not in before:
                    before[further] = node
                    reached.append(further)
        return []

    def together_with(self, waits: Iterable[Wait]) -> dict[Node, set[Node]]:
        """Maps each waiting node to the nodes that it waits for, as if `waits` had been added."""
        together = {node: set(awaited) for node, awaited in self._waits.items()}
        for waiting, awaited in waits:
            together.setdefault(waiting, set()).add(awaited)
        return together

    def add(self, waits: Iterable[Wait]) -> None:
        """Adds waits. A wait that is added twice must be removed twice."""
        for waiting, awaited in waits:
            self._waits.setdefault(waiting, Counter())[awaited] += 1

    def remove(self, waits: Iterable[Wait]) -> None:
        """Undoes one `add` of each of these waits."""
        for waiting, awaited in waits:
            counts = self._waits[waiting]
            counts[awaited] -= 1
            if not counts[awaited]:
                del counts[awaited]
                if not counts:
                    del self._waits[waiting]


def node(model: Model) -> Node:
    """Returns a model as a node of the call graph."""
    return model.name, model.version


def called(engine: Engine, step: EnsembleStep) -> Model:
    """Returns the version that a step calls now. Raises what Engine.find_ready raises if none is ready."""
    version = step.version or next(reversed(engine.served_versions(step.model)), "")
    return engine.find_ready(step.model, version)


def waits_for_steps(engine: Engine, model: Model) -> list[Wait]:
    """Returns the waits that an ensemble causes: its waits for the models that its steps call and, if such
    a model is an ensemble too, the waits that this model causes. Empty for a model that is not an
    ensemble.
    """
    ensemble = model.config.ensemble
    if ensemble is None:
        return []
    waits = []
    for step in ensemble.steps:
        awaited = called(engine, step)
        waits += [(node(model), node(awaited)), *waits_for_steps(engine, awaited)]
    return list(dict.fromkeys(waits))
