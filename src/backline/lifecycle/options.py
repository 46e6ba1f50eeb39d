"""The options that decide which models are served and how they are loaded."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from backline.engine.errors import InvalidArgument

if TYPE_CHECKING:
    from backline.schedule.cache.config import CacheOptions
    from backline.schedule.sequences.state_store import StateStore

#: What decides which models are loaded: the repositories at start, the repositories whenever they change, or
#: requests (Triton's modes).
ControlMode: TypeAlias = Literal["none", "poll", "explicit"]
#: Which model files are tried in a separate process before the server loads them: all files at each load,
#: files that have not been tried before, only such files from elsewhere, or none. With "workers", the server
#: never loads files from elsewhere: they stay in worker processes.
IsolateMode: TypeAlias = Literal["always", "new", "remote", "workers", "never"]
#: The value of `load_models` that means all models in the repositories.
ALL_MODELS = "*"


#: Whether this system supports trials of model files.
TRIALS_WORK: Final = sys.platform == "linux" and hasattr(os, "pidfd_open")


def check_isolation(mode: IsolateMode) -> None:
    """Raises InvalidArgument if model files cannot be tried in separate processes on this system."""
    if mode != "never" and not TRIALS_WORK:
        raise InvalidArgument(
            f"isolate is {mode}, but model files can be tried in separate processes only on Linux: set it"
            " to never"
        )


def runs_apart(mode: IsolateMode, *, from_elsewhere: bool) -> bool:
    """Returns whether files run in worker processes, whatever lane their configuration asks for."""
    return mode == "workers" and from_elsewhere


@dataclass(frozen=True, slots=True)
class LifecycleOptions:
    """Options that decide which models are served, how they are loaded, and which limits they share."""

    mode: ControlMode = "none"
    #: The interval between scans of a repository that cannot notify of changes, in seconds.
    poll_seconds: float = 15.0
    #: The models to load at start in mode explicit.
    load_models: tuple[str, ...] = ()
    #: Whether models that share a name are named <repository>.<model>.
    namespacing: bool = False
    #: Whether a start waits for repositories that do not exist yet, instead of failing.
    await_repositories: bool = False
    #: Whether configurations must name all inputs and outputs, instead of completing them from the model.
    complete_configs: bool = False
    #: Whether ONNX models get Triton's defaults if their configuration does not say otherwise: batches of at
    #: most 4, and two instances on the CPU.
    onnx_as_triton: bool = False
    #: How many loads may run at once.
    load_threads: int = 4
    #: How often a failed load is retried, for models that do not set this.
    load_retries: int = 0
    #: Which model files are first tried in a separate process, or run in one. This needs Linux.
    isolate: IsolateMode = "remote" if TRIALS_WORK else "never"
    #: Seconds after which a process that tries a model file, or a worker that loads one, is killed.
    load_timeout_seconds: float = 600.0
    #: A process that tries a model file, or a worker with a file from elsewhere, is killed above this many
    #: resident bytes. None means 4 GiB plus eight times the size of the files, but at most 80 % of the free
    #: memory.
    load_memory_limit: int | None = None
    #: How many seconds requests get to finish when their version is unloaded.
    drain_seconds: float = 30.0
    #: How many seconds a label's previous version stays loaded after the label has moved, so that a rollback
    #: needs no load; 0 for not at all. With a memory budget, such versions are the first to be evicted.
    keep_previous_seconds: float = 600.0
    #: Whether the server is ready only when every wanted version is ready.
    strict_readiness: bool = True
    #: Whether no version of a model is served if one of them fails to load, as in Triton.
    require_all_versions: bool = False
    #: Whether, under `strict_readiness`, a load by request that fails makes the server unready, as in Triton.
    failed_loads_end_readiness: bool = False
    #: Whether to load files that can execute any code when they are loaded: pickles, machine code.
    trust_pickle: bool = False
    #: Patterns of the names of models for which pickles and machine code are loaded, as by `trust_pickle`.
    trust_pickle_models: tuple[str, ...] = ()
    #: The full names of types that skops files may contain although skops does not know them.
    trust_skops_types: tuple[str, ...] = ()
    #: Whether a model that asks for a GPU fails to load where none can be used, instead of running on the
    #: CPU.
    strict_devices: bool = False
    #: Whether to run code (Python, TorchScript, torch.export) from remote repositories or load requests.
    trust_remote_code: bool = False
    #: The limit on the memory that the server and its workers hold, in bytes. Idle versions are unloaded, and
    #: reloaded on request. None for no limit.
    memory_budget: int | None = None
    #: Like `memory_budget` for the memory of each GPU: "SIZE" for every GPU, or "GPU:SIZE" for one.
    gpu_memory_budget: tuple[str, ...] = ()
    #: Whether the callers of a model are served in turn, rather than in the order in which requests arrive.
    fair_queues: bool = False
    #: The limit on queued requests over all models; None for no limit.
    max_queued_requests: int | None = None
    #: The limit on threads that compute at once, over all models; None for one per core, 0 for no limit.
    compute_threads: int | None = None
    #: The rate limiter's resources, each as NAME:COUNT[:DEVICE]; None for no rate limiter.
    rate_limit: tuple[str, ...] | None = None
    #: The response cache, for models that ask for one; None for no cache.
    response_cache: CacheOptions | None = None
    #: The store for the states of sequences; None for memory. Servers with a common store can continue each
    #: other's sequences.
    state_store: StateStore | None = None
    #: For debugging: how many requests each queue holds before it runs the first; 0 for none. For models with
    #: sequences, also how many must wait for a place.
    hold_requests: int = 0
    hold_backlog: int = 0
    #: The Python model to run in the server's process, without time limits, under a debugger; empty for none.
    debugged_model: str = ""
    #: The folder for remote files, environments and unpacked archives; None for one in the user's home.
    cache_folder: Path | None = None
    #: Where labels are kept so that other servers can share them: "repository", a folder, or the URL of a
    #: bucket or Redis; empty for the state folder.
    labels: str = ""
    #: The folder for labels, the audit log and recorded requests; None for one in the user's home for this
    #: set of repositories.
    state_folder: Path | None = None

    @property
    def limits_memory(self) -> bool:
        """Whether there is a memory budget."""
        return self.memory_budget is not None or bool(self.gpu_memory_budget)
