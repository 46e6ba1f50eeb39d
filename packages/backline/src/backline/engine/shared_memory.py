"""Memory that clients share with the server, for the inputs and outputs of requests.

A client registers a POSIX shared memory object, or a part of one, under a name.

Security: the objects are never mapped, but read and written as files
(docs/decisions/client-shared-memory.md). A client may shrink its object at any time. An access to a mapping
of the object would then raise SIGBUS and kill the server, whereas a read or write of a file fails with an
error. Errors that Triton has too use Triton's texts.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Final
from weakref import WeakValueDictionary, finalize

import numpy as np

from backline_client.values.errors import (
    AlreadyExists,
    Internal,
    InvalidArgument,
    NotFound,
    PayloadTooLarge,
    Unavailable,
)
from backline_client.values.tensor import Buffer

#: The folder in which Linux keeps the objects of shm_open.
FOLDER: Final = Path("/dev/shm")
#: The prefix of the keys that Triton's Python backend uses; clients may not register them.
RESERVED_PREFIX: Final = "triton_python_backend_shm_region_"
#: The maximum number of regions. There is a limit because each region keeps a file descriptor open.
MAX_REGIONS: Final = 1000
_LONGEST_NAME: Final = 255


class Region:
    """A part of a shared memory object: `byte_size` bytes, starting at `offset`.

    The offsets that methods take are relative to the start of the region.
    """

    __slots__ = ("__weakref__", "_descriptor", "byte_size", "key", "name", "offset")

    def __init__(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Opens the shared memory object.

        Raises InvalidArgument if the object cannot be opened, may not be used, or is too small.
        """
        self.name = name
        self.key = key
        self.offset = offset
        self.byte_size = byte_size
        self._descriptor = _open(name, key)
        finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _cannot_open(key)
        end = offset + byte_size
        if not byte_size or end > status.st_size:
            why = (
                f"it ends at byte {end} of '{key}', which has {status.st_size}"
                if byte_size
                else "its byte_size is 0"
            )
            if offset > status.st_size:
                raise InvalidArgument(
                    f"failed to register shared memory region '{name}': invalid args ({why})"
                )
            raise InvalidArgument(
                f"Invalid shared memory region: '{key}': '{name}' cannot be registered, {why}"
            )

    def check(self, offset: int, size: int) -> None:
        """Raises InvalidArgument unless `size` is at least 1, and the `size` bytes that start at `offset` lie
        within the region.
        """
        if offset >= self.byte_size:
            raise InvalidArgument(f"Invalid offset for shared memory region: '{self.name}'")
        if not 0 < size <= self.byte_size - offset:
            raise InvalidArgument(f"Invalid offset + byte size for shared memory region: '{self.name}'")

    def read(self, offset: int, into: np.ndarray) -> None:
        """Fills the UINT8 array `into` [n] with bytes from the region. Raises InvalidArgument if the object
        has become too small.
        """
        done = 0
        while done < len(into):
            got = os.preadv(self._descriptor, [into[done:].data], self.offset + offset + done)
            if not got:
                raise self._shrunk()
            done += got

    def write(self, offset: int, data: Buffer) -> None:
        """Writes bytes into the region.

        Raises InvalidArgument if the object has become too small, and Internal if there is not enough memory.
        """
        view = memoryview(data).cast("B")
        place = self.offset + offset
        # A write past the end would enlarge the object. If the client shrinks the object after this check,
        # the write only restores the size that the client registered.
        if os.fstat(self._descriptor).st_size < place + len(view):
            raise self._shrunk()
        try:
            while view:
                done = os.pwrite(self._descriptor, view, place)
                view = view[done:]
                place += done
        except OSError as error:
            raise Internal(
                f"shared memory region '{self.name}' cannot be written: {error.strerror}"
            ) from None

    def _shrunk(self) -> InvalidArgument:
        return InvalidArgument(
            f"shared memory region '{self.name}' has shrunk since it was registered: enlarge '{self.key}', or"
            " unregister the region"
        )


