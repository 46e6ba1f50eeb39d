"""Stores the results of a version's trials and trial runs in the state folder, for the next start."""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import msgspec

from backline.decodable import decodable
from backline.engine.config.model_config import ModelConfig
from backline.engine.errors import BacklineError
from backline.engine.values.device import Places
from backline.lifecycle.loading.loaded import Measured, check_measured
from backline.lifecycle.loading.run_time import INLINE_GROWN, INLINE_RUN, LONG_RUN
from backline.lifecycle.records import make_folder
from backline.repository.fingerprint import load_key
from backline.system.cores import usable_cores
from backline.system.private_file import replacement
from backline.system.small_file import read_file

log = logging.getLogger("backline.lifecycle")

_FOLDER = "measured"
#: The total size of a model's files, in bytes, up to which they can be read in a fraction of the time that
#: trial runs take.
_SMALL = 1 << 20
#: Suffixes of folders that hold the metadata of an installed package.
_METADATA = (".dist-info", ".egg-info")


class Content(Protocol):
    """A digest of a version's files, which also tells whether the files have changed since the digest was
    made.
    """

    @property
    def digest(self) -> str: ...

    @property
    def unchanged(self) -> bool: ...


@decodable
class _Kept(msgspec.Struct, frozen=True):
    """The content of a MeasurementFile. `model` and `version` are only for people who read the file."""

    model: str
    version: str
    key: str
    devices: tuple[str, ...]
    measured: Measured


_decode = msgspec.json.Decoder(_Kept).decode
#: Nearly all files of measurements have fewer bytes.
_USUAL_SIZE = 1 << 14


class MeasurementFile:
    """The file that keeps the measurements of one version. May be used on any thread.

    The measurements are valid for the same files (by content), configuration, packages, kind of processor and
    number of cores. Valid measurements also prove that these packages can load these files. If the file is
    missing, damaged or not valid, the version is tried and measured again.
    """

    def __init__(
        self, state_folder: Path, config: ModelConfig, version: str, content: Callable[[], Content | None]
    ) -> None:
        name = _digest((config.name, version))[:32]
        # The path is text, because pathlib objects would take a fortieth of the load time of a small model.
        self._file = os.path.join(state_folder, _FOLDER, f"{name}.json")
        self._config = config
        self._version = version
        self._read_content = content
        self._content: Content | None = None
        self._recalled: Measured | None = None
        self._made_key: str | None = None

    def recall(self, placed: Places) -> Measured | None:
        """Returns the measurements of an earlier load or trial on the devices of `placed`; None if there are
        none.
        """
        kept = self._recall()
        return kept.measured if kept is not None and kept.devices == device_names(placed) else None

    def recall_anywhere(self) -> Measured | None:
        """Returns the measurements of an earlier load or trial on any devices; None if there are none."""
        kept = self._recall()
        return None if kept is None else kept.measured

    def _recall(self) -> _Kept | None:
        try:
            kept = _decode(read_file(self._file, _USUAL_SIZE))
            check_measured(kept.measured)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as error:
            log.warning("'%s' cannot be used (%s), so the model is measured again", self._file, error)
            return None
        if kept.key != self._key():
            return None
        self._recalled = kept.measured
        return kept

    def keep_if_dearer(self, measured: Measured, placed: Places, file_bytes: int) -> None:
        """Stores the measurements if it would take longer to repeat them at each start than to read
        `file_bytes` bytes for the digest.

        The measurements are therefore stored for models with runs above 100 ms, and for small files. Those
        for small files are stored only if the model is quick enough for the event loop: a longer run time may
        just mean that the machine was busy.
        """
        if measured is self._recalled:
            return
        seconds = measured.times.seconds.get(1, 0.0)
        small = file_bytes <= _SMALL and 0 < seconds <= INLINE_RUN and measured.times.grown <= INLINE_GROWN
        if seconds > LONG_RUN or small:
            self.keep(measured, device_names(placed))

    def keep(self, measured: Measured, devices: Sequence[str]) -> None:
        """Stores measurements made on `devices`, unless the files are unreadable or have changed since `hold`
        read them. If storing fails, logs a warning; the next start then measures again.
        """
        key = self._key()
        if not key or not self.unchanged:
            return
        kept = _Kept(self._config.name, self._version, key, tuple(devices), measured)
        path = Path(self._file)
        try:
            make_folder(path.parent)
            with replacement(path) as new:
                new.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n")
        except (OSError, BacklineError) as error:
            log.warning("the measurements of model '%s' cannot be stored: %s", self._config.name, error)

    @property
    def unchanged(self) -> bool:
        """Whether the model's files are still as `hold` read them; True if `hold` has not read any."""
        return self._content is None or self._content.unchanged

    def hold(self) -> None:
        """Reads the files now, so that `unchanged` notices every later change."""
        if self._content is None:
            self._content = self._read_content()

    def _key(self) -> str:
        """Returns a digest of all that the measurements depend on; empty if the files cannot be read."""
        if self._made_key is None:
            self._made_key = self._make_key()
        return self._made_key

    def _make_key(self) -> str:
        self.hold()
        if self._content is None:
            return ""
        parts = (self._content.digest, load_key(self._config), _digest_of_packages(), usable_cores())
        return _digest(parts)


def _digest(parts: object) -> str:
    return sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


def device_names(placed: Places) -> tuple[str, ...]:
    """Returns the names that the file uses for the devices of a placement."""
    return tuple(map(repr, placed.devices))


@cache
def _digest_of_packages() -> str:
    """Returns a digest of the kind of processor, and of the installed packages with their versions, which are
    known from the names of their folders, such as "numpy-2.3.0.dist-info".

    Only the names of the metadata folders are read, because opening each package's metadata would take 0.1 s.
    """
    found: set[str] = set()
    for folder in sys.path:
        with suppress(OSError):
            found.update(name for name in os.listdir(folder or ".") if name.endswith(_METADATA))
    return _digest((platform.machine(), sorted(found)))
