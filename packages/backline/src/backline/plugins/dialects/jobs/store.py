"""The jobs on disk: one SQLite database, and a file for each large input or result.

All methods run on one thread, in transactions that the caller begins and commits (see `store_thread`).

Expiry and retention are measured by the store's own clock, which runs while a server runs, so that a jump of
the system's clock neither expires jobs nor keeps them for ever.
"""

from __future__ import annotations

import hmac
import math
import os
import sqlite3
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final

from backline.plugins.dialects.jobs.job import (
    EXPIRES,
    MOST_DEATHS,
    SMALL,
    Claim,
    Job,
    KeyReused,
    NewJob,
    NotDurable,
    Outcome,
    State,
    unknown,
)
from backline_client.system.file_lock import open_lock, try_lock
from backline_client.values.errors import InvalidArgument

#: The maximum size in bytes of all inputs and results together, counting ROW for each job.
MOST_BYTES: Final = 64 << 30
ROW: Final = 1024
#: The size in bytes of the ended jobs above which the oldest are removed before their time.
KEPT_BYTES: Final = 32 << 30
#: No job is accepted while less than this is free on the disk, so that the jobs accepted before can end.
LEAST_FREE: Final = 64 << 20
#: The maximum number of jobs that one pass of `tend` changes for each reason, so that callers wait little.
_PASS: Final = 500
#: The maximum number of jobs before one in the queue that are counted for its position.
FARTHEST: Final = 10_000
#: Seconds between two writes of the clock: a kill sets it back by at most this.
_CLOCK_WRITTEN: Final = 60.0
#: Seconds between two looks at the room on the disk for small inputs.
_ROOM_CHECKED: Final = 0.1
_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO meta VALUES ('clock', 0.0);
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, token BLOB NOT NULL, owner TEXT NOT NULL, model TEXT NOT NULL,
    version TEXT NOT NULL, state INTEGER NOT NULL, priority INTEGER NOT NULL, attempts INTEGER NOT NULL,
    most_attempts INTEGER NOT NULL, deaths INTEGER NOT NULL, claims INTEGER NOT NULL, server TEXT NOT NULL,
    accepted REAL NOT NULL, started REAL NOT NULL, finished REAL NOT NULL, expires REAL NOT NULL,
    due REAL NOT NULL, gone REAL NOT NULL, kept REAL NOT NULL, attempt_limit REAL NOT NULL, key TEXT,
    digest BLOB, path TEXT NOT NULL, fields BLOB NOT NULL, size INTEGER NOT NULL, error TEXT NOT NULL,
    status INTEGER NOT NULL, answer_fields BLOB NOT NULL, answer_size INTEGER NOT NULL, body BLOB, answer BLOB
);
CREATE INDEX jobs_queued ON jobs (model, version, owner, priority, seq) WHERE state = 0;
CREATE INDEX jobs_due ON jobs (due) WHERE state = 1;
CREATE INDEX jobs_expiring ON jobs (expires) WHERE state < 2;
CREATE INDEX jobs_running ON jobs (server) WHERE state = 2;
CREATE INDEX jobs_ended ON jobs (gone) WHERE state > 2;
CREATE INDEX jobs_owned ON jobs (owner, seq);
CREATE INDEX jobs_in_state ON jobs (owner, state, seq);
CREATE UNIQUE INDEX jobs_key ON jobs (owner, key) WHERE key IS NOT NULL;
CREATE INDEX jobs_with_files ON jobs (token) WHERE size > 65536 OR answer_size > 65536;
CREATE TABLE counts (
    state INTEGER, model TEXT, version TEXT, owner TEXT, jobs INTEGER, bytes INTEGER,
    PRIMARY KEY (state, model, version, owner)
) WITHOUT ROWID;
CREATE TRIGGER counted AFTER INSERT ON jobs BEGIN
    INSERT INTO counts VALUES (new.state, new.model, new.version, new.owner, 1, new.size)
    ON CONFLICT DO UPDATE SET jobs = jobs + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER recounted AFTER UPDATE OF state ON jobs WHEN old.state != new.state BEGIN
    UPDATE counts SET jobs = jobs - 1, bytes = bytes - iif(old.state = 3, 0, old.size) - old.answer_size
    WHERE state = old.state AND model = old.model AND version = old.version AND owner = old.owner;
    INSERT INTO counts VALUES (new.state, new.model, new.version, new.owner, 1,
        iif(new.state = 3, 0, new.size) + new.answer_size)
    ON CONFLICT DO UPDATE SET jobs = jobs + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER uncounted AFTER DELETE ON jobs BEGIN
    UPDATE counts SET jobs = jobs - 1, bytes = bytes - iif(old.state = 3, 0, old.size) - old.answer_size
    WHERE state = old.state AND model = old.model AND version = old.version AND owner = old.owner;
