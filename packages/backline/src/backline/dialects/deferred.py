"""Responds to requests that need a coroutine, such as those that change which models are served."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar

from backline.dialects.answers import fail_call, hidden_error, respond_error
from backline.engine.engine import Engine
from backline.wire.application import HttpRequest, UnaryCall
from backline_client.values.control import Control
from backline_client.values.errors import BacklineError, Unavailable, Unsupported

#: The header field or gRPC metadata key in which clients name their user, as user@host.
USER = b"x-backline-user"
_LONGEST_USER = 64
#: The maximum number of requests of one caller that wait for their turn.
MOST_WAITING = 8
Result = TypeVar("Result")


class DeferredAnswers:
    """Runs each coroutine as a task. A task runs to its end even if the client disconnects."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: Strong references to the tasks, because the event loop keeps only weak references.
        self._tasks: set[asyncio.Task[None]] = set()
        #: For each caller with requests that take turns: the lock of the running one, and their number.
        self._turns: dict[str, asyncio.Lock] = {}
        self._taking_turns: Counter[str] = Counter()

    def answer(
        self,
        caller: HttpRequest | UnaryCall,
        work: Coroutine[Any, Any, Result],
        then: Callable[[Result], None],
    ) -> asyncio.Task[None]:
        """Runs `work` and passes the result to `then`, which responds. If `work` or `then` fails, responds
        with the error.
        """
        task = asyncio.get_running_loop().create_task(_run(caller, work, then))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def answer_in_turn(
        self,
        request: HttpRequest,
        what: str,
        work: Callable[[], Coroutine[Any, Any, Result]],
        then: Callable[[Result], None],
    ) -> None:
        """Like `answer`, for requests that take long: runs only one at a time for each caller. Drops
        a request whose client disconnects while it waits.

        Raises Unavailable, naming `what` the request reads, if too many requests of the caller wait.
        """
        caller = (request.identity.name if request.identity is not None else "") or request.peer
        if self._taking_turns[caller] > MOST_WAITING:
            raise Unavailable(
                f"{MOST_WAITING} requests of this caller for {what} are waiting already; send one at a time",
                retry_after=1,
            )
        self._taking_turns[caller] += 1
        lock = self._turns.setdefault(caller, asyncio.Lock())

        async def in_turn() -> Result:
            async with lock:
                request.on_abandon = None
                return await work()

        def ended(_: object) -> None:
            request.on_abandon = None
            self._taking_turns[caller] -= 1
            if not self._taking_turns[caller]:
                del self._taking_turns[caller], self._turns[caller]

        task = self.answer(request, in_turn(), then)
        task.add_done_callback(ended)
        request.on_abandon = partial(_cancel, task)

    def when_known(
        self, name: str, version: str, caller: HttpRequest | UnaryCall, answer: Callable[[], None]
    ) -> None:
        """Calls `answer` immediately or, if the inputs of an on-demand version are unknown, after the version
        has been loaded.

        Raises NotFound for an unknown model or version, and Unavailable if the version is not ready.
        """
        if self._engine.is_unknown(name, version):
            self.answer(caller, self._engine.wake(name, version), lambda _: answer())
        else:
            answer()


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


async def _run(
    caller: HttpRequest | UnaryCall, work: Coroutine[Any, Any, Result], then: Callable[[Result], None]
) -> None:
    try:
        then(await work)
    except BacklineError as error:
        _fail(caller, error)
    except Exception as error:
        _fail(caller, hidden_error("a deferred request", error))


def _fail(caller: HttpRequest | UnaryCall, error: BacklineError) -> None:
    if isinstance(caller, HttpRequest):
        respond_error(caller, error)
    else:
        fail_call(caller, error)


def control_of(engine: Engine, what: str) -> Control:
    """Returns the engine's control. Raises Unsupported, naming `what`, if requests may not change models."""
    if engine.control is None:
        raise Unsupported(
            f"{what} is not supported by this server: start it with --model-control-mode explicit"
        )
    return engine.control


def caller_name(peer: str, fields: Mapping[bytes, bytes], identity: str = "") -> str:
    """Returns the caller's name for the audit log, such as "ada@laptop (deploy, 10.0.0.7)".

    The user, "ada@laptop", is not verified, unlike `identity`, the name of the caller's key, token or
    certificate. Security: the user has no brackets, so that it cannot pass for something verified.
    """
    given = fields.get(USER, b"")[: 4 * _LONGEST_USER].decode(errors="replace")
    user = "".join(one if one.isprintable() and one not in "()" else "?" for one in given).strip()[
        :_LONGEST_USER
    ]
    verified = f"{identity}, {peer}" if identity else peer
    return f"{user} ({verified})" if user else verified
