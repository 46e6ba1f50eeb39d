"""Which requests are batched together."""

from __future__ import annotations

from typing import Any

import numpy as np

from scenarios.gate import Gate
from scenarios.repository import Served, worker
from scenarios.scenario import Seen, scenario
from scenarios.session import Session

MODELS: dict[str, Served] = {
    "joined": worker("dynamic_batching { }\n"),
    "preferred": worker("dynamic_batching { preferred_batch_size: [ 3, 5 ] }\n"),
    "patient": worker(
        "dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 600000 }\n"
    ),
    "expectant": worker(
        "dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 60000000 }\n"
    ),
    "unjoined": worker(),
    "unbatched": worker(max_batch_size=0),
    "shapes": worker("dynamic_batching { }\n", dims="-1", plus=True),
    "pair": worker("dynamic_batching { }\n", max_batch_size=1, instances=2),
    "ordered": worker("dynamic_batching { preserve_ordering: true }\n", max_batch_size=1, instances=3),
    "unbatched_plus": worker(max_batch_size=0, dims="-1", plus=True),
}


#: Without RUN: either of the two instances may take a request.
BATCH = ("OUT", "BATCH")


def rows(*values: int) -> np.ndarray:
    return np.array(values, np.int32).reshape(-1, 1)


@scenario("http", "grpc")
def a_single_request_is_a_batch_of_one(session: Session) -> None:
    session.infer("joined", 5)


@scenario("http", "grpc")
def requests_queued_for_a_busy_instance_form_one_batch(session: Session) -> None:
    with session.busy("joined"):
        for value in range(1, 6):
            session.queue("joined", value)


@scenario("grpc")
def several_requests_at_once_on_a_new_connection(session: Session) -> None:
    # A server limits a connection's requests in flight until it has answered the first.
    session.infer("joined")
    with session.busy("joined"):
        session.connect_again()
        for _ in range(3):  # equal, since any of them may be first
            session.ask("joined", 1)
        session.pause(0.2)


@scenario("http", "grpc")
def no_batch_exceeds_the_maximum(session: Session) -> None:
    with session.busy("joined"):
        for value in range(1, 12):
            session.queue("joined", value)


@scenario("http", "grpc")
def requests_may_contain_batches(session: Session) -> None:
    with session.busy("joined"):
        for batch in (rows(1, 2, 3), rows(4, 5, 6), rows(7, 8, 9)):
            session.queue("joined", batch)


@scenario("http", "grpc")
def a_full_batch_is_not_joined(session: Session) -> None:
    with session.busy("joined"):
        session.queue("joined", 1)
        session.queue("joined", rows(*range(11, 19)))
        session.queue("joined", 2)


@scenario("http", "grpc")
def a_request_above_the_maximum_is_refused(session: Session) -> None:
    session.infer("joined", rows(*range(9)))


@scenario("http", "grpc")
def a_request_without_rows_is_refused(session: Session) -> None:
    session.infer("joined", np.zeros((0, 1), np.int32))


@scenario("http", "grpc")
def without_dynamic_batching_requests_run_separately(session: Session) -> None:
    with session.busy("unjoined"):
        for value in (rows(1), rows(2, 3), rows(4)):
            session.queue("unjoined", value)


@scenario("http", "grpc")
def without_a_batch_dimension_requests_run_separately(session: Session) -> None:
    with session.busy("unbatched", value=np.array([0], np.int32)):
        for value in (1, 2, 3):
            session.queue("unbatched", np.array([value], np.int32))


@scenario("http", "grpc")
def a_batch_for_an_unbatched_model_is_refused(session: Session) -> None:
    session.infer("unbatched", rows(1))


@scenario("http", "grpc")
def the_largest_preferred_size_is_taken(session: Session) -> None:
    with session.busy("preferred"):
        for value in range(1, 10):
            session.queue("preferred", value)


@scenario("http", "grpc")
def fewer_requests_than_a_preferred_size_do_not_wait(session: Session) -> None:
    with session.busy("preferred"):
        for value in (1, 2):
            session.queue("preferred", value)


@scenario("http", "grpc")
def batches_of_requests_add_up_to_a_preferred_size(session: Session) -> None:
    with session.busy("preferred"):
        for batch in (rows(1, 2), rows(3, 4, 5), rows(6, 7)):
            session.queue("preferred", batch)


@scenario("http", "grpc")
def a_batch_waits_for_the_queue_delay(session: Session) -> None:
    for _ in range(3):
        session.ask("patient", 1)


@scenario("http", "grpc")
def a_preferred_size_ends_the_wait(session: Session) -> None:
    for value in (1, 2, 3):
        session.queue("expectant", value)
    session.ask("expectant", 4)


@scenario("http", "grpc")
def only_equal_shapes_are_batched(session: Session) -> None:
    with session.busy("shapes"):
        for value in ([[1, 1]], [[2, 2]], [[3, 3, 3]], [[4, 4]], [[5, 5]]):
            session.queue("shapes", value)


@scenario("http", "grpc")
def only_requests_with_the_same_optional_inputs_are_batched(session: Session) -> None:
    plus = {"PLUS": np.array([[100]], np.int32)}
    with session.busy("shapes"):
        session.queue("shapes", 1)
        session.queue("shapes", 2, inputs=plus)
        session.queue("shapes", 3, inputs=plus)
        session.queue("shapes", 4)


@scenario("http", "grpc")
def a_missing_required_input_is_refused(session: Session) -> None:
    session.send(session.request("shapes", 1, inputs={"PLUS": np.array([[1]], np.int32)}).without("IN"))


