"""Which requests are answered from the response cache."""

from __future__ import annotations

from scenarios.batching import rows
from scenarios.ensembles import ensemble, step
from scenarios.repository import Served, tensor, worker
from scenarios.scenario import Seen, scenario
from scenarios.session import Session

_CACHE = "response_cache { enable: true }\n"
MODELS: dict[str, Served] = {
    "cached": worker(f"dynamic_batching {{ }}\n{_CACHE}"),
    "cached_alone": worker(_CACHE),
    "by_cached": ensemble([tensor("IN")], [tensor("OUT")], step("cached", {"IN": "IN"}, {"OUT": "OUT"})),
    "cached_chain": ensemble(
        [tensor("IN")],
        [tensor("OUT")],
        step("first", {"IN": "IN"}, {"OUT": "middle"}),
        step("cached", {"IN": "middle"}, {"OUT": "OUT"}),
        more=_CACHE,
    ),
}


@scenario("http", "grpc")
def a_repeated_request_is_a_hit(session: Session) -> None:
    value = session.fresh
    for _ in range(3):
        session.infer("cached", value)


@scenario("http", "grpc")
def caching_works_without_dynamic_batching(session: Session) -> None:
    value = session.fresh
    for _ in range(2):
        session.infer("cached_alone", value)


@scenario("http", "grpc")
def different_inputs_are_a_miss(session: Session) -> None:
    value = session.fresh
    session.infer("cached", value)
    session.infer("cached", value + 1)


@scenario("http", "grpc")
def a_different_shape_is_a_miss(session: Session) -> None:
    value = session.fresh
    session.infer("cached", rows(value, value))
    session.infer("cached", value)
    session.infer("cached", rows(value, value))


@scenario("http", "grpc")
def a_hit_has_the_id_of_its_request(session: Session) -> None:
    value = session.fresh
    session.infer("cached", value, request_id="a")
    session.infer("cached", value, request_id="b")


@scenario("http", "grpc")
def different_parameters(session: Session) -> None:
    value = session.fresh
    session.infer("cached", value, parameters={"a": 1})
    session.infer("cached", value, parameters={"a": 2})


@scenario("http", "grpc")
def different_priorities(session: Session) -> None:
    value = session.fresh
    session.infer("cached", value, priority=1)
    session.infer("cached", value, priority=2)


@scenario("http", "grpc")
def fewer_outputs_than_cached(session: Session) -> None:
    value = session.fresh
    session.infer("cached", value)
    session.infer("cached", value, outputs=("OUT",))


@scenario("http", "grpc")
def more_outputs_than_cached(session: Session) -> None:
    value = session.fresh
    session.infer("cached", value, outputs=("OUT",))
    session.infer("cached", value, outputs=("OUT", "BATCH"))


@scenario("http", "grpc")
def errors_are_not_cached(session: Session) -> None:
    value = session.fresh
    session.infer("cached", value, parameters={"fail": "no"})
    session.infer("cached", value)


@scenario("http", "grpc")
def identical_concurrent_requests(session: Session) -> None:
    with session.busy("cached", value=session.fresh + 1):
        for _ in range(2):
            session.ask("cached", session.fresh)
        session.pause()


@scenario("http", "grpc", watch=("cached",))
def a_step_of_an_ensemble_is_a_hit(session: Session) -> None:
    value = session.fresh
    session.infer("by_cached", value)
    session.infer("by_cached", value)


@scenario("http", "grpc")
def a_clients_batch_is_one_entry(session: Session) -> None:
    value = session.fresh
    session.infer("cached", rows(value, value + 1))
    session.infer("cached", rows(value, value + 1))
    session.infer("cached", rows(value + 1, value))


@scenario("http", "grpc")
def batched_requests_are_cached_separately(session: Session) -> None:
    value = session.fresh
    with session.busy("cached", value=value + 1):
        for number in (2, 4, 6):
            session.queue("cached", value + number)
    session.wait_all()
    for number in (2, 4, 6):
        session.infer("cached", value + number)


@scenario("http", "grpc")
def hits_do_not_wait_for_a_busy_instance(session: Session) -> Seen:
    value = session.fresh
    session.infer("cached", value)
    with session.busy("cached", value=value + 1):
        session.queue("cached", value + 2)
        early = session.ask("cached", value).done_within(2)
    return {"at once": early}


@scenario("http", "grpc")
def a_failed_request_of_a_batch_is_not_cached(session: Session) -> None:
    value = session.fresh
    with session.busy("cached", value=value + 1):
        session.queue("cached", value + 2)
        session.queue("cached", value + 4, parameters={"raise": "no"})
    session.wait_all()
    session.infer("cached", value + 2)


@scenario("http", "grpc", watch=("cached",))
def a_batch_through_an_ensemble_is_a_hit(session: Session) -> None:
    value = session.fresh
    session.infer("by_cached", rows(value, value + 1))
    session.infer("cached", rows(value, value + 1), outputs=("OUT",))


@scenario("http", "grpc", watch=("first", "cached"))
def an_ensemble_can_be_cached(session: Session) -> None:
    value = session.fresh
    for number in (value, value, value + 1):
        session.infer("cached_chain", number)
