"""Opens the repository at a path or URL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backline.engine.config.model_config import ModelFormat
from backline.repository.configuration import ConfigFiles
from backline.repository.local import LocalRepository
from backline.repository.repository import Repository
from backline_client.values.errors import InvalidArgument
from backline_client.values.spelling import nearest

if TYPE_CHECKING:
    from backline.repository.remote.cache import ContentCache
    from backline.repository.remote.files import RemoteFiles

#: Matches the scheme of a URL. The scheme must have at least two characters, because a single letter is a
#: drive on Windows.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
#: Matches the name in NAME=URL, including the equals sign.
_NAMED = re.compile(r"([\w.+-]+)=(?=[A-Za-z][A-Za-z0-9+.-]+:/|hf:)")
#: "as" is Triton's scheme for Azure Blob Storage.
_OBJECT_STORES = ("s3", "gs", "az", "as")
_ARCHIVES = ("http", "https")
_SCHEMES = (*_OBJECT_STORES, *_ARCHIVES, "hf")
#: The names that other tools use for the supported schemes.
_ALIASES = {
    "gcs": "gs",
    "s3a": "s3",
    "azure": "az",
    "abfs": "az",
    "abfss": "az",
    "wasb": "az",
    "wasbs": "az",
    "huggingface": "hf",
}


def open_repository(
    location: str,
    *,
    formats: Sequence[ModelFormat],
    cache: Path,
    configs: ConfigFiles | None = None,
    name: str = "",
    edited: bool = False,
) -> Repository:
    """Opens the repository at `location`, which is a path, a URL or NAME=URL. Files from a URL are cached
    below `cache`.

    Opening a repository does not scan it. If the location is a single model, `name` or NAME is the name of
    the model; the default is the last part of the location. `edited` says that a user edits the files of a
    local repository. Raises InvalidArgument if the location is not valid, if both `name` and NAME are given,
    or if a package is missing.
    """
    own_name, location = split_name(location)
    if name and own_name:
        raise InvalidArgument(f"'{location}' was given two names, '{own_name}' and '{name}'; leave one out")
    name = name or own_name
    if not location.strip() or "\0" in location:
        raise InvalidArgument(
            f"{location!r} is not a model repository; expected a folder, a model file or a URL such as"
            " s3://bucket/models"
        )
    scheme = _scheme(location)
    if not scheme:
        return LocalRepository(Path(location), formats=formats, configs=configs, name=name, edited=edited)
    # Imported late, because most servers have only local repositories.
    from backline.repository.remote.cache import ContentCache
    from backline.repository.remote.remote import RemoteRepository

    contents = ContentCache(cache)
    files = _remote_files(scheme, location, formats, contents)
    return RemoteRepository(
        files, contents, formats=formats, configs=configs, name=name, nested=scheme in _ARCHIVES
    )


def _remote_files(
    scheme: str, location: str, formats: Sequence[ModelFormat], contents: ContentCache
) -> RemoteFiles:
    if scheme in _OBJECT_STORES:
        from backline.plugins.repositories.object_store.object_files import ObjectFiles

        return ObjectFiles(location)
    if scheme in _ARCHIVES:
        from backline.plugins.repositories.web.archive import web_files

        return web_files(location, formats, contents)
    from backline.plugins.repositories.hugging_face.hub_files import HubFiles

    return HubFiles(location, formats)


def split_name(location: str) -> tuple[str, str]:
    """Returns the name and the URL in NAME=URL. For any other location, including a path that contains `=`,
    returns an empty name and the location.
    """
    found = _NAMED.match(location)
    return (found[1], location[found.end() :]) if found is not None else ("", location)


def _scheme(location: str) -> str:
    """Returns the scheme of a URL in lower case, or "" for a path. Raises InvalidArgument for an unknown
    scheme.
    """
    found = _SCHEME.match(location) or re.match(r"(hf):", location)
    if found is None:
        return ""
    scheme = found[1].lower()
    if scheme in _SCHEMES:
        return scheme
    if scheme == "file":
        raise InvalidArgument(f"model repository '{location}': name the folder without 'file://'")
    near = [_ALIASES[scheme]] if scheme in _ALIASES else nearest(scheme, _SCHEMES, 1, 0.5)
    known = ", ".join(f"{known}://" for known in _SCHEMES)
    hint = f"did you mean '{near[0]}://'?" if near else f"expected a path or one of {known}"
    raise InvalidArgument(f"model repository '{location}' has the unknown scheme '{scheme}://'; {hint}")
