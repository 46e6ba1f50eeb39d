"""The seam to the runtimes: how a model file is inspected, loaded and run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Protocol, TypeAlias, runtime_checkable

import numpy as np

from backline.engine.device import CPU, Device, Gpus
from backline.engine.instance_group import InstanceGroup
from backline.engine.messages import Parameter
from backline.engine.model_config import ModelConfig
from backline.engine.signature import Signature

#: A LoadedModel's `run`.
Run: TypeAlias = Callable[[Mapping[str, np.ndarray], Sequence[str]], list[np.ndarray]]
#: A CancellableModel's `cancellable`.
Cancellable: TypeAlias = Callable[[], tuple[Run, Callable[[], None]]]


class LoadedModel(Protocol):
    """A model in memory. `run` may be called from several threads at once and releases the GIL while the runtime computes."""

    @property
    def signature(self) -> Signature:
        """Inputs and outputs as the file declares them, every dimension included (also a leading batch dimension)."""

    @property
    def threads_per_run(self) -> int:
        """The cores that one run occupies."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What in the configuration has no effect, for the person who wrote it."""

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Runs one batch: arrays by input name in, arrays in the order of `outputs` out.

        Arrays have the numpy dtype of their DataType. Raises InvalidArgument when the runtime refuses the input, Internal when it fails.
        """

    def close(self) -> None:
        """Gives the memory back. No run is under way."""


class CancellableModel(Protocol):
    """A LoadedModel that can end a run early."""

    def cancellable(self) -> tuple[Run, Callable[[], None]]:
        """`run` for one call, and what cancels that call: from any thread, also before it has begun and when it has ended.

        A run that is cancelled raises as soon as the runtime sees it, mostly at the next node of the graph.
        """


@runtime_checkable
class StreamingModel(Protocol):
    """A model in memory that gives any number of responses to a request: a LoadedModel whose `run` is `stream`."""

    @property
    def signature(self) -> Signature:
        """See LoadedModel."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """See LoadedModel."""

    @property
    def streams_at_once(self) -> int:
        """The streams that are computed at the same time, each on a thread, where the configuration does not say how many."""

    def stream(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], parameters: Mapping[str, Parameter]
    ) -> Generator[Mapping[str, np.ndarray], None, None]:
        """Yields the responses to one request, each with arrays by output name: all of `outputs`, some, or none.

        Runs on a thread. Between two responses it may be left alone for as long as the caller takes no more of them, while the thread works
        on other streams; it is closed where it stands when nobody waits any more. Raises as LoadedModel.run, also after responses.
        """

    def close(self) -> None:
        """See LoadedModel."""


@dataclass(frozen=True, slots=True)
class HostedModel:
    """What a backend's `load` gives for a model that runs in worker processes: what a worker needs to load it.

    `adapter` ("module:function") makes the model there, see workers/child/worker_model.py. `python` is the interpreter of the workers,
    None for that of the environment which the model's files ask for, or else the server's; `environment` is what comes on top of the
    server's variables.
    """

    path: Path
    adapter: str
    python: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Of a `path` that is an archive: the folder in it ("" for all of it) to be unpacked, which takes its place.
    packed: str | None = None
    #: What the adapter gets beside the parameters of the configuration.
    parameters: Mapping[str, str] = field(default_factory=dict)
    #: Where its instances run by what its own files say, if the configuration says nothing.
    groups: tuple[InstanceGroup, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What the server decides about a load, and no model's file."""

    device: Device = CPU
    #: Whether files may be loaded that can execute anything when they are loaded: pickles, machine code.
    trust_pickle: bool = False
    #: Whether a GPU that cannot be used is an error, instead of a reason to run on the CPU.
    strict_devices: bool = False


DEFAULT_OPTIONS: Final = LoadOptions()


class Backend(Protocol):
    """A runtime."""

    #: The name in configurations ("onnxruntime").
    name: ClassVar[str]
    #: The platform that clients see ("onnxruntime_onnx").
    platform: ClassVar[str]

    def load(
        self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS
    ) -> LoadedModel | StreamingModel | HostedModel:
        """Loads the model file, with the backend's own options from `config.parameters`.

        The device is the CPU, or one of those that a GpuBackend names; a HostedModel gets its devices when its workers
        start. Raises BacklineError with the path and the runtime's reason when it cannot, or the extra to install when
        the runtime is missing.
        """


@runtime_checkable
class GpuBackend(Protocol):
    """A Backend that can compute on GPUs."""

    def gpus(self, path: Path, config: ModelConfig) -> Gpus:
        """Those that it can run this model on here and now. Raises BacklineError as `load`."""


def gpus_of(backend: Backend, path: Path, config: ModelConfig) -> Gpus:
    """The GPUs that a backend can run a model on."""
    if isinstance(backend, GpuBackend):
        return backend.gpus(path, config)
    return Gpus(reason=f"models of the {backend.name} backend run on the CPU")
