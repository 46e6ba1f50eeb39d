"""Which steps of an ensemble run for which outputs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backline.engine.config.model_config import Ensemble, EnsembleStep
from backline.schedule.ensembles.graph import plan_ensemble

# a -> first -> m -> left -> b
#               m -> right -> c;  b, c -> join -> d
DIAMOND = Ensemble(
    (
        EnsembleStep("join", "", {"x": "b", "z": "c"}, {"y": "d"}),
        EnsembleStep("left", "", {"x": "m"}, {"y": "b"}),
        EnsembleStep("right", "", {"x": "m"}, {"y": "c", "unused": "u"}),
        EnsembleStep("first", "", {"x": "a"}, {"y": "m"}),
    )
)


graphs = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=1, max_size=8)


@given(graphs, st.data())
def test_each_needed_step_runs_once_after_the_steps_it_depends_on(
    graph: list[list[int]], data: st.DataObject
) -> None:
    """Step n makes tensor tn from an input or from tensors of earlier steps."""
    made = [
        EnsembleStep(
            f"m{number}",
            "",
            {f"i{place}": f"t{taken}" if taken < number else "x" for place, taken in enumerate(takes)},
            {"o": f"t{number}"},
        )
        for number, takes in enumerate(graph)
    ]
    outputs = data.draw(
        st.lists(st.sampled_from([f"t{number}" for number in range(len(graph))]), min_size=1, unique=True)
    )
    plan = plan_ensemble(Ensemble(tuple(made)), outputs)

    needed: set[str] = set()
    for step in reversed(made):
        if step.outputs["o"] in outputs or step.outputs["o"] in needed:
            needed |= {step.outputs["o"], *step.inputs.values()}
    assert [planned.step for planned in plan.steps] == [step for step in made if step.outputs["o"] in needed]

    waits = list(plan.waits)
    there = {"x"}
    runnable = [number for number, count in enumerate(waits) if not count]
    ran: list[int] = []
    while runnable:
        number = runnable.pop(data.draw(st.integers(0, len(runnable) - 1)))
        assert set(plan.steps[number].step.inputs.values()) <= there
        ran.append(number)
        for _, tensor in plan.steps[number].outputs:
            there.add(tensor)
            for consumer in plan.consumers.get(tensor, ()):
                waits[consumer] -= 1
                if not waits[consumer]:
                    runnable.append(consumer)
    assert sorted(ran) == list(range(len(plan.steps)))


def test_only_steps_that_an_output_needs_run() -> None:
    plan = plan_ensemble(DIAMOND, ("b",))

    assert [planned.step.model for planned in plan.steps] == ["left", "first"]


def test_a_step_waits_for_tensors_of_other_steps_and_not_for_inputs() -> None:
    plan = plan_ensemble(DIAMOND, ("d",))

    assert dict(zip([planned.step.model for planned in plan.steps], plan.waits, strict=True)) == {
        "join": 2,
        "left": 1,
        "right": 1,
        "first": 0,
    }


def test_a_tensor_goes_to_all_waiting_steps() -> None:
    plan = plan_ensemble(DIAMOND, ("d",))

    assert [plan.steps[number].step.model for number in plan.consumers["m"]] == ["left", "right"]


def test_unneeded_outputs_are_not_requested() -> None:
    plan = plan_ensemble(DIAMOND, ("d",))

    assert next(planned for planned in plan.steps if planned.step.model == "right").names == ("y",)
