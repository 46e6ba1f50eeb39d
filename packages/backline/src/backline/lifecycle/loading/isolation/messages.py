"""The messages between the server and a trial process, and the job of a worker that runs a runtime.

A malicious file may have taken over the trial process that sends a message. So the server treats messages as
plain data: it decodes them by type, and checks the values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from backline.backends.backend import LoadOptions
from backline.engine.config.model_config import ModelConfig
from backline.lifecycle.loading.loaded import Measured, check_measured
from backline_client.values import errors
from backline_client.values.decodable import decodable
from backline_client.values.errors import BacklineError, Internal

#: The maximum size of a message from a trial process, in bytes.
LONGEST_MESSAGE: Final = 1 << 16
#: The maximum length of an error's text, in characters. Longer texts are truncated.
LONGEST_TEXT: Final = 4000
_MOST_DEVICES: Final = 64


@dataclass(frozen=True, slots=True)
class TrialJob:
    """The job of a trial process: to load and test the file or folder `path` as the server would.

    `recorded` is the file of recorded requests, which need not exist. The fork server imports `imports` once
    for all trials; see `BackendPlugin.imports`.
    """

    path: Path
    model_folder: Path
    config: ModelConfig
    options: LoadOptions
    recorded: Path
    imports: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RuntimeJob:
    """The job of a worker process: to load the file or folder `path` with a runtime. The fields are the
    arguments of `Backend.load`.
    """

    path: Path
    config: ModelConfig
    options: LoadOptions


Job = TypeVar("Job", TrialJob, RuntimeJob)


@decodable
class Began(msgspec.Struct, tag="began", frozen=True):
    """The report that the trial has entered a phase of the load."""

    phase: Literal["load", "probe", "warm-up"]


@decodable
class Passed(msgspec.Struct, tag="passed", frozen=True):
    """The report that the file was loaded, measured and warmed up on `devices`."""

    measured: Measured
    devices: tuple[str, ...]


@decodable
class TrialRefused(msgspec.Struct, tag="refused", frozen=True):
    """The report that the load raised an error. `kind` is the name of a subclass of BacklineError, or
    empty.
    """

    kind: str
    message: str

    def error(self) -> BacklineError:
        """Returns the error to raise in the server."""
        kind: Any = getattr(errors, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, BacklineError)):
            kind = Internal
        error: BacklineError = kind(self.message[:LONGEST_TEXT])
        return error


Report: TypeAlias = Began | Passed | TrialRefused
_REPORTS: Final = msgspec.json.Decoder(Report)


def encode_report(report: Report) -> bytes:
    """Encodes a message to the server."""
    return msgspec.json.encode(report)


def decode_report(data: bytes) -> Report:
    """Decodes a message from a trial process. Raises ValueError if it is malformed or implausible."""
    report: Report = _REPORTS.decode(data)
    if isinstance(report, Passed):
        check_measured(report.measured)
        if not 0 < len(report.devices) <= _MOST_DEVICES:
            raise ValueError(f"it names {len(report.devices)} devices, expected 1 to {_MOST_DEVICES}")
    return report


def encode_job(job: TrialJob | RuntimeJob) -> bytes:
    """Encodes a job for `decode_job`."""
    return msgspec.msgpack.encode(job, enc_hook=_plain)


def decode_job(data: bytes, kind: type[Job]) -> Job:
    """Decodes a job that the server has encoded. Slow, because msgspec first walks through all types of a
    configuration.
    """
    return msgspec.msgpack.Decoder(kind, dec_hook=_restored).decode(data)


def _plain(value: Any) -> Any:
    """Converts a value of a type that msgspec does not know to a value of a plain type."""
    if isinstance(value, MappingProxyType):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"a job cannot carry a {type(value).__name__}")


def _restored(kind: type, plain: Any) -> Any:
    if kind is Path:
        return Path(plain)
    raise NotImplementedError(f"a job cannot carry a {kind.__name__}")
