"""The memory budgets of GPUs (--gpu-memory-budget), and how much the server holds on those GPUs."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

from backline.backends.runtime import cuda_gpus
from backline.engine.device import Gpus
from backline.engine.numbers import parse_bytes
from backline.system.nvml import GpuMemory
from backline_client.values.errors import InvalidArgument

log = logging.getLogger("backline.lifecycle")

#: Reads how many bytes of GPU memory this process and the processes with the given ids hold, by GPU and
#: process.
ReadGpus: TypeAlias = Callable[[Collection[int]], Mapping[int, Mapping[int, int]]]
_OPTION = "--gpu-memory-budget"


class GpuBudgets:
    """The maximum number of bytes that the server may hold on each GPU, by the GPU's number in CUDA."""

    def __init__(
        self,
        texts: Sequence[str],
        gpus: Callable[[], Gpus] = cuda_gpus,
        reader: Callable[[Collection[int]], ReadGpus] = GpuMemory,
    ) -> None:
        """Each text is "SIZE", for every GPU, or "GPU:SIZE", for one GPU. A size for one GPU takes
        precedence.

        Raises InvalidArgument for anything else, for a GPU that a machine with GPUs does not have, and if the
        driver does not report how much memory is in use. Logs a warning on a machine without GPUs.
        """
        given = dict(map(_parse, texts))
        there = gpus()
        wrong = [index for index in given if index is not None and index not in there.indexes]
        if there.indexes and wrong:
            raise InvalidArgument(
                f"{_OPTION} names GPU {wrong[0]}, which does not exist; the GPUs are"
                f" {', '.join(map(str, there.indexes))}"
            )
        if not there.indexes:
            log.warning("%s has no effect: %s", _OPTION, there.reason)
        every = given.get(None)
        budgets = {index: given.get(index, every) for index in there.indexes}
        self.bytes = {index: size for index, size in budgets.items() if size is not None}
        self._read: ReadGpus = lambda _: {}
        if self.bytes:
            try:
                self._read = reader(self.bytes)
            except OSError as error:
                raise InvalidArgument(
                    f"{_OPTION} cannot be enforced: the NVIDIA driver does not report how much memory is in"
                    f" use: {error}"
                ) from None

    def read(self, pids: Collection[int]) -> Mapping[int, Mapping[int, int]]:
        """Returns the bytes that this process and the processes `pids` hold on each GPU. Call it on a
        thread.
        """
        try:
            return self._read(pids)
        except OSError as error:
            log.error("the use of GPU memory cannot be read: %s", error)
            return {}


def _parse(text: str) -> tuple[int | None, int]:
    found = re.fullmatch(r"\s*(?:(\d+)\s*:)?(.+)", text)
    try:
        if found is None:
            raise ValueError(f"'{text}' is empty")
        return None if found[1] is None else int(found[1]), parse_bytes(found[2])
    except ValueError as error:
        raise InvalidArgument(f"{_OPTION} expects SIZE or GPU:SIZE, such as 0:20GiB: {error}") from None
