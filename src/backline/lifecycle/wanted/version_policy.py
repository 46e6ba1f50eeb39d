"""The version policy: which of the versions that a repository holds are to be served."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from backline.engine.model_config import VersionPolicy
from backline.engine.version_order import version_order
from backline.repository.names import some_of


def select(versions: Iterable[str], policy: VersionPolicy) -> tuple[list[str], list[str]]:
    """The versions that a policy selects, oldest first, and those it names that are not there, in the order in which it names them."""
    held = set(versions)
    present = sorted(held, key=version_order)
    if policy.specific is not None:
        wanted = frozenset(policy.specific)
        missing = [version for version in dict.fromkeys(policy.specific) if version not in held]
        return [version for version in present if version in wanted], missing
    if policy.latest is not None:
        return present[max(0, len(present) - policy.latest) :], []
    return present, []


def none_selected(place: str, held: Sequence[str], missing: Sequence[str]) -> str:
    """Why nothing of a model is served whose policy names only versions that are not there; `place` is the model's folder."""
    return (
        f"'{place}' holds none of the versions that version_policy names: {some_of(missing)}"
        f" (it holds {some_of(held) or 'none'})"
    )
