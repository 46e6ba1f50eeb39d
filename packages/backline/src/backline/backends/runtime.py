"""Functions that several backends need: importing runtimes, reading files, errors, strings and GPUs."""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Lock, RLock
from typing import Any, Final

import numpy as np

from backline.backends.backend import LoadOptions
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import Gpus
from backline.system import small_file
from backline.system.garbage import uncollected
from backline.system.process_memory import count_pages
from backline_client.values.errors import BacklineError, Internal, InvalidArgument

#: The maximum total size, in bytes, of weights that are read into memory although the runtime could map their
#: files. During a load, ONNX Runtime uses up to 2.4 times as much memory as the weights that it is given.
MOST_READ: Final = 256 << 20

_MAX_REASON = 300


def import_runtime(module: str, *, what: str, extra: str) -> Any:
    """Imports a runtime. Raises Internal, which names the extra to install, if the runtime is missing or
    broken.

    `what` begins the error text, such as "TensorFlow models need TensorFlow".
    """
    try:
        return _IMPORTS.load(module)
    except ImportError as error:
        missing = error.name is not None and error.name.partition(".")[0] == module.partition(".")[0]
        why = "it is not installed" if missing else f"it cannot be imported ({error})"
        raise Internal(f"{what}, and {why}: pip install 'backline[{extra}]'") from None


class _Imports:
    """An importer of modules that measures by how much the memory of the process grows."""

    def __init__(self) -> None:
        self._lock = RLock()
        #: The modules whose import is complete. A module in sys.modules may still be being imported.
        self._imported: dict[str, Any] = {}
        self.grown = 0

    def load(self, module: str) -> Any:
        found = self._imported.get(module)
        if found is None or sys.modules.get(module) is not found:
            found = self._imported[module] = self._import(module)
        return found

    def _import(self, module: str) -> Any:
        if module in sys.modules:
            return import_module(module)
        with self._lock:  # one import at a time, so that the growth of each can be measured
            if module in sys.modules:  # imported by another thread, which has also measured the growth
                return import_module(module)
            before = count_pages().total
            try:
                with uncollected():
                    return import_module(module)
            finally:
                self.grown += max(count_pages().total - before, 0)


_IMPORTS = _Imports()


def grown_by_imports() -> int:
    """Returns the number of bytes by which imports of runtimes have increased this process's memory so
    far.
    """
    return _IMPORTS.grown


#: Held while TensorFlow or PyTorch's compiler is imported. The latter imports the Triton compiler, whose copy
#: of LLVM aborts the process if it is loaded after TensorFlow's.
LLVM_IMPORT = Lock()


def one_line(error: object) -> str:
    """Returns the text of an error without line breaks, cut to 300 characters."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return reason if len(reason) <= _MAX_REASON else reason[: _MAX_REASON - 3] + "..."


@contextmanager
def loading(path: Path, by: str, reason: Callable[[Exception], str] = one_line) -> Iterator[None]:
    """Turns a runtime's exceptions into InvalidArgument; `by` is the runtime's name and version."""
    try:
        yield
    except BacklineError:
        raise
    except Exception as error:
        raise InvalidArgument(f"'{path}' cannot be loaded by {by}: {reason(error)}") from None


class NeverRuns(Internal):
    """Raised if a run has failed for a reason that does not depend on the input.

    For example, the model's program does not compile. If a trial run of a load raises this error and no trial
    run succeeds, the load fails.
    """


def failed_run(model: str, reason: str, *, refused: bool) -> BacklineError:
    """Returns the error for a failed run: InvalidArgument if the input was `refused`, else Internal."""
    if refused:
        return InvalidArgument(f"model '{model}' refuses the input: {reason}")
    return Internal(f"model '{model}' failed: {reason}")


def unservable(path: Path, kind: str, name: str, what: str) -> InvalidArgument:
    """Returns the error for an input or output that is not a tensor, or whose datatype the protocols lack."""
    return InvalidArgument(
        f"'{path}' cannot be served: {kind} '{name}' is {what}, which no request can carry; export the model"
        " with tensors of other types"
    )


_LFS_POINTER = b"version https://git-lfs"


def read_start(path: Path, size: int = 64) -> bytes:
    """Returns the first `size` bytes of a model file.

    Raises InvalidArgument for a file that is not regular (a pipe would block), cannot be read, is empty, or
    is a Git LFS pointer, which runtimes would report as a parse error.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InvalidArgument(f"'{path}' is not a regular file: put the model's file in its place")
        start = small_file.read_start(path, size)
    except OSError as error:
        raise InvalidArgument(f"'{path}' cannot be read: {error.strerror}") from None
    if not start:
        raise InvalidArgument(f"'{path}' is empty: copy the file again")
    if start.startswith(_LFS_POINTER):
        raise InvalidArgument(f"'{path}' is a Git LFS pointer, not the model itself: run `git lfs pull`")
    return start


def require_trust(path: Path, config: ModelConfig, options: LoadOptions) -> None:
    """Raises InvalidArgument for a remote or uploaded model, unless the server trusts remote code.

    A backend whose models contain code must call this before it reads any of the model's files.
    """
    if not options.may_run_code:
        raise InvalidArgument(
            f"'{path.name}' of model '{config.name}' came from a remote repository or with a load request,"
            " and would be executed: start the server with --trust-remote-code if you trust its source"
        )


def decode(model: str, name: str, array: np.ndarray) -> np.ndarray:
    """Decodes an array of bytes to str. Raises InvalidArgument, with the position, for an element that is not
    UTF-8.
    """
    texts = np.empty(array.size, np.object_)
    for index, element in enumerate(array.reshape(-1).tolist()):
        try:
            texts[index] = element.decode() if isinstance(element, bytes) else str(element)
        except UnicodeDecodeError as error:
            raise InvalidArgument(
                f"element {index} of input '{name}' of model '{model}' is not UTF-8 text (byte"
                f" {error.start}): encode the string as UTF-8"
            ) from None
    return texts.reshape(array.shape)


def encode(array: np.ndarray) -> np.ndarray:
    """Encodes an array of str (or bytes) as an array of UTF-8 bytes."""
    encoded = np.empty(array.size, np.object_)
    for index, text in enumerate(array.reshape(-1).tolist()):
        encoded[index] = text.encode() if isinstance(text, str) else text
    return encoded.reshape(array.shape)


_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@cache
def cuda_gpus() -> Gpus:
    """Returns the GPUs that the NVIDIA driver reports, limited to CUDA_VISIBLE_DEVICES. Queries the driver
    only once.
    """
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return Gpus(reason=f"this machine has no NVIDIA driver ({_DRIVER} is missing)")
    count = ctypes.c_int(0)
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return Gpus(reason=f"the NVIDIA driver cannot be used: {_error_name(driver, code)}{_visible()}")
    if not count.value:
        return Gpus(reason=f"the NVIDIA driver reports no GPU{_visible()}")
    return Gpus(tuple(range(count.value)))


def _error_name(driver: ctypes.CDLL, code: int) -> str:
    name = ctypes.c_char_p()
    driver.cuGetErrorName(code, ctypes.byref(name))
    return name.value.decode() if name.value else f"CUDA error {code}"


def _visible() -> str:
    return f" (with {_VISIBLE}={os.environ[_VISIBLE]})" if _VISIBLE in os.environ else ""
