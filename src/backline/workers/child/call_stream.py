"""The responses to a call of another model, one by one, at the reader's pace."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Self

from backline.engine.errors import BacklineError
from backline.engine.messages import InferResponse
from backline.workers.channel.protocol import WINDOW
from backline.workers.child.mailbox import AsyncMailbox, End, Heard, Mailbox

if TYPE_CHECKING:
    from backline.workers.child.caller import Caller


class CallStream:
    """The responses to a call, an iterator. The called model waits while they are not read; a reader that
    stops early closes it.
    """

    def __init__(self, caller: Caller, number: int, heard: Mailbox) -> None:
        self._heard = heard
        self._credit = _Credit(caller, number)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> InferResponse:
        response = self.take()
        if response is None:
            raise StopIteration
        return response

    def take(self, timeout: float = inf) -> InferResponse | None:
        """The next response, None after the last. Raises DeadlineExceeded if none arrives within `timeout`
        seconds.
        """
        return None if self._credit.over else self._credit.taken(self._heard.get(timeout))

    def close(self) -> None:
        """Cancels the call. May be called while another thread waits in `next`."""
        self._credit.close()
        self._heard.put(End(alone=False))

    @property
    def ended_alone(self) -> bool:
        """Whether the end came in a separate message, after the last response."""
        return self._credit.ended_alone


class AsyncCallStream:
    """CallStream for coroutines, an asynchronous iterator."""

    def __init__(self, caller: Caller, number: int, heard: AsyncMailbox) -> None:
        self._heard = heard
        self._credit = _Credit(caller, number)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> InferResponse:
        response = await self.take()
        if response is None:
            raise StopAsyncIteration
        return response

    async def take(self, timeout: float = inf) -> InferResponse | None:
        """The next response, None after the last. Raises DeadlineExceeded if none arrives within `timeout`
        seconds.
        """
        return None if self._credit.over else self._credit.taken(await self._heard.get(timeout))

    def close(self) -> None:
        """Cancels the call."""
        self._credit.close()
        self._heard.put(End())


class _Credit:
    """Counts responses read, and grants the server as many further ones, in batches of half a window."""

    def __init__(self, caller: Caller, number: int) -> None:
        self._caller = caller
        self._number = number
        self._taken = 0
        self.over = False
        self.ended_alone = False

    def taken(self, heard: Heard) -> InferResponse | None:
        if not isinstance(heard, InferResponse):
            self.over = True
            if isinstance(heard, BacklineError):
                raise heard
            self.ended_alone = heard.alone
            return None
        self._taken += 1
        if self._taken >= WINDOW // 2:
            self._caller.take_more(self._number, self._taken)
            self._taken = 0
        return heard

    def close(self) -> None:
        self.over = True
        self._caller.drop(self._number)
