"""What anybody may ask to be changed: models loaded and unloaded, labels moved. The lifecycle does it; the dialects and the client ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, Protocol

from backline.engine.names import check_file_path

#: For `expected` of a label: whatever it points to now.
ANY_VERSION: Final = "*"
#: The label that a request without a version follows, where a model has it; `promote` and `rollback` move it.
STABLE: Final = "stable"

Action = Literal[
    "load", "unload", "label", "unlabel", "promote", "rollback", "reload", "add", "remove", "fail", "replace"
]


@dataclass(frozen=True, slots=True)
class Change:
    """An entry of the audit log: at `time` (seconds since 1970) `who` did `action` to a model.

    `version` is the version after the change and `before` the one before; `label` is set for changes of a label. `detail` says what else
    is worth knowing: why a load failed, which settings changed.
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
class LabelMove:
    """A change of a label of a model: nothing changes unless it points to `expected` at that moment ("": it must not exist).

    "label" and "promote" point it to `version`, which is loaded first if need be; "unlabel" removes it; "rollback" points
    it back to where it pointed before its last move. The last two have no `version`.
    """

    action: Literal["label", "unlabel", "promote", "rollback"]
    model: str
    label: str = STABLE
    version: str = ""
    expected: str = ANY_VERSION


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a load brings along instead of the repository's own files.

    `config` is the text of a model configuration (config.pbtxt as JSON, as Triton's clients send it), None for the repository's. `files`
    are the contents of all files of the model by path below its folder ("1/model.onnx"), empty for the repository's.
    """

    config: str | None = None
    files: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        """Raises InvalidArgument for a path that might lead out of the model's folder: nothing can write one."""
        for path in self.files:
            check_file_path(path)


class Control(Protocol):
    """Changes to what is served. Every method lives on the engine's event loop, and raises BacklineError with the reason when it refuses.

    `who` names the caller for the audit log.
    """

    async def load(
        self, model: str, version: str = "", *, overrides: Overrides | None = None, who: str
    ) -> None:
        """Loads what the model's policy selects, or one version beside it; what is loaded and has changed is loaded again, new before old.

        Returns when all of it is ready. When a load fails the old version goes on serving, and the reason is raised.
        """

    async def unload(self, model: str, version: str = "", *, dependents: bool = False, who: str) -> None:
        """Takes a model, or one version, out of service. Returns when it takes no more requests; what is in flight is finished after."""

    async def move_label(self, move: LabelMove, *, who: str) -> Change:
        """Points a label to a version, back to an earlier one, or removes it."""

    def check_changeable(self, what: str) -> None:
        """Raises Unavailable where requests change nothing (mode none); `what` begins the message: "labels cannot be changed"."""

    async def refresh(self) -> None:
        """Looks at the repositories now, and returns when what they hold is served or has failed."""

    def labels(self, model: str) -> Mapping[str, str]:
        """The labels of a model and the versions they point to."""

    def history(self, model: str = "", limit: int = 100) -> Sequence[Change]:
        """The last changes, newest first; of all models without a name."""
