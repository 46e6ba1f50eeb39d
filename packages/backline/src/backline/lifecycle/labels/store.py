"""Stores the labels that requests have set, and the changes to labels that rollbacks can undo."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec.structs import asdict

from backline.lifecycle.labels.document import (
    SCHEMES,
    FileDocument,
    LabelDocument,
    RedisDocument,
    Replaced,
)
from backline.repository.plugin import REPOSITORIES, RepositoryPlugin, find_scheme
from backline_client.values.control import Change
from backline_client.values.decodable import decodable
from backline_client.values.errors import BacklineError, InvalidArgument, Unavailable
from backline_client.values.names import fault_in_name, printable

log = logging.getLogger("backline.lifecycle")

#: The value of --labels for a file in the first repository.
IN_REPOSITORY: Final = "repository"
_FILE: Final = "labels.json"
#: A hidden folder, so that the scan of a repository does not mistake it for a model.
_FOLDER: Final = ".backline"
#: The number of changes to the labels of each model that are kept for rollbacks.
_MOST_CHANGES: Final = 100
#: The number of times that a change is tried if other servers keep changing the document at the same time.
_ATTEMPTS: Final = 20

_Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)]
_Labels: TypeAlias = dict[str, dict[_Name, _Name]]


@decodable
class _Contents(msgspec.Struct, frozen=True):
    """The document: the versions by model and label, and the latest changes to each model, oldest first."""

    labels: _Labels
    changes: dict[str, list[Change]] = {}
    format: int = 1


_NOTHING = _Contents({})
_decode_contents = msgspec.json.Decoder(_Contents).decode


class LabelStore:
    """The labels of all models, in a document that other servers may share.

    `refresh` and `move` block, and must not run at the same time; the other methods return what was last
    read. A `copy` also stores what was read, so that a server can start while the document cannot be reached.
    """

    def __init__(self, document: LabelDocument, copy: LabelDocument | None = None) -> None:
        """Raises InvalidArgument if the document is damaged, and Unavailable if it cannot be read.

        If there is a copy, no error is raised for a document that cannot be read.
        """
        self._document = document
        self._copy = copy
        self._contents = _NOTHING
        self._revision = ""
        #: The labels at the last `refresh`. The next `refresh` compares its labels with these to find
        #: changes.
        self._told: _Labels = {}
        #: The reason why the document cannot be read at the moment; "" if it can be read.
        self.unreachable = ""
        try:
            self._read()
        except Unavailable as error:
            if copy is None:
                raise
            self._contents = _decode(copy.read().data, copy.where)
            self.unreachable = error.message
        if copy is not None and not self.unreachable and not self._revision:
            # The document does not exist yet: the first of the servers that begin to share labels puts its
            # own labels into it.
            self._restore(_decode(copy.read().data, copy.where))
        self._told = self._contents.labels

    @property
    def where(self) -> str:
        return self._document.where

    @property
    def shared(self) -> bool:
        """Whether other servers may change the labels."""
        return self._copy is not None

    def of(self, model: str) -> Mapping[str, str]:
        """Returns the labels of a model, with the versions that they point to."""
        return self._contents.labels.get(model, {})

    def history(self, model: str) -> Sequence[Change]:
        """Returns the latest changes to a model's labels, by any server, newest first."""
        return self._contents.changes.get(model, [])[::-1]

    def refresh(self) -> frozenset[str]:
        """Reads the document again. Returns the models with a label that another server has changed.

        Raises Unavailable if the document cannot be read, and InvalidArgument if it is damaged. In both
        cases, the labels do not change.
        """
        self._read()
        before, self._told = self._told, self._contents.labels
        now = self._told
        return frozenset(model for model in {*before, *now} if before.get(model) != now.get(model))

    def move(self, change: Change, expected: str) -> None:
        """Stores a change to a label, which must still point to `expected` ("" means that the label must not
        be stored yet).

        The label moves to `change.version`, or is removed if the action is "unlabel". Nothing changes if an
        error is raised: InvalidArgument if another server has moved or removed the label or the document is
        damaged, Internal or Unavailable if the document cannot be read or written.
        """
        for _ in range(_ATTEMPTS):
            now = self.of(change.model).get(change.label, "")
            if now != expected:
                raise InvalidArgument(
                    f"label '{change.label}' of '{change.model}' was"
                    f" {f'moved to version {now}' if now else 'removed'}{self._by(change)} in the meantime;"
                    " nothing was changed"
                )
            contents = _changed(self._contents, change)
            try:
                self._revision = self._document.replace(_encode(contents), self._revision)
            except Replaced:
                self._read()
                continue
            self._contents = contents
            # The next `refresh` must not report this server's own change.
            self._told = _with_label(self._told, change)
            self._keep_copy()
            return
        raise Unavailable(f"other servers keep changing {self.where}; try again", 1)

    def _by(self, change: Change) -> str:
        last = next((one for one in self.history(change.model) if one.label == change.label), None)
        return f" by {last.who}" if last is not None else ""

    def _read(self) -> None:
        try:
            edition = self._document.read()
        except BacklineError as error:
            self.unreachable = error.message
            raise
        self.unreachable = ""
        if edition.revision == self._revision:
            return
        if edition.data is None:  # a Redis without persistence was restarted, which must not move labels
            self._revision = ""
            if self.shared:
                self._restore(self._contents)
            return
        self._contents = _decode(edition.data, self.where)
        self._revision = edition.revision
        self._keep_copy()

    def _restore(self, contents: _Contents) -> None:
        """Writes a document that does not exist or no longer exists, unless another server writes one
        first.
        """
        if not contents.labels:
            return
        try:
            self._revision = self._document.replace(_encode(contents), "")
        except Replaced:
            self._read()
        else:
            self._contents = contents
            log.warning("%s was missing; this server has written its labels there", self.where)

    def _keep_copy(self) -> None:
        if self._copy is None:
            return
        try:
            self._copy.replace(_encode(self._contents), self._copy.read().revision)
        except (BacklineError, Replaced) as error:
            log.warning(
                "the local copy of the labels in %s cannot be written, so this server cannot start while the"
                " original cannot be reached: %s",
                self.where,
                error,
            )


