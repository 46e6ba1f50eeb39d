"""Triton's shared memory extensions: regions registered, shown and unregistered. The same for REST and gRPC, in plain data."""

from __future__ import annotations

from typing import Any

from backline.dialects.open_inference.shared_tensors import DISABLED
from backline.engine.engine import Engine
from backline.engine.errors import InvalidArgument, NotFound, Unsupported
from backline.engine.shared_memory import Region, SharedMemory


class SharedMemoryRegions:
    """What both protocols ask of system shared memory. Every method raises Unsupported where clients may not share memory."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def memory(self) -> SharedMemory:
        if self._engine.shared_memory is None:
            raise Unsupported(DISABLED)
        return self._engine.shared_memory

    def status(self, name: str) -> list[dict[str, Any]]:
        """All regions, or the one that is named. Raises NotFound."""
        memory = self.memory
        found = [region for region in memory.regions() if name in ("", region.name)]
        if name and not found:
            raise NotFound(f"Unable to find system shared memory region: '{name}'")
        return [_status(region) for region in found]

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        self.memory.register(name, key, offset, byte_size)

    def unregister(self, name: str) -> None:
        """Unregisters one region, or all."""
        if name:
            self.memory.unregister(name)
        else:
            self.memory.unregister_all()


class CudaRegions:
    """The same of CUDA shared memory, of which there is none: tensors come to a GPU through the memory of the server."""

    def __init__(self, system: SharedMemoryRegions) -> None:
        self._system = system

    def status(self, name: str) -> list[dict[str, Any]]:
        """No region. Raises NotFound for a name."""
        self._allowed()
        if name:
            raise NotFound(f"Unable to find cuda shared memory region: '{name}'")
        return []

    def register(self, name: str) -> None:
        """Raises InvalidArgument."""
        self._allowed()
        raise InvalidArgument(
            f"failed to register CUDA shared memory region: '{name}', GPUs not supported; use system shared memory, or send the data itself"
        )

    def unregister(self, _: str) -> None:
        self._allowed()

    def _allowed(self) -> None:
        _ = self._system.memory


def _status(region: Region) -> dict[str, Any]:
    return {"name": region.name, "key": region.key, "offset": region.offset, "byte_size": region.byte_size}
