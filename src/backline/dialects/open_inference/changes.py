"""Changes that callers ask for: who asks, what they are run as, and how their end is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from backline.dialects.answers import hidden_error, respond_error
from backline.dialects.rpc_failure import fail as fail_call
from backline.engine.control import Control
from backline.engine.engine import Engine
from backline.engine.errors import BacklineError, Unsupported
from backline.wire.application import HttpRequest, UnaryCall

#: The header field (in gRPC: the metadata) in which clients say which person asks, user@host.
USER = b"x-backline-user"
_LONGEST_USER = 64
Result = TypeVar("Result")


class Changes:
    """Runs changes as tasks of their own: they go on to their end also when the caller goes away."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: Held strongly: the loop knows its tasks only weakly.
        self._tasks: set[asyncio.Task[None]] = set()

    def control(self, what: str) -> Control:
        """What carries changes out. Raises Unsupported, saying that `what` is not supported, where nothing may be changed."""
        control = self._engine.control
        if control is None:
            raise Unsupported(
                f"{what} is not supported by this server: start it with --model-control-mode explicit"
            )
        return control

    def answer_request(
        self, request: HttpRequest, change: Coroutine[Any, Any, Result], answer: Callable[[Result], None]
    ) -> None:
        """Runs a change and answers an HTTP request with its result or its error."""
        self._start(change, answer, lambda error: respond_error(request, error))

    def answer_call(
        self, call: UnaryCall, change: Coroutine[Any, Any, Result], answer: Callable[[Result], None]
    ) -> None:
        """Runs a change and answers a gRPC call with its result or its error."""
        self._start(change, answer, lambda error: fail_call(call, error))

    def when_known(self, name: str, version: str, request: HttpRequest, answer: Callable[[], None]) -> None:
        """Answers an HTTP request now, or when a version that is on demand is loaded, if its inputs are not known before.

        Raises NotFound, or Unavailable when the version is not ready.
        """
        if self._engine.is_unknown(name, version):
            self.answer_request(request, self._engine.wake(name, version), lambda _: answer())
        else:
            answer()

    def _start(
        self,
        change: Coroutine[Any, Any, Result],
        answer: Callable[[Result], None],
        fail: Callable[[BacklineError], None],
    ) -> None:
        task = asyncio.get_running_loop().create_task(_run(change, answer, fail))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _run(
    change: Coroutine[Any, Any, Result],
    answer: Callable[[Result], None],
    fail: Callable[[BacklineError], None],
) -> None:
    try:
        answer(await change)
    except BacklineError as error:
        fail(error)
    except Exception as error:
        fail(hidden_error("a change of the models", error))


def caller_name(peer: str, fields: Mapping[bytes, bytes]) -> str:
    """Who asks, for the audit log: "ada@laptop (10.0.0.7)", or the address alone. The name is the caller's own word."""
    given = fields.get(USER, b"")[: 4 * _LONGEST_USER].decode(errors="replace")
    user = "".join(character if character.isprintable() else "?" for character in given).strip()[
        :_LONGEST_USER
    ]
    return f"{user} ({peer})" if user else peer
