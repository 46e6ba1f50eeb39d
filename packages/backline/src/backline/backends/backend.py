"""The interface to the runtimes, which inspect, load and run model files."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeAlias, TypeGuard, runtime_checkable

import numpy as np
from msgspec import Struct, field

from backline.engine.config.instance_group import InstanceGroup
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import CPU, Device, Gpus, Places
from backline_client.values.messages import Parameter
from backline_client.values.signature import Signature

if TYPE_CHECKING:
    from backline.system.archive_limits import UnpackLimits

#: The type of LoadedModel.run.
Run: TypeAlias = Callable[[Mapping[str, np.ndarray], Sequence[str]], list[np.ndarray]]
#: The type of CancellableModel.cancellable.
Cancellable: TypeAlias = Callable[[], tuple[Run, Callable[[], None]]]


class LoadedModel(Protocol):
    """A model in memory. `run` may be called on several threads at once: most runtimes release the GIL while
    they compute.
    """

    @property
    def signature(self) -> Signature:
        """The inputs and outputs as in the file, with all dimensions, including the batch dimension."""

    @property
    def threads_per_run(self) -> int:
        """The number of cores that one run uses; 0 means all cores."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for users, for example of settings that have no effect."""

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Runs one batch, given arrays by input name. Returns arrays in the order of `outputs`.

        Arrays have the numpy dtype of their DataType. Raises InvalidArgument if the runtime rejects the
        input, and Internal if the run fails otherwise.
        """

    def close(self) -> None:
        """Frees the model. No run may be in progress."""


class CancellableModel(Protocol):
    """A LoadedModel whose runs can be cancelled.

    Use getattr to check for `cancellable`, because isinstance does not work for wrapped models.
    """

    def cancellable(self) -> tuple[Run, Callable[[], None]]:
        """Returns a `run` function to be called once, and a function that cancels that call.

        The second function may be called on any thread, even before or after the run. A cancelled run raises
        an error as soon as the runtime notices, usually at the next node of the graph.
        """


class SpreadableModel(Protocol):
    """A LoadedModel of which the server can load a second copy whose runs use several cores.

    Use getattr to check for `spread`, as for CancellableModel.
    """

    def spread(self, threads: int) -> LoadedModel | None:
        """Loads and returns a copy of the model whose runs use `threads` threads. The copy has its own
        weights, and must be closed too.

        Returns None if runs use an accelerator, if the configuration's parameters already say how runs use
        threads, or if the weights are large and `lone_run_threads` is not configured. Raises the errors of
        Backend.load.
        """


class UnboundedModel(Protocol):
    """A LoadedModel that must not run on the event loop, because the time of one run says nothing about later
    runs.

    The lifecycle runs such a model on threads, even if its configuration asks for the lane `inline`. Use
    getattr to check for `unbounded`, as for CancellableModel.
    """

    @property
    def unbounded(self) -> str:
        """The reason why a run may take any length of time: LOOPS or COMPILES, or "" if there is none."""


#: Values of UnboundedModel.unbounded, worded as the end of a sentence.
LOOPS: Final = "the model has a loop, and a request may decide how many times the loop runs"
COMPILES: Final = "the model is compiled again for each new shape of its inputs"


class StreamingModel(Protocol):
    """A model in memory that sends any number of responses: a LoadedModel with `stream` instead of `run`."""

    @property
    def signature(self) -> Signature:
        """The inputs and outputs; see LoadedModel."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for users; see LoadedModel."""

    @property
    def streams_at_once(self) -> int:
        """The default number of streams that are computed at the same time, each on its own thread."""

    def stream(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], parameters: Mapping[str, Parameter]
    ) -> Generator[Mapping[str, np.ndarray], None, None]:
        """Yields the responses to one request: arrays by output name, for all, some or none of `outputs`.

        The generator runs on a thread. While the client reads slowly, the generator is suspended between
        responses, and the thread works on other streams. When the client disconnects, the generator is
        closed. Raises the errors of LoadedModel.run, before or between responses.
        """

    def close(self) -> None:
        """Frees the model; see LoadedModel."""