END;
"""
_SEEN: Final = (
    "seq, token, owner, model, version, state, priority, attempts, most_attempts, accepted, started,"
    " finished, size, error, status, answer_fields, answer_size, claims, expires"
)
_CLAIMED: Final = (
    "seq, token, owner, model, version, attempts, most_attempts, attempt_limit, kept, claims, path, fields,"
    " size, priority, body"
)


class Store:
    """The jobs of the servers that share a state folder on one machine.

    A server is alive as long as it holds the lock on its file in `servers`: the kernel releases the lock when
    the process ends, however it ends, so no clock decides who is dead.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the store, and creates it if there is none. Raises OSError, sqlite3.Error, or InvalidArgument
        for a store of a later release.
        """
        self.folder = folder
        self._files = folder / "files"
        self._servers = folder / "servers"
        for one in (folder, self._files, self._servers):
            one.mkdir(0o700, parents=True, exist_ok=True)
        self.server = os.urandom(8).hex()
        # Locked before it has its name, so that no other server takes it for that of a dead one.
        new = self._servers / f".{self.server}"
        self._held = open_lock(new)
        try_lock(self._held)
        new.rename(self._servers / self.server)
        self.connection = sqlite3.connect(folder / "jobs.db", isolation_level=None, timeout=10)
        os.chmod(folder / "jobs.db", 0o600)
        self._execute("PRAGMA journal_mode = WAL")
        self._execute("PRAGMA synchronous = FULL")
        with self.connection:
            self._execute("BEGIN IMMEDIATE")
            (version,) = self._execute("PRAGMA user_version").fetchone()
            if version > _VERSION:
                raise InvalidArgument(
                    f"the jobs in '{folder}' were written by a later release of Backline: use that release,"
                    " or another --state-dir"
                )
            if not version:
                for statement in _statements(_SCHEMA):
                    self._execute(statement)
                self._execute(f"PRAGMA user_version = {_VERSION}")
        ((clock,),) = self._execute("SELECT value FROM meta WHERE key = 'clock'")
        self._base = clock - time.monotonic()
        self._written = clock
        #: Until when small inputs are accepted without another look at the room.
        self._roomy_until = 0.0
        #: The owner that had the last turn, by model and version.
        self._last: dict[tuple[str, str], str] = {}
        #: The files that no job needs any more once the transaction is committed.
        self.left_over: list[Path] = []

    def _execute(self, statement: str, values: Iterable[Any] = ()) -> sqlite3.Cursor:
        return self.connection.execute(statement, tuple(values))

    @property
    def now(self) -> float:
        """The time of the store's clock, in seconds."""
        return float(self._base) + time.monotonic()

    def close(self) -> None:
        self.connection.close()
        (self._servers / self.server).unlink(missing_ok=True)
        os.close(self._held)

    # files

    def input_file(self, token: bytes) -> Path:
        return self._files / f"{token.hex()}.in"

    def result_file(self, token: bytes, claims: int) -> Path:
        return self._files / f"{token.hex()}-{claims}.out"

    def sweep_files(self) -> None:
        """Removes the files that no job refers to, which killed servers have left. Has no effect while
        another server is alive, which may be about to commit the job of a file.
        """
        if not all(self._is_dead(name) for name in os.listdir(self._servers) if name != self.server):
            return
        for path in list(self._files.iterdir()):
            token = bytes.fromhex(path.name[:32])
            row = self._execute(
                "SELECT size, state, answer_size, claims FROM jobs WHERE token = ?"
                " AND (size > 65536 OR answer_size > 65536)",
                (token,),
            ).fetchone()
            kept = []
            if row is not None:
                size, state, answer_size, claims = row
                if size > SMALL and state != State.DONE:
                    kept.append(self.input_file(token))
                if answer_size > SMALL:
                    kept.append(self.result_file(token, claims))
            if path not in kept:
                path.unlink(missing_ok=True)

    # what callers do

    def accept(self, new: NewJob) -> Job:
        """Stores a job, or returns the one with the same idempotency key: the file of the new one is then not
        needed.

        Raises KeyReused if the earlier request was another one, and NotDurable if there is no room.
        """
        if new.key is not None:
            row = self._execute(
                f"SELECT {_SEEN}, digest FROM jobs WHERE owner = ? AND key = ?", (new.owner, new.key)
            ).fetchone()
            if row is not None:
                if row[-1] != new.digest:
                    raise KeyReused(
                        f"the idempotency key '{new.key[:80]}' was sent with another request, which is job"
                        f" '{self._job(row[:-1]).id}': use a new key for a new request"
                    )
                return self._job(row[:-1])
        self.check_room(new.size)
        now = self.now
        row = (
            *(new.token, new.owner, new.model, new.version, State.QUEUED, new.priority, 0),
            *(new.most_attempts, 0, 0, "", time.time(), 0.0, 0.0, now + new.expires, 0.0, 0.0, new.kept),
            *(new.attempt_limit, new.key, new.digest, new.path, new.fields, new.size, "", 0, b"[]", 0),
            *(new.body, None),
        )
        cursor = self._execute(f"INSERT INTO jobs VALUES (NULL{', ?' * len(row)})", row)
        job = self._find(cursor.lastrowid)
        assert job is not None
        return job

    def check_room(self, size: int) -> None:
        """Raises NotDurable if there is no room for another input of `size` bytes."""
        if size <= SMALL and time.monotonic() < self._roomy_until:
            return
        (jobs, total), *_ = self._execute("SELECT total(jobs), total(bytes) FROM counts")
        if jobs * ROW + total + size > MOST_BYTES:
            raise NotDurable(
                f"the jobs of this server and their results take {MOST_BYTES >> 30} GiB, which is the limit:"
                " delete results that are no longer needed, or try again later"
            )
        found = os.statvfs(self.folder)
        if found.f_bavail * found.f_frsize < LEAST_FREE + size:
            raise NotDurable(
                "the disk with the server's state folder is full, so no job can be accepted: ask the"
                " server's operator to free space, and try again later"
            )
        self._roomy_until = time.monotonic() + _ROOM_CHECKED

    def _find(self, seq: int | None) -> Job | None:
        row = self._execute(f"SELECT {_SEEN} FROM jobs WHERE seq = ?", (seq,)).fetchone()
        return None if row is None else self._job(row)

    def _job(self, row: tuple[Any, ...]) -> Job:
        left = max(0.0, row[-1] - self.now) if row[5] <= State.WAITING else None
        values: tuple[Any, ...] = (*row[:5], State(row[5]), *row[6:-1], left)
        return Job(*values)

    def find(self, seq: int, token: bytes, owner: str) -> Job:
        """Returns a job of this owner. Raises NotFound if there is none."""
        job = self._find(seq)
        if job is None or not hmac.compare_digest(job.token, token) or job.owner != owner:
            raise unknown(f"{seq:x}-{token.hex()}")
        return job

    def position(self, job: Job) -> int:
        """Returns how many queued jobs of the same owner, model and version run before this one, up to
        FARTHEST.
        """
        ((ahead,),) = self._execute(
            "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = 0 AND model = ? AND version = ?"
            " AND owner = ? AND (priority, seq) < (?, ?) LIMIT ?)",
            (job.model, job.version, job.owner, job.priority, job.seq, FARTHEST),
        )
        return int(ahead)

    def answer(self, job: Job) -> bytes | None:
        """Returns the body of a job's response; None if it is in a file."""
        ((answer,),) = self._execute("SELECT answer FROM jobs WHERE seq = ?", (job.seq,))
        return None if job.answer_size > SMALL else answer or b""

    def page(
        self, owner: str, states: Collection[State], model: str | None, before: int, limit: int
    ) -> list[Job]:
        """Returns up to `limit` jobs of an owner, newest first, with a number below `before`."""
        each = f"SELECT {_SEEN} FROM jobs WHERE owner = ? AND seq < ?"
        values: list[Any] = []
        parts = []
        for state in states or (None,):
            part, own = each, [owner, before]
            if state is not None:
                part, own = f"{part} AND state = ?", [*own, int(state)]
            if model is not None:
                part, own = f"{part} AND model = ?", [*own, model]
            parts.append(f"SELECT * FROM ({part} ORDER BY seq DESC LIMIT ?)")
            values += [*own, limit]
        rows = self._execute(f"{' UNION ALL '.join(parts)} ORDER BY 1 DESC LIMIT ?", (*values, limit))
        return [self._job(row) for row in rows.fetchall()]

    def cancel(self, job: Job) -> Job:
        """Cancels a job that has not ended."""
        self._execute(
            "UPDATE jobs SET state = ?, finished = ?, gone = ? + kept, server = '',"
            " error = 'cancelled by its caller' WHERE seq = ? AND state < 3",
            (State.CANCELLED, time.time(), self.now, job.seq),
        )
        return self._find(job.seq) or job

    def remove(self, job: Job) -> None:
        """Removes a job that has ended, with its input and its result."""
        self._drop_files(job.token, job.size, job.answer_size, job.claims)
        self._execute("DELETE FROM jobs WHERE seq = ? AND state > 2", (job.seq,))

    def _drop_files(self, token: bytes, size: int, answer_size: int, claims: int) -> None:
        if size > SMALL:
            self.left_over.append(self.input_file(token))
        if answer_size > SMALL:
            self.left_over.append(self.result_file(token, claims))

    def retry(self, job: Job) -> Job:
        """Queues a failed, cancelled or expired job again, with all its attempts."""
        if job.state not in (State.FAILED, State.CANCELLED, State.EXPIRED):
            raise InvalidArgument(
                f"job '{job.id}' is {job.state.shown}: only a failed, cancelled or expired job can be retried"
            )
        if job.answer_size > SMALL:
            self.left_over.append(self.result_file(job.token, job.claims))
        self._execute(
            "UPDATE jobs SET state = 0, attempts = 0, deaths = 0, finished = 0.0, error = '', status = 0,"
            " answer_fields = x'5b5d', answer_size = 0, answer = NULL,"
            " expires = ? WHERE seq = ? AND state > 3",
            (self.now + EXPIRES, job.seq),
        )
        return self._find(job.seq) or job

    # what servers do

    def claim(self, model: str, version: str, limit: int) -> list[Claim]:
        """Gives this server up to `limit` queued jobs of a model. Owners take turns."""
        taken: list[Claim] = []
        while len(taken) < limit:
            found = self._claim_once(model, version, limit - len(taken))
            if not found:
                break
            taken += found
        return taken

    def _claim_once(self, model: str, version: str, limit: int) -> list[Claim]:
        """Claims up to `limit` jobs, about the same number of each owner. There may be more."""
        taken: list[Claim] = []
        key = (model, version)
        last = self._last.get(key, "")
        query = (
            "SELECT owner FROM counts WHERE state = 0 AND model = ? AND version = ? AND jobs > 0"
            " AND owner {} ? ORDER BY owner LIMIT ?"
        )
        owners = [row[0] for row in self._execute(query.format(">"), (*key, last, limit))]
        owners += [row[0] for row in self._execute(query.format("<="), (*key, last, limit - len(owners)))]
        for index, owner in enumerate(owners):
            share = -(-(limit - len(taken)) // (len(owners) - index))
            rows = self._execute(
                "UPDATE jobs SET state = 2, server = ?, claims = claims + 1, attempts = attempts + 1,"
                " started = ? WHERE seq IN (SELECT seq FROM jobs WHERE state = 0 AND model = ?"
                " AND version = ? AND owner = ? ORDER BY priority, seq LIMIT ?) RETURNING " + _CLAIMED,
                (self.server, time.time(), *key, owner, share),
            ).fetchall()
            taken += sorted((Claim(*row) for row in rows), key=lambda claim: (claim.priority, claim.seq))
            self._last[key] = owner
        return taken

    def finish(self, claim: Claim, outcome: Outcome) -> bool:
        """Records how an attempt ended. Returns False, and records nothing, if the job no longer belongs to
        this attempt, because it was cancelled.
        """
        ended = outcome.state.ended
        changed = self._execute(
            "UPDATE jobs SET state = ?, finished = ?, gone = ? + kept, due = ?, attempts = attempts - ?,"
            " status = ?, answer_fields = ?, answer = ?, answer_size = ?, error = ?, server = '',"
            " body = CASE ? WHEN 3 THEN NULL ELSE body END WHERE seq = ? AND state = 2 AND claims = ?",
            (
                *(outcome.state, time.time() if ended else 0.0, self.now, self.now + outcome.delay),
                *(outcome.free, outcome.status, outcome.fields, outcome.answer, outcome.answer_size),
                *(outcome.error, outcome.state, claim.seq, claim.claims),
            ),
        ).rowcount
        if changed and outcome.state is State.DONE:
            self._drop_files(claim.token, claim.size, 0, 0)
        elif not changed and outcome.answer is None:
            self.left_over.append(self.result_file(claim.token, claim.claims))
        return changed > 0

    def tend(self) -> tuple[list[tuple[str, str]], list[int]]:
        """Does what time and dead servers require. Returns the models and versions that have queued jobs, and
        the numbers of jobs that have ended here.
        """
        now = self.now
        ended = self._give_back()
        self._execute("UPDATE jobs SET state = 0 WHERE state = 1 AND due <= ?", (now,))
        rows = self._execute(
            "UPDATE jobs SET state = ?, finished = ?, gone = ? + kept, error = 'waited for longer than'"
            " || ' the caller allowed (expires)' || iif(error = '', '', '; the last attempt: ' || error)"
            " WHERE seq IN (SELECT seq FROM jobs WHERE state < 2 AND expires <= ? LIMIT ?) RETURNING seq",
            (State.EXPIRED, time.time(), now, now, _PASS),
        ).fetchall()
        ended += [seq for (seq,) in rows]
        self._forget(now)
        if now - self._written > _CLOCK_WRITTEN:
            self._written = now
            self._execute("UPDATE meta SET value = max(value, ?) WHERE key = 'clock'", (now,))
            self._execute("DELETE FROM counts WHERE jobs = 0")
        queued = self._execute("SELECT DISTINCT model, version FROM counts WHERE state = 0 AND jobs > 0")
        return [(model, version) for model, version in queued], ended

    def _forget(self, now: float) -> None:
        """Removes the jobs that are no longer kept and, if all results take too much, the oldest."""
        total = "SELECT total(jobs), total(bytes) FROM counts WHERE state > 2"
        ((jobs, size),) = self._execute(total)
        until = now if jobs * ROW + size <= KEPT_BYTES else math.inf
        rows = self._execute(
            "DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs WHERE state > 2 AND gone <= ? ORDER BY gone"
            " LIMIT ?) RETURNING token, size, answer_size, claims",
            (until, _PASS),
        ).fetchall()
        for row in rows:
            self._drop_files(*row)

    def _give_back(self) -> list[int]:
        """Queues the running jobs of servers that have died. Returns the jobs that have failed thereby."""
        dead = {row[0] for row in self._execute("SELECT DISTINCT server FROM jobs WHERE state = 2")}
        for name in os.listdir(self._servers):
            if name != self.server and (name in dead or not name.startswith(".")):
                if self._is_dead(name):
                    dead.add(name)
                    self.left_over.append(self._servers / name)
                else:
                    dead.discard(name)
        dead.discard(self.server)
        failed = []
        for name in dead:
            rows = self._execute(
                "UPDATE jobs SET deaths = deaths + 1, server = '', attempts = attempts - 1,"
                " state = iif(deaths + 1 < ?, 0, 4), gone = ? + kept, finished = ?,"
                " error = iif(deaths + 1 < ?, '', 'the server died whenever it ran this job, '"
                " || (deaths + 1) || ' times') WHERE state = 2 AND server = ? RETURNING seq, state",
                (MOST_DEATHS, self.now, time.time(), MOST_DEATHS, name),
            ).fetchall()
            failed += [seq for seq, state in rows if state == State.FAILED]
        return failed

    def _is_dead(self, server: str) -> bool:
        try:
            descriptor = os.open(self._servers / server, os.O_RDWR)
        except FileNotFoundError:
            return True
        try:
            return try_lock(descriptor)
        finally:
            os.close(descriptor)


def _statements(script: str) -> list[str]:
    """Splits a script into statements, as `executescript` would commit."""
    found, current = [], ""
    for line in script.splitlines():
        current += line + "\n"
        if sqlite3.complete_statement(current):
            found.append(current)
            current = ""
    return found
