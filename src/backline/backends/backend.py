"""The seam to the runtimes, which inspect, load and run model files."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Protocol, TypeAlias, TypeGuard, runtime_checkable

import numpy as np

from backline.engine.config.instance_group import InstanceGroup
from backline.engine.config.model_config import ModelConfig
from backline.engine.values.device import CPU, Device, Gpus
from backline.engine.values.messages import Parameter
from backline.engine.values.signature import Signature

#: The type of LoadedModel.run.
Run: TypeAlias = Callable[[Mapping[str, np.ndarray], Sequence[str]], list[np.ndarray]]
#: The type of CancellableModel.cancellable.
Cancellable: TypeAlias = Callable[[], tuple[Run, Callable[[], None]]]


class LoadedModel(Protocol):
    """A model in memory. `run` may be called on several threads at once; runtimes compute without the GIL."""

    @property
    def signature(self) -> Signature:
        """Inputs and outputs as in the file, with all dimensions, including the batch dimension."""

    @property
    def threads_per_run(self) -> int:
        """The number of cores that one run occupies; 0 means all."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for users, for example of settings that have no effect."""

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Runs one batch: takes arrays by input name, returns arrays in the order of `outputs`.

        Arrays have the numpy dtype of their DataType. Raises InvalidArgument if the runtime rejects the
        input, Internal if the run fails.
        """

    def close(self) -> None:
        """Frees the model. No run may be in progress."""


class CancellableModel(Protocol):
    """A LoadedModel whose runs can be cancelled. Use getattr to check for it, which works for wrapped models
    too; isinstance does not.
    """

    def cancellable(self) -> tuple[Run, Callable[[], None]]:
        """Returns a `run` to be called once, and a function that cancels this call.

        The function may be called on any thread, even before or after the run. A cancelled run raises an
        error as soon as the runtime notices, usually at the next node of the graph.
        """


@runtime_checkable
class StreamingModel(Protocol):
    """A model in memory that gives any number of responses: a LoadedModel with `stream` instead of `run`."""

    @property
    def signature(self) -> Signature:
        """Inputs and outputs; see LoadedModel."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for users; see LoadedModel."""

    @property
    def streams_at_once(self) -> int:
        """How many streams to compute at once, each on a thread, unless the configuration sets a number."""

    def stream(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], parameters: Mapping[str, Parameter]
    ) -> Generator[Mapping[str, np.ndarray], None, None]:
        """Yields the responses to one request: arrays by output name, for all of `outputs`, some, or none.

        The generator runs on a thread. While its client reads slowly, the generator is suspended between
        responses and the thread works on other streams; when the client is gone, the generator is closed.
        Raises the errors of LoadedModel.run, before or between responses.
        """

    def close(self) -> None:
        """Frees the model; see LoadedModel."""


@dataclass(frozen=True, slots=True)
class HostedModel:
    """What a worker process needs in order to load a model. Backends whose models run in workers return it.

    `adapter` names the code that loads the model there, such as "python". `python` is the path of an
    interpreter, None for that of the model's environment or the server; `environment` holds environment
    variables to add to the server's.
    """

    path: Path
    adapter: str
    python: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    #: For an archive: the folder in it to unpack ("" for all), which then replaces `path`.
    packed: str | None = None
    #: Parameters for the adapter, in addition to those of the configuration.
    parameters: Mapping[str, str] = field(default_factory=dict)
    #: Instance groups from the model's own files, used if the configuration has none.
    groups: tuple[InstanceGroup, ...] = ()
    #: Whether a requirements.txt adds to the server's packages; otherwise it lists all that the model needs.
    on_top: bool = False
    #: For a file that a runtime loads inside the worker: the encoded RuntimeJob. Such a worker runs in the
    #: server's own environment and can call no other models.
    job: bytes = b""


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """Where other servers serve a model: their URLs, separated by commas, and the model's name there.

    At most `max_in_flight` requests are sent at once. `ca` is the PEM file of an authority that signs the
    servers' certificates, `api_key` the key to send; both may be None.
    """

    urls: str
    model: str
    version: str = ""
    max_in_flight: int = 64
    ca: str | None = None
    api_key: str | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()


#: What a backend may return for a model.
BackendModel: TypeAlias = LoadedModel | StreamingModel | HostedModel | RemoteModel


def runs_here(model: BackendModel) -> TypeGuard[LoadedModel]:
    """Returns whether the model is in this process's memory and gives one response to each request."""
    return not isinstance(model, HostedModel | StreamingModel | RemoteModel)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Options of a load that the server sets, not the model's configuration."""

    device: Device = CPU
    #: Whether to load files that can execute anything when loaded: pickles, machine code.
    trust_pickle: bool = False
    #: Types that a skops file may have, besides those that skops trusts.
    trust_skops_types: frozenset[str] = frozenset()
    #: Whether code in the model's files may run: they are local, or the server trusts remote code.
    may_run_code: bool = False
    #: Whether a GPU that cannot be used is an error; otherwise the model runs on the CPU.
    strict_devices: bool = False


DEFAULT_OPTIONS: Final = LoadOptions()


class Backend(Protocol):
    """Loads models with one runtime."""

    #: The name in configurations ("onnxruntime").
    name: ClassVar[str]

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> BackendModel:
        """Loads the model file, with the backend's own options from `config.parameters`.

        `options.device` is the CPU or one that `gpus` returned; worker processes get their devices when they
        start. Raises BacklineError with the path and the reason, or with the extra to install if the runtime
        is missing.
        """


@runtime_checkable
class FileCheck(Protocol):
    """A Backend that can cheaply reject some files that are not models, without loading its runtime."""

    def check_file(self, path: Path) -> None:
        """Raises InvalidArgument, saying what is wrong, for a file that cannot be a model, or is cut off."""


@runtime_checkable
class GpuBackend(Protocol):
    """A Backend that can compute on GPUs."""

    def gpus(self, path: Path, config: ModelConfig) -> Gpus:
        """Returns the GPUs that this model can run on, or why there are none. Raises the errors of `load`."""


def gpus_of(backend: Backend, path: Path, config: ModelConfig) -> Gpus:
    """Returns the GPUs that a backend can run a model on, or the reason why there are none."""
    if isinstance(backend, GpuBackend):
        return backend.gpus(path, config)
    return Gpus(reason=f"models of the {backend.name} backend run on the CPU")
