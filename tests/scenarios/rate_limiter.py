"""Who may run when instances share resources, of which there are as many as the one takes that takes the most."""

from __future__ import annotations

from collections import Counter

import numpy as np

from scenarios.batching import COMPANY
from scenarios.decoupled import many_responses
from scenarios.ensembles import ensemble, step
from scenarios.repository import Served, tensor, worker
from scenarios.scenario import Seen, scenario
from scenarios.session import Session
from scenarios.timeouts import SHORT, queue_policy


def takes(resource: str, count: int = 1, *, everywhere: bool = False, priority: int = 0) -> str:
    """The rate limiter of instances that take so much of a resource."""
    scope = "global: true " if everywhere else ""
    return f'resources [ {{ name: "{resource}" {scope}count: {count} }} ] priority: {priority}'


def alone(rate: str = "", *, instances: int = 1) -> Served:
    """A model that runs one request at a time."""
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


def runs_beside(session: Session, busy: str, other: str) -> bool:
    """Whether a model runs while another one does."""
    with session.busy(busy, outputs=COMPANY):
        return session.ask(other, 1, outputs=COMPANY).done_within(0.15)


def asked_behind(session: Session, busy: str, *asked: tuple[str, int]) -> list[str]:
    """The runs in their order, of models that are asked while another one has what they need."""
    note = session.note()
    with session.busy(busy, outputs=COMPANY):
        for model, value in asked:
            session.ask(model, value, outputs=COMPANY, parameters={"note": note.name})
            session.pause(0.02)
        session.pause(0.1)
    session.wait_all()
    return note.runs


# Triton counts the runs of each instance from the start: these come first, when there were none.


@scenario("grpc")
def turns_alternate_without_priorities(session: Session) -> Seen:
    return asked_behind(
        session, "batches", *((model, value) for value in (1, 2, 3) for model in ("left", "right"))
    )


@scenario("grpc")
def who_lacks_something_keeps_the_rest_of_it_back(session: Session) -> Seen:
    """One that waits for a cup, and then one that only wants the plate."""
    note = session.note()
    with session.busy("cup"):
        session.ask("cup_and_plate", 1, parameters={"note": note.name})
        session.pause()
        session.ask("plate", 2, parameters={"note": note.name})
        session.pause(0.1)
    session.wait_all()
    return note.runs


@scenario("grpc")
def who_lacks_something_and_who_wants_something_else(session: Session) -> Seen:
    note = session.note()
    with session.busy("here"):
        session.ask("there", 1, parameters={"note": note.name})
        session.pause()
        early = session.ask("large", 2, parameters={"note": note.name}).done_within(0.15)
    session.wait_all()
    return {"runs": note.runs, "at once": early}


@scenario("http", "grpc")
def instances_share_a_resource(session: Session) -> Seen:
    return runs_beside(session, "twins", "twins")


@scenario("http", "grpc")
def models_share_a_resource(session: Session) -> Seen:
    return [runs_beside(session, "left", "right"), runs_beside(session, "right", "left")]


@scenario("http", "grpc")
def who_takes_nothing_runs_beside(session: Session) -> Seen:
    return runs_beside(session, "left", "free")


@scenario("http", "grpc")
def other_resources_are_free(session: Session) -> Seen:
    return [runs_beside(session, "left", "here"), runs_beside(session, "cup", "plate")]


@scenario("http", "grpc")
def a_resource_of_the_server(session: Session) -> Seen:
    return runs_beside(session, "here", "there")


@scenario("http", "grpc")
def as_much_as_there_is(session: Session) -> Seen:
    return [
        runs_beside(session, "small", "small"),
        runs_beside(session, "small", "large"),
        runs_beside(session, "large", "small"),
    ]


@scenario("http", "grpc")
def all_resources_are_needed(session: Session) -> Seen:
    return [
        runs_beside(session, one, other)
        for one, other in (("cup", "cup_and_plate"), ("plate", "cup_and_plate"), ("cup_and_plate", "cup"))
    ]


@scenario("grpc")
def turns_go_by_the_priorities(session: Session) -> Seen:
    runs = asked_behind(
        session, "always", *((model, value) for value in range(1, 7) for model in ("often", "seldom"))
    )
    return Counter(run.partition(":")[0] for run in runs[:8])


@scenario("grpc")
def the_large_one_is_not_passed_for_ever(session: Session) -> Seen:
    """Small ones that come later do not take what the large one waits for."""
    note = session.note()
    first, second = session.gate(), session.gate()
    session.ask("small", 1, outputs=COMPANY, parameters={"gate": first.name})
    session.ask("small", 2, outputs=COMPANY, parameters={"gate": second.name})
    first.wait_entered()
    second.wait_entered()
    session.ask("large", 3, parameters={"note": note.name})
    session.pause()
    session.ask("small", 4, outputs=COMPANY, parameters={"note": note.name})
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
def a_timeout_while_a_run_waits_for_its_turn(session: Session) -> None:
    with session.busy("left"):
        session.ask("timed", 1)
        session.pause(0.01)
        session.ask("timed", 2)
        session.pause(0.15)


@scenario("grpc")
def a_queue_fills_while_a_run_waits_for_its_turn(session: Session) -> None:
    with session.busy("left"):
        for value in range(1, 6):
            session.ask("limited", value)
            session.pause(0.1)


@scenario("grpc")
def who_is_cancelled_while_he_waits_for_his_turn_is_not_run(session: Session) -> None:
    with session.busy("left"):
        asked = session.ask("right", 1)
        session.pause()
        asked.cancel()
        session.pause()
        session.ask("right", 2)
        session.pause()


@scenario("http", "grpc")
def a_failed_run_gives_back_what_it_took(session: Session) -> Seen:
    session.infer("left", 1, parameters={"fail": "no"})
    session.infer("left", 2, parameters={"raise": "no"})
    return session.ask("right", 3).done_within(5)


@scenario("http", "grpc")
def an_ensemble_takes_what_its_steps_take(session: Session) -> None:
    """Both of its steps take the same: one after the other."""
    session.infer("both_hands", 1)


@scenario("stream")
def a_decoupled_model_takes_its_resource_until_its_last_response(session: Session) -> Seen:
    gate = session.gate()
    stream = session.stream()
    stream.send(session.request("many", np.array([5, 6], np.int32), parameters={"gate": gate.name, "at": 1}))
    first = stream.take(1)
    gate.wait_entered()
    beside = session.ask("left", 1)
    early = beside.done_within(0.15)
    gate.open()
    beside.result()
    return {"at once": early, "responses": first + stream.close()}


@scenario("stream")
def a_decoupled_model_again_and_again(session: Session) -> Seen:
    stream = session.stream()
    for number in range(4):
        stream.send(session.request("many", np.array([number], np.int32)))
    return stream.close()
