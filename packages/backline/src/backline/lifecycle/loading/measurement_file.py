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

from backline.engine.config.model_config import ModelConfig
from backline.engine.device import Places
from backline.lifecycle.loading.loaded import Measured, check_measured
from backline.lifecycle.loading.run_time import INLINE_GROWN, INLINE_RUN, LONG_RUN
from backline.lifecycle.records import make_folder
from backline.repository.fingerprint import load_key
from backline.system.cores import usable_cores
from backline.system.small_file import read_file
from backline_client.system.private_file import replacement
from backline_client.values.decodable import decodable
from backline_client.values.errors import BacklineError

log = logging.getLogger("backline.lifecycle")

_FOLDER = "measured"
#: The total size of a model's files, in bytes, up to which they can be read in a fraction of the time that
#: trial runs take.
_SMALL = 1 << 20
#: Suffixes of folders that hold the metadata of an installed package.
_METADATA = (".dist-info", ".egg-info")


class Content(Protocol):
    """The content of a version's files; see VersionContent."""

    @property
    def size(self) -> int: ...

    @property
    def identity(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def unchanged(self) -> bool: ...


@decodable
class _Kept(msgspec.Struct, frozen=True):
    """The content of a MeasurementFile. `model` and `version` are only for people who read the file.

    `content` is the digest of the version's files. Files with the identity `identity` have this digest.
    """

    model: str
    version: str
    key: str
    devices: tuple[str, ...]
    measured: Measured
    content: str = ""
    identity: str = ""


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
        self.hold()
        content = self._content
        same = content is not None and kept.identity != "" and kept.identity == content.identity
        if same:
            self._made_key = _key_of(kept.content, self._config)
        # Where files are tried, measuring again takes another trial: the server must not run them untried.
        if kept.key != self._key() or kept.measured.times.undecided:
            return None
        self._recalled = kept.measured
        if content is not None and not same and content.size > _SMALL and content.identity:
            # The next start need not read the files.
            self._write(msgspec.structs.replace(kept, content=content.digest, identity=content.identity))
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
        """Stores measurements made on `devices`, unless the files are unreadable or have changed since
        `hold`. If storing fails, for example on a read-only disk, the next start measures again.
        """
        key = self._key()
        if not key or self._content is None or not self.unchanged:
            return
        content, identity = self._content.digest, self._content.identity
        name, version = self._config.name, self._version
        self._write(_Kept(name, version, key, tuple(devices), measured, content, identity))

    def _write(self, kept: _Kept) -> None:
        path = Path(self._file)
        try:
            make_folder(path.parent)
            with replacement(path) as new:
                new.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n")
        except (OSError, BacklineError) as error:
            _say_once(path.parent, str(error))

    @property
    def unchanged(self) -> bool:
        """Whether the model's files are still as `hold` found them; True if `hold` has found none."""
        return self._content is None or self._content.unchanged

    def hold(self) -> None:
        """Looks at the files now, so that `unchanged` notices every later change."""
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
        try:
            return _key_of(self._content.digest, self._config)
        except OSError as error:
            log.warning("model '%s' is measured at each start: %s", self._config.name, error)
            return ""


@cache
def _say_once(folder: Path, error: str) -> None:
    """Logs that a folder cannot be written: once, because a server may have thousands of models."""
    text = (
        "'%s' cannot be written (%s), so models are tried and measured again at the next start: choose a"
        " writable folder with --state-dir"
    )
    log.info(text, folder, error)


def _key_of(content: str, config: ModelConfig) -> str:
    return _digest((content, load_key(config), _digest_of_packages(), usable_cores()))


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
