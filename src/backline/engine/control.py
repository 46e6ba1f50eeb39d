"""Changes that callers may request: to models and labels, made by the lifecycle, and to the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, Protocol, TypeAlias

from backline.engine.names import check_file_path
from backline.engine.values.tensor import Buffer

LogValue: TypeAlias = bool | int | str
#: Raises Forbidden unless the caller may change the model of this name.
MayChange: TypeAlias = Callable[[str], None]


def may_change_all(model: str) -> None:
    """Allows the change of every model."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """An entry of the log as it was written, truncated if it is very long.

    `number` counts the entries since the start, from 1. `time` is in seconds since 1970, and `level` is the
    severity in lower case.
    """

    number: int
    time: float
    level: str
    logger: str
    text: str


class LogControl(Protocol):
    """The log, and the settings of Triton's logging extension: log_file, log_info, log_warning, log_error,
    log_verbose_level, log_format.
    """

    def settings(self) -> Mapping[str, LogValue]:
        """Returns all settings, in the order given for this class."""

    def recent(self, after: int = 0) -> Sequence[LogLine]:
        """Returns the last entries with numbers above `after`, oldest first. Only the last 500 are kept.

        Anything that looks like a key, a token or a password in a URL is masked.
        """

    def update(self, changes: Mapping[str, object]) -> None:
        """Changes the given settings, either all of them or none.

        Raises InvalidArgument for an unknown setting or an invalid value, Unsupported for log_file.
        """


#: A value of LabelMove.expected: the label may point to any version.
ANY_VERSION: Final = "*"
#: Requests without a version follow this label if the model has it; `promote` and `rollback` move it.
STABLE: Final = "stable"

Action = Literal[
    "load", "unload", "label", "unlabel", "promote", "rollback", "reload", "add", "remove", "fail", "replace"
]


@dataclass(frozen=True, slots=True)
class Change:
    """An entry of the audit log: at `time` (seconds since 1970), `who` did `action` to a model.

    `version` is the version after the change and `before` the one before it; `label` is set for changes to
    labels. `detail` has anything else worth knowing, such as why a load failed or which settings changed.
    """

    time: float
    who: str
    action: Action
    model: str
    version: str = ""
    label: str = ""
    before: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An entry of the audit log: at `time`, a request to change something was done, failed, or was refused.

    `identity` is the name of the caller's key, empty without one; `address` is where the request came from.
    `route` is the method and path, or the gRPC method. `detail` is the error. `suppressed` counts earlier
    refusals for the same address that were left out because there were too many.
    """

    time: float
    outcome: Literal["done", "failed", "refused"]
    route: str
    identity: str = ""
    address: str = ""
    model: str = ""
    detail: str = ""
    suppressed: int = 0


@dataclass(frozen=True, slots=True)
class RepositoryState:
    """A place that models come from, as of its last scan.

    `location` is a path or a URL without secrets. `models` are the names under which its models are served.
    `failures` maps the name of each model that cannot be loaded to the reason. `scanned` is when the last
    successful scan ended, in seconds since 1970, and `scan_seconds` how long it took; both are 0 before the
    first. `problem` says why the last scan failed; empty if it succeeded. Scans happen every `poll_seconds`,
    or only on request if that is 0.
    """

    location: str
    mode: str
    poll_seconds: float = 0.0
    models: Sequence[str] = ()
    versions: int = 0
    failures: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    scanned: float = 0.0
    scan_seconds: float = 0.0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class LabelMove:
    """A change to a model's label, made only if the label points to `expected` at that moment ("": it must
    not exist).

    "label" and "promote" point the label to `version`, which is loaded first if necessary; "unlabel" removes
    the label; "rollback" undoes the label's last move that has not been undone. The last two have no
    `version`.
    """

    action: Literal["label", "unlabel", "promote", "rollback"]
    model: str
    label: str = STABLE
    version: str = ""
    expected: str = ANY_VERSION


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a load request supplies in place of the repository's files.

    `config` is the text of a model configuration (config.pbtxt as JSON, the form Triton's clients send), None
    to use the repository's. `files` has the contents of all files of the model, by path below its folder
    ("1/model.onnx"); empty to use the repository's.
    """

    config: str | None = None
    files: Mapping[str, Buffer] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        """Raises InvalidArgument for paths that might reach a file outside the model's folder."""
        for path in self.files:
            check_file_path(path)


def unreadable(model: str, reason: str) -> str:
    """Returns the error text for a load that was refused before it began; the text begins with Triton's."""
    return f"failed to load '{model}', failed to poll from model repository: {reason}"


class Control(Protocol):
    """Changes to what is served. All methods run on the engine's event loop and raise BacklineError if
    refused.

    `who` names the caller for the audit log. The caller may change the named model; `may_change` is called
    with the name of each further model that the change reaches, before anything is changed.
    """

    async def load(
        self,
        model: str,
        version: str = "",
        *,
        overrides: Overrides | None = None,
        who: str,
        may_change: MayChange = may_change_all,
    ) -> None:
        """Loads the versions that the model's policy selects, or one more version.

        Versions that have changed are loaded again, and unloaded only once the new load is ready. Returns
        when all are ready. If a load fails, the old one continues to serve, and the reason is raised.

        If `overrides` make the model an ensemble, the load reaches the models of the steps.
        """

    async def unload(
        self,
        model: str,
        version: str = "",
        *,
        dependents: bool = False,
        who: str,
        may_change: MayChange = may_change_all,
    ) -> None:
        """Takes a model, or one version, out of service.

        With `dependents`, the unload reaches the models that only this model calls. Returns when the model
        takes no more requests. Those in flight finish afterwards.
        """

    async def move_label(self, move: LabelMove, *, who: str) -> Change:
        """Points a label to a version, loading it if necessary, or back to an earlier one; or removes it."""

    def check_changeable(self, what: str) -> None:
        """Raises Unavailable if clients may not change models (model control mode none).

        `what` begins the message, for example "labels cannot be changed".
        """

    async def refresh(self) -> None:
        """Scans the repositories now. Returns when everything in them is served or has failed."""

    def repositories(self) -> Sequence[RepositoryState]:
        """Returns the repositories, in the order in which they were given."""

    def worker_pids(self) -> Sequence[int]:
        """Returns the process ids of all workers."""

    def labels(self, model: str) -> Mapping[str, str]:
        """Returns the labels of a model and the versions they point to."""

    def history(self, model: str = "", limit: int = 100) -> Sequence[Change]:
        """Returns the most recent changes to a model (to all models if `model` is empty), newest first."""

    def note(self, attempt: Attempt) -> None:
        """Appends an entry to the audit log."""

    def audit(self, limit: int = 100, after: float = 0.0) -> Sequence[Change | Attempt]:
        """Returns the most recent entries of the audit log later than `after`, newest first."""
