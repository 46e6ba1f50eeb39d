"""Reports changes to models in the log, the audit log and the display of startup progress."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from msgspec import Struct

from backline.engine.config.model_config import UNAVAILABLE_VERSIONS
from backline.engine.model import NO_VERSION, Model, ModelState
from backline.lifecycle.audit_thread import AuditThread
from backline.lifecycle.executor import Step
from backline.lifecycle.memory.residency import TO_MAKE_ROOM, WHEN_IDLE
from backline.lifecycle.served_model import ServedModel
from backline.repository.configuration.document import NOT_READ
from backline_client.values.control import Action, Change
from backline_client.values.names import version_order

log = logging.getLogger("backline.lifecycle")

#: The authors that the audit log names for changes that no caller requested: REPOSITORY if a repository has
#: changed, REQUEST if a request needed an on-demand version, a value of _SLEEP if a version was put to sleep,
#: and SERVER if an instance was replaced.
REPOSITORY = "repository"
REQUEST = "request"
SERVER = "server"
_SLEEP: Mapping[str, str] = {TO_MAKE_ROOM: "memory budget", WHEN_IDLE: "idle limit"}
#: The words with which log lines about these steps begin. Where Triton logs such a step, they are Triton's
#: words, because scripts that wait for a model search the log for them.
_LOGGED: Mapping[str, str] = {
    "loaded": "successfully loaded",
    "reloaded": "successfully reloaded",
    "updated": "successfully updated",
    "unloaded": "successfully unloaded",
}
_AUDITED: Mapping[str, Action] = {
    "loaded": "add",
    "reloaded": "reload",
    "updated": "reload",
    "failed": "fail",
    "unloaded": "remove",
}


class LoadEvent(Struct, frozen=True):
    """The end of an attempt to load a version at startup. `seconds` is the duration of a successful load.
    `done` of `total` loads have ended so far, not counting failed loads that will be retried.
    """

    name: str
    version: str
    state: ModelState
    reason: str
    seconds: float
    done: int
    total: int


OnEvent: TypeAlias = Callable[[LoadEvent], None]


class Journal:
    """Reports changes to models. With `audit_steps`, loads and unloads that no caller requested are written
    to the audit log too. Replacements of instances are always written there.
    """

    def __init__(self, audit: AuditThread, *, audit_steps: bool) -> None:
        self._audit = audit
        self._audit_steps = audit_steps
        self._on_event: OnEvent | None = None
        self._done = 0
        self._total = 0

    def starting(self, on_event: OnEvent, loads: int) -> None:
        """Begins the report of a startup with this number of `loads`; `on_event` is called at the end of each
        load.
        """
        self._on_event = on_event
        self._total = loads

    def started(self) -> None:
        """Ends the report of the startup. Later steps are changes, which belong in the audit log."""
        self._on_event = None

    def note(
        self,
        action: Action,
        who: str,
        model: str,
        version: str,
        *,
        label: str = "",
        before: str = "",
        detail: str = "",
    ) -> Change:
        """Records a change that the caller `who` requested."""
        change = Change(time.time(), who, action, model, version, label, before, detail)
        self.record(change)
        return change

    def record(self, change: Change) -> None:
        """Records a change that a caller requested from this server or, if servers share labels, from another
        server.
        """
        self._audit.append(change)
        log.info(
            "%s: %s of '%s' version %s%s%s",
            change.who,
            change.action,
            change.model,
            change.version or "-",
            f", label '{change.label}' was at {change.before or '-'}" if change.label else "",
            f" ({change.detail})" if change.detail else "",
        )

    def on_step(self, step: Step, served: ServedModel | None) -> None:
        """Records a step of a model; `served` is None if the model is no longer known."""
        model = step.model
        if step.kind == "replaced":
            self._audit_step(SERVER, "replace", model, model.version, step.reason)
            return
        if step.kind == "failed":
            _log_failure(model, step.reason)
        else:
            why = f": {step.reason}" if step.reason else ""
            log.info("%s '%s' version %s%s", _LOGGED[step.kind], model.name, model.version, why)
        if self._on_event is not None:
            self._done += not step.again
            seconds = model.statistics.load_seconds
            self._on_event(
                LoadEvent(
                    model.name, model.version, model.state, model.reason, seconds, self._done, self._total
                )
            )
        elif self._audit_steps:
            before = model.version
            if step.kind not in ("updated", "unloaded"):
                ready = set() if served is None else served.ready_versions
                others = ready if step.kind == "reloaded" else ready - {model.version}
                before = max(others, key=version_order, default="")
            who, reason = _cause(step, served)
            self._audit_step(who, _AUDITED[step.kind], model, before, reason)

    def _audit_step(self, who: str, action: Action, model: Model, before: str, detail: str) -> None:
        self._audit.append(
            Change(time.time(), who, action, model.name, model.version, before=before, detail=detail)
        )


def _log_failure(model: Model, reason: str) -> None:
    """Logs a failed load in Triton's words, which differ for models that could not be read at all."""
    if model.version != NO_VERSION:
        log.error("failed to load '%s' version %s: %s", model.name, model.version, reason)
    elif (fault := _fault_first(reason)).startswith(UNAVAILABLE_VERSIONS):
        log.error("failed to load model '%s': %s", model.name, fault)
    else:
        log.error("Poll failed for model directory '%s': %s", model.name, fault)


#: The beginning of an error message about a configuration file: the place of the fault.
_PLACE: Final = re.compile(r"(\S*\.pbtxt(?::\d+:\d+)?): ", re.ASCII)


def _fault_first(reason: str) -> str:
    """Returns the reason with the place of the fault after Triton's text."""
    found = _PLACE.match(reason)
    if found is None:
        return reason
    text, place = reason[found.end() :], found[1]
    if text.startswith(NOT_READ):
        return f"failed to read text proto from {place}: {text.removeprefix(NOT_READ)}"
    return f"{text} ({place})"


def _cause(step: Step, served: ServedModel | None) -> tuple[str, str]:
    """Returns the author and the reason of a step, for the audit log."""
    for reason, who in _SLEEP.items():
        if step.reason.startswith(reason):
            return who, step.reason
    by_request = (
        served is not None and step.kind in ("loaded", "failed") and step.model.version in served.awake
    )
    return REQUEST if by_request else REPOSITORY, step.reason
