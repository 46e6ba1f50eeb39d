"""What is answered from the response cache."""

from __future__ import annotations

from scenarios.batching import rows
from scenarios.ensembles import ensemble, step
from scenarios.repository import Served, tensor, worker
from scenarios.scenario import scenario
from scenarios.session import Session

_CACHE = "response_cache { enable: true }\n"
MODELS: dict[str, Served] = {
    "cached": worker(f"dynamic_batching {{ }}\n{_CACHE}"),
    "cached_alone": worker(_CACHE),
    "by_cached": ensemble([tensor("IN")], [tensor("OUT")], step("cached", {"IN": "IN"}, {"OUT": "OUT"})),
}


@scenario("http", "grpc")
def the_second_time_is_a_hit(session: Session) -> None:
    value = session.fresh
    for _ in range(3):
        session.infer("cached", value)


@scenario("http", "grpc")
def without_dynamic_batching_too(session: Session) -> None:
    value = session.fresh
    for _ in range(2):
        session.infer("cached_alone", value)


@scenario("http", "grpc")
def other_inputs_are_a_miss(session: Session) -> None:
    value = session.fresh
    session.infer("cached", value)
    session.infer("cached", value + 1)


@scenario("http", "grpc")
def another_shape_is_a_miss(session: Session) -> None:
    value = session.fresh
    session.infer("cached", rows(value, value))
    session.infer("cached", value)
    session.infer("cached", rows(value, value))


@scenario("http", "grpc")
def the_id_is_the_requests_own(session: Session) -> None:
    value = session.fresh
    session.infer("cached", value, request_id="a")
    session.infer("cached", value, request_id="b")


@scenario("http", "grpc")
def parameters_do_not_matter(session: Session) -> None:
    value = session.fresh
    session.infer("cached", value, parameters={"a": 1})
    session.infer("cached", value, parameters={"a": 2})


@scenario("http", "grpc")
def priorities_do_not_matter(session: Session) -> None:
    value = session.fresh
    session.infer("cached", value, priority=1)
    session.infer("cached", value, priority=2)


@scenario("http", "grpc")
def fewer_outputs_after_all(session: Session) -> None:
    value = session.fresh
    session.infer("cached", value)
    session.infer("cached", value, outputs=("OUT",))


@scenario("http", "grpc")
def more_outputs_after_some(session: Session) -> None:
    value = session.fresh
    session.infer("cached", value, outputs=("OUT",))
    session.infer("cached", value, outputs=("OUT", "COMPANY"))


@scenario("http", "grpc")
def errors_are_not_kept(session: Session) -> None:
    value = session.fresh
    session.infer("cached", value, parameters={"fail": "no"})
    session.infer("cached", value)


@scenario("http", "grpc")
def the_same_twice_at_once(session: Session) -> None:
    with session.busy("cached", value=session.fresh + 1):
        for _ in range(2):
            session.ask("cached", session.fresh)
        session.pause()


@scenario("http", "grpc", watch=("cached",))
def a_step_of_an_ensemble_is_a_hit(session: Session) -> None:
    value = session.fresh
    session.infer("by_cached", value)
    session.infer("by_cached", value)
