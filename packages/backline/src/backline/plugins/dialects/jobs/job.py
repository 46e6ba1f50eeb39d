"""What a job is: its states, its record, and the limits of what callers may ask for."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from msgspec import Struct

from backline_client.values.errors import BacklineError, NotFound

#: The maximum size in bytes of an input or a result that is stored in the database; a larger one is a file.
SMALL: Final = 64 * 1024
#: The number of attempts by default, and the maximum number that a caller may ask for.
ATTEMPTS: Final = 3
MOST_ATTEMPTS: Final = 20
#: The number of servers that may die while they run a job, before the job counts as their cause.
MOST_DEATHS: Final = 10
#: Seconds for which a job waits by default before it expires, for which its result is kept, and that one
#: attempt may take; and the maxima of the first two.
EXPIRES: Final = 86400.0
KEPT: Final = 86400.0
LONGEST_ATTEMPT: Final = 3600.0
LONGEST: Final = 30 * 86400.0
#: The priorities of jobs among themselves: 1 is the highest.
LOWEST_PRIORITY: Final = 9
PRIORITY: Final = 5


class State(IntEnum):
    """The state of a job, as stored. WAITING is a queued job before its next attempt."""

    QUEUED = 0
    WAITING = 1
    RUNNING = 2
    DONE = 3
    FAILED = 4
    CANCELLED = 5
    EXPIRED = 6

    @property
    def ended(self) -> bool:
        return self >= State.DONE

    @property
    def shown(self) -> str:
        """The name that clients see."""
        return "queued" if self is State.WAITING else self.name.lower()


class NotDurable(BacklineError):
    """Raised if something cannot be stored, because the disk or the store is full."""

    http_status = 507
    grpc_code = 8


class KeyReused(BacklineError):
    """Raised for an idempotency key that was sent with another request (the status is that of
    draft-ietf-httpapi-idempotency-key-header).
    """

    http_status = 422
    grpc_code = 3


class NewJob(Struct, frozen=True, kw_only=True):
    """A job to be accepted. `body` is the request's; if `large`, it is in the file of the job's `token`.

    `expires`, `kept` and `attempt_limit` are in seconds. `key` is the caller's idempotency key, and `digest`
    that of the request.
    """

    token: bytes
    owner: str
    model: str
    version: str
    path: str
    fields: bytes
    body: bytes | None
    size: int
    priority: int = PRIORITY
    most_attempts: int = ATTEMPTS
    expires: float = EXPIRES
    kept: float = KEPT
    attempt_limit: float = LONGEST_ATTEMPT
    key: str | None = None
    digest: bytes | None = None


class Job(Struct, frozen=True):
    """A job as its owner sees it. Times are in seconds of time.time(), 0 if not reached yet; `expires_in` is
    in seconds from now, and None for a job that has left the queue.
    """

    seq: int
    token: bytes
    owner: str
    model: str
    version: str
    state: State
    priority: int
    attempts: int
    most_attempts: int
    accepted: float
    started: float
    finished: float
    size: int
    error: str
    #: The status, the header fields (as JSON) and the size of the response; a status of 0 means that there is
    #: none. `claims` is part of the name of its file if it is large.
    status: int
    answer_fields: bytes
    answer_size: int
    claims: int
    expires_in: float | None

    @property
    def id(self) -> str:
        return f"{self.seq:x}-{self.token.hex()}"


class Claim(Struct, frozen=True):
    """A job that this server is to run. `claims` tells this attempt from all others of the job."""

    seq: int
    token: bytes
    owner: str
    model: str
    version: str
    attempts: int
    most_attempts: int
    attempt_limit: float
    kept: float
    claims: int
    path: str
    fields: bytes
    size: int
    priority: int
    body: bytes | None


class Outcome(Struct, frozen=True):
    """How an attempt ended. `state` WAITING means that the job is tried again after `delay` seconds; if the
    attempt does not count, `free` is set. `answer` is None if the response is in a file.
    """

    state: State
    status: int = 0
    fields: bytes = b"[]"
    answer: bytes | None = b""
    answer_size: int = 0
    error: str = ""
    delay: float = 0.0
    free: bool = False


def parse_id(text: str) -> tuple[int, bytes]:
    """Returns the number and the token of a job's id. Raises NotFound for what cannot be an id."""
    seq, _, token = text.partition("-")
    try:
        if len(seq) > 15 or len(token) != 32:
            raise ValueError
        return int(seq, 16), bytes.fromhex(token)
    except ValueError:
        raise unknown(text) from None


def unknown(id: str) -> NotFound:
    """Returns the error for a job that does not exist, or belongs to another caller: the same, so that nobody
    learns which ids exist.
    """
    return NotFound(
        f"there is no job '{id[:80]}' of this caller: it never existed, or its result was removed after the"
        " time for which it is kept"
    )
