"""The phases of a version: which may follow which, and the state that clients see in each."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from backline.engine.model import ModelState


class VersionPhase(Enum):
    """How far a version is."""

    #: Wanted; its load has not begun.
    WAITING = "waiting"
    #: Loaded when a request comes.
    ASLEEP = "asleep"
    #: Being loaded for a request.
    WAKING = "waking"
    LOADING = "loading"
    #: In memory and warm, and not yet open to requests.
    LOADED = "loaded"
    READY = "ready"
    #: Takes no more requests; running ones finish.
    DRAINING = "draining"
    FAILED = "failed"
    UNLOADED = "unloaded"


_P = VersionPhase

#: The phases that may follow each. A retry or a reload is another load, with phases of its own.
FOLLOWING: Mapping[VersionPhase, frozenset[VersionPhase]] = MappingProxyType(
    {
        _P.WAITING: frozenset(),
        _P.ASLEEP: frozenset({_P.WAKING}),
        _P.WAKING: frozenset({_P.ASLEEP}),
        _P.LOADING: frozenset({_P.LOADED, _P.FAILED}),
        _P.LOADED: frozenset({_P.READY, _P.DRAINING}),
        # An ensemble fails when a model that it calls does.
        _P.READY: frozenset({_P.DRAINING, _P.FAILED}),
        _P.DRAINING: frozenset({_P.UNLOADED}),
        _P.FAILED: frozenset(),
        _P.UNLOADED: frozenset(),
    }
)

#: What clients see. A loaded version shows as loading until requests reach it.
SEEN_AS: Mapping[VersionPhase, ModelState] = MappingProxyType(
    {
        _P.WAITING: ModelState.LOADING,
        _P.ASLEEP: ModelState.UNAVAILABLE,
        _P.WAKING: ModelState.LOADING,
        _P.LOADING: ModelState.LOADING,
        _P.LOADED: ModelState.LOADING,
        _P.READY: ModelState.READY,
        _P.DRAINING: ModelState.UNLOADING,
        _P.FAILED: ModelState.UNAVAILABLE,
        _P.UNLOADED: ModelState.UNAVAILABLE,
    }
)


class IllegalTransition(RuntimeError):
    """A version was moved to a phase that may not follow its own: a bug in the server."""


def check_transition(before: VersionPhase, after: VersionPhase) -> None:
    """Raises IllegalTransition unless one phase may follow another."""
    if after not in FOLLOWING[before]:
        raise IllegalTransition(f"a version that is {before.value} cannot become {after.value}")
