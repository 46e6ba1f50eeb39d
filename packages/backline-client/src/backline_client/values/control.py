"""Changes that callers may request: to models and labels, which the lifecycle carries out, and to the log
settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Generic, Literal, Protocol, TypeAlias, TypeVar

from msgspec import Struct, field

from backline_client.values.decodable import decodable
from backline_client.values.names import check_file_path
from backline_client.values.tensor import Buffer

LogValue: TypeAlias = bool | int | str
Result = TypeVar("Result")
#: A function that raises Forbidden unless the caller may change the model with this name.
MayChange: TypeAlias = Callable[[str], None]


def may_change_all(model: str) -> None:
    """Allows changes to every model."""


class LogLine(Struct, frozen=True):
    """An entry of the log as it was written, truncated if it is very long.

    `number` is the number of the entry since the server started, counted from 1. `time` is in seconds since
    1970, and `level` is the severity in lower case.
    """

    number: int
    time: float
    level: str
    logger: str
    text: str


class LogControl(Protocol):
    """Access to the log, and to the settings of Triton's logging extension: log_file, log_info, log_warning,
    log_error, log_verbose_level and log_format.
    """

    def settings(self) -> Mapping[str, LogValue]:
        """Returns all settings, in the order of the docstring of LogControl."""

    def recent(self, after: int = 0) -> Sequence[LogLine]:
        """Returns the latest entries with numbers above `after`, oldest first. Only the last 500 entries are
        kept.

        Texts that look like a key, a token or a password in a URL are masked.
        """

    def update(self, changes: Mapping[str, object]) -> None:
        """Changes the given settings, either all of them or none.

        Raises InvalidArgument for an unknown setting or an invalid value, and Unsupported for log_file, which
        cannot be changed.
        """


#: The value of LabelMove.expected that allows the label to point to any version.
ANY_VERSION: Final = "*"
#: The label of the version that serves requests without a version. A model need not have this label. The
#: actions "promote" and "rollback" move it.
STABLE: Final = "stable"
#: What `Control.check_changeable` is asked before settings of the log are changed.
LOG_SETTINGS: Final = "the settings of the log"

Action = Literal[
    "load", "unload", "label", "unlabel", "promote", "rollback", "reload", "add", "remove", "fail", "replace"
]


@decodable
class Change(Struct, frozen=True):
    """An entry of the audit log for a change: at `time` (seconds since 1970), `who` performed `action` on a
    model.

    `version` is the version after the change, and `before` the version before the change; `label` is set for
    changes to labels. `detail` has further information, such as why a load failed or which settings changed.
    """

    time: float
    who: str
    action: Action
    model: str
    version: str = ""
    label: str = ""
    before: str = ""
    detail: str = ""


@decodable
class Attempt(Struct, frozen=True):
    """An entry of the audit log for a request to change something or to read what clients sent, or for any
    request that was refused. The request succeeded, failed or was refused at `time` (seconds since 1970).

    `identity` is the name of the caller's key, certificate or token, empty if the caller has none; `address`
    is the address from which the request came. `route` is the HTTP method and path, or the gRPC method.
    `detail` is the error, if any. If an address causes too many refusals, some are not logged separately:
    the entry for the last of these has their number in `suppressed`.
    """

    time: float
    outcome: Literal["done", "failed", "refused"]
    route: str
    identity: str = ""
    address: str = ""
    model: str = ""
    detail: str = ""
    suppressed: int = 0


#: The maximum number of entries of a page.
LONGEST_PAGE: Final = 1000
Entry = TypeVar("Entry", bound=Change | Attempt)


class Page(Struct, Generic[Entry], frozen=True):
    """A part of the audit log or of the history, newest entry first. `cursor` is the position of the next
    page, with older entries; it is empty if there are none.
    """

    entries: Sequence[Entry]
    cursor: str = ""


class RepositoryState(Struct, frozen=True):
    """The state of a repository at its last scan.

    `location` is a path, or a URL without secrets, and `mode` the server's model control mode. `models` are
    the names under which the models of the repository are served, and `versions` is the number of all their
    versions. `failures` maps the name of each model that cannot be loaded to the reason. `scanned` is the
    time when the last successful scan ended, in seconds since 1970, and `scan_seconds` the duration of that
    scan; both are 0 before the first successful scan. `problem` says why the last scan failed; it is empty if
    the scan succeeded. The repository is scanned when it reports changes or, if it cannot report them, every
    `poll_seconds`; if `poll_seconds` is 0, it is scanned only on request.
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


