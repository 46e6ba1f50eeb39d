"""The worker's end of the data channel: receives requests and sends responses."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from socket import socket
from typing import Any, TypeAlias

import numpy as np

from backline.engine.config.reshape import Reshapes, reshape_tensor
from backline.workers.channel.arena import Arena, pack_columns, unpack_columns
from backline.workers.channel.protocol import Buffer, Column, Execute
from backline.workers.child.requests import NO_NOTE, Outputs, RequestBatch, WorkerRequest
from backline.workers.child.reshaped import ReshapedBatch
from backline_client.values.tensor import Tensor

Unpack: TypeAlias = Callable[
    [Sequence[Column], memoryview, int, np.ndarray | None, int], tuple[dict[str, Tensor], int]
]
MakeBatch: TypeAlias = Callable[["DataChannel", int, np.ndarray | None, int], RequestBatch]


class DataChannel:
    """The worker's end of the data channel, and its half of the shared memory."""

    def __init__(self, data: socket, arena: Arena) -> None:
        self._data = data
        self.arena = arena
        #: Held while a frame is written, so that frames do not interleave. Also guards the arena, which is
        #: not thread-safe.
        self.lock = threading.RLock()
        self.credits = threading.Condition()
        #: The requests that have no last response yet, by number. Several threads add and remove requests;
        #: each does so by a single dict operation, which is atomic.
        self.open: dict[int, WorkerRequest] = {}
        #: The highest request number so far, and the requests that were cancelled before they arrived.
        #: Numbers only increase, so a lower number that is not open belongs to a request that has been
        #: answered. Guarded by `_arrival`.
        self._last = -1
        self._cancelled_early: set[int] = set()
        self._arrival = threading.Lock()
        #: The functions that unpack the tensors of a message and create a batch. `reshape` replaces both.
        self._unpack: Unpack = unpack_columns
        self._make_batch: MakeBatch = RequestBatch
        #: The offsets of blocks of the server that the model used beyond the end of their batch and has freed
        #: since. The next PONG or CALL returns them.
        self.let_go: deque[int] = deque()

    def reshape(self, inputs: Reshapes, outputs: Reshapes) -> None:
        """Makes the channel reshape inputs and outputs from now on, because the model sees other shapes than
        the server.
        """

        def unpack(*given: Any) -> tuple[dict[str, Tensor], int]:
            tensors, offset = unpack_columns(*given)
            return {name: reshape_tensor(tensor, inputs) for name, tensor in tensors.items()}, offset

        self._unpack = unpack
        self._make_batch = partial(ReshapedBatch, outputs)

    def send(self, message: bytes) -> None:
        with self.lock:
            self._data.sendall(message)

    def cancel(self, numbers: Sequence[int]) -> None:
        """Cancels requests. A cancellation may arrive before its request, because they are sent on separate
        channels.
        """
        for number in numbers:
            with self._arrival:
                request = self.open.get(number)
                if request is None and number > self._last:
                    self._cancelled_early.add(number)
            if request is not None:
                request.cancel()

    def _arrived(self, requests: Sequence[WorkerRequest]) -> None:
        with self._arrival:
            for request in requests:
                self.open[request.number] = request
                if request.number in self._cancelled_early:
                    request.cancelled = True
                    self._cancelled_early.discard(request.number)
            self._last = requests[-1].number

    def credit(self, number: int, count: int) -> None:
        """Adds the credit for `count` further responses that the server has granted to a request."""
        request = self.open.get(number)
        if request is not None:
            request.may_send(count)

    def take_back(self, blocks: Sequence[int]) -> None:
        """Frees blocks of the arena that the server has returned."""
        with self.lock:
            for at in blocks:
                self.arena.give_back(at)

    def take_let_go(self) -> list[int]:
        """Removes and returns the offsets of the blocks that the next message returns to the server. May be
        called on several threads at the same time.
        """
        taken: list[int] = []
        with suppress(IndexError):
            while self.let_go:
                taken.append(self.let_go.popleft())
        return taken

    def read_batch(self, message: Execute, payload: memoryview, *, batched: bool) -> RequestBatch:
        """Decodes the requests of an EXECUTE message. `batched` says whether the model takes batches."""
        self.take_back(message.returned)
        block: np.ndarray | None = None
        if message.block >= 0:
            end = max(
                column.at + column.size for part in message.parts for column in part.columns if column.at >= 0
            )
            block = self.arena.read(message.block, end - message.block, writable=True)
        batch = self._make_batch(self, message.batch, block, message.block)
        notes = iter(message.notes)
        offset = 0
        for part in message.parts:
            tensors, offset = self._unpack(part.columns, payload, offset, block, message.block)
            rows = part.rows or [_rows_of(tensors) if batched else 1]
            if batched and len(message.parts) == 1:
                batch.columns = tensors
            start = 0
            for number, count in zip(part.numbers, rows, strict=True):
                first = start if len(part.numbers) > 1 else -1
                request = WorkerRequest(batch, number, next(notes, NO_NOTE), tensors, first, count)
                start += count
                batch.requests.append(request)
            batch.rows += start
        self._arrived(batch.requests)
        return batch

    def pack(self, answers: Sequence[Outputs]) -> tuple[list[list[Column]], list[Buffer], int]:
        """Packs the outputs of responses, with one column per output; see `pack_columns`."""
        return pack_columns([[(tensor,) for tensor in outputs] for outputs in answers], self.arena)


def _rows_of(tensors: Mapping[str, Tensor]) -> int:
    return next((tensor.shape[0] for tensor in tensors.values() if tensor.shape), 1)
