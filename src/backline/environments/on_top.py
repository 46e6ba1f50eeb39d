"""Environments on top of the server's packages, to which they only add what the server lacks.

TorchServe installs a model's requirements next to the packages that it runs on, so few handlers list torch.
"""

from __future__ import annotations

import re
import site
from collections.abc import Container, Mapping
from functools import cache
from pathlib import Path

#: The file in an environment's site-packages that makes the server's packages importable after its own.
LINK = "_backline_server.pth"
#: A line of `uv pip compile --annotation-style line`: name, extras, version, and what requires the package.
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
    """Returns the contents of LINK, which adds the server's folders as sites, so their .pth files work."""
    return "".join(f"import site; site.addsitedir({folder!r})\n" for folder in _folders())


def lacking(compiled: str, there: Mapping[str, str]) -> list[str]:
    """Returns the lines of uv's resolution to install: those that `there` lacks, or has in another version.

    Leaves out packages that only packages in `there` require, since the latter evidently run without them.
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
    if by.startswith("-c"):  # a constraint only chooses the version
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
