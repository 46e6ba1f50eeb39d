"""Ensembles: models composed of other models."""

from __future__ import annotations

import numpy as np

from scenarios.batching import rows
from scenarios.repository import Served, tensor, tensors, worker
from scenarios.scenario import scenario
from scenarios.session import Session
from scenarios.timeouts import OVER


def step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> str:
    """A step: the model's inputs and outputs, each mapped to a tensor of the ensemble."""
    pairs = [*(("input", *pair) for pair in inputs.items()), *(("output", *pair) for pair in outputs.items())]
    maps = [f'{kind}_map {{ key: "{name}" value: "{tensor}" }}' for kind, name, tensor in pairs]
    return f'step {{ model_name: "{model}" model_version: -1 {" ".join(maps)} }}'


def ensemble(
    inputs: list[str], outputs: list[str], *steps: str, max_batch_size: int = 8, more: str = ""
) -> Served:
    shape = f'platform: "ensemble"\nmax_batch_size: {max_batch_size}\n{tensors(inputs, outputs)}'
    return Served(f"{shape}ensemble_scheduling {{ {' '.join(steps)} }}\n{more}")


_IN, _OUT = tensor("IN"), tensor("OUT")
MODELS: dict[str, Served] = {
    "first": worker("dynamic_batching { }\n"),
    "second": worker("dynamic_batching { }\n"),
    "adding": worker("dynamic_batching { }\n", plus=True),
    "chain": ensemble(
        [_IN],
        [_OUT, tensor("BATCH1", "STRING"), tensor("BATCH2", "STRING")],
        step("first", {"IN": "IN"}, {"OUT": "middle", "BATCH": "BATCH1"}),
        step("second", {"IN": "middle"}, {"OUT": "OUT", "BATCH": "BATCH2"}),
    ),
    "fork": ensemble(
        [_IN],
        [_OUT, tensor("LEFT")],
        step("first", {"IN": "IN"}, {"OUT": "LEFT"}),
        step("second", {"IN": "IN"}, {"OUT": "right"}),
        step("adding", {"IN": "LEFT", "PLUS": "right"}, {"OUT": "OUT"}),
    ),
    "optional": ensemble(
        [_IN, tensor("PLUS", extra="optional: true ")],
        [_OUT],
        step("first", {"IN": "IN"}, {"OUT": "middle"}),
        step("adding", {"IN": "middle", "PLUS": "PLUS"}, {"OUT": "OUT"}),
    ),
    "by_levels": ensemble(
        [_IN],
        [_OUT, tensor("BATCH", "STRING")],
        step("levels", {"IN": "IN"}, {"OUT": "OUT", "BATCH": "BATCH"}),
        max_batch_size=2,
    ),
    "by_limited": ensemble(
        [_IN], [_OUT], step("limited_levels", {"IN": "IN"}, {"OUT": "OUT"}), max_batch_size=4
    ),
    "by_timeout": ensemble([_IN], [_OUT], step("rejecting", {"IN": "IN"}, {"OUT": "OUT"}), max_batch_size=1),
    "in_sequence": ensemble(
        [_IN],
        [_OUT, tensor("SEEN", "STRING")],
        step("oldest", {"IN": "IN"}, {"OUT": "OUT", "SEEN": "SEEN"}),
        max_batch_size=4,
    ),
    "by_late": ensemble(
        [_IN], [_OUT], step("rejecting_early", {"IN": "IN"}, {"OUT": "OUT"}), max_batch_size=1
    ),
    "nested": ensemble(
        [_IN],
        [_OUT],
        step("chain", {"IN": "IN"}, {"OUT": "middle"}),
        step("first", {"IN": "middle"}, {"OUT": "OUT"}),
    ),
}
STEPS = ("first", "second")


@scenario("http", "grpc", watch=STEPS)
def a_chain_of_two(session: Session) -> None:
    session.infer("chain", 1)


@scenario("http", "grpc", watch=STEPS)
def a_batch_passes_through_the_steps_whole(session: Session) -> None:
    session.infer("chain", rows(1, 2, 3))


@scenario("http", "grpc", watch=(*STEPS, "adding"))
def a_fork_and_a_join(session: Session) -> None:
    session.infer("fork", 10)


@scenario("http", "grpc", watch=(*STEPS, "chain"))
def an_ensemble_in_an_ensemble(session: Session) -> None:
    session.infer("nested", 1)


@scenario("http", "grpc", watch=STEPS)
def steps_are_batched_with_other_requests(session: Session) -> None:
    with session.busy("second"):
        with session.busy("first"):
            session.queue("first", 1)
            session.queue("chain", 2, at="first")
            session.queue("chain", 3, at="first")
        session.wait_pending("second", 2)


