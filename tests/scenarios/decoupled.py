"""Models with any number of responses per request."""

from __future__ import annotations

from typing import Any

import numpy as np

from scenarios.ensembles import ensemble, step
from scenarios.repository import Served, instance_group, tensor, tensors, worker
from scenarios.requests import Request
from scenarios.scenario import Seen, scenario
from scenarios.session import Session

_IN, _OUT = tensor("IN", dims="-1"), tensor("OUT")


def many_responses(rate: str = "") -> Served:
    """The model `decoupled.py`."""
    shape = f"max_batch_size: 0\n{tensors([_IN], [_OUT])}"
    return Served(
        f"{shape}{instance_group(1, rate)}model_transaction_policy {{ decoupled: true }}\n", "decoupled"
    )


MODELS: dict[str, Served] = {
    "many": many_responses(),
    "many_steps": ensemble([_IN], [_OUT], step("many", {"IN": "IN"}, {"OUT": "OUT"}), max_batch_size=0),
    "after_many": worker(max_batch_size=0),
    "many_then_one": ensemble(
        [_IN],
        [_OUT],
        step("many", {"IN": "IN"}, {"OUT": "middle"}),
        step("after_many", {"IN": "middle"}, {"OUT": "OUT"}),
        max_batch_size=0,
    ),
}


def values(*of: int) -> np.ndarray:
    return np.array(of, np.int32)


def many(session: Session, *of: int, model: str = "many", **options: Any) -> Request:
    return session.request(model, values(*of), **options)


def streamed(session: Session, request: Request, *, empty_final: bool = False) -> list[dict[str, Any]]:
    """All responses to one request on a stream."""
    stream = session.stream()
    stream.send(request, empty_final=empty_final)
    return stream.close()


@scenario("stream")
def one_response(session: Session) -> Seen:
    return streamed(session, many(session, 5))


@scenario("stream")
def several_responses(session: Session) -> Seen:
    return streamed(session, many(session, 5, 6, 7, request_id="a"))


@scenario("stream")
def no_response(session: Session) -> Seen:
    return streamed(session, many(session))


@scenario("stream")
def an_empty_final_response(session: Session) -> Seen:
    return streamed(session, many(session, 5, 6, request_id="a"), empty_final=True)


@scenario("stream")
def only_an_empty_final_response(session: Session) -> Seen:
    return streamed(session, many(session, request_id="a"), empty_final=True)


@scenario("stream")
def the_last_response_may_be_the_final_one(session: Session) -> Seen:
    return streamed(session, many(session, 5, 6, parameters={"final": True}), empty_final=True)


@scenario("stream")
def the_last_response_of_a_decoupled_step_may_be_the_final_one(session: Session) -> Seen:
    return streamed(session, many(session, 5, 6, model="many_steps", parameters={"final": True}))


@scenario("stream")
def the_last_response_of_an_ensemble_is_the_final_one(session: Session) -> Seen:
    return streamed(session, many(session, 5, 6, model="many_then_one", parameters={"final": True}))


@scenario("stream")
def an_error_among_the_responses(session: Session) -> Seen:
    return streamed(session, many(session, 5, 6, 7, parameters={"fail_at": 1}))


@scenario("stream")
def an_error_as_the_only_response(session: Session) -> Seen:
    return streamed(session, many(session, 5, parameters={"fail_at": 0}), empty_final=True)


@scenario("stream")
def an_exception_before_any_response(session: Session) -> Seen:
    return streamed(session, many(session, 5, parameters={"raise": "no"}), empty_final=True)


@scenario("stream")
def an_invalid_request(session: Session) -> Seen:
    return streamed(
        session, session.request("many", inputs={"IN": np.array([1.0], np.float32)}), empty_final=True
    )


@scenario("stream")
def an_unknown_model(session: Session) -> Seen:
    return streamed(session, Request("nobody", {"IN": values(1)}))


@scenario("stream")
def strict_errors_end_the_stream(session: Session) -> Seen:
    stream = session.stream({"triton_grpc_error": "true"})
    stream.send(session.request("joined", 1, parameters={"fail": "no"}))
    return stream.take(1)


@scenario("stream")
def requests_on_one_stream_are_answered_in_turn(session: Session) -> Seen:
    stream = session.stream()
    for number in (1, 2, 3):
        stream.send(many(session, 10 * number, 10 * number + 1, request_id=str(number)))
    return stream.close()


@scenario("stream")
def a_model_with_one_response_on_a_stream(session: Session) -> Seen:
    stream = session.stream()
    for number in (1, 2, 3):
        stream.send(
            session.request("unmoved", number, outputs=("OUT",), request_id=str(number)),
            empty_final=number == 3,
        )
    return stream.close()


@scenario("stream")
def an_error_of_a_model_with_one_response_on_a_stream(session: Session) -> Seen:
    stream = session.stream()
    stream.send(session.request("unmoved", 1, outputs=("OUT",), parameters={"fail": "no"}))
    stream.send(session.request("unmoved", 2, outputs=("OUT",)))
    return stream.close()


@scenario("stream")
def both_kinds_of_models_on_a_stream(session: Session) -> Seen:
    """A decoupled model that is waiting blocks no other request."""
    gate = session.gate()
    stream = session.stream()
    stream.send(many(session, 5, 6, request_id="many", parameters={"gate": gate.name, "at": 1}))
    first = stream.take(1)
    gate.wait_entered()
    stream.send(session.request("joined", 1, outputs=("OUT",), request_id="one"))
    second = stream.take(1)
    gate.open()
    return first + second + stream.close()


@scenario("stream")
def a_sequence_on_a_stream(session: Session) -> Seen:
    stream = session.stream()
    for number, value in enumerate((1, 2, 3)):
        place = {"sequence_id": 9, "sequence_start": number == 0, "sequence_end": number == 2}
        stream.send(session.request("oldest", value, outputs=("OUT", "SEEN"), **place))
    return stream.close()


@scenario("http", "grpc")
def one_response_is_refused(session: Session) -> None:
    session.send(many(session, 5))


@scenario("stream", watch=("many",))
def a_decoupled_step_of_an_ensemble(session: Session) -> Seen:
    return streamed(session, many(session, 5, 6, model="many_steps"), empty_final=True)


@scenario("stream", watch=("many",))
def an_error_in_a_decoupled_step_of_an_ensemble(session: Session) -> Seen:
    return streamed(session, many(session, 5, 6, 7, model="many_steps", parameters={"fail_at": 1}))


@scenario("stream", watch=("many",))
def no_response_of_a_decoupled_step_of_an_ensemble(session: Session) -> Seen:
    return streamed(session, many(session, model="many_steps"), empty_final=True)


@scenario("stream")
def an_abandoned_stream_cancels_its_requests(session: Session) -> Seen:
    gate = session.gate()
    stream = session.stream()
    stream.send(many(session, 5, 6, 7, parameters={"gate": gate.name, "at": 1}))
    first = stream.take(1)
    gate.wait_entered()
    stream.close(cancel=True)
    gate.wait_cancelled()
    return first
