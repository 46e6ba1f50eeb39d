"""Queue timeouts, and what happens to a request when one expires."""

from __future__ import annotations

from scenarios.repository import Served, worker
from scenarios.scenario import scenario
from scenarios.session import Session

#: Queue timeouts in microseconds: one that expires while an instance is busy, and one that never does.
SHORT, LONG = 30_000, 60_000_000
#: Seconds after which SHORT has expired.
OVER = 0.1


def queue_policy(policy: str) -> str:
    return f"dynamic_batching {{ default_queue_policy {{ {policy} }} }}\n"


MODELS: dict[str, Served] = {
    "rejecting": worker(
        queue_policy(f"timeout_action: REJECT default_timeout_microseconds: {SHORT}"), max_batch_size=1
    ),
    "rejecting_early": worker(
        queue_policy(
            f"timeout_action: REJECT default_timeout_microseconds: {LONG} allow_timeout_override: true"
        ),
        max_batch_size=1,
    ),
    "rejecting_late": worker(
        queue_policy(
            f"timeout_action: REJECT default_timeout_microseconds: {SHORT} allow_timeout_override: true"
        ),
        max_batch_size=1,
    ),
    "overridden": worker(
        queue_policy("timeout_action: REJECT allow_timeout_override: true"), max_batch_size=1
    ),
    "unmoved": worker(
        queue_policy(f"timeout_action: REJECT default_timeout_microseconds: {LONG}"), max_batch_size=1
    ),
    "delaying": worker(
        queue_policy(
            f"timeout_action: DELAY default_timeout_microseconds: {LONG} allow_timeout_override: true"
        ),
        max_batch_size=1,
    ),
    "delaying_levels": worker(
        "dynamic_batching { priority_levels: 2 default_priority_level: 1\n"
        f"  default_queue_policy {{ timeout_action: DELAY default_timeout_microseconds: {LONG}"
        " allow_timeout_override: true } }\n",
        max_batch_size=1,
    ),
}


def queue_while_busy(
    session: Session, model: str, *timeouts: int | None, priorities: tuple[int, ...] = ()
) -> None:
    """Queues requests with these timeouts while the instance is busy, until the short ones have expired."""
    with session.busy(model):
        for number, timeout in enumerate(timeouts):
            options = {} if timeout is None else {"timeout": timeout}
            if priorities:
                options["priority"] = priorities[number]
            session.queue(model, number + 1, **options)
        session.pause(OVER)


@scenario("http", "grpc")
def a_request_that_waits_too_long_is_rejected(session: Session) -> None:
    queue_while_busy(session, "rejecting", None, None)


@scenario("http", "grpc")
def a_request_may_lower_the_timeout(session: Session) -> None:
    queue_while_busy(session, "rejecting_early", SHORT, None)


@scenario("http", "grpc")
def a_request_may_not_raise_the_timeout(session: Session) -> None:
    queue_while_busy(session, "rejecting_late", LONG)


@scenario("http", "grpc")
def a_request_may_set_a_timeout_without_a_default(session: Session) -> None:
    queue_while_busy(session, "overridden", SHORT, None)


@scenario("http", "grpc")
def a_request_may_not_set_a_timeout_without_override(session: Session) -> None:
    queue_while_busy(session, "unmoved", SHORT)


@scenario("http", "grpc")
def a_request_timeout_without_a_queue_policy(session: Session) -> None:
    queue_while_busy(session, "joined", SHORT)


@scenario("http", "grpc")
def a_delayed_request_runs_after_the_others(session: Session) -> None:
    queue_while_busy(session, "delaying", SHORT, None, SHORT, None)


@scenario("http", "grpc")
def a_delayed_request_runs_before_lower_priorities(session: Session) -> None:
    queue_while_busy(session, "delaying_levels", SHORT, None, None, priorities=(1, 1, 2))


@scenario("http", "grpc")
def a_timeout_does_not_stop_an_execution(session: Session) -> None:
    gate = session.gate()
    session.ask("overridden", 1, timeout=SHORT, parameters={"gate": gate.name})
    gate.wait_entered()
    session.pause(OVER)
    gate.open()
