"""Which replicas of a deployment are started and stopped, without Ray."""

from __future__ import annotations

import pytest

from backline.ray.plan import ReplicaMember, Steps, next_steps, wanted_replicas
from backline.ray.spec import ReplicaSpec, ReplicaState


def state(desired: float = 1.0, *, ready: bool = True) -> ReplicaState:
    return ReplicaState("grpc://a:1", ready, desired, desired, 1, "node")


def new(name: str, *, ready: bool = True, desired: float = 1.0) -> ReplicaMember:
    return ReplicaMember(name, True, state(desired) if ready else None)


def old(name: str, *, ready: bool = True) -> ReplicaMember:
    return ReplicaMember(name, False, state() if ready else None)


def test_all_replicas_of_a_new_deployment_start_at_once() -> None:
    assert next_steps([], 3) == Steps(3, ())


def test_those_that_start_already_are_not_started_again() -> None:
    assert next_steps([new("a", ready=False), new("b", ready=False)], 3) == Steps(1, ())


def test_a_roll_replaces_one_replica_after_the_other() -> None:
    """At each step at least two of two replicas take requests."""
    assert next_steps([old("a"), old("b")], 2) == Steps(1, ())
    assert next_steps([old("a"), old("b"), new("c", ready=False)], 2) == Steps(0, ())
    assert next_steps([old("a"), old("b"), new("c")], 2) == Steps(0, ("a",))
    assert next_steps([old("b"), new("c")], 2) == Steps(1, ())
    assert next_steps([old("b"), new("c"), new("d")], 2) == Steps(0, ("b",))
    assert next_steps([new("c"), new("d")], 2) == Steps(0, ())


def test_old_replicas_that_do_not_answer_stay_until_the_new_ones_take_requests() -> None:
    """A controller that has just started has heard of none of them."""
    assert next_steps([old("a", ready=False), old("b", ready=False), new("c")], 2) == Steps(0, ())


def test_of_too_many_replicas_those_that_take_no_requests_go_first() -> None:
    assert next_steps([new("a"), new("b", ready=False), new("c")], 2) == Steps(0, ("b",))


@pytest.mark.parametrize(("desired", "wanted"), [(1.0, 2), (1.4, 3), (2.0, 4), (0.5, 1)])
def test_the_load_sets_the_number(desired: float, wanted: int) -> None:
    assert wanted_replicas([new("a", desired=desired), new("b", desired=desired)], 1, 8) == wanted


def test_the_number_stays_within_its_bounds() -> None:
    busy = [new("a", desired=2.0), new("b", desired=2.0)]

    assert wanted_replicas(busy, 1, 3) == 3
    assert wanted_replicas([new("a", desired=0.5), new("b", desired=0.5)], 2, 3) == 2


def test_the_number_is_not_lowered_while_a_replica_does_not_answer() -> None:
    assert wanted_replicas([new("a", desired=0.5), new("b", desired=0.5), new("c", ready=False)], 1, 4) == 2


def test_a_changed_specification_is_another_one() -> None:
    spec = ReplicaSpec(("models",), {"num_cpus": 1})

    assert spec.digest == ReplicaSpec(("models",), {"num_cpus": 1}).digest
    assert spec.digest != ReplicaSpec(("models",), {"num_cpus": 2}).digest
    assert spec.digest != ReplicaSpec(("models",), {"num_cpus": 1}, revision="2").digest
