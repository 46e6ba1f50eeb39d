"""Opens the repository at a path or URL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from backline.engine.config.model_config import ModelFormat
from backline.engine.errors import InvalidArgument
from backline.engine.spelling import nearest
from backline.repository.configuration import ConfigFiles
from backline.repository.local import LocalRepository
from backline.repository.repository import Repository

#: The scheme of a URL. It has at least two letters, as one letter is a drive of Windows.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
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
) -> Repository:
    """The repository at `location`, a path or a URL. Files of a URL are cached below `cache`.

    Opening a repository does not scan it. If the path is a single model, `name` replaces the last part of the
    path as its name. Raises InvalidArgument if the location is neither a path nor a supported URL.
    """
    if not location.strip() or "\0" in location:
        raise InvalidArgument(
            f"{location!r} is not a model repository; expected a folder, a model file or a URL such as"
            " s3://bucket/models"
        )
    scheme = _scheme(location)
    if not scheme:
        return LocalRepository(Path(location), formats=formats, configs=configs, name=name)
    if name:
        raise InvalidArgument(f"a name ('{name}') can be given only to a model at a path, not to {location}")
    if scheme in _OBJECT_STORES:
        from backline.repository.remote.object_store import ObjectStoreRepository

        return ObjectStoreRepository(location=location, formats=formats, cache=cache, configs=configs)
    if scheme in _ARCHIVES:
        from backline.repository.remote.archive import ArchiveRepository

        return ArchiveRepository(location=location, formats=formats, cache=cache, configs=configs)
    from backline.repository.remote.hugging_face import HuggingFaceRepository

    return HuggingFaceRepository(location=location, formats=formats, cache=cache, configs=configs)


def _scheme(location: str) -> str:
    """The scheme of a URL in lower case, "" for a path. Raises InvalidArgument for an unknown scheme."""
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