class HostedModel(Struct, frozen=True):
    """The data that a worker process needs to load a model. Returned by backends whose models run in workers.

    `adapter` names the code that loads the model in the worker: "python", or a module whose function `load`
    creates the model. `python` is the path of an
    interpreter; None means the interpreter of the model's environment or, if there is no environment, that of
    the server. `environment` holds environment variables to add to those of the server.
    """

    path: Path
    adapter: str
    python: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    #: For an archive, the folder in it to unpack ("" for all). The path of the unpacked folder then replaces
    #: `path`.
    packed: str | None = None
    #: The limits for unpacking the archive; None for those of UnpackLimits.
    unpack_limits: UnpackLimits | None = None
    #: Parameters for the adapter, in addition to the parameters in the configuration.
    parameters: Mapping[str, str] = field(default_factory=dict)
    #: Instance groups from the model's own files, used if the configuration has none.
    groups: tuple[InstanceGroup, ...] = ()
    #: Whether the packages in requirements.txt are added to those of the server, unless the model asks for
    #: another Python version. If False, requirements.txt lists all packages that the model needs.
    on_top: bool = False
    #: For a file that a runtime loads inside the worker, the encoded RuntimeJob. Such a worker uses the
    #: server's own environment and cannot call other models.
    job: bytes = b""


@runtime_checkable
class SelfServing(Protocol):
    """A model that is served in a way of its own, for example because it is on other servers."""

    def serve(self, config: ModelConfig, view: Any, placed: Places) -> Any:
        """Returns the LoadedVersion, given the View of the model. Raises BacklineError if it cannot be
        served.
        """


#: The types that a backend's `load` may return.
BackendModel: TypeAlias = LoadedModel | StreamingModel | HostedModel | SelfServing


def streams(model: BackendModel) -> TypeGuard[StreamingModel]:
    """Returns whether the model is in this process's memory and may send any number of responses.

    isinstance would look up every member of the protocol, which takes longer than the rest of a small load.
    """
    return hasattr(model, "stream")


def runs_here(model: BackendModel) -> TypeGuard[LoadedModel]:
    """Returns whether the model is in this process's memory and sends one response to each request."""
    return not isinstance(model, HostedModel | SelfServing) and not streams(model)


class LoadOptions(Struct, frozen=True):
    """Options of a load that come from the server and not from the model's configuration."""

    device: Device = CPU
    #: Whether to load files that can execute arbitrary code when loaded: pickles and machine code.
    trust_pickle: bool = False
    #: Types that a skops file may contain, in addition to the types that skops trusts.
    trust_skops_types: frozenset[str] = frozenset()
    #: Whether code in the model's files may run, because the files are local or the server trusts remote
    #: code.
    may_run_code: bool = False
    #: The maximum number of cores that one run may use if the server chooses the number; None for all cores.
    run_cores: int | None = None
    #: Whether the load fails if a GPU cannot be used; otherwise the model runs on the CPU.
    strict_devices: bool = False


DEFAULT_OPTIONS: Final = LoadOptions()


class Backend(Protocol):
    """An object that loads models with one runtime."""

    #: The name of the backend in configurations, such as "onnxruntime".
    name: ClassVar[str]

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> BackendModel:
        """Loads the model file, with the backend's own options from `config.parameters`.

        `options.device` is the CPU or a device that `gpus` returned; worker processes get their devices when
        they start. Raises BacklineError, which names the path and the reason, or the extra to install if the
        runtime is missing.
        """


@runtime_checkable
class FileCheck(Protocol):
    """A Backend that can detect some files that are not models, without importing the runtime."""

    def check_file(self, path: Path) -> None:
        """Raises InvalidArgument, which says what is wrong, if a file is truncated or cannot be a model."""


class WorkerBackend(Protocol):
    """A Backend some of whose files must not be loaded into the server's process; see `needs_worker`."""

    def needs_worker(self, path: Path, config: ModelConfig) -> bool:
        """Returns whether a worker process must load the file. Reads the file, but does not load it."""


def needs_worker(backend: Backend, path: Path, config: ModelConfig) -> bool:
    """Returns whether a worker process must load a file, because loading it may import large libraries."""
    method: Callable[[Path, ModelConfig], bool] | None = getattr(backend, "needs_worker", None)
    return method is not None and method(path, config)


class GpuBackend(Protocol):
    """A Backend that can compute on GPUs; see `gpus_of`."""

    def gpus(self, path: Path, config: ModelConfig) -> Gpus:
        """Returns the GPUs on which the model can run, or why there are none. Raises the errors of `load`."""


def gpus_of(backend: Backend, path: Path, config: ModelConfig) -> Gpus:
    """Returns the GPUs on which a backend can run a model, or the reason why there are none."""
    gpus: Callable[[Path, ModelConfig], Gpus] | None = getattr(backend, "gpus", None)
    if gpus is not None:
        return gpus(path, config)
    return Gpus(reason=f"models of the {backend.name} backend run on the CPU")
