"""Which steps of an ensemble run for which outputs."""

from __future__ import annotations

from backline.engine.ensemble import Ensemble, EnsembleStep
from backline.schedule.ensemble_graph import plan_ensemble

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


def test_only_steps_run_that_an_output_needs() -> None:
    plan = plan_ensemble(DIAMOND, ("b",))

    assert [planned.step.model for planned in plan.steps] == ["left", "first"]


def test_a_step_waits_for_the_tensors_of_others_and_not_for_inputs() -> None:
    plan = plan_ensemble(DIAMOND, ("d",))

    assert dict(zip([planned.step.model for planned in plan.steps], plan.waits, strict=True)) == {
        "join": 2,
        "left": 1,
        "right": 1,
        "first": 0,
    }


def test_a_tensor_goes_to_all_steps_that_wait_for_it() -> None:
    plan = plan_ensemble(DIAMOND, ("d",))

    assert [plan.steps[number].step.model for number in plan.consumers["m"]] == ["left", "right"]


def test_outputs_that_nobody_needs_are_not_asked_for() -> None:
    plan = plan_ensemble(DIAMOND, ("d",))

    assert next(planned for planned in plan.steps if planned.step.model == "right").names == ("y",)