@scenario("http", "grpc", watch=STEPS)
def ensembles_return_only_requested_outputs(session: Session) -> None:
    session.infer("chain", 1, outputs=("OUT", "BATCH1"))


@scenario("http", "grpc", watch=STEPS)
def unneeded_steps(session: Session) -> None:
    session.infer("chain", 1, outputs=("BATCH1",))


@scenario("http", "grpc", watch=("first", "adding"))
def optional_inputs_of_steps(session: Session) -> None:
    session.infer("optional", 1)
    session.infer("optional", 1, inputs={"PLUS": np.array([[100]], np.int32)})


@scenario("http", "grpc", watch=(*STEPS, "adding"))
def a_step_omits_an_output_that_is_optional_for_the_next_step(session: Session) -> None:
    session.infer("fork", 10, parameters={"omit": "OUT", "at": "second"})


@scenario("http", "grpc", watch=STEPS)
def a_step_omits_an_output_of_the_ensemble(session: Session) -> None:
    session.infer("chain", 10, parameters={"omit": "BATCH", "at": "first"})


@scenario("http", "grpc", watch=STEPS)
def a_step_omits_an_output_that_the_next_step_requires(session: Session) -> None:
    session.infer("chain", 10, parameters={"omit": "OUT", "at": "first"})


@scenario("http", "grpc", watch=STEPS)
def a_step_omits_the_only_requested_output(session: Session) -> None:
    session.infer("chain", 10, outputs=("BATCH1",), parameters={"omit": "BATCH", "at": "first"})


@scenario("http", "grpc", watch=STEPS)
def an_error_of_the_first_step(session: Session) -> None:
    session.infer("chain", 1, parameters={"fail": "no", "at": "first", "code": "INVALID_ARG"})


@scenario("http", "grpc", watch=STEPS)
def an_error_of_the_last_step(session: Session) -> None:
    session.infer("chain", 1, parameters={"fail": "no", "at": "second", "code": "UNAVAILABLE"})


@scenario("http", "grpc", watch=STEPS)
def an_exception_in_a_step(session: Session) -> None:
    session.infer("chain", 1, parameters={"raise": "no", "at": "second"})


@scenario("http", "grpc", watch=(*STEPS, "adding"))
def an_error_in_a_branch(session: Session) -> None:
    with session.busy("first"):
        session.ask("fork", 1, parameters={"fail": "no", "at": "second"})
        session.wait_executions("second", 1)
        session.pause()


@scenario("http", "grpc")
def a_batch_above_the_ensembles_maximum_is_refused(session: Session) -> None:
    session.infer("chain", rows(*range(9)))


@scenario("http", "grpc", watch=("limited_levels",))
def a_full_queue_of_a_step(session: Session) -> None:
    with session.busy("limited_levels"):
        session.queue("limited_levels", 1)
        session.queue("limited_levels", 2)
        session.infer("by_limited", 3)


@scenario("http", "grpc", watch=("rejecting",))
def a_timeout_in_a_step(session: Session) -> None:
    with session.busy("rejecting"):
        session.queue("by_timeout", 1, at="rejecting")
        session.pause(OVER)


@scenario("http", "grpc", watch=("levels",))
def steps_inherit_the_priority(session: Session) -> None:
    with session.busy("levels"):
        for value in (1, 2):
            session.queue("levels", value, priority=2)
        session.queue("by_levels", 3, at="levels", priority=1)


@scenario("http", "grpc", watch=("oldest",))
def steps_inherit_the_sequence(session: Session) -> None:
    session.infer("in_sequence", 1, sequence_id=7, sequence_start=True)
    session.infer("in_sequence", 2, sequence_id=7, sequence_end=True)
    session.infer("in_sequence", 3, sequence_id=7)


@scenario("http", "grpc")
def the_request_id_is_returned(session: Session) -> None:
    session.infer("chain", 1, request_id="mine")


@scenario("grpc", watch=STEPS)
def a_deadline_in_the_first_step_ends_an_ensemble(session: Session) -> None:
    with session.busy("first"):
        session.queue("chain", 1, at="first", client_timeout=0.1).result()
        session.pause()
    session.pause()


@scenario("grpc", watch=STEPS)
def a_deadline_in_the_second_step_ends_an_ensemble(session: Session) -> None:
    with session.busy("second"):
        session.queue("chain", 1, at="second", client_timeout=0.1).result()
        session.pause()
    session.pause()


@scenario("grpc", watch=STEPS)
def a_deadline_that_does_not_pass(session: Session) -> None:
    session.infer("chain", 1, client_timeout=5)


@scenario("http", "grpc", watch=("rejecting_early",))
def steps_inherit_the_timeout(session: Session) -> None:
    with session.busy("rejecting_early"):
        session.queue("by_late", 1, at="rejecting_early", timeout=30_000)
        session.queue("by_late", 2, at="rejecting_early")
        session.pause(OVER)
