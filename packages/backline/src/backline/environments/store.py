"""The store of built environments on local disk. Models with equal requirements share an environment.

    <digest>/                     an environment; it gets this name once it is complete
    <digest>/backline.json        its source and its contents
    <digest>/used-by/<key>.json   a model that required it; the file's modification time is the last use
    .building-<digest>-<random>/  a build in progress
    locks/                        <digest>.build: held by a build; <digest>.use: shared by servers that use it

Several processes may share a store. An interrupted build is never mistaken for an environment, because a
build's folder gets the environment's name only when the build is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from backline.environments.on_top import LINK, lacking, link, pins, server_packages
from backline.environments.requirements import (
    LOCK,
    OLDEST_PYTHON,
    OWN_PYTHON,
    WORKER_PACKAGES,
    Requirements,
    find_requirements,
    python_choices,
)
from backline.environments.uv import OnBytes, Uv, UvFailed
from backline_client.system.file_lock import Stopped, locked, open_lock, try_lock
from backline_client.system.private_file import replacement
from backline_client.system.user_folders import user_cache
from backline_client.values.decodable import decodable
from backline_client.values.errors import BacklineError, Internal, InvalidArgument, Unavailable

#: Overrides for the environment variables that would make packages of the server or of its user importable in
#: a worker process.
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
        """The environment variables that programs in this environment need. They are added to the server's,
        or replace them.
        """
        path = os.pathsep.join(filter(None, (str(self.python.parent), os.environ.get("PATH", ""))))
        return {**_UNSET, "VIRTUAL_ENV": str(self.folder), "PATH": path}


def borrow(environment: Environment) -> list[str]:
    """Makes the packages of an environment importable in this process; the packages of the process take
    precedence.

    Returns the packages of which this process has a different version than the environment, in the form "name
    1.0 (not 2.0)". Raises InvalidArgument if the environment has another Python version.
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


log = logging.getLogger("backline.environments")

_ABOUT = "backline.json"
_USED_BY = "used-by"
_BUILDING = ".building-"


def default_folder(cache: Path | None = None) -> Path:
    """Returns the folder for environments in `cache`, or in the user's cache folder by default."""
    return (cache or user_cache()) / "environments"


@decodable
class About(msgspec.Struct):
    """A description of an environment: its source file, Python version, packages ("numpy==2.1.3"), build
    time, and size in bytes.
    """

    file: str
    python: str
    packages: list[str]
    built: float
    bytes: int


@decodable
class User(msgspec.Struct):
    """A model that requires an environment: its name, its folders, and the Python version in its
    configuration. With `on_top`, the environment adds to the server's packages.
    """

    model: str
    version_folder: str
    model_folder: str
    python: str = ""
    on_top: bool = False


_decode_about, _decode_user = msgspec.json.Decoder(About).decode, msgspec.json.Decoder(User).decode


@dataclass(frozen=True, slots=True)
class StoredEnvironment:
    """An environment in the store. `users` are the models that require the environment; `last_used` is in
    seconds of time.time(); `in_use` is set if a running server uses the environment.
    """

    digest: str
    about: About
    last_used: float
    users: tuple[User, ...]
    in_use: bool


