"""Priority levels: their order, and each level's limits."""

from __future__ import annotations

from scenarios.batching import BATCH
from scenarios.repository import Served, worker
from scenarios.scenario import Seen, scenario
from scenarios.session import Session
from scenarios.timeouts import OVER

MODELS: dict[str, Served] = {
    "levels": worker("dynamic_batching { priority_levels: 3 default_priority_level: 2 }\n", max_batch_size=2),
    "levels_pair": worker(
        "dynamic_batching { priority_levels: 3 default_priority_level: 2 }\n", max_batch_size=1, instances=2
    ),
    "levels_mixed": worker(
        "dynamic_batching { priority_levels: 2 default_priority_level: 2\n"
        "  priority_queue_policy { key: 1 value { timeout_action: DELAY "
        "default_timeout_microseconds: 30000 } }\n"
        "  priority_queue_policy { key: 2 value { timeout_action: REJECT "
        "default_timeout_microseconds: 30000 } } }\n",
        max_batch_size=1,
    ),
    "policies": worker(
        "dynamic_batching { priority_levels: 3 default_priority_level: 2\n"
        "  default_queue_policy { max_queue_size: 3 }\n"
        "  priority_queue_policy { key: 1 value { max_queue_size: 1 } }\n"
        "  priority_queue_policy { key: 3 value { default_timeout_microseconds: 30000 } } }\n",
        max_batch_size=1,
    ),
}


@scenario("http", "grpc")
def a_higher_priority_runs_first(session: Session) -> None:
    with session.busy("levels"):
        for value, level in ((1, 3), (2, 3), (3, 2), (4, 2), (5, 1), (6, 1)):
            session.queue("levels", value, priority=level)


@scenario("http", "grpc")
def requests_of_one_priority_are_first_come_first_served(session: Session) -> None:
    with session.busy("levels"):
        for value, level in ((1, 2), (2, 1), (3, 2), (4, 1), (5, 2), (6, 1)):
            session.queue("levels", value, priority=level)


@scenario("http", "grpc")
def a_batch_may_mix_priorities(session: Session) -> None:
    with session.busy("levels"):
        for value, level in ((1, 3), (2, 2), (3, 1)):
            session.queue("levels", value, priority=level)


@scenario("http", "grpc")
def without_a_priority_the_default_applies(session: Session) -> None:
    with session.busy("levels"):
        session.queue("levels", 1, priority=3)
        session.queue("levels", 2)
        session.queue("levels", 3)
        session.queue("levels", 4, priority=1)


@scenario("http", "grpc")
def an_unknown_priority_means_the_default(session: Session) -> None:
    with session.busy("levels"):
        session.queue("levels", 1, priority=3)
        session.queue("levels", 2, priority=99)
        session.queue("levels", 3, priority=1)


@scenario("http", "grpc")
def a_model_without_priorities_accepts_any(session: Session) -> None:
    session.infer("joined", 1, priority=7)


@scenario("http", "grpc")
def each_priority_has_its_own_limit(session: Session) -> None:
    with session.busy("policies"):
        session.queue("policies", 1, priority=1)
        session.infer("policies", 2, priority=1)
        session.queue("policies", 3, priority=2)


@scenario("http", "grpc")
def the_default_limit_applies_to_each_priority(session: Session) -> None:
    with session.busy("policies"):
        for value in (1, 2, 3):
            session.queue("policies", value, priority=2)
        session.infer("policies", 4, priority=2)
        session.queue("policies", 5, priority=1)


@scenario("http", "grpc")
def each_priority_has_its_own_timeout(session: Session) -> None:
    with session.busy("policies"):
        session.queue("policies", 1, priority=3)
        session.queue("policies", 2, priority=2)
        session.pause(OVER)


@scenario("grpc")
def a_higher_priority_runs_first_on_several_instances(session: Session) -> Seen:
    note = session.note()
    gates = []
    for _ in range(2):
        gates.append(session.gate())
        session.ask("levels_pair", 0, outputs=BATCH, parameters={"gate": gates[-1].name})
        gates[-1].wait_entered()
    for value, level in ((1, 3), (2, 2), (3, 1), (4, 3), (5, 1)):
        session.ask("levels_pair", value, outputs=BATCH, priority=level, parameters={"note": note.name})
        session.pause(0.02)
    gates[0].open()  # the rest run one after the other on this instance
    session.wait_runs(note, 5)
    gates[1].open()
    return note.runs


@scenario("http", "grpc")
def a_priority_may_delay_or_reject(session: Session) -> None:
    with session.busy("levels_mixed", priority=1, outputs=BATCH):
        session.queue("levels_mixed", 1, priority=1, outputs=BATCH)
        session.queue("levels_mixed", 2, priority=2, outputs=BATCH)
        session.pause(OVER)
        session.queue("levels_mixed", 3, priority=1, outputs=BATCH)
