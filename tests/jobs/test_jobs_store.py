"""The store of jobs: turns, attempts, servers that die, clocks that jump, and files."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from backline.plugins.dialects.jobs import store as module
from backline.plugins.dialects.jobs.job import (
    MOST_DEATHS,
    SMALL,
    Job,
    KeyReused,
    NewJob,
    NotDurable,
    Outcome,
    State,
)
from backline.plugins.dialects.jobs.store import Store
from backline_client.values.errors import InvalidArgument, NotFound


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "jobs")


def new(store: Store, **changes: object) -> Job:
    fields = {
        "token": os.urandom(16),
        "owner": "ada",
        "model": "add1",
        "version": "1",
        "path": "/v2/models/add1/versions/1/infer",
        "fields": b"[]",
        "body": b"{}",
        "size": 2,
        **changes,
    }
    return store.accept(NewJob(**fields))  # type: ignore[arg-type]


def test_owners_take_turns_and_priorities_order_the_jobs_of_one(store: Store) -> None:
    for _ in range(6):
        new(store)
    urgent = new(store, priority=1)
    other = new(store, owner="bob")
    taken = [claim.seq for claim in store.claim("add1", "1", 4)]
    assert len(taken) == 4
    assert other.seq in taken
    assert [seq for seq in taken if seq != other.seq] == [urgent.seq, 1, 2]
    assert len(store.claim("add1", "1", 9)) == 4
    assert store.claim("add1", "1", 9) == []


def test_a_position_counts_the_jobs_that_run_before(store: Store) -> None:
    jobs = [new(store), new(store), new(store, priority=1)]
    assert [store.position(job) for job in jobs] == [1, 2, 0]


def test_the_same_key_is_the_same_job_and_another_request_is_refused(store: Store) -> None:
    first = new(store, key="k", digest=b"1")
    assert new(store, key="k", digest=b"1").id == first.id
    assert new(store, key="k", digest=b"2", owner="bob").id != first.id
    with pytest.raises(KeyReused, match=first.id):
        new(store, key="k", digest=b"2")


def test_only_the_current_attempt_can_end_a_job(store: Store) -> None:
    job = new(store)
    (first,) = store.claim("add1", "1", 1)
    assert store.finish(first, Outcome(State.WAITING, error="later"))
    store.tend()
    (second,) = store.claim("add1", "1", 1)
    assert second.attempts == 2
    assert not store.finish(first, Outcome(State.DONE, 200, answer=b"one", answer_size=3))
    assert store.finish(second, Outcome(State.DONE, 200, answer=b"two", answer_size=3))
    assert not store.finish(second, Outcome(State.DONE, 200, answer=b"three", answer_size=5))
    found = store.find(job.seq, job.token, "ada")
    assert (found.state, store.answer(found)) == (State.DONE, b"two")


def test_a_refused_run_is_no_attempt(store: Store) -> None:
    new(store)
    (claim,) = store.claim("add1", "1", 1)
    store.finish(claim, Outcome(State.WAITING, free=True))
    store.tend()
    assert store.claim("add1", "1", 1)[0].attempts == 1


def test_a_cancelled_job_stays_cancelled(store: Store) -> None:
    job = new(store)
    (claim,) = store.claim("add1", "1", 1)
    assert store.cancel(job).state is State.CANCELLED
    assert not store.finish(claim, Outcome(State.DONE, 200))
    assert store.retry(store.find(job.seq, job.token, "ada")).state is State.QUEUED
    assert len(store.claim("add1", "1", 1)) == 1


@pytest.mark.parametrize("owner", ["", "bob"])
def test_a_job_is_unknown_to_others_and_without_its_token(store: Store, owner: str) -> None:
    job = new(store)
    with pytest.raises(NotFound):
        store.find(job.seq, job.token, owner)
    with pytest.raises(NotFound):
        store.find(job.seq, bytes(16), "ada")


def test_jobs_of_a_dead_server_are_given_back_but_not_those_of_a_live_one(tmp_path: Path) -> None:
    one, two = Store(tmp_path / "jobs"), Store(tmp_path / "jobs")
    new(one)
    new(one)
    one.claim("add1", "1", 1)
    two.claim("add1", "1", 1)
    two.tend()
    assert two.claim("add1", "1", 9) == []
    os.close(one._held)  # as the kernel does when a process dies
    two.tend()
    (claim,) = two.claim("add1", "1", 9)
    assert (claim.seq, claim.attempts) == (1, 1)


def test_a_job_whose_servers_always_die_is_a_dead_letter(tmp_path: Path) -> None:
    job = new(Store(tmp_path / "jobs"))
    for _ in range(MOST_DEATHS):
        server = Store(tmp_path / "jobs")
        server.tend()
        assert len(server.claim("add1", "1", 1)) == 1
        server.connection.close()
        os.close(server._held)
    last = Store(tmp_path / "jobs")
    _, ended = last.tend()
    assert ended == [job.seq]
    found = last.find(job.seq, job.token, "ada")
    assert found.state is State.FAILED
    assert "died whenever it ran this job, 10 times" in found.error


def test_jobs_expire_and_are_forgotten_by_the_clock_of_the_store(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new(store, expires=60, kept=60)
    monkeypatch.setattr(module.time, "time", lambda: 4e9)  # the system's clock jumps by decades
    store.tend()
    assert store.find(job.seq, job.token, "ada").state is State.QUEUED
    store._base += 61
    _, ended = store.tend()
    assert ended == [job.seq]
    assert store.find(job.seq, job.token, "ada").state is State.EXPIRED
    store._base += 61
    store.tend()
    with pytest.raises(NotFound):
        store.find(job.seq, job.token, "ada")


def test_the_clock_goes_on_where_the_last_server_left_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs")
    store._base += 1000
    store.tend()
    store.close()
    assert Store(tmp_path / "jobs").now >= 1000


def test_the_oldest_results_go_first_when_all_take_too_much(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", 10)
    monkeypatch.setattr(module, "_PASS", 1)
    jobs = [new(store, kept=kept) for kept in (50, 40)]
    for claim in store.claim("add1", "1", 2):
        store.finish(claim, Outcome(State.DONE, 200))
    store.tend()
    assert [job.seq for job in store.page("ada", (), None, 99, 9)] == [jobs[0].seq]


def test_a_full_store_or_disk_accepts_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1)
    with pytest.raises(NotDurable, match="limit"):
        new(store)
    monkeypatch.undo()
    monkeypatch.setattr(module, "LEAST_FREE", 1 << 62)
    with pytest.raises(NotDurable, match="disk"):
        new(store)


def test_counts_follow_the_jobs(store: Store) -> None:
    new(store, size=10)
    new(store, size=20)
    (claim,) = store.claim("add1", "1", 1)
    store.finish(claim, Outcome(State.DONE, 200, answer=b"12345", answer_size=5))
    counts = dict(store.connection.execute("SELECT state, bytes FROM counts WHERE jobs > 0").fetchall())
    assert counts == {State.QUEUED: 20, State.DONE: 5}
    store.remove(store.page("ada", (State.DONE,), None, 99, 1)[0])
    counts = dict(store.connection.execute("SELECT state, bytes FROM counts WHERE jobs > 0").fetchall())
    assert counts == {State.QUEUED: 20}


def test_only_files_that_no_job_needs_are_swept(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs")
    job = new(store, body=None, size=SMALL + 1)
    kept, orphan = store.input_file(job.token), store.input_file(os.urandom(16))
    kept.write_bytes(b"x")
    orphan.write_bytes(b"x")
    other = Store(tmp_path / "jobs")
    other.sweep_files()
    assert orphan.exists()  # another server may be about to accept its job
    other.close()
    store.sweep_files()
    assert kept.exists()
    assert not orphan.exists()


def test_a_store_of_a_later_release_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs")
    store.connection.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(InvalidArgument, match="later release"):
        Store(tmp_path / "jobs")


def test_a_million_queued_jobs_cost_no_more_than_a_thousand(store: Store) -> None:
    """No statement scans the queue: each uses an index."""
    plans = {
        "claim": "SELECT seq FROM jobs WHERE state = 0 AND model = ? AND version = ? AND owner = ?"
        " ORDER BY priority, seq LIMIT 1",
        "due": "SELECT seq FROM jobs WHERE state = 1 AND due <= 1",
        "expired": "SELECT seq FROM jobs WHERE state < 2 AND expires <= 1",
        "forgotten": "SELECT seq FROM jobs WHERE state > 2 AND gone <= 1 ORDER BY gone",
        "running": "SELECT DISTINCT server FROM jobs WHERE state = 2",
        "list": "SELECT seq FROM jobs WHERE owner = ? AND seq < 9 ORDER BY seq DESC LIMIT 9",
        "list of a state": "SELECT seq FROM jobs WHERE owner = ? AND seq < 9 AND state = 3"
        " ORDER BY seq DESC LIMIT 9",
    }
    for what, statement in plans.items():
        values = (None,) * statement.count("?")
        steps = [row[3] for row in store.connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
        assert all("USING" in step and "INDEX" in step for step in steps if "B-TREE" not in step), (
            what,
            steps,
        )
        assert not any("TEMP B-TREE FOR ORDER BY" in step for step in steps), (what, steps)


def test_transactions_are_on_disk_before_they_end(store: Store) -> None:
    assert store.connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert sqlite3.sqlite_version_info >= (3, 35)  # RETURNING