class Environments:
    """The store in `folder`, which has the layout shown above. The methods block and are thread-safe."""

    def __init__(self, folder: Path) -> None:
        # The path is made absolute, because uv runs in another working directory, where a relative path would
        # name a different folder.
        self.folder = folder.absolute()
        #: File descriptors of shared locks, by digest. The locks prevent the removal of environments that the
        #: worker processes of this server may use.
        self._held: dict[str, int] = {}
        #: Held while a lock is taken, so that two threads do not take the same lock.
        self._holding = threading.Lock()

    def find(self, requirements: Requirements, user: User) -> Environment | None:
        """Returns the environment for these requirements, or None if it has to be built.

        Afterwards, the environment cannot be removed until this process ends, unless the store is read-only
        or its file system has no locks.
        """
        digest = requirements.digest
        environment = Environment(self.folder / digest)
        if not (environment.folder / _ABOUT).exists():
            return None
        self._hold(digest)
        # This second check runs under the lock: the environment or its interpreter may have been removed
        # since the first check.
        if not (environment.folder / _ABOUT).exists() or not environment.python.exists():
            return None
        self._note_use(environment, user)
        return environment

    def _hold(self, digest: str) -> None:
        with self._holding, contextlib.suppress(OSError):  # the store may be read-only for this user
            if digest in self._held:
                return
            descriptor = open_lock(self._lock(digest, "use"))
            try:
                while not try_lock(descriptor, shared=True):
                    time.sleep(0.01)  # another process is removing the environment, which is quick
            except OSError:  # the file system has no locks
                os.close(descriptor)
                raise
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
        """Builds the environment, unless another process has built it in the meantime.

        With `again`, replaces an existing environment. Polls `stop` while waiting for another process to
        build the same environment.

        Raises Internal with the cause if the build fails, and Unavailable if `stop` returns true, the store
        cannot be written, or a running server uses the environment that would be replaced.
        """
        digest = requirements.digest
        what = (
            f"the environment of model '{user.model}' cannot be built"
            f" from {requirements.source} in '{requirements.folder}'"
        )
        try:
            with self._explained(), locked(self._lock(digest, "build"), stop):
                if not again and self.find(requirements, user) is not None:
                    return
                for left in self.folder.glob(f"{_BUILDING}{digest}-*"):
                    shutil.rmtree(left, ignore_errors=True)
                building = Path(tempfile.mkdtemp(prefix=f"{_BUILDING}{digest}-", dir=self.folder))
                try:
                    _install(requirements, building, uv, on_bytes)
                    self._publish(building, digest)
                finally:
                    shutil.rmtree(building, ignore_errors=True)
        except Stopped:
            raise Unavailable(f"{what}: the load was cancelled") from None
        except UvFailed as error:
            for line in error.lines:
                log.warning("uv: %s", line)
            raise Internal(f"{what}: {error}") from None

    def _publish(self, building: Path, digest: str) -> None:
        place = self.folder / digest
        with self._alone(digest) as alone:
            # An environment that lacks its interpreter is replaced even if a server holds it, because no
            # worker can start in it.
            if not alone and (place / _ABOUT).exists() and Environment(place).python.exists():
                raise Unavailable(
                    f"environment {digest} is in use by a running server: stop the server, or try again later"
                )
            shutil.rmtree(place, ignore_errors=True)
            building.rename(place)

    # listing and removal

    def entries(self) -> list[StoredEnvironment]:
        """Returns all environments, most recently used first."""
        found = [self._entry(place.parent) for place in self.folder.glob(f"*/{_ABOUT}")]
        return sorted(found, key=lambda entry: entry.last_used, reverse=True)

    def _entry(self, folder: Path) -> StoredEnvironment:
        about = _decode_about((folder / _ABOUT).read_bytes())
        last_used, users = about.built, []
        for note in sorted((folder / _USED_BY).glob("*.json")):
            user = _decode_user(note.read_bytes())
            last_used = max(last_used, note.stat().st_mtime)
            if _asks_for(user) == folder.name:
                users.append(user)
        with self._alone(folder.name) as alone:
            return StoredEnvironment(folder.name, about, last_used, tuple(users), in_use=not alone)

    def remove(self, digest: str) -> bool:
        """Removes an environment unless a server holds it; returns whether it was removed.

        Raises Unavailable if the store cannot be written.
        """
        with self._explained(), self._alone(digest) as alone:
            if alone:
                shutil.rmtree(self.folder / digest)
            return alone

    def remove_unfinished(self) -> int:
        """Removes the folders that interrupted builds left behind; returns the number of bytes freed."""
        freed = 0
        for left in self.folder.glob(f"{_BUILDING}*"):
            descriptor = open_lock(self._lock(left.name.removeprefix(_BUILDING).partition("-")[0], "build"))
            try:
                if try_lock(descriptor):  # otherwise the build is still in progress
                    freed += _size(left)
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(descriptor)
        return freed

    # locks and errors

    def _lock(self, digest: str, kind: str) -> Path:
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return locks / f"{digest}.{kind}"

    @contextlib.contextmanager
    def _alone(self, digest: str) -> Iterator[bool]:
        """Yields whether no server uses the environment. If True, no server can begin to use it within the
        context.
        """
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
                f"the folder of environments '{self.folder}' cannot be written to: {error.strerror or error};"
                " make room, or choose another folder with --cache-dir"
            ) from None


