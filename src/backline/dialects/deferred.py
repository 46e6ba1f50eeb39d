"""Responds to requests that need a coroutine, such as those that change which models are served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from backline.dialects.answers import fail_call, hidden_error, respond_error
from backline.engine.control import Control
from backline.engine.engine import Engine
from backline.engine.errors import BacklineError, Unsupported
from backline.wire.application import HttpRequest, UnaryCall

#: The header field or gRPC metadata key in which clients name their user, as user@host.
USER = b"x-backline-user"
_LONGEST_USER = 64
Result = TypeVar("Result")


class DeferredAnswers:
    """Runs each coroutine as a task. A task runs to its end even if the client disconnects."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: Strong references to the tasks, because the event loop keeps only weak references.
        self._tasks: set[asyncio.Task[None]] = set()

    def answer(
        self,
        caller: HttpRequest | UnaryCall,
        work: Coroutine[Any, Any, Result],
        then: Callable[[Result], None],
    ) -> None:
        """Runs `work` and passes the result to `then`, which responds. If `work` or `then` fails, responds
        with the error.
        """
        task = asyncio.get_running_loop().create_task(_run(caller, work, then))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
    certificate.
    """
    given = fields.get(USER, b"")[: 4 * _LONGEST_USER].decode(errors="replace")
    user = "".join(character if character.isprintable() else "?" for character in given).strip()[
        :_LONGEST_USER
    ]
    verified = f"{identity}, {peer}" if identity else peer
    return f"{user} ({verified})" if user else verified
