"""Executions that share resources. Each resource's limit is the largest amount that any instance needs."""

from __future__ import annotations

from collections import Counter

import numpy as np

from scenarios.batching import BATCH
from scenarios.decoupled import many_responses
from scenarios.ensembles import ensemble, step
from scenarios.repository import Served, tensor, worker
from scenarios.scenario import Seen, scenario
from scenarios.session import Session
from scenarios.timeouts import SHORT, queue_policy


def takes(resource: str, count: int = 1, *, everywhere: bool = False, priority: int = 0) -> str:
    """The rate limiter settings of instances that need `count` of a resource."""
    scope = "global: true " if everywhere else ""
    return f'resources [ {{ name: "{resource}" {scope}count: {count} }} ] priority: {priority}'


def alone(rate: str = "", *, instances: int = 1) -> Served:
    """A model that executes one request at a time."""
    return worker(max_batch_size=1, instances=instances, rate=rate)


MODELS: dict[str, Served] = {
    "twins": alone(takes("twin"), instances=2),
    "left": alone(takes("hand")),
    "right": alone(takes("hand")),
    "free": alone(),
    "here": alone(takes("house", everywhere=True)),
    "there": alone(takes("house", everywhere=True)),
    "small": alone(takes("room", 1), instances=2),
    "large": alone(takes("room", 2)),
    "cup": alone(takes("cup")),
    "plate": alone(takes("plate")),
    "cup_and_plate": alone('resources [ { name: "cup" count: 1 }, { name: "plate" count: 1 } ]'),
    "often": alone(takes("road", priority=1)),
    "seldom": alone(takes("road", priority=3)),
    "always": alone(takes("road")),
    "batches": worker("dynamic_batching { }\n", rate=takes("hand")),
    "timed": worker(
        queue_policy(f"timeout_action: REJECT default_timeout_microseconds: {SHORT}"),
        max_batch_size=1,
        rate=takes("hand"),
    ),
    "limited": worker(queue_policy("max_queue_size: 2"), max_batch_size=1, rate=takes("hand")),
    "many": many_responses(takes("hand")),
    "both_hands": ensemble(
        [tensor("IN")],
        [tensor("OUT")],
        step("left", {"IN": "IN"}, {"OUT": "middle"}),
        step("right", {"IN": "middle"}, {"OUT": "OUT"}),
        max_batch_size=1,
    ),
}


def runs_concurrently(session: Session, busy: str, other: str) -> bool:
    """Whether `other` can execute while `busy` does."""
    with session.busy(busy, outputs=BATCH):
        return session.ask(other, 1, outputs=BATCH).done_within(0.15)


def order_after(session: Session, busy: str, *requests: tuple[str, int]) -> list[str]:
    """The order of execution of models that were called while `busy` held what they need."""
    note = session.note()
    with session.busy(busy, outputs=BATCH):
        for model, value in requests:
            session.ask(model, value, outputs=BATCH, parameters={"note": note.name})
            session.pause(0.02)
        session.pause(0.1)
    session.wait_all()
    return note.runs


# Triton counts each instance's executions since startup: these scenarios go first, while the counts are zero.


@scenario("grpc")
def turns_alternate_without_priorities(session: Session) -> Seen:
    return order_after(
        session, "batches", *((model, value) for value in (1, 2, 3) for model in ("left", "right"))
    )


@scenario("grpc")
def a_waiting_model_holds_back_its_other_resources(session: Session) -> Seen:
    """One request waits for a cup; a later one needs only the plate."""
    note = session.note()
    with session.busy("cup"):
        session.ask("cup_and_plate", 1, parameters={"note": note.name})
        session.pause()
        session.ask("plate", 2, parameters={"note": note.name})
        session.pause(0.1)
    session.wait_all()
    return note.runs


@scenario("grpc")
def a_waiting_model_and_one_that_needs_another_resource(session: Session) -> Seen:
    note = session.note()
    with session.busy("here"):
        session.ask("there", 1, parameters={"note": note.name})
        session.pause()
        early = session.ask("large", 2, parameters={"note": note.name}).done_within(0.15)
    session.wait_all()
    return {"runs": note.runs, "at once": early}


@scenario("http", "grpc")
def instances_share_a_resource(session: Session) -> Seen:
    return runs_concurrently(session, "twins", "twins")


