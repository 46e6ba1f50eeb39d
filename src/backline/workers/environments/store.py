"""The environments that have been built, on local disk, shared by whoever asks for the same.

    <digest>/                     an environment, complete before it appears under this name
    <digest>/backline.json        what it was built from, and what is in it
    <digest>/used-by/<key>.json   the folders of a model that asked for it; the time of the file is that of the last use
    .building-<digest>-<random>/  what is being built
    locks/                        <digest>.build: who builds it, <digest>.use: the servers that have workers in it

Several processes may share one store. A build that was interrupted leaves nothing that is taken for an environment.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from backline.engine.errors import BacklineError, Internal, Unavailable
from backline.repository.file_lock import Stopped, locked, open_lock, try_lock
from backline.user_folders import user_cache
from backline.workers.environments.requirements import (
    LOCK,
    OLDEST_PYTHON,
    WORKER_PACKAGES,
    Requirements,
    find_requirements,
    python_choices,
)
from backline.workers.environments.uv import OnBytes, Uv, UvFailed

log = logging.getLogger("backline.environments")

_ABOUT = "backline.json"
_USED_BY = "used-by"
_BUILDING = ".building-"
#: Variables of the server that would bring its own packages, or its user's, into a worker.
_UNSET = {"PYTHONPATH": "", "PYTHONHOME": "", "PYTHONNOUSERSITE": "1"}


def default_folder(cache: Path | None = None) -> Path:
    """Where environments are kept in a cache folder, or in the user's."""
    return (cache or user_cache()) / "environments"


class About(msgspec.Struct):
    """What an environment is: the file it was built from, its Python, its packages ("numpy==2.1.3"), when it was built, its bytes."""

    file: str
    python: str
    packages: list[str]
    built: float
    bytes: int


class User(msgspec.Struct):
    """A model that asks for an environment: its name, its folders, and the Python that its configuration names."""

    model: str
    version_folder: str
    model_folder: str
    python: str = ""


@dataclass(frozen=True, slots=True)
class Environment:
    """A complete environment."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def packages(self) -> Path:
        """Where its packages lie."""
        return next(self.folder.glob("[Ll]ib/python*/site-packages"), self.folder / "Lib" / "site-packages")

    @property
    def variables(self) -> Mapping[str, str]:
        """What its programs get on top of the server's own variables."""
        path = os.pathsep.join(filter(None, (str(self.python.parent), os.environ.get("PATH", ""))))
        return {**_UNSET, "VIRTUAL_ENV": str(self.folder), "PATH": path}


@dataclass(frozen=True, slots=True)
class Entry:
    """An environment as the store knows it. `users` are the models that would get it today, `in_use` says that a server has it."""

    digest: str
    about: About
    last_used: float
    users: tuple[User, ...]
    in_use: bool