@scenario("http", "grpc")
def an_unknown_input_is_refused(session: Session) -> None:
    session.infer("joined", 1, inputs={"OTHER": np.array([[1]], np.int32)})


@scenario("http", "grpc")
def a_wrong_datatype_is_refused(session: Session) -> None:
    session.infer("joined", 1, inputs={"IN": np.array([[1]], np.float32)})


@scenario("http", "grpc")
def a_wrong_shape_is_refused(session: Session) -> None:
    session.infer("joined", [[1, 2]])


@scenario("http", "grpc")
def only_requested_outputs_are_returned(session: Session) -> None:
    with session.busy("joined"):
        session.queue("joined", 1, outputs=("OUT",))
        session.queue("joined", 2, outputs=("BATCH", "OUT"))


@scenario("http", "grpc")
def an_unknown_output_is_refused(session: Session) -> None:
    session.infer("joined", 1, outputs=("OTHER",))


@scenario("http", "grpc")
def one_request_of_a_batch_may_fail(session: Session) -> None:
    with session.busy("joined"):
        session.queue("joined", 1)
        session.queue("joined", 2, parameters={"fail": "no twos"})
        session.queue("joined", 3)


@scenario("http", "grpc")
def an_error_has_the_code_that_the_model_sets(session: Session) -> None:
    for code in (
        "INTERNAL",
        "NOT_FOUND",
        "INVALID_ARG",
        "UNAVAILABLE",
        "UNSUPPORTED",
        "ALREADY_EXISTS",
        "CANCELLED",
        "UNKNOWN",
    ):
        session.infer("joined", 1, parameters={"fail": f"it is {code}", "code": code})


@scenario("http", "grpc")
def an_exception_fails_the_batch(session: Session) -> None:
    with session.busy("joined"):
        session.queue("joined", 1)
        session.queue("joined", 2, parameters={"raise": "no twos"})


@scenario("http", "grpc")
def two_instances_run_concurrently(session: Session) -> None:
    with session.busy("pair", instances=2, outputs=BATCH):
        for value in (1, 2, 3):
            session.queue("pair", value, outputs=BATCH)


@scenario("http", "grpc")
def answers_are_sent_in_order_of_completion(session: Session) -> Seen:
    gate = session.gate()
    session.ask("pair", 1, outputs=BATCH, parameters={"gate": gate.name})
    gate.wait_entered()
    session.infer("pair", 2, outputs=BATCH)
    gate.open()
    session.wait_all()
    return session.order


@scenario("http", "grpc")
def preserve_ordering_sends_answers_in_request_order(session: Session) -> Seen:
    first, second = session.gate(), session.gate()
    session.ask("ordered", 1, outputs=BATCH, parameters={"gate": first.name})
    first.wait_entered()
    later = session.ask("ordered", 2, outputs=BATCH, parameters={"gate": second.name})
    second.wait_entered()
    second.open()
    early = later.done_within(0.1)
    first.open()
    return {"the second before the first": early}


def ordered(session: Session, *values: Any, **options: Any) -> list[Gate]:
    """Gives each of three instances a request that waits at a gate."""
    gates = []
    for value in values:
        gates.append(session.gate())
        session.ask("ordered", value, outputs=BATCH, parameters={"gate": gates[-1].name, **options})
        gates[-1].wait_entered()
    return gates


@scenario("grpc")
def ordered_answers_of_three_instances(session: Session) -> Seen:
    gates = ordered(session, 1, 2, 3)
    for gate in reversed(gates):
        gate.open()
        session.pause()
    session.wait_all()
    return session.order


@scenario("grpc")
def errors_are_ordered_too(session: Session) -> Seen:
    gates = ordered(session, 1, 2, 3, fail="no")
    for gate in reversed(gates):
        gate.open()
        session.pause()
    session.wait_all()
    return session.order


@scenario("grpc")
def a_cancelled_request_does_not_block_ordered_answers(session: Session) -> Seen:
    first, second = session.gate(), session.gate()
    cancelled = session.ask("ordered", 1, outputs=BATCH, parameters={"gate": first.name})
    first.wait_entered()
    later = session.ask("ordered", 2, outputs=BATCH, parameters={"gate": second.name})
    second.wait_entered()
    cancelled.cancel()
    session.pause()
    second.open()
    early = later.done_within(0.15)
    first.open()
    return {"the second before the first has ended": early}


@scenario("http", "grpc")
def optional_inputs_without_a_batch_dimension(session: Session) -> None:
    session.infer("unbatched_plus", np.array([1], np.int32))
    session.infer("unbatched_plus", np.array([1], np.int32), inputs={"PLUS": np.array([100], np.int32)})


@scenario("http", "grpc")
def any_shape_without_a_batch_dimension(session: Session) -> None:
    session.infer("unbatched_plus", np.array([1, 2, 3], np.int32))
    session.infer("unbatched_plus", np.zeros(0, np.int32))


@scenario("http", "grpc")
def optional_inputs_in_batches_of_several_rows(session: Session) -> None:
    with session.busy("shapes"):
        session.queue("shapes", rows(1, 2), inputs={"PLUS": rows(100, 200)})
        session.queue("shapes", rows(3), inputs={"PLUS": rows(300)})
        session.queue("shapes", rows(4, 5))


@scenario("http", "grpc")
def an_optional_input_of_a_different_batch_size_is_refused(session: Session) -> None:
    session.infer("shapes", rows(1, 2), inputs={"PLUS": rows(100)})
