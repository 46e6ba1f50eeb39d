"""Environments on top of the server's packages: they contain only the packages that the server lacks or has
in an unsuitable version.

Such environments are for TorchServe's handlers. TorchServe installs a model's requirements next to its own
packages, so few handlers list torch among their requirements.
"""

from __future__ import annotations

import re
import site
from collections.abc import Container, Mapping
from functools import cache
from pathlib import Path

#: The name of a file in an environment's site-packages. It makes the server's packages importable, but the
#: environment's own packages take precedence.
LINK = "_backline_server.pth"
#: Matches a line in the output of `uv pip compile --annotation-style line`: a package's name, extras and
#: version, and the packages that require it.
_PINNED = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*])?==(\S+)(?:\s.*?)?(?:\s+# via (.*))?")


@cache
def server_packages() -> Mapping[str, str]:
    """Returns the versions of the server's packages, by normalised name, without local labels."""
    from importlib.metadata import distributions  # slow to import

    found: dict[str, str] = {}
    for one in distributions(path=_folders()):
        if one.name:
            found.setdefault(_normal(one.name), one.version.partition("+")[0])
    return found


def pins(packages: Mapping[str, str]) -> str:
    """Formats packages as a requirements file that pins their versions."""
    return "".join(f"{name}=={version}\n" for name, version in sorted(packages.items()))


def link() -> str:
    """Returns the contents of LINK. They add the server's folders as site directories, so that the .pth files
    in those folders are processed.
    """
    return "".join(f"import site; site.addsitedir({folder!r})\n" for folder in _folders())


def lacking(compiled: str, there: Mapping[str, str]) -> list[str]:
    """Returns the lines of uv's resolution that must be installed: all files, folders and URLs, and the
    packages that `there` lacks or has in another version.

    Leaves out packages that are required only by packages that `there` has in the right version. The server
    has those packages, so they evidently run without these requirements.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    others = []
    for line in compiled.splitlines():
        pinned = _PINNED.fullmatch(line.strip())
        if pinned is not None:
            needed_by = [one.strip() for one in (pinned[3] or "").split(",") if one.strip()]
            found[_normal(pinned[1])] = (line.partition(" #")[0].strip(), needed_by)
        elif line.strip() and not line.lstrip().startswith("#"):
            others.append(line.partition(" #")[0].strip())  # a file, folder or URL
    satisfied = {
        name for name, (line, _) in found.items() if there.get(name) == line.partition("==")[2].split()[0]
    }
    missing: dict[str, str] = {}
    while more := {
        name: line
        for name, (line, needed_by) in found.items()
        if name not in missing
        and name not in satisfied
        and any(_asks(one, found.keys(), missing.keys()) for one in needed_by)
    }:
        missing |= more
    return [*others, *missing.values()]


def _asks(by: str, found: Container[str], missing: Container[str]) -> bool:
    """Returns whether a requirement comes from the user's file, or from a package that must be installed."""
    if by.startswith("-c"):  # a constraint only limits the version
        return False
    return by.startswith("-") or _normal(by) not in found or _normal(by) in missing


def _folders() -> list[str]:
    """Returns the folders from which the server imports installed packages."""
    folders = list(site.getsitepackages())
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return [folder for folder in folders if Path(folder).is_dir()]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.partition("[")[0]).lower()
