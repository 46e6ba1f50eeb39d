"""Releases the pages of shared libraries that this process no longer needs."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: The value of MADV_DONTNEED for madvise(2) (mman.h).
_MADV_DONTNEED = 4
#: Matches a mapping of a shared library in /proc/self/smaps that is not writable and has no private pages,
#: neither in memory nor in swap space. The groups are the first address and the address after the last.
_UNCHANGED = (
    rb"(?m)^([0-9a-f]+)-([0-9a-f]+) r-[x-]p [0-9a-f]+ \S+ \d+ +/\S*\.so[.\d]*\n"
    rb"(?:(?!Anonymous:)[A-Z]\w*: .*\n)*Anonymous: +0 kB\n"
    rb"(?:(?!Swap:)[A-Z]\w*: .*\n)*Swap: +0 kB$"
)


class _Place(ctypes.Structure):
    """The library and the symbol at an address, as dladdr(3) returns them."""

    _fields_ = (
        ("library", ctypes.c_char_p),
        ("library_start", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("symbol_start", ctypes.c_void_p),
    )


class _Loader:
    """The dynamic loader. Raises AttributeError if the C library lacks one of its functions."""

    def __init__(self) -> None:
        process = ctypes.CDLL(None)
        self._dladdr, self._dlopen, self._dlclose = process.dladdr, process.dlopen, process.dlclose
        self._dladdr.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Place)]
        self._dlopen.argtypes, self._dlopen.restype = [ctypes.c_char_p, ctypes.c_int], ctypes.c_void_p
        self._dlclose.argtypes = [ctypes.c_void_p]

    def library_at(self, address: int) -> bytes | None:
        """Returns the name of the library that is loaded at this address; None if there is none."""
        place = _Place()
        found = self._dladdr(address, ctypes.byref(place))
        return bytes(place.library) if found and place.library else None

    @contextmanager
    def keeping(self, names: set[bytes]) -> Iterator[set[bytes]]:
        """Keeps libraries from being unloaded in the `with` block. Yields the names of the libraries in
        `names` that are loaded. Waits while a library is being loaded.
        """
        handles = {name: self._dlopen(name, os.RTLD_LAZY | os.RTLD_NOLOAD) for name in names}
        try:
            yield {name for name, handle in handles.items() if handle}
        finally:
            for handle in filter(None, handles.values()):
                self._dlclose(handle)


def unchanged_mappings(smaps: bytes) -> list[tuple[int, int]]:
    """Returns the mappings of shared libraries whose pages all have the contents of the file, as (first
    address, size in bytes). `smaps` is the text of /proc/self/smaps.

    A page that was changed after it was mapped, such as a table of relocated addresses, is private. The field
    Anonymous counts the private pages in memory, and the field Swap those in swap space.
    """
    found = ((int(start, 16), int(end, 16)) for start, end in re.findall(_UNCHANGED, smaps))
    return [(start, end - start) for start, end in found]


def release_library_pages() -> int:
    """Releases the pages of shared libraries, most of which are needed only while a library is initialised.

    Returns the number of mappings that were released; 0 if the system does not support this. Requests to an
    ONNX model use less than a fifth of the 30 MB that importing libraries maps. The pages remain in the
    system's page cache, so using a page again costs a fault of about a microsecond, and the page is not read
    from disk. The call takes milliseconds, and waits while another thread loads a library, so make it on a
    thread.
    """
    released = 0
    with suppress(OSError, AttributeError):
        mapped = _read_smaps()
        loader = _Loader()
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        names = {name for start, _ in mapped if (name := loader.library_at(start)) is not None}
        # MADV_DONTNEED discards changes (madvise(2)), and applies to whatever is at the address at the time.
        # If a library were unloaded, its address could be reused, and the memory of another thread would be
        # discarded. So the libraries are first kept from being unloaded, and then the mappings are read
        # again. The pages of a loaded library cannot change in the meantime, because they would have to be
        # made writable first.
        with loader.keeping(names) as kept:
            for start, size in _read_smaps():
                if loader.library_at(start) in kept:
                    released += madvise(start, size, _MADV_DONTNEED) == 0
    return released


def _read_smaps() -> list[tuple[int, int]]:
    with open("/proc/self/smaps", "rb") as file:
        return unchanged_mappings(file.read())
