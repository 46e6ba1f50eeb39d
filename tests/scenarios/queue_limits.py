"""Limits on the number of queued requests."""

from __future__ import annotations

from scenarios.batching import rows
from scenarios.repository import Served, worker
from scenarios.scenario import scenario
from scenarios.session import Session

MODELS: dict[str, Served] = {
    "limited": worker("dynamic_batching { default_queue_policy { max_queue_size: 2 } }\n", max_batch_size=1),
    "limited_batches": worker(
        "dynamic_batching { default_queue_policy { max_queue_size: 2 } }\n", max_batch_size=4
    ),
    "limited_levels": worker(
        "dynamic_batching { priority_levels: 2 default_priority_level: 2 "
        "default_queue_policy { max_queue_size: 2 } }\n",
        max_batch_size=4,
    ),
}


def fill(session: Session, model: str, count: int) -> None:
    """Queues `count` requests for a busy instance, each accepted or refused before the next is sent."""
    with session.busy(model):
        for value in range(1, count + 1):
            session.queue(model, value)


@scenario("http", "grpc")
def a_full_queue_refuses(session: Session) -> None:
    fill(session, "limited", 5)


@scenario("http", "grpc")
def a_full_queue_of_a_batching_model_refuses(session: Session) -> None:
    fill(session, "limited_batches", 8)


@scenario("http", "grpc")
def a_full_queue_with_priorities_refuses(session: Session) -> None:
    fill(session, "limited_levels", 4)


@scenario("http", "grpc")
def the_limit_counts_requests_not_items(session: Session) -> None:
    with session.busy("limited_levels"):
        session.queue("limited_levels", rows(1, 2, 3, 4))
        session.queue("limited_levels", rows(5, 6, 7, 8))
        session.infer("limited_levels", rows(9))


@scenario("http", "grpc")
def a_queue_accepts_again_once_it_has_room(session: Session) -> None:
    fill(session, "limited_levels", 3)
    session.wait_all()
    fill(session, "limited_levels", 1)
