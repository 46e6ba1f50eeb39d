"""The packages and the Python version that a model's files require."""

from __future__ import annotations

import hashlib
import re
import sys
import sysconfig
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backline.engine.document_limits import check_toml
from backline.environments.on_top import link, pins, server_packages
from backline_client.values.errors import InvalidArgument
from backline_client.values.names import PYTHON_VERSION

#: The files that list required packages. If a folder has several of them, the first in this order is used.
LOCK, PROJECT, LIST = "uv.lock", "pyproject.toml", "requirements.txt"
#: The packages that every worker process needs; a model's requirements may narrow the range of their
#: versions.
WORKER_PACKAGES = ("numpy>=1.24", "msgspec>=0.19")
#: The oldest version of Python that a worker process can run on.
OLDEST_PYTHON = (3, 11)
OWN_PYTHON = "{}.{}".format(*sys.version_info)
_OWN_VERSIONS = (OWN_PYTHON, "{}.{}.{}".format(*sys.version_info))
#: Part of the digest; increment it when environments are built in a different way.
_FORM = 1
_PLATFORM = sysconfig.get_platform()
#: Matches a Python version as written in a configuration or a .python-version file.
PYTHON = re.compile(r"(cpython[-@]?)?3(\.[0-9]{1,3}){0,2}")
_NAMES_A_FILE = ("-r", "--requirement", "--requirements", "-c", "--constraint", "--constraints")


@dataclass(frozen=True, slots=True)
class Requirements:
    """The requirements from which one environment is built.

    `file` in `folder` is a uv.lock, pyproject.toml or requirements.txt; `file` is empty if only a Python
    version is required. `python` is the required version ("3.13"); if it is empty, `requires_python` is the
    range that the project allows (">=3.12"). The server's Python version is used if both are empty, or if the
    range includes that version. Requirements with the same file contents, Python version and platform have
    the same `digest`. `ignored` are the files that `file` takes precedence over. With `on_top`, the
    environment only adds to the server's packages, and the digest also covers the versions of the server's
    packages.
    """

    folder: Path
    file: str
    python: str
    requires_python: str
    digest: str
    ignored: tuple[str, ...] = ()
    on_top: bool = False

    @property
    def source(self) -> str:
        """The description of the requirements in messages: "requirements.txt", "Python 3.13", or both."""
        asked = f"Python {self.python}" if self.python else ""
        return " and ".join(filter(None, (self.file, asked)))


def find_requirements(
    version_folder: Path, model_folder: Path, python: str = "", *, on_top: bool = False
) -> Requirements | None:
    """Returns the requirements of the model in these folders, or None if it has none.

    Files in the version's folder take precedence. `python` is the Python version in the model's
    configuration. With `on_top`, a requirements.txt only adds to the server's packages, unless the model
    needs a Python version other than the server's. Raises InvalidArgument if a file cannot be read or is not
    valid.
    """
    places = list(dict.fromkeys((version_folder, model_folder)))
    folder, files = next(((place, files) for place in places if (files := _files(place))), (places[0], []))
    python = python or next((found for place in places if (found := _pinned_python(place))), "")
    if not files and not python:
        return None
    file, *ignored = files or [""]
    requires = ""
    if not python and file in (LOCK, PROJECT):
        requires = str(_project(folder / PROJECT).get("requires-python", ""))
    digest = hashlib.sha256()
    for part in (str(_FORM), _PLATFORM, python or f"{requires} {OWN_PYTHON}", *WORKER_PACKAGES, file):
        digest.update(part.encode() + b"\0")
    on_top = on_top and file == LIST and python in ("", *_OWN_VERSIONS)
    if on_top:
        digest.update(pins(server_packages()).encode() + link().encode())
    for read in dict.fromkeys(_read_files(folder, file)):
        digest.update(hashlib.sha256(_bytes(read)).digest())
    return Requirements(folder, file, python, requires, digest.hexdigest()[:20], tuple(ignored), on_top)


def _files(folder: Path) -> list[str]:
    """Returns the names of the files in a folder that list required packages; the first takes precedence."""
    project = (folder / PROJECT).is_file() and bool(_project(folder / PROJECT))
    there = {LOCK: project and (folder / LOCK).is_file(), PROJECT: project, LIST: (folder / LIST).is_file()}
    found = [name for name, is_there in there.items() if is_there]
    return [name for name in found if name != PROJECT] if there[LOCK] else found


def _pinned_python(folder: Path) -> str:
    file = folder / PYTHON_VERSION
    if not file.is_file():
        return ""
    lines = (line.strip() for line in _text(file).splitlines())
    version = next((line for line in lines if line and not line.startswith("#")), "")
    # Security: only a version is accepted. If the file named a path, uv would run the program at that path as
    # an interpreter.
    if version and not PYTHON.fullmatch(version):
        raise InvalidArgument(
            f"'{file}' contains {version[:32]!r}, expected a version of Python such as 3.13"
        )
    return version


def _project(file: Path) -> dict[str, Any]:
    """Returns the [project] table of a pyproject.toml; empty if the file only configures tools."""
    text = _text(file)
    check_toml(text, f"'{file}'")
    try:
        project = tomllib.loads(text).get("project", {})
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidArgument(f"'{file}' is not valid TOML: {error}") from None
    return project if isinstance(project, dict) else {}


def _read_files(folder: Path, file: str) -> Iterator[Path]:
    """Yields the files whose contents determine the environment."""
    if file == LIST:
        yield from _read_list(folder / file, seen=set())
    elif file:
        yield folder / PROJECT
        if file == LOCK:
            yield folder / LOCK


def _read_list(file: Path, *, seen: set[Path]) -> Iterator[Path]:
    """Yields a requirements file, the other files and wheels that it names, and the files in the source
    folders that it names.
    """
    seen.add(file)
    yield file
    for line in _text(file).splitlines():
        words = line.split(" #", 1)[0].split()
        if line.lstrip().startswith("-"):
            words = line.split("#", 1)[0].replace("=", " ").split()
        for named in (
            file.parent / word.removeprefix("file:") for word in words if "/" in word or "." in word
        ):
            if named in seen or not _exists(named):
                continue
            if named.is_dir():
                yield from (
                    path
                    for path in sorted(named.rglob("*"))
                    if path.is_file() and "__pycache__" not in path.parts
                )
            elif words[0] in _NAMES_A_FILE:
                yield from _read_list(named, seen=seen)
            else:
                yield named


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _text(file: Path) -> str:
    return _bytes(file).decode("utf-8", "replace")


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"'{file}' cannot be read: {error.strerror or error}") from None


def python_choices(requirements: Requirements) -> Sequence[str]:
    """Returns the values of uv's option --python to try, in this order. A value is an interpreter, a version,
    or a range of versions.
    """
    if requirements.requires_python:
        return (f"{requirements.requires_python},=={OWN_PYTHON}.*", requirements.requires_python)
    wanted = requirements.python
    if not wanted or wanted in _OWN_VERSIONS:
        return (sys.executable,)
    return (wanted, *_of_pyenv(wanted))


def _of_pyenv(version: str) -> list[str]:
    """Returns the interpreters of this version that pyenv has installed; PATH need not contain them."""
    found = (Path.home() / ".pyenv" / "versions").glob(f"{version}*/bin/python3")
    return [
        str(path)
        for path in sorted(found)
        if path.parent.parent.name == version or path.parent.parent.name.startswith(version + ".")
    ]
