"""A built environment; its packages can be borrowed by a model that is debugged in the server's process."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from backline.engine.errors import InvalidArgument
from backline.environments.requirements import OWN_PYTHON

#: Variables by which packages of the server or its user would leak into a worker.
_UNSET = {"PYTHONPATH": "", "PYTHONHOME": "", "PYTHONNOUSERSITE": "1"}


@dataclass(frozen=True, slots=True)
class Environment:
    """A complete environment."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def packages(self) -> Path:
        """The folder of its packages."""
        return next(self.folder.glob("[Ll]ib/python*/site-packages"), self.folder / "Lib" / "site-packages")

    @property
    def variables(self) -> Mapping[str, str]:
        """What its programs get in addition to the server's variables."""
        path = os.pathsep.join(filter(None, (str(self.python.parent), os.environ.get("PATH", ""))))
        return {**_UNSET, "VIRTUAL_ENV": str(self.folder), "PATH": path}


def borrow(environment: Environment) -> list[str]:
    """Makes those packages of an environment importable that this process lacks. Returns those that it has
    in another version.

    Raises InvalidArgument if the environment has another Python version.
    """
    import importlib
    from importlib.metadata import distributions

    folder = environment.packages
    python = folder.parent.name.removeprefix("python")
    if python != OWN_PYTHON:
        raise InvalidArgument(
            f"its environment has Python {python}, and the server Python {OWN_PYTHON}:"
            f" to debug it, run the server on Python {python}, or run the model in its own process,"
            " without --debug"
        )
    here = {
        one.name.lower(): one.version
        for one in distributions(path=[place for place in sys.path if place != str(folder)])
    }
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()
    there = {one.name.lower(): one.version for one in distributions(path=[str(folder)])}
    return [
        f"{name} {here[name]} (not {version})"
        for name, version in sorted(there.items())
        if here.get(name, version) != version
    ]
