"""Cancelled and abandoned requests."""

from __future__ import annotations

import http.client

import tritonclient.http

from scenarios.gate import PATIENCE
from scenarios.repository import Served
from scenarios.requests import Request
from scenarios.scenario import scenario
from scenarios.session import Session

MODELS: dict[str, Served] = {}


def post(session: Session, request: Request) -> http.client.HTTPConnection:
    """Sends a request as tritonclient does, but on a connection that can be closed mid-request."""
    arguments = request.arguments(tritonclient.http)
    body, length = tritonclient.http.InferenceServerClient.generate_request_body(arguments["inputs"])
    connection = http.client.HTTPConnection(session.server.http, timeout=PATIENCE)
    connection.request(
        "POST", f"/v2/models/{request.model}/infer", body, {"Inference-Header-Content-Length": str(length)}
    )
    return connection


@scenario("grpc")
def a_request_cancelled_in_the_queue_does_not_run(session: Session) -> None:
    with session.busy("joined"):
        session.queue("joined", 1)
        session.queue("joined", 2).cancel()
        session.pause()
        session.ask("joined", 3)
        session.pause()


@scenario("grpc")
def a_cancelled_request_frees_its_queue_slot(session: Session) -> None:
    with session.busy("limited"):
        session.queue("limited", 1).cancel()
        session.pause()
        for value in (2, 3):
            session.ask("limited", value)
            session.pause()


@scenario("http")
def a_client_that_disconnects_is_not_answered(session: Session) -> None:
    with session.busy("joined"):
        session.queue("joined", 1)
        connection = post(session, session.request("joined", 2))
        session.wait_pending("joined", 2)
        connection.close()
        session.pause()
    session.wait_all()


@scenario("grpc")
def an_executing_model_sees_the_cancellation(session: Session) -> None:
    gate = session.gate()
    request = session.ask("joined", 1, parameters={"gate": gate.name})
    gate.wait_entered()
    request.cancel()
    gate.wait_cancelled()
    gate.open()


@scenario("grpc", watch=("first", "second"))
def no_step_starts_after_a_cancellation(session: Session) -> None:
    gate = session.gate()
    request = session.ask("chain", 1, parameters={"gate": gate.name, "at": "first"})
    gate.wait_entered()
    request.cancel()
    session.pause()
    gate.open()
    session.pause()


@scenario("grpc", watch=("first", "second"))
def a_step_cancelled_in_the_queue_does_not_run(session: Session) -> None:
    with session.busy("first"):
        session.queue("chain", 1, at="first").cancel()
        session.pause()


@scenario("grpc")
def a_sequence_request_cancelled_in_the_queue(session: Session) -> None:
    session.infer("oldest", 1, sequence_id=2, sequence_start=True)
    with session.busy("oldest", sequence_id=1, sequence_start=True, sequence_end=True):
        session.queue("oldest", 10, sequence_id=2)
        session.queue("oldest", 100, sequence_id=2).cancel()
        session.pause()
        session.ask("oldest", 1000, sequence_id=2, sequence_end=True)
        session.pause()


@scenario("grpc")
def a_request_is_cancelled_at_the_clients_timeout(session: Session) -> None:
    with session.busy("joined"):
        session.queue("joined", 1, client_timeout=0.05).result()
        session.pause()
