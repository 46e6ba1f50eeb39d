"""Formats the entries of a server's model list, and adds hints to errors about unknown names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from backline.engine.numbers import format_bytes
from backline_client.client.errors import BacklineError, InvalidArgument, NotFound
from backline_client.client.records import ModelIndex, Progress
from backline_client.values.control import STABLE
from backline_client.values.spelling import nearest


def document(entry: ModelIndex) -> dict[str, Any]:
    """Returns an entry as a JSON object, which has a field `progress` only while a load is in progress."""
    plain = asdict(entry)
    if plain["progress"] is None:
        del plain["progress"]
    return plain


def labels_text(entry: ModelIndex, index: Sequence[ModelIndex]) -> str:
    """Formats the labels of a version. Adds "(default)" to the version that serves requests without a
    version, if other versions are ready and it does not have the label "stable".
    """
    others = any(other.ready for other in index if other.name == entry.name and other is not entry)
    return (
        ", ".join(
            [
                *entry.labels,
                *(["(default)"] if entry.default and others and STABLE not in entry.labels else []),
            ]
        )
        or "-"
    )


def state_text(entry: ModelIndex) -> str:
    """Formats the state of a version, such as "READY" or "ON DEMAND"."""
    return entry.state.replace("_", " ") or "not loaded"


def memory_text(entry: ModelIndex) -> str:
    return format_bytes(entry.memory_bytes) if entry.memory_bytes else "-"


def reason_text(entry: ModelIndex) -> str:
    """Formats the progress of a load. If no load is in progress, returns the reason for the state."""
    return progress_text(entry.progress) if entry.progress is not None else entry.reason


def progress_text(progress: Progress) -> str:
    """Formats the progress of a load, such as "fetch, 12 MiB of 90 MiB, 3 s"."""
    parts = [progress.phase]
    if progress.bytes_done < progress.bytes_total:  # otherwise, all bytes have been fetched
        parts.append(f"{format_bytes(progress.bytes_done)} of {format_bytes(progress.bytes_total)}")
    return ", ".join([*parts, f"{progress.seconds:.0f} s"])


#: Phrases that occur in errors that already list the known names.
_LISTS = ("there are", "there is", "available:")


def explain(
    error: BacklineError, index: Sequence[ModelIndex], model: str, version: str = ""
) -> BacklineError:
    """Returns the error. If it is about an unknown name, adds the most similar known name or, if no name is
    similar, all known names of models, or of versions and labels.
    """
    if not isinstance(error, (NotFound, InvalidArgument)) or "Did you mean" in error.message:
        return error
    models = sorted({entry.name for entry in index})
    if model not in models:
        name, known, has = model, models, "The server has"
    else:
        versions = [entry for entry in index if entry.name == model and entry.version]
        known = [entry.version for entry in versions] + sorted(
            {label for entry in versions for label in entry.labels}
        )
        name, has = version, "It has"
        if not version or version in known:
            return error
    near = nearest(name, known, 1)
    if near:
        hint = f"Did you mean '{near[0]}'?"
    elif isinstance(error, InvalidArgument) or any(words in error.message for words in _LISTS):
        return error  # the error is not about an unknown name, or already lists the known names
    else:
        hint = f"{has} {', '.join(known) or 'none'}."
    error.message = f"{error.message.rstrip('. ')}. {hint}"
    return error