@scenario("http", "grpc")
def models_share_a_resource(session: Session) -> Seen:
    return [runs_concurrently(session, "left", "right"), runs_concurrently(session, "right", "left")]


@scenario("http", "grpc")
def a_model_without_resources_is_not_limited(session: Session) -> Seen:
    return runs_concurrently(session, "left", "free")


@scenario("http", "grpc")
def models_with_different_resources_run_concurrently(session: Session) -> Seen:
    return [runs_concurrently(session, "left", "here"), runs_concurrently(session, "cup", "plate")]


@scenario("http", "grpc")
def a_global_resource(session: Session) -> Seen:
    return runs_concurrently(session, "here", "there")


@scenario("http", "grpc")
def executions_share_a_resource_up_to_its_limit(session: Session) -> Seen:
    return [
        runs_concurrently(session, "small", "small"),
        runs_concurrently(session, "small", "large"),
        runs_concurrently(session, "large", "small"),
    ]


@scenario("http", "grpc")
def a_model_waits_for_all_of_its_resources(session: Session) -> Seen:
    return [
        runs_concurrently(session, one, other)
        for one, other in (("cup", "cup_and_plate"), ("plate", "cup_and_plate"), ("cup_and_plate", "cup"))
    ]


@scenario("grpc")
def turns_follow_the_priorities(session: Session) -> Seen:
    runs = order_after(
        session, "always", *((model, value) for value in range(1, 7) for model in ("often", "seldom"))
    )
    return Counter(run.partition(":")[0] for run in runs[:8])


@scenario("grpc")
def a_large_demand_is_not_starved(session: Session) -> Seen:
    """Later small demands do not take the resource that a large one waits for."""
    note = session.note()
    first, second = session.gate(), session.gate()
    session.ask("small", 1, outputs=BATCH, parameters={"gate": first.name})
    session.ask("small", 2, outputs=BATCH, parameters={"gate": second.name})
    first.wait_entered()
    second.wait_entered()
    session.ask("large", 3, parameters={"note": note.name})
    session.pause()
    session.ask("small", 4, outputs=BATCH, parameters={"note": note.name})
    session.pause()
    first.open()
    session.pause()
    second.open()
    session.wait_all()
    return note.runs


@scenario("http", "grpc")
def a_batch_grows_while_it_waits_for_its_turn(session: Session) -> None:
    session.infer("batches", 0)
    with session.busy("left"):
        for value in (1, 2, 3):
            session.ask("batches", value)
            session.pause(0.1)


@scenario("grpc")
def a_timeout_while_waiting_for_a_turn(session: Session) -> None:
    with session.busy("left"):
        session.ask("timed", 1)
        session.pause(0.01)
        session.ask("timed", 2)
        session.pause(0.15)


@scenario("grpc")
def a_queue_fills_while_waiting_for_a_turn(session: Session) -> None:
    with session.busy("left"):
        for value in range(1, 6):
            session.ask("limited", value)
            session.pause(0.1)


@scenario("grpc")
def a_request_cancelled_while_waiting_for_its_turn_does_not_run(session: Session) -> None:
    with session.busy("left"):
        request = session.ask("right", 1)
        session.pause()
        request.cancel()
        session.pause()
        session.ask("right", 2)
        session.pause()


@scenario("http", "grpc")
def a_failed_execution_releases_its_resources(session: Session) -> Seen:
    session.infer("left", 1, parameters={"fail": "no"})
    session.infer("left", 2, parameters={"raise": "no"})
    return session.ask("right", 3).done_within(5)


@scenario("http", "grpc")
def an_ensemble_uses_the_resources_of_its_steps(session: Session) -> None:
    """Both steps need the same resource, and so run one after the other."""
    session.infer("both_hands", 1)


@scenario("stream")
def a_decoupled_model_holds_its_resource_until_its_last_response(session: Session) -> Seen:
    gate = session.gate()
    stream = session.stream()
    stream.send(session.request("many", np.array([5, 6], np.int32), parameters={"gate": gate.name, "at": 1}))
    first = stream.take(1)
    gate.wait_entered()
    other = session.ask("left", 1)
    early = other.done_within(0.15)
    gate.open()
    other.result()
    return {"at once": early, "responses": first + stream.close()}


@scenario("stream")
def a_decoupled_model_called_repeatedly(session: Session) -> Seen:
    stream = session.stream()
    for number in range(4):
        stream.send(session.request("many", np.array([number], np.int32)))
    return stream.close()
