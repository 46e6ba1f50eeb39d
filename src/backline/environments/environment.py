"""A built environment. A model that is debugged in the server's process can borrow its packages."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from backline.engine.errors import InvalidArgument
from backline.environments.requirements import OWN_PYTHON

#: Overrides for the variables that would make packages of the server or its user visible to a worker.
_UNSET = {"PYTHONPATH": "", "PYTHONHOME": "", "PYTHONNOUSERSITE": "1"}


@dataclass(frozen=True, slots=True)
class Environment:
    """A built environment: a folder with a Python interpreter and packages."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def packages(self) -> Path:
        """The site-packages folder."""
        return next(self.folder.glob("[Ll]ib/python*/site-packages"), self.folder / "Lib" / "site-packages")

    @property
    def variables(self) -> Mapping[str, str]:
        """Environment variables for its programs, in addition to the server's."""
        path = os.pathsep.join(filter(None, (str(self.python.parent), os.environ.get("PATH", ""))))
        return {**_UNSET, "VIRTUAL_ENV": str(self.folder), "PATH": path}


def borrow(environment: Environment) -> list[str]:
    """Makes the packages of an environment importable in this process, whose own packages take precedence.

    Returns the packages that this process has in another version, as "name 1.0 (not 2.0)". Raises
    InvalidArgument if the environment has another Python version.
    """
    import importlib
    from importlib.metadata import distributions

    folder = environment.packages
    python = folder.parent.name.removeprefix("python")
    if python != OWN_PYTHON:
        raise InvalidArgument(
            f"its environment has Python {python}, but the server runs on Python {OWN_PYTHON}: to debug the"
            f" model, run the server on Python {python}; without --debug, the model gets its own process"
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