class LabelMove(Struct, frozen=True):
    """A change to a label of a model. The change is made only if the label points to `expected` at that
    moment; "" means that the label must not exist.

    The actions "label" and "promote" point the label to `version`, which is loaded first if necessary.
    "unlabel" removes the label, and "rollback" undoes the last move of the label that has not been undone
    yet; these two have no `version`.
    """

    action: Literal["label", "unlabel", "promote", "rollback"]
    model: str
    label: str = STABLE
    version: str = ""
    expected: str = ANY_VERSION


class Overrides(Struct, frozen=True):
    """The configuration and files that a load request supplies in place of those in the repository.

    `config` is the text of a model configuration (config.pbtxt as JSON, the form that Triton's clients send);
    None means that the repository's configuration is used. `files` has the contents of all files of the
    model, by their paths below the model's folder ("1/model.onnx"); if it is empty, the repository's files
    are used.
    """

    config: str | None = None
    files: Mapping[str, Buffer] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        """Raises InvalidArgument for a path that might name a file outside the model's folder."""
        for path in self.files:
            check_file_path(path)


def unreadable(model: str, reason: str) -> str:
    """Returns the error message for a load that was refused before it began. The beginning of the message is
    Triton's.
    """
    return f"failed to load '{model}', failed to poll from model repository: {reason}"


class Control(Protocol):
    """Changes to the models that are served. All methods must be called on the engine's event loop. They
    raise BacklineError if the change is refused.

    `who` names the caller for the audit log. A client may choose a part of this name, so `caller` is what
    tells callers apart; by default, it is `who`. The methods assume that the caller is allowed to change the
    named model. `may_change` is called with the name of each further model that the change affects, before
    that model is changed.
    """

    async def load(
        self,
        model: str,
        version: str = "",
        *,
        overrides: Overrides | None = None,
        who: str,
        caller: str = "",
        may_change: MayChange = may_change_all,
    ) -> None:
        """Loads the versions that the model's policy selects, or one further version if `version` is given.

        Versions whose files have changed are loaded again; the old load of a version is unloaded only once
        the new load is ready. Returns when all versions are ready. If a load fails, the old load continues to
        serve requests, and an error with the reason is raised.

        If `overrides` make the model an ensemble, the load also affects the models that its steps call. The
        loads of files in `overrides` have a share per caller, and never delay loads from repositories.
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
        """Takes a model, or one version of the model, out of service.

        With `dependents`, the models that only this model calls are also unloaded. Returns when the model
        accepts no more requests; requests in flight may still be running.
        """

    async def move_label(self, move: LabelMove, *, who: str) -> Change:
        """Carries out `move`; loads the label's new version first if necessary. Returns the change, as an
        entry of the audit log.
        """

    def check_changeable(self, what: str) -> None:
        """Raises Unavailable if clients may not change models, because the model control mode is "none".

        `what` names, for the error message, what was to be changed, such as "labels".
        """

    async def refresh(self) -> None:
        """Scans the repositories immediately. Returns when each model in the repositories is served or has
        failed to load.
        """

    def repositories(self) -> Sequence[RepositoryState]:
        """Returns the repositories, in the order in which they were given."""

    def worker_pids(self) -> Sequence[int]:
        """Returns the process ids of all workers."""

    def labels(self, model: str) -> Mapping[str, str]:
        """Returns the labels of a model, and the versions that the labels point to."""

    async def history(
        self, model: str = "", limit: int = 100, cursor: str = "", *, form: Callable[[Page[Change]], Result]
    ) -> Result:
        """Reads a page of at most `limit` changes to a model (to all models if `model` is empty), from
        `cursor` on. Returns the result of `form`, which runs on the thread that reads the log.

        Raises InvalidArgument for a cursor that no page has.
        """

    def note(self, attempt: Attempt) -> None:
        """Appends an entry to the audit log."""

    async def audit(
        self,
        limit: int = 100,
        after: float = 0.0,
        cursor: str = "",
        *,
        form: Callable[[Page[Change | Attempt]], Result],
    ) -> Result:
        """Reads a page of at most `limit` entries of the audit log, from `cursor` on, with times later than
        `after`, in seconds since 1970. Returns the result of `form`, which runs on the thread that reads the
        log.

        Raises InvalidArgument for a cursor that no page has.
        """