def unused(
    entries: Iterable[StoredEnvironment], *, now: float, seconds: float | None
) -> list[StoredEnvironment]:
    """Returns the environments that no model requires any more.

    With `seconds`, also returns the environments that have not been used for that long. Never returns an
    environment that a running server uses.
    """
    return [
        entry
        for entry in entries
        if not entry.in_use
        and (not entry.users or (seconds is not None and now - entry.last_used >= seconds))
    ]


def _install(requirements: Requirements, building: Path, uv: Uv, on_bytes: OnBytes) -> None:
    """Builds an environment in the empty folder `building`. Raises UvFailed if the build fails."""
    folder = requirements.folder
    _make(requirements, building, uv)
    environment = Environment(building)
    python = _python_version(building)
    if tuple(map(int, python.split(".")[:2])) < OLDEST_PYTHON:
        raise UvFailed(
            f"it would have Python {python},"
            f" but worker processes need {'.'.join(map(str, OLDEST_PYTHON))} or newer"
        )
    install = ["pip", "install", "--python", str(environment.python), "--compile-bytecode"]
    packages: tuple[str, ...] = WORKER_PACKAGES
    locked_list = ""
    if requirements.on_top:
        locked_list = _additions(requirements, environment, building, uv)
        install += ["--no-deps", "-r", "-"]
        packages = ()
    elif requirements.file == LOCK:
        export = ("export", "--frozen", "--no-emit-project", "--no-dev", "--no-header", "--python")
        locked_list = uv.run(*export, str(environment.python), folder=folder)
        install += ["-r", "-"]
    elif requirements.file:
        install += ["-r", requirements.file]
    uv.run(*install, *packages, folder=folder, given=locked_list, on_bytes=on_bytes)
    about = About(requirements.file, python, _installed(environment), time.time(), _size(building))
    _write(building / _ABOUT, msgspec.json.encode(about))
    building.chmod(0o755)


def _additions(requirements: Requirements, environment: Environment, building: Path, uv: Uv) -> str:
    """Makes the server's packages importable in the environment. Returns the packages that must be installed
    in addition, as a requirements file.
    """
    there = server_packages()
    (environment.packages / LINK).write_text(link(), encoding="utf-8")
    # uv prefers versions that its output file already lists. So it chooses a version other than the server's
    # only if the server's version does not meet the requirements.
    resolved = building / "resolved.txt"
    resolved.write_text(pins(there), encoding="utf-8")
    resolve = ("pip", "compile", requirements.file, "-", "--no-header", "--annotation-style", "line", "-q")
    python = ("--python", str(environment.python))
    given = "".join(f"{package}\n" for package in WORKER_PACKAGES)
    uv.run(*resolve, *python, "-o", str(resolved), folder=requirements.folder, given=given)
    return "".join(f"{line}\n" for line in lacking(resolved.read_text(encoding="utf-8"), there))


def _make(requirements: Requirements, building: Path, uv: Uv) -> None:
    """Creates an environment without packages, with the first permitted Python that uv finds."""
    # The environment is made relocatable, because its folder is renamed once it is complete.
    venv = ("venv", "--relocatable", "--allow-existing", "--no-project", "--python")
    for choice in python_choices(requirements):
        try:
            uv.run(*venv, choice, str(building), folder=requirements.folder)
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
    """Returns the digest of a model's current requirements; empty if the model was removed or requires
    nothing.
    """
    try:
        if not Path(user.model_folder).is_dir():
            return ""
        requirements = find_requirements(
            Path(user.version_folder), Path(user.model_folder), user.python, on_top=user.on_top
        )
    except (BacklineError, OSError):
        return ""
    return requirements.digest if requirements is not None else ""


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(exist_ok=True)
    with replacement(file) as new:
        new.write_bytes(data)
