"""What an ensemble does next, over random graphs, numbers of responses and orders of events."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backline.engine.config.model_config import Ensemble, EnsembleStep
from backline.schedule.ensembles.graph import origins, plan_ensemble
from backline.schedule.ensembles.progress import EnsembleProgress, Round
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.tensor import Tensor


def number(value: int) -> Tensor:
    return Tensor("t", DataType.INT64, (1,), np.array([value]))


def step(name: str, inputs: list[str], output: str) -> EnsembleStep:
    return EnsembleStep(name, "", {f"x{index}": tensor for index, tensor in enumerate(inputs)}, {"y": output})


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Ensemble, frozenset[int]]:
    """A chain of stages: a single step, two parallel ones that are joined, or a decoupled one; listed in
    any order.
    """
    kinds = draw(st.lists(st.sampled_from(["one", "two", "many"]), min_size=1, max_size=5))
    steps: list[EnsembleStep] = []
    many = set()
    for index, kind in enumerate(kinds):
        before, after = f"t{index}", f"t{index + 1}"
        if kind == "two":
            sides = [step("side", [before], f"{after}{side}") for side in "ab"]
            steps += [*sides, step("join", [f"{after}a", f"{after}b"], after)]
        else:
            steps.append(step(kind, [before], after))
        if kind == "many":
            many.add(after)
    shuffled = draw(st.permutations(steps))
    ensemble = Ensemble(tuple(shuffled))
    return ensemble, frozenset(index for index, one in enumerate(shuffled) if one.outputs["y"] in many)


class Runs:
    """Stands in for the models. A step adds nothing; the n-th of v mod 4 responses of a decoupled step to
    v is 10 v + n.
    """

    def __init__(
        self, ensemble: Ensemble, decoupled: frozenset[int], limit: int, *, hasty: bool = False
    ) -> None:
        """`hasty` decoupled steps respond although they are paused."""
        self.plan = plan_ensemble(
            ensemble,
            (f"t{len({t for s in ensemble.steps for t in s.outputs.values() if len(t) == 2})}",),
            decoupled,
        )
        self.limit = limit
        self.hasty = hasty
        self.progress = EnsembleProgress(self.plan, {"t0": number(3)}, limit)
        #: Requests in flight, and the responses still to come.
        self.under_way: list[tuple[Round, int, list[int]]] = []
        self.answers: list[int] = []
        self.started = 0

    def take(self) -> None:
        while self.progress.ready:
            begun, at = self.progress.ready.popleft()
            values = {
                int(begun.tensors[tensor].data[0]) for tensor in self.plan.steps[at].step.inputs.values()
            }  # type: ignore[union-attr]
            assert len(values) == 1, "tensors of different rounds never meet"
            (value,) = values
            gives = [value * 10 + n for n in range(value % 4)] if self.plan.steps[at].decoupled else [value]
            self.under_way.append((begun, at, gives))
            self.started += 1
        for at, planned in enumerate(self.plan.steps):
            assert sum(one[1] == at for one in self.under_way) <= (1 if planned.decoupled else self.limit)
        while (answer := self.progress.next_answer()) is not None:
            self.answers.append(int(answer.tensors[self.plan.outputs[0]].data[0]))  # type: ignore[union-attr]

    def advance(self, choice: int) -> None:
        """Lets a request in flight respond or end; a paused decoupled step does not respond."""
        able = [one for one in self.under_way if not one[2] or not self._waits(one)]
        assert able, "some step can always continue"
        one = able[choice % len(able)]
        begun, at, gives = one
        output = self.plan.steps[at].outputs[0][1]
        if gives:
            self.progress.responded(begun, at, {output: number(gives.pop(0))})
        if not gives:
            self.under_way.remove(one)
            self.progress.ended(begun, at)
        self.take()

    def _waits(self, one: tuple[Round, int, list[int]]) -> bool:
        return not self.hasty and self.plan.steps[one[1]].decoupled and self.progress.full(one[0].level + 1)


def expected(decoupled: int) -> list[int]:
    values = [3]
    for _ in range(decoupled):
        values = [value * 10 + n for value in values for n in range(value % 4)]
    return values


@settings(max_examples=300)
@given(graphs(), st.integers(1, 3), st.booleans(), st.randoms(use_true_random=False))
def test_each_response_passes_all_steps_and_responses_keep_their_order(
    graph, limit: int, hasty: bool, random
) -> None:
    ensemble, decoupled = graph
    runs = Runs(ensemble, decoupled, limit, hasty=hasty)

    runs.take()
    while runs.under_way:
        assert not runs.progress.finished
        runs.advance(random.randrange(1000))

    assert runs.progress.finished
    assert runs.answers == expected(len(decoupled))


def test_a_level_is_full_when_its_open_rounds_reach_the_limit() -> None:
    ensemble = Ensemble((step("many", ["a"], "b"), step("slow", ["b"], "c")))
    progress = EnsembleProgress(plan_ensemble(ensemble, ("c",), {0}), {"a": number(3)}, 2)
    begun, many = progress.ready.popleft()

    for value in range(3):
        progress.responded(begun, many, {"b": number(value)})

    assert progress.full(1)
    assert [one.number for one, _ in progress.ready] == [0, 1]


def test_an_output_missing_from_a_step_is_missing_from_the_response() -> None:
    ensemble = Ensemble((EnsembleStep("many", "", {"x": "a"}, {"y": "b", "z": "c"}),))
    progress = EnsembleProgress(plan_ensemble(ensemble, ("b", "c"), {0}), {"a": number(3)}, 2)
    begun, many = progress.ready.popleft()

    progress.responded(begun, many, {"b": number(1), "c": None})

    answer = progress.next_answer()
    assert answer is not None
    assert answer.tensors["c"] is None


def test_tensors_of_different_decoupled_steps_cannot_be_combined_as_in_triton() -> None:
    ensemble = Ensemble((step("many", ["a"], "b"), step("others", ["a"], "c"), step("join", ["b", "c"], "d")))

    with pytest.raises(
        InvalidArgument,
        match="step of model 'join' receives inputs originated from different decoupled models",
    ):
        origins(ensemble, {0, 1})