class Environments:
    """The store described above. The methods block; all may be called on several threads. OSErrors come out as BacklineError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: By digest, the locks that keep environments from being removed while this process has workers in them.
        self._held: dict[str, int] = {}

    def find(self, requirements: Requirements, user: User) -> Environment | None:
        """The environment for these requirements, which is kept as long as this process lives; None when it has to be built."""
        digest = requirements.digest
        environment = Environment(self.folder / digest)
        if not (environment.folder / _ABOUT).exists():
            return None
        self._hold(digest)
        if (
            not (environment.folder / _ABOUT).exists() or not environment.python.exists()
        ):  # its interpreter may have been removed
            return None
        self._note_use(environment, user)
        return environment

    def _hold(self, digest: str) -> None:
        if digest in self._held:
            return
        with contextlib.suppress(
            OSError
        ):  # a store that others have filled, and that this user may only read
            descriptor = open_lock(self._lock(digest, "use"))
            while not try_lock(descriptor, shared=True):
                time.sleep(0.01)  # it is being removed, which does not take long
            self._held[digest] = descriptor

    def _note_use(self, environment: Environment, user: User) -> None:
        key = hashlib.sha256(
            f"{user.model}\0{user.version_folder}\0{user.model_folder}".encode()
        ).hexdigest()[:16]
        with contextlib.suppress(OSError):
            _write(environment.folder / _USED_BY / f"{key}.json", msgspec.json.encode(user))

    def build(
        self,
        requirements: Requirements,
        uv: Uv,
        user: User,
        *,
        on_bytes: OnBytes,
        stop: Callable[[], bool],
        again: bool = False,
    ) -> None:
        """Makes what `find` then finds, unless another one does so meanwhile; `again` replaces one that is there.

        Raises Internal with the cause when it cannot be built.
        """
        digest = requirements.digest
        what = f"the environment of model '{user.model}' cannot be built from {requirements.source} in '{requirements.folder}'"
        try:
            with self._explained(), locked(self._lock(digest, "build"), stop):
                if not again and self.find(requirements, user) is not None:
                    return
                self._remove_leftovers(digest)
                building = Path(tempfile.mkdtemp(prefix=f"{_BUILDING}{digest}-", dir=self.folder))
                try:
                    _install(requirements, building, uv, on_bytes)
                    self._publish(building, digest)
                finally:
                    shutil.rmtree(building, ignore_errors=True)
        except Stopped:
            raise Unavailable(f"{what}: it was cancelled") from None
        except UvFailed as error:
            for line in error.lines:
                log.warning("uv: %s", line)
            raise Internal(f"{what}: {error}") from None

    def _publish(self, building: Path, digest: str) -> None:
        place = self.folder / digest
        with self._alone(digest) as alone:
            if (
                place.exists()
                and (place / _ABOUT).exists()
                and not alone
                and Environment(place).python.exists()
            ):
                raise Unavailable(
                    f"environment {digest} is in use by a server that runs: stop it, or build it again later"
                )
            shutil.rmtree(place, ignore_errors=True)
            building.rename(place)

    def _remove_leftovers(self, digest: str) -> None:
        for left in self.folder.glob(f"{_BUILDING}{digest}-*"):
            shutil.rmtree(left, ignore_errors=True)

    # what there is

    def entries(self) -> list[Entry]:
        """All environments, those used last first."""
        found = [self._entry(place.parent) for place in self.folder.glob(f"*/{_ABOUT}")]
        return sorted(found, key=lambda entry: entry.last_used, reverse=True)

    def _entry(self, folder: Path) -> Entry:
        about = msgspec.json.decode((folder / _ABOUT).read_bytes(), type=About)
        last_used, users = about.built, []
        for note in sorted((folder / _USED_BY).glob("*.json")):
            user = msgspec.json.decode(note.read_bytes(), type=User)
            last_used = max(last_used, note.stat().st_mtime)
            if _asks_for(user) == folder.name:
                users.append(user)
        with self._alone(folder.name) as alone:
            return Entry(folder.name, about, last_used, tuple(users), in_use=not alone)

    def remove(self, digest: str) -> bool:
        """Removes an environment, unless a server has it."""
        with self._explained(), self._alone(digest) as alone:
            if alone:
                shutil.rmtree(self.folder / digest)
            return alone

    def remove_unfinished(self) -> int:
        """Removes what interrupted builds have left; returns the bytes that are free now."""
        freed = 0
        for left in self.folder.glob(f"{_BUILDING}*"):
            descriptor = open_lock(self._lock(left.name.removeprefix(_BUILDING).partition("-")[0], "build"))
            try:
                if try_lock(descriptor):
                    freed += _size(left)
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(descriptor)
        return freed

    # locks and the disk

    def _lock(self, digest: str, kind: str) -> Path:
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return locks / f"{digest}.{kind}"

    @contextlib.contextmanager
    def _alone(self, digest: str) -> Iterator[bool]:
        """Whether no server has the environment; none begins to have it meanwhile."""
        descriptor = open_lock(self._lock(digest, "use"))
        try:
            yield digest not in self._held and try_lock(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise Unavailable(
                f"the folder of environments '{self.folder}' cannot be written: {error.strerror or error};"
                " make room, or choose another one with --cache-dir"
            ) from None


def _install(requirements: Requirements, building: Path, uv: Uv, on_bytes: OnBytes) -> None:
    """Builds the environment in an empty folder. Raises UvFailed."""
    folder = requirements.folder
    _make(requirements, building, uv)
    environment = Environment(building)
    python = _python_version(building)
    if tuple(map(int, python.split(".")[:2])) < OLDEST_PYTHON:
        raise UvFailed(
            f"it would have Python {python}, but worker processes need {'.'.join(map(str, OLDEST_PYTHON))} or newer"
        )
    install = ["pip", "install", "--python", str(environment.python), "--compile-bytecode"]
    locked_list = ""
    if requirements.file == LOCK:
        export = (
            "export",
            "--frozen",
            "--no-emit-project",
            "--no-dev",
            "--no-header",
            "--python",
            str(environment.python),
        )
        locked_list = uv.run(*export, folder=folder)
        install += ["-r", "-"]
    elif requirements.file:
        install += ["-r", requirements.file]
    uv.run(*install, *WORKER_PACKAGES, folder=folder, given=locked_list, on_bytes=on_bytes)
    about = About(requirements.file, python, _installed(environment), time.time(), _size(building))
    _write(building / _ABOUT, msgspec.json.encode(about))
    building.chmod(0o755)


def _make(requirements: Requirements, building: Path, uv: Uv) -> None:
    """An environment without packages, with the first Python of the choices that is installed."""
    for choice in python_choices(requirements):
        try:
            # Relocatable, as it is renamed when it is complete.
            uv.run(
                "venv",
                "--relocatable",
                "--allow-existing",
                "--no-project",
                "--python",
                choice,
                str(building),
                folder=requirements.folder,
            )
        except UvFailed as error:
            failed = error
        else:
            return
    raise failed


def _python_version(folder: Path) -> str:
    lines = (folder / "pyvenv.cfg").read_text().splitlines()
    return next(
        value.strip()
        for key, _, value in (line.partition("=") for line in lines)
        if key.strip() == "version_info"
    )


def _installed(environment: Environment) -> list[str]:
    names = (path.name.removesuffix(".dist-info") for path in environment.packages.glob("*.dist-info"))
    return sorted(name.replace("-", "==", 1) for name in names)


def _asks_for(user: User) -> str:
    """The digest of what a model asks for today; empty where it is gone, or asks for nothing."""
    try:
        if not Path(user.model_folder).is_dir():
            return ""
        requirements = find_requirements(Path(user.version_folder), Path(user.model_folder), user.python)
    except (BacklineError, OSError):
        return ""
    return requirements.digest if requirements is not None else ""


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))


def _write(file: Path, data: bytes) -> None:
    """The data under this name, at once or not at all."""
    file.parent.mkdir(exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(data)
    os.replace(name, file)
