"""Which memory a model would like the answers of other models to be in."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from backline.workers.child.triton.errors import TritonModelException


class MemoryType(IntEnum):
    """Kinds of memory, with Triton's numbers."""

    TRITONSERVER_MEMORY_GPU = 0
    TRITONSERVER_MEMORY_CPU = 1


TRITONSERVER_MEMORY_GPU: Final = MemoryType.TRITONSERVER_MEMORY_GPU
TRITONSERVER_MEMORY_CPU: Final = MemoryType.TRITONSERVER_MEMORY_CPU


class PreferredMemory:
    """The memory for the outputs of a call: the processor's, as there is no other in worker processes."""

    def __init__(self, preferred_memory_type: MemoryType, preferred_device_id: int = 0) -> None:
        """Raises TritonModelException for the memory of a GPU."""
        if MemoryType(preferred_memory_type) is MemoryType.TRITONSERVER_MEMORY_GPU:
            raise TritonModelException(
                "PreferredMemory: tensors of worker processes are in the processor's memory;"
                " ask for TRITONSERVER_MEMORY_CPU and move the tensor to the GPU"
            )
        self.preferred_memory_type = MemoryType(preferred_memory_type)
        self.preferred_device_id = preferred_device_id
