"""Keeps measurements of slow models in the state folder, so that a restart does not repeat trial runs."""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from backline.engine.config.model_config import ModelConfig
from backline.engine.errors import BacklineError
from backline.engine.values.device import Places
from backline.lifecycle.loading.batch_probe import BatchProbe
from backline.lifecycle.loading.loaded import Measured
from backline.lifecycle.loading.run_time import LONG_RUN, RunTimes
from backline.lifecycle.records import make_folder
from backline.repository.fingerprint import load_key
from backline.system.cores import usable_cores

log = logging.getLogger("backline.lifecycle")

_FOLDER = "measured"


class Content(Protocol):
    """A digest of a version's files, and whether they have not changed since it was computed."""

    @property
    def digest(self) -> str: ...

    @property
    def unchanged(self) -> bool: ...


class MeasurementFile:
    """The file that keeps the measurements of one version. For use on any thread.

    The measurements are valid for the same files (by content), configuration, devices, packages and number of
    cores. If the file is missing, damaged or not valid, the version is measured again. Measurements are only
    kept for models with runs above 100 ms: for others, reading all files takes longer than the trial runs.
    """

    def __init__(
        self, state_folder: Path, config: ModelConfig, version: str, content: Callable[[], Content | None]
    ) -> None:
        name = sha256(repr((config.name, version)).encode("utf-8", "surrogatepass")).hexdigest()[:32]
        self._file = state_folder / _FOLDER / f"{name}.json"
        self._config = config
        self._version = version
        self._read_content = content
        self._content: Content | None = None

    def recall(self, placed: Places) -> Measured | None:
        """The measurements of an earlier load on the devices of `placed`; None if there are none."""
        try:
            kept = json.loads(self._file.read_bytes())
            if kept["key"] != self._key(placed):
                return None
            times = kept["times"]
            seconds = {int(size): float(taken) for size, taken in times.pop("seconds").items()}
            probe = None if kept["probe"] is None else BatchProbe(**kept["probe"])
            return Measured(probe, RunTimes(seconds, **times))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            log.warning("'%s' cannot be used (%s), so the model is measured again", self._file, error)
            return None

    def keep(self, measured: Measured, placed: Places) -> None:
        """Stores the measurements if the model is slow. If that fails, the next start measures again."""
        if measured.times.seconds.get(1, 0.0) <= LONG_RUN:
            return
        key = self._key(placed)
        if not key or self._content is None or not self._content.unchanged:
            return
        kept = {
            "model": self._config.name,
            "version": self._version,
            "key": key,
            "probe": None if measured.probe is None else asdict(measured.probe),
            "times": asdict(measured.times),
        }
        written = self._file.with_suffix(f".{os.getpid()}.new")
        try:
            make_folder(self._file.parent)
            written.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
            written.replace(self._file)
        except (OSError, BacklineError) as error:
            with suppress(OSError):
                written.unlink()
            log.warning("the measurements of model '%s' cannot be stored: %s", self._config.name, error)

    def _key(self, placed: Places) -> str:
        """A digest of everything that the measurements depend on; empty if the files cannot be read."""
        if self._content is None:
            self._content = self._read_content()
        if self._content is None:
            return ""
        # Imported late: the import takes long, and only slow models have a file with measurements.
        from importlib.metadata import distributions

        packages = sorted((found.name, found.version) for found in distributions())
        machine = (platform.machine(), usable_cores(), [repr(device) for device in placed.devices])
        parts = (self._content.digest, load_key(self._config), packages, machine)
        return sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()