def open_labels(place: str, locations: Sequence[str], state_folder: Path) -> LabelStore:
    """Opens the labels at `place`: "" (the state folder), "repository", a folder, or the URL of a bucket or
    of Redis.

    `locations` are the locations of the repositories. Raises InvalidArgument if labels cannot be stored at
    `place`, or if the stored labels are damaged.
    """
    state = FileDocument(state_folder / _FILE, private=True)
    if not place:
        return LabelStore(state)
    return LabelStore(_open_document(find_place(place, locations)), state)


def find_place(place: str, locations: Sequence[str]) -> str:
    """Returns the folder or URL that `place` means: a folder in the first repository if `place` is
    "repository", and otherwise `place` itself.

    Raises InvalidArgument if labels cannot be stored there.
    """
    found = f"{locations[0].rstrip('/')}/{_FOLDER}" if place == IN_REPOSITORY else place
    scheme, colon, _ = found.partition("://")
    if not colon or _writable(scheme) is not None:
        return found
    if place == IN_REPOSITORY:
        raise InvalidArgument(
            f"labels cannot be kept in the repository '{locations[0]}', which is read-only; use a repository"
            " in a folder or a bucket, or keep the labels elsewhere, for example with --labels"
            " redis://host:6379"
        )
    if scheme.lower() not in SCHEMES:
        writable = (one for plugin in REPOSITORIES.all if plugin.labels for one in plugin.schemes)
        known = ", ".join(f"{one}://" for one in (*writable, *SCHEMES))
        raise InvalidArgument(
            f"labels cannot be kept at '{place}': expected '{IN_REPOSITORY}', a folder, or one of {known}"
        )
    return found


def _open_document(place: str) -> LabelDocument:
    scheme, colon, _ = place.partition("://")
    if not colon:
        return FileDocument(Path(place) / _FILE)
    plugin = _writable(scheme)
    if plugin is None:
        return RedisDocument(place)
    document: LabelDocument = plugin.open_labels(place, _FILE)
    return document


def _writable(scheme: str) -> RepositoryPlugin | None:
    """Returns the plug-in for a scheme if labels can be kept at its locations, otherwise None."""
    plugin = None if scheme.lower() in SCHEMES else find_scheme(scheme.lower())
    return plugin if plugin is not None and plugin.labels else None


def _changed(contents: _Contents, change: Change) -> _Contents:
    changes = [*contents.changes.get(change.model, []), change][-_MOST_CHANGES:]
    return _Contents(_with_label(contents.labels, change), {**contents.changes, change.model: changes})


def _with_label(labels: _Labels, change: Change) -> _Labels:
    own = {name: version for name, version in labels.get(change.model, {}).items() if name != change.label}
    if change.action != "unlabel":
        own[change.label] = change.version
    others = {model: found for model, found in labels.items() if model != change.model}
    return {**others, change.model: own} if own else others


def _encode(contents: _Contents) -> bytes:
    plain = {
        "format": contents.format,
        "labels": contents.labels,
        "changes": {
            model: [
                {name: value for name, value in asdict(change).items() if value != ""} for change in changes
            ]
            for model, changes in contents.changes.items()
        },
    }
    return msgspec.json.format(msgspec.json.encode(plain, order="sorted"), indent=2) + b"\n"


def _check_names(labels: _Labels) -> None:
    """Raises ValueError if a name is invalid. No server stores such a name, but other programs may have
    written the document.
    """
    for model, own in labels.items():
        for name in (model, *own, *own.values()):
            fault = fault_in_name(name)
            if fault:
                raise ValueError(f"the name '{printable(name[:64])}' {fault}")


def _decode(data: bytes | None, where: str) -> _Contents:
    if data is None:
        return _NOTHING
    try:
        found = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        if bytes(found.get("format", b"{")).strip().isdigit():  # otherwise "format" is the name of a model
            contents = _decode_contents(data)
        else:  # only the labels, as written by hand
            contents = _Contents(msgspec.json.decode(data, type=_Labels))
        _check_names(contents.labels)
        return contents
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidArgument(
            f"the labels of models in {where} are damaged: {error}. Repair them, or remove the document to"
            " start with the labels of the configurations"
        ) from None
