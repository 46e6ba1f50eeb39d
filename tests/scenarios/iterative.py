"""Models that reschedule a request until they answer it."""

from __future__ import annotations

from scenarios.repository import Served, instance_group, tensor, tensors
from scenarios.scenario import scenario
from scenarios.sequences import step
from scenarios.session import Session

_START = (
    'control_input [ { name: "START" '
    "control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] } ]"
)


def iterative(strategy: str, *, max_batch_size: int = 4) -> Served:
    """The model `iterative.py`."""
    shape = (
        f"max_batch_size: {max_batch_size}\n"
        f"{tensors([tensor('IN')], [tensor('OUT'), tensor('SEEN', 'STRING')])}"
    )
    batching = f"max_sequence_idle_microseconds: 20000000 iterative_sequence: true {strategy}"
    return Served(f"{shape}{instance_group()}sequence_batching {{ {batching} }}\n", "iterative")


MODELS: dict[str, Served] = {
    "iterated": iterative("oldest { max_candidate_sequences: 4 }"),
    "iterated_direct": iterative("direct { }"),
    "iterated_start": iterative(f"oldest {{ max_candidate_sequences: 4 }} {_START}"),
}


@scenario("http", "grpc")
def a_request_runs_until_it_is_answered(session: Session) -> None:
    session.infer("iterated", 3)


@scenario("http", "grpc")
def a_request_answered_by_its_first_execution(session: Session) -> None:
    session.infer("iterated", 1)


@scenario("http", "grpc")
def the_start_flag_is_set_once(session: Session) -> None:
    session.infer("iterated_start", 3)


@scenario("http", "grpc")
def each_request_is_a_separate_sequence(session: Session) -> None:
    session.infer("iterated", 2)
    session.infer("iterated", 2)


@scenario("http", "grpc")
def a_named_sequence_ends_with_its_answer(session: Session) -> None:
    session.infer("iterated", 2, **step(7, start=True))
    session.infer("iterated", 2, **step(7))
    session.infer("iterated", 2, **step(7, end=True))


@scenario("http", "grpc")
def a_named_sequence_must_start(session: Session) -> None:
    session.infer("iterated", 2, **step(7))


@scenario("http", "grpc")
def the_direct_strategy_iterates_too(session: Session) -> None:
    session.infer("iterated_direct", 3)


@scenario("http", "grpc")
def later_requests_join_the_batch(session: Session) -> None:
    with session.busy("iterated", value=4):
        session.queue("iterated", 2)
        session.queue("iterated", 3)


@scenario("http", "grpc")
def an_error_ends_the_iteration(session: Session) -> None:
    session.infer("iterated", 3, parameters={"fail_at": 2})
    session.infer("iterated", 2)
