"""Sequences: slots, control inputs, start and end."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from scenarios.batching import rows
from scenarios.repository import Served, instance_group, tensor, tensors
from scenarios.requests import Request
from scenarios.scenario import Seen, scenario
from scenarios.session import Session
from scenarios.timeouts import OVER, SHORT

_KINDS = {"START": "CONTROL_SEQUENCE_START", "END": "CONTROL_SEQUENCE_END", "READY": "CONTROL_SEQUENCE_READY"}


def controls(datatype: str = "int32", corrid: str = "UINT64") -> str:
    """All control inputs, with flags of one datatype and the sequence id of another."""
    pair = {"int32": "0, 1", "fp32": "0.5, 2.5", "bool": "false, true"}[datatype]
    inputs = [
        f'{{ name: "{name}" control [ {{ kind: {kind} {datatype}_false_true: [ {pair} ] }} ] }}'
        for name, kind in _KINDS.items()
    ]
    inputs.append(
        f'{{ name: "CORRID" control [ {{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_{corrid} }} ] }}'
    )
    return f"control_input [ {', '.join(inputs)} ]"


def sequence(batching: str, *, max_batch_size: int = 4, idle_us: int = 20_000_000) -> Served:
    """The model `sequence.py`, whose sequences time out only if `idle_us` is short."""
    outputs = [tensor("OUT"), tensor("RUN"), tensor("SEEN", "STRING"), tensor("BATCH", "STRING")]
    shape = f"max_batch_size: {max_batch_size}\n{tensors([tensor('IN')], outputs)}"
    return Served(
        f"{shape}{instance_group()}"
        f"sequence_batching {{ max_sequence_idle_microseconds: {idle_us} {batching} }}\n",
        "sequence",
    )


#: The largest id that tritonclient can send over gRPC.
LARGEST = 2**63 - 1
_STATE = 'state [ { input_name: "STATE_IN" output_name: "STATE_OUT" data_type: TYPE_INT32 dims: [ 1 ] %s } ]'
_ZERO = 'initial_state { name: "zero" data_type: TYPE_INT32 dims: [ 1 ] zero_data: true }'
MODELS: dict[str, Served] = {
    "direct": sequence(f"direct {{ }} {controls()}"),
    "oldest": sequence(f"oldest {{ max_candidate_sequences: 4 }} {controls()}"),
    "single": sequence(f"direct {{ }} {controls('fp32', 'INT32')}", max_batch_size=1),
    "texts": sequence(f"oldest {{ max_candidate_sequences: 4 }} {controls('bool', 'STRING')}"),
    "forgetful": sequence(f"direct {{ }} {controls('bool', 'UINT32')}", idle_us=100_000),
    "candidates": sequence(f"oldest {{ max_candidate_sequences: 2 }} {controls()}"),
    "oldest_patient": sequence(
        f"oldest {{ max_candidate_sequences: 4 max_queue_delay_microseconds: 200000 }} {controls()}"
    ),
    "utilised": sequence(
        f"direct {{ minimum_slot_utilization: 0.5 max_queue_delay_microseconds: 60000000 }} {controls()}"
    ),
    "direct_patient": sequence(
        f"direct {{ minimum_slot_utilization: 1.0 max_queue_delay_microseconds: 200000 }} {controls()}"
    ),
    "unbatched_sequence": sequence(f"direct {{ }} {controls('fp32', 'INT32')}", max_batch_size=0),
    "stateful": Served(
        f"max_batch_size: 4\n{tensors([tensor('IN')], [tensor('OUT')])}{instance_group()}"
        f"sequence_batching {{ oldest {{ max_candidate_sequences: 4 }} {_STATE % _ZERO} }}\n",
        "state",
    ),
}


def step(id: int | str, *, start: bool = False, end: bool = False) -> dict[str, Any]:
    return {"sequence_id": id, "sequence_start": start, "sequence_end": end}


@scenario("http", "grpc")
def direct_sees_start_and_end(session: Session) -> None:
    session.infer("direct", 1, **step(7, start=True))
    session.infer("direct", 2, **step(7))
    session.infer("direct", 3, **step(7, end=True))


@scenario("http", "grpc")
def oldest_sees_start_and_end(session: Session) -> None:
    session.infer("oldest", 1, **step(7, start=True))
    session.infer("oldest", 2, **step(7))
    session.infer("oldest", 3, **step(7, end=True))


@scenario("http", "grpc")
def control_inputs_may_be_floats(session: Session) -> None:
    session.infer("single", 1, **step(7, start=True))
    session.infer("single", 2, **step(7, end=True))


@scenario("http", "grpc")
def ids_may_be_strings(session: Session) -> None:
    session.infer("texts", 1, **step("one", start=True))
    session.infer("texts", 10, **step("two", start=True))
    session.infer("texts", 2, **step("one", end=True))
    session.infer("texts", 20, **step("two", end=True))


@scenario("http", "grpc")
def ids_may_be_large(session: Session) -> None:
    session.infer("oldest", 1, **step(LARGEST, start=True))
    session.infer("oldest", 2, **step(LARGEST, end=True))


@scenario("http", "grpc")
def a_string_for_a_numeric_id_input(session: Session) -> None:
    session.infer("direct", 1, **step("one", start=True, end=True))


@scenario("http", "grpc")
def a_number_for_a_string_id_input(session: Session) -> None:
    session.infer("texts", 1, **step(5, start=True, end=True))


@scenario("http", "grpc")
def an_id_too_large_for_its_input(session: Session) -> None:
    session.infer("single", 1, **step(2**40, start=True, end=True))


@scenario("http", "grpc")
def a_request_without_an_id_is_refused(session: Session) -> None:
    session.infer("direct", 1)


@scenario("http", "grpc")
def a_sequence_must_start(session: Session) -> None:
    session.infer("direct", 1, **step(7))
    session.infer("oldest", 1, **step(7))


@scenario("http", "grpc")
def an_ended_sequence_must_start_again(session: Session) -> None:
    session.infer("oldest", 1, **step(7, start=True, end=True))
    session.infer("oldest", 2, **step(7))
    session.infer("oldest", 3, **step(7, start=True, end=True))


@scenario("http", "grpc")
def an_open_sequence_may_start_again(session: Session) -> None:
    session.infer("oldest", 1, **step(7, start=True))
    session.infer("oldest", 2, **step(7, start=True))
    session.infer("oldest", 3, **step(7, end=True))


@scenario("http", "grpc")
def a_batch_in_a_sequence_is_refused(session: Session) -> None:
    session.infer("direct", rows(1, 2), **step(7, start=True))


@scenario("http", "grpc")
def an_idle_sequence_ends(session: Session) -> None:
    session.infer("forgetful", 1, **step(7, start=True))
    time.sleep(0.4)
    session.infer("forgetful", 2, **step(7))


@scenario("http", "grpc")
def oldest_batches_sequences(session: Session) -> None:
    for id in (2, 3):
        session.infer("oldest", id, **step(id, start=True))
    with session.busy("oldest", **step(1, start=True)):
        for id in (2, 3, 4):
            session.queue("oldest", 10 + id, **step(id, start=id == 4))
    session.wait_all()
    for id in (1, 2, 3, 4):
        session.infer("oldest", 20 + id, **step(id, end=True))


@scenario("http", "grpc")
def oldest_runs_the_requests_of_a_sequence_one_by_one(session: Session) -> None:
    session.infer("oldest", 1, **step(2, start=True))
    with session.busy("oldest", **step(1, start=True, end=True)):
        for value in (10, 11, 12):
            session.queue("oldest", value, **step(2, end=value == 12))


@scenario("http", "grpc")
def direct_batches_sequences_by_slot(session: Session) -> None:
    for id in (1, 2, 3):
        session.infer("direct", id, **step(id, start=True))
    with session.busy("direct", **step(1)):
        for id in (2, 3):
            session.queue("direct", 10 + id, **step(id))
    session.wait_all()
    for id in (1, 2, 3):
        session.infer("direct", 20 + id, **step(id, end=True))


@scenario("http", "grpc")
def a_sequence_waits_for_a_slot(session: Session) -> None:
    with session.busy("single", **step(1, start=True)):
        session.queue("single", 10, **step(2, start=True))
        session.queue("single", 11, **step(2, end=True))
        session.queue("single", 1, **step(1, end=True))


@scenario("http", "grpc")
def the_server_keeps_the_state(session: Session) -> None:
    session.infer("stateful", 1, **step(7, start=True))
    session.infer("stateful", 2, **step(7))
    session.infer("stateful", 3, **step(7, end=True))
    session.infer("stateful", 5, **step(7, start=True, end=True))


@scenario("http", "grpc")
def the_number_of_candidates_is_limited(session: Session) -> None:
    with session.busy("candidates", **step(1, start=True)):
        for id in (2, 3, 4):
            session.queue("candidates", id, **step(id, start=True, end=True))
        session.queue("candidates", 11, **step(1, end=True))


@scenario("http", "grpc")
def an_open_sequence_keeps_its_slot(session: Session) -> Seen:
    """An idle open sequence keeps others waiting for its slot."""
    session.infer("candidates", 1, **step(1, start=True))
    session.infer("candidates", 2, **step(2, start=True))
    waiting = session.ask("candidates", 3, **step(3, start=True, end=True))
    early = waiting.done_within(0.15)
    session.infer("candidates", 11, **step(1, end=True))
    waiting.result()
    session.infer("candidates", 12, **step(2, end=True))
    return {"before there was a place": early}


@scenario("grpc")
def candidates_wait_no_longer_than_the_delay(session: Session) -> Seen:
    first = session.ask("oldest_patient", 1, **step(1, start=True, end=True))
    return {"at once": first.done_within(0.05), "later": first.done_within(5)}


@scenario("http", "grpc")
def slots_wait_for_the_minimum_utilization(session: Session) -> Seen:
    first = session.ask("utilised", 1, **step(1, start=True))
    early = first.done_within(0.1)
    session.ask("utilised", 2, **step(2, start=True))
    session.wait_all()
    session.ask("utilised", 11, **step(1, end=True))
    session.ask("utilised", 12, **step(2, end=True))
    return {"alone": early}


@scenario("grpc")
def slots_wait_no_longer_than_the_delay(session: Session) -> Seen:
    first = session.ask("direct_patient", 1, **step(1, start=True, end=True))
    return {"at once": first.done_within(0.05), "later": first.done_within(5)}


@scenario("http", "grpc")
def sequences_without_batching(session: Session) -> None:
    session.send(unbatched(session, 1, **step(7, start=True))).result()
    session.send(unbatched(session, 2, **step(7))).result()
    session.send(unbatched(session, 3, **step(7, end=True))).result()


@scenario("http", "grpc")
def an_unbatched_sequence_waits_for_the_previous_one(session: Session) -> Seen:
    session.send(unbatched(session, 1, **step(1, start=True))).result()
    waiting = session.send(unbatched(session, 10, **step(2, start=True, end=True)))
    early = waiting.done_within(0.1)
    session.send(unbatched(session, 2, **step(1, end=True))).result()
    return {"at once": early}


def unbatched(session: Session, value: int, **options: Any) -> Request:
    return session.request("unbatched_sequence", np.array([value], np.int32), **options)


@scenario("http", "grpc")
def a_timeout_counts_while_the_sequence_waits_for_a_slot(session: Session) -> None:
    session.infer("single", 1, **step(7, start=True))
    session.ask("single", 2, timeout=SHORT, **step(8, start=True))
    session.pause(OVER)
    session.ask("single", 3, **step(8, end=True))
    session.pause(OVER)
    session.infer("single", 4, **step(7, end=True))


@scenario("http", "grpc")
def a_timeout_of_a_later_request_counts_while_the_sequence_waits_for_a_slot(session: Session) -> None:
    session.infer("single", 1, **step(7, start=True))
    session.ask("single", 2, **step(8, start=True))
    session.pause()
    session.ask("single", 3, timeout=SHORT, **step(8, end=True))
    session.pause(OVER)
    session.infer("single", 4, **step(7, end=True))


@scenario("http", "grpc")
def a_timeout_does_not_count_once_the_sequence_has_a_slot(session: Session) -> None:
    with session.busy("single", value=1, **step(7, start=True)):
        session.ask("single", 2, timeout=SHORT, **step(7, end=True))
        session.pause(OVER)