class SharedMemory:
    """The regions that clients have registered. Use it only on the event loop, except `read`.

    `max_request_bytes` is the maximum number of bytes that a request may read from regions, and
    `max_copied_bytes` the maximum for all requests in flight together.
    """

    def __init__(self, max_request_bytes: int, max_copied_bytes: int) -> None:
        self._regions: dict[str, Region] = {}
        #: Regions that were unregistered while requests used them. A region is closed when the last of these
        #: requests ends.
        self._leaving: WeakValueDictionary[str, Region] = WeakValueDictionary()
        self._max_request_bytes = max_request_bytes
        self._max_copied_bytes = max_copied_bytes
        #: The total size of all copies in bytes. When a copy is freed, on any thread, its size is appended to
        #: `_given_up`, and `read` later subtracts it. The append is atomic and takes no lock, because the
        #: thread that frees a copy may already hold `_lock`.
        self._copied_bytes = 0
        self._given_up: deque[int] = deque()
        self._lock = Lock()

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Registers a region of the object `key` (a name for shm_open) under `name`.

        Raises InvalidArgument for an invalid name or object, AlreadyExists if the name is in use, and
        Unavailable if there are MAX_REGIONS regions already.
        """
        if not 0 < len(name) <= _LONGEST_NAME:
            raise InvalidArgument(
                f"the name of a shared memory region has {len(name)} characters,"
                f" expected 1 to {_LONGEST_NAME}"
            )
        if name in self._regions or name in self._leaving:
            raise AlreadyExists(f"shared memory region '{name}' already in manager")
        if len(self._regions) + len(self._leaving) >= MAX_REGIONS:
            raise Unavailable(
                f"there are {MAX_REGIONS} shared memory regions, the maximum; unregister unused ones"
            )
        self._regions[name] = Region(name, key, offset, byte_size)

    def unregister(self, name: str) -> None:
        """Unregisters a region, which is closed once no request uses it any more. Has no effect if the name
        is unknown.
        """
        region = self._regions.pop(name, None)
        if region is not None:
            self._leaving[name] = region

    def unregister_all(self) -> None:
        for name in tuple(self._regions):
            self.unregister(name)

    def regions(self) -> Iterator[Region]:
        """Yields all regions, sorted by name, including unregistered regions that requests still use."""
        yield from sorted((*self._regions.values(), *self._leaving.values()), key=lambda region: region.name)

    def region(self, name: str) -> Region:
        """Returns the region with this name. Raises NotFound if there is none."""
        found = self._regions.get(name) or self._leaving.get(name)
        if found is None:
            raise NotFound(f"Unable to find shared memory region: '{name}'")
        return found

    def check_size(self, size: int) -> None:
        """Raises PayloadTooLarge if `size` bytes are more than a request may read."""
        if size > self._max_request_bytes:
            raise PayloadTooLarge(
                f"the inputs of the request have {size} bytes in shared memory,"
                f" more than the {self._max_request_bytes} allowed per request."
                " Use --http-max-input-size to increase the limit."
            )

    def read(self, region: Region, offset: int, size: int) -> np.ndarray:
        """Copies bytes of a region to a UINT8 array [size]. The array counts towards the limit until it is
        freed.

        May be called on any thread. Raises Unavailable if the limit for all copies would be exceeded, and
        InvalidArgument if the object has become too small.
        """
        with self._lock:
            while self._given_up:
                self._copied_bytes -= self._given_up.popleft()
            if self._copied_bytes + size > self._max_copied_bytes:
                raise Unavailable(
                    f"requests in flight hold {self._copied_bytes} bytes copied from shared memory,"
                    f" and {size} more would exceed the limit of {self._max_copied_bytes}; try again later",
                    1,
                )
            self._copied_bytes += size
        copy = np.empty(size, np.uint8)
        # The finalizer is set before the read, so that the size is also subtracted if the read raises.
        finalize(copy, self._given_up.append, size)
        region.read(offset, copy)
        return copy


def _open(name: str, key: str) -> int:
    """Opens the object for a key. As for shm_open(3), a key may have slashes only at its beginning."""
    bare = key.lstrip("/") if len(key) <= 2 * _LONGEST_NAME else ""
    if bare.startswith(RESERVED_PREFIX):
        raise InvalidArgument(
            f"cannot register shared memory region '{name}' with key '{key}' as the key contains the reserved"
            f" prefix '{RESERVED_PREFIX}'"
        )
    if bare in ("", ".", "..") or {"/", "\0"} & set(bare) or len(os.fsencode(bare)) > _LONGEST_NAME:
        raise _cannot_open(key)
    try:
        # The file is opened in non-blocking mode, because it may be a pipe.
        return os.open(FOLDER / bare, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, UnicodeError):
        raise _cannot_open(key) from None


def _cannot_open(key: str) -> InvalidArgument:
    return InvalidArgument(f"Unable to open shared memory region: '{key[:_LONGEST_NAME]}'")
