"""The options that decide which models are served and how they are loaded."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from msgspec import Struct

from backline_client.values.errors import InvalidArgument

if TYPE_CHECKING:
    from backline.schedule.cache.config import CacheOptions
    from backline.schedule.sequences.state_store import StateStore

#: The ways in which the server chooses the models to load, as in Triton. "none": it loads the models that the
#: repositories contain at start; "poll": it also follows later changes to the repositories; "explicit": it
#: loads `load_models` at start, and other models on request.
ControlMode: TypeAlias = Literal["none", "poll", "explicit"]
#: The model files that the server tries in a separate process before it loads them. "always": all files at
#: each load; "new": files that have not been tried yet; "remote": files that have not been tried yet and come
#: from a remote repository or a load request; "never": none. With "workers", only worker processes load files
#: from remote repositories or load requests.
IsolateMode: TypeAlias = Literal["always", "new", "remote", "workers", "never"]
#: How many requests may wait in a queue whose model's configuration sets no limit. "requests": 1024;
#: "seconds": as many as the model can run in about a second, from 100 to 1024; "any": any number.
DefaultQueue: TypeAlias = Literal["requests", "seconds", "any"]
#: The entry in `load_models` that stands for all models in the repositories.
ALL_MODELS = "*"


#: Whether this system supports trials of model files.
TRIALS_WORK: Final = sys.platform == "linux" and hasattr(os, "pidfd_open")


def check_isolation(mode: IsolateMode) -> None:
    """Raises InvalidArgument unless `mode` is "never" or this system supports trials of model files."""
    if mode != "never" and not TRIALS_WORK:
        raise InvalidArgument(
            f"isolate is {mode}, but model files can be tried in separate processes only on Linux: set it"
            " to never"
        )


def runs_apart(mode: IsolateMode, *, from_elsewhere: bool) -> bool:
    """Returns whether a model runs in worker processes, whatever lane its configuration sets.
    `from_elsewhere` says whether its files come from a remote repository or a load request.
    """
    return mode == "workers" and from_elsewhere


class LifecycleOptions(Struct, frozen=True):
    """Options that decide which models are served, how they are loaded, and which limits they share."""

    mode: ControlMode = "none"
    #: The interval between scans of a repository that cannot notify of changes, in seconds.
    poll_seconds: float = 15.0
    #: The models to load at start in explicit mode.
    load_models: tuple[str, ...] = ()
    #: Whether models that share a name are served as <repository>.<model>, instead of not at all.
    namespacing: bool = False
    #: Whether the server starts even if some repositories do not exist or cannot be read yet. It is ready
    #: only once all of them have been read.
    await_repositories: bool = False
    #: Whether configurations must name all inputs and outputs, instead of completing them from the model.
    complete_configs: bool = False
    #: Whether an ONNX model whose configuration does not set them gets Triton's defaults: batches of at most
    #: 4, and two instances on the CPU.
    onnx_as_triton: bool = False
    #: The maximum number of loads that run at the same time.
    load_threads: int = 4
    #: The number of times that a failed load is retried, unless the model's configuration sets it.
    load_retries: int = 0
    #: The model files to try in a separate process; see IsolateMode. All values except "never" need Linux.
    isolate: IsolateMode = "new" if TRIALS_WORK else "never"
    #: Seconds after which a process that tries a model file, or a worker that loads one with a runtime, is
    #: killed.
    load_timeout_seconds: float = 600.0
    #: The limit on the resident memory, in bytes, of a process that tries a model file, and of a worker that
    #: loads one from a remote repository or load request. A process above the limit is killed. None means 4
    #: GiB plus eight times the size of the files, but at most 80 % of the free memory.
    load_memory_limit: int | None = None
    #: Seconds for which a version that is being unloaded continues to run queued requests and open streams.
    drain_seconds: float = 30.0
    #: Seconds for which a label's previous version remains loaded after the label has moved, so that a
    #: rollback needs no load; 0 to unload that version immediately. With a memory budget, such versions are
    #: the first to be evicted.
    keep_previous_seconds: float = 600.0
    #: Whether the server is ready only when every version that was wanted at its start is ready.
    strict_readiness: bool = True
    #: Whether no version of a model is served if one of them fails to load, as in Triton.
    require_all_versions: bool = False
    #: Whether Triton's rules apply where they differ: the server is not live without its repositories; under
    #: `strict_readiness`, a load that fails after the start makes the server unready, but a model that could
    #: not be read never does; a request to unload a model waits for a load in progress instead of aborting
    #: it; and requests can change the settings of the log in every mode.
    control_as_triton: bool = False
    #: Whether to load files that can execute arbitrary code when they are loaded: pickles and machine code.
    trust_pickle: bool = False
    #: Patterns of the names of models for which pickles and machine code are loaded, as if `trust_pickle`
    #: were set. Files from remote repositories or load requests also need `trust_remote_code`.
    trust_pickle_models: tuple[str, ...] = ()
    #: The full names of types that skops files may contain although skops does not know them.
    trust_skops_types: tuple[str, ...] = ()
    #: The names of models that this program itself has made. It loads them without a worker process.
    own_models: tuple[str, ...] = ()
    #: Whether a model that asks for a GPU fails to load if no GPU can be used, instead of running on the CPU.
    strict_devices: bool = False
    #: Whether to run code (Python, TorchScript, torch.export) from remote repositories or load requests.
    trust_remote_code: bool = False
    #: The limit on the memory that the server and its workers hold, in bytes. Idle versions are unloaded, and
    #: reloaded on request. None for no limit.
    memory_budget: int | None = None
    #: Like `memory_budget`, but for the memory of GPUs: "SIZE" for every GPU, or "GPU:SIZE" for one.
    gpu_memory_budget: tuple[str, ...] = ()
    #: Whether the callers of a model are served in turn, rather than in the order in which requests arrive.
    fair_queues: bool = False
    #: See DefaultQueue. Servers use "seconds" instead of "requests", because their clients would give up
    #: requests that wait for long.
    default_queue: DefaultQueue = "requests"
    #: The limit on queued requests over all models; None for no limit.
    max_queued_requests: int | None = None
    #: The limit on threads that compute at the same time, over all models; None for one thread per core, 0
    #: for no limit.
    compute_threads: int | None = None
    #: The rate limiter's resources, each as NAME:COUNT[:DEVICE]; None for no rate limiter.
    rate_limit: tuple[str, ...] | None = None
    #: The response cache, for models whose configuration asks for it; None for no cache.
    response_cache: CacheOptions | None = None
    #: The store for the states of sequences; None to keep them in this server's memory. Servers with a common
    #: store can continue each other's sequences.
    state_store: StateStore | None = None
    #: A text that is added to the error of a request whose sequence is unknown to this server. May be empty.
    unknown_sequence_advice: str = ""
    #: For debugging: how many requests must be in a queue before the first of them runs; 0 to run them
    #: immediately. For models with sequences, `hold_backlog` more requests must wait for a place on an
    #: instance.
    hold_requests: int = 0
    hold_backlog: int = 0
    #: The name of the Python model that runs in the server's process, so that it can be debugged, and without
    #: time limits; empty for none.
    debugged_model: str = ""
    #: The folder for remote files, environments and unpacked archives; None for a folder in the user's home.
    cache_folder: Path | None = None
    #: The place where labels are stored so that other servers can share them: "repository", a folder, or the
    #: URL of a bucket or Redis; empty to store them in the state folder, where they are not shared.
    labels: str = ""
    #: The folder for labels, the audit log, measurements and recorded requests; None for a folder in the
    #: user's home that belongs to this set of repositories.
    state_folder: Path | None = None

    @property
    def limits_memory(self) -> bool:
        """Whether there is a memory budget."""
        return self.memory_budget is not None or bool(self.gpu_memory_budget)
