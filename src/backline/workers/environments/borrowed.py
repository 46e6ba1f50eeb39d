"""The packages of an environment in the server's own process, for a model that is debugged there."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import distributions

from backline.engine.errors import InvalidArgument
from backline.workers.environments.requirements import OWN_PYTHON
from backline.workers.environments.store import Environment


def borrow(environment: Environment) -> list[str]:
    """Makes the packages of an environment importable that this process does not have, and returns those that it has in another version.

    Raises InvalidArgument where the environment is of another Python.
    """
    folder = environment.packages
    python = folder.parent.name.removeprefix("python")
    if python != OWN_PYTHON:
        raise InvalidArgument(
            f"its environment has Python {python}, and the server Python {OWN_PYTHON}: to debug it, run the server on Python {python},"
            f" or without --debug in a process of its own"
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
