"""What the lifecycle is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from backline.schedule.cache.config import CacheOptions
    from backline.schedule.sequences.state_store import StateStore

#: Who decides what is loaded: the repositories once at the start, the repositories whenever they change, or requests (Triton's modes).
ControlMode: TypeAlias = Literal["none", "poll", "explicit"]
#: For `load_models`: everything that the repositories hold.
ALL_MODELS = "*"


@dataclass(frozen=True, slots=True)
class LifecycleOptions:
    """The options that decide which models are served, and how they come and go."""

    mode: ControlMode = "none"
    #: Between two looks at a repository that cannot tell when it changes.
    poll_seconds: float = 15.0
    #: In mode explicit, the models that are loaded at the start.
    load_models: tuple[str, ...] = ()
    #: Whether models are called <repository>.<model>.
    namespacing: bool = False
    #: Whether configurations must name all inputs and outputs, because nothing is completed from the model.
    complete_configs: bool = False
    #: Loads at the same time.
    load_threads: int = 4
    #: Further attempts after a failed load, for models that do not say.
    load_retries: int = 0
    #: Given to requests of a version that is unloaded.
    drain_seconds: float = 30.0
    #: Whether the server is only ready when all versions are that it is to serve.
    strict_readiness: bool = True
    #: Whether files may be loaded that can execute anything when they are: pickles, machine code.
    trust_pickle: bool = False
    #: Whether a model fails to load that asks for a GPU and cannot have one, instead of running on the CPU.
    strict_devices: bool = False
    #: Whether code (Python, TorchScript, torch.export) may be run whose files are remote, or were brought along by a load.
    trust_remote_code: bool = False
    #: Resident bytes of the process, at most: versions are unloaded and loaded again on request to stay below. None for no limit.
    memory_budget: int | None = None
    #: Requests that may wait in the queues of all models together; None for any number.
    max_queued_requests: int | None = None
    #: Threads that compute at once, of all models in this process; None for as many as there are cores, 0 for any number.
    compute_threads: int | None = None
    #: Whether instances take their resources before they run, and the resources there are, NAME:COUNT[:DEVICE] each; None for no limit.
    rate_limit: tuple[str, ...] | None = None
    #: Where answers are kept for the models that ask for it; None for nowhere.
    response_cache: CacheOptions | None = None
    #: Where the states of sequences lie, None for this process: with one that servers share each goes on with the sequences of the others.
    state_store: StateStore | None = None
    #: The Python model that runs in the server's process, without any limit of time, so that it can be debugged; empty for none.
    debugged_model: str = ""
    #: Where files of remote repositories and environments of models are kept, and archives unpacked; None for a folder of the user's.
    cache_folder: Path | None = None
    #: Where labels, the audit log and recorded requests are kept; None for a folder of the user's, of its own for each set of repositories.
    state_folder: Path | None = None
