"""Opens the repository at a path or URL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from backline.engine.config.model_config import ModelFormat
from backline.repository.configuration import ConfigFiles
from backline.repository.local import LocalRepository
from backline.repository.plugin import REPOSITORIES, RepositoryPlugin, find_scheme
from backline.repository.repository import Repository
from backline_client.values.errors import InvalidArgument
from backline_client.values.spelling import nearest

#: Matches the scheme of a URL, and the first slash. The scheme must have at least two characters, because a
#: single letter is a drive on Windows.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/?)")
#: Matches the name in NAME=URL, including the equals sign.
_NAMED = re.compile(r"([\w.+-]+)=")


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
    plugin = plugin_of(location)
    if plugin is None:
        return LocalRepository(Path(location), formats=formats, configs=configs, name=name, edited=edited)
    # Imported late, because most servers have only local repositories.
    from backline.repository.remote.cache import ContentCache
    from backline.repository.remote.remote import RemoteRepository

    contents = ContentCache(cache)
    files = plugin.open(location, formats, contents)
    return RemoteRepository(
        files, contents, formats=formats, configs=configs, name=name, nested=plugin.nested
    )


def split_name(location: str) -> tuple[str, str]:
    """Returns the name and the URL in NAME=URL. For any other location, including a path that contains `=`,
    returns an empty name and the location.
    """
    found = _NAMED.match(location)
    if found is None or not _scheme(location[found.end() :]):
        return "", location
    return found[1], location[found.end() :]


def plugin_of(location: str) -> RepositoryPlugin | None:
    """Returns the plug-in that opens a location, which has no name in front of it; None for a path.

    Raises InvalidArgument for a URL with an unknown scheme.
    """
    scheme = _scheme(location)
    if not scheme:
        return None
    if (plugin := find_scheme(scheme)) is not None:
        return plugin
    if scheme == "file":
        raise InvalidArgument(f"model repository '{location}': name the folder without 'file://'")
    schemes = [scheme for plugin in REPOSITORIES.all for scheme in plugin.schemes]
    aliases = {name: scheme for plugin in REPOSITORIES.all for name, scheme in plugin.aliases.items()}
    near = [aliases[scheme]] if scheme in aliases else nearest(scheme, schemes, 1, 0.5)
    known = ", ".join(f"{known}://" for known in schemes)
    hint = f"did you mean '{near[0]}://'?" if near else f"expected a path or one of {known}"
    raise InvalidArgument(f"model repository '{location}' has the unknown scheme '{scheme}://'; {hint}")


def _scheme(location: str) -> str:
    """Returns the scheme of a URL in lower case, or "" for a path."""
    found = _SCHEME.match(location)
    if found is None:
        return ""
    scheme = found[1].lower()
    if found[2]:
        return scheme
    plugin = find_scheme(scheme)
    return scheme if plugin is not None and plugin.slashless else ""
