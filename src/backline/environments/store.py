"""The store of built environments on local disk, shared by all models with equal requirements.

    <digest>/                     an environment, complete before it gets this name
    <digest>/backline.json        its source and its contents
    <digest>/used-by/<key>.json   the folders of a model that required it; the file's time is its last use
    .building-<digest>-<random>/  a build in progress
    locks/                        <digest>.build: held by a build; <digest>.use: shared by servers that use it

Several processes may share one store. An interrupted build is never mistaken for an environment, because a
build gets its final name only once it is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from backline.engine.errors import BacklineError, Internal, Unavailable
from backline.environments.environment import Environment
from backline.environments.on_top import LINK, lacking, link, pins, server_packages
from backline.environments.requirements import (
    LOCK,
    OLDEST_PYTHON,
    WORKER_PACKAGES,
    Requirements,
    find_requirements,
    python_choices,
)
from backline.environments.uv import OnBytes, Uv, UvFailed
from backline.system.file_lock import Stopped, locked, open_lock, try_lock
from backline.system.user_folders import user_cache

log = logging.getLogger("backline.environments")

_ABOUT = "backline.json"
_USED_BY = "used-by"
_BUILDING = ".building-"


def default_folder(cache: Path | None = None) -> Path:
    """Returns the folder of environments in a cache folder, which is by default the user's."""
    return (cache or user_cache()) / "environments"


class About(msgspec.Struct):
    """An environment's source file, Python version, packages ("numpy==2.1.3"), build time, and size in
    bytes.
    """

    file: str
    python: str
    packages: list[str]
    built: float
    bytes: int


class User(msgspec.Struct):
    """A model that requires an environment: its name, its folders, and the Python version in its
    configuration. With `on_top`, the environment adds to the server's packages.
    """

    model: str
    version_folder: str
    model_folder: str
    python: str = ""
    on_top: bool = False


#: Made before any thread needs them: msgspec can crash when two threads are the first to decode a type.
_decode_about, _decode_user = msgspec.json.Decoder(About).decode, msgspec.json.Decoder(User).decode


@dataclass(frozen=True, slots=True)
class StoredEnvironment:
    """An entry of the store. `users` are the models that require it; it is `in_use` if a server holds it."""

    digest: str
    about: About
    last_used: float
    users: tuple[User, ...]
    in_use: bool


class Environments:
    """The store in `folder`, which has the layout above. Methods block and are thread-safe."""

    def __init__(self, folder: Path) -> None:
        # Absolute, because uv runs in another folder, where a relative path would name a different place.
        self.folder = folder.absolute()
        #: Descriptors of shared locks, by digest: they prevent the removal of environments that workers of
        #: this process may use.
        self._held: dict[str, int] = {}

    def find(self, requirements: Requirements, user: User) -> Environment | None:
        """Returns the environment for these requirements, or None if it has to be built.

        The environment cannot be removed until this process ends.
        """
        digest = requirements.digest
        environment = Environment(self.folder / digest)
        if not (environment.folder / _ABOUT).exists():
            return None
        self._hold(digest)
        # Checked again under the lock: the environment or its interpreter may have been removed in between.
        if not (environment.folder / _ABOUT).exists() or not environment.python.exists():
            return None
        self._note_use(environment, user)
        return environment

    def _hold(self, digest: str) -> None:
        if digest in self._held:
            return
        with contextlib.suppress(OSError):  # the store may be read-only for this user
            descriptor = open_lock(self._lock(digest, "use"))
            while not try_lock(descriptor, shared=True):
                time.sleep(0.01)  # another process is removing it, which is quick
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

        With `again`, an existing environment is replaced. `stop` is polled while waiting for another build.

        Raises Internal with the cause if the build fails, and Unavailable if `stop` returns true or the
        store cannot be written.
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
            raise Unavailable(f"{what}: it was cancelled") from None
        except UvFailed as error:
            for line in error.lines:
                log.warning("uv: %s", line)
            raise Internal(f"{what}: {error}") from None

    def _publish(self, building: Path, digest: str) -> None:
        place = self.folder / digest
        with self._alone(digest) as alone:
            if not alone and (place / _ABOUT).exists() and Environment(place).python.exists():
                raise Unavailable(
                    f"environment {digest} is in use by a running server: stop it, or build it again later"
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
        """Removes what interrupted builds left behind; returns the number of bytes freed."""
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

    # locks and errors

    def _lock(self, digest: str, kind: str) -> Path:
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return locks / f"{digest}.{kind}"

    @contextlib.contextmanager
    def _alone(self, digest: str) -> Iterator[bool]:
        """Yields whether no server holds the environment; if so, none can hold it within the context."""
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


def unused(
    entries: Iterable[StoredEnvironment], *, now: float, seconds: float | None
) -> list[StoredEnvironment]:
    """Returns the environments that no model requires any more.

    With `seconds`, also returns those that were not used for that long; never those held by a server.
    """
    return [
        entry
        for entry in entries
        if not entry.in_use
        and (not entry.users or (seconds is not None and now - entry.last_used >= seconds))
    ]


def _install(requirements: Requirements, building: Path, uv: Uv, on_bytes: OnBytes) -> None:
    """Builds an environment in the empty folder `building`. Raises UvFailed."""
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
    """Links the environment to the server's packages; returns the others as a requirements file."""
    there = server_packages()
    (environment.packages / LINK).write_text(link(), encoding="utf-8")
    # uv prefers the versions in its output file, so other versions appear only if the server's do not fit.
    resolved = building / "resolved.txt"
    resolved.write_text(pins(there), encoding="utf-8")
    resolve = ("pip", "compile", requirements.file, "-", "--no-header", "--annotation-style", "line", "-q")
    python = ("--python", str(environment.python))
    given = "".join(f"{package}\n" for package in WORKER_PACKAGES)
    uv.run(*resolve, *python, "-o", str(resolved), folder=requirements.folder, given=given)
    return "".join(f"{line}\n" for line in lacking(resolved.read_text(encoding="utf-8"), there))


def _make(requirements: Requirements, building: Path, uv: Uv) -> None:
    """Creates an environment without packages, for the first allowed Python that is installed."""
    # Relocatable, because the environment is renamed once it is complete.
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
    """Returns the digest of a model's current requirements; empty if the model is gone or has none."""
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
    """Writes a file atomically."""
    file.parent.mkdir(exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(data)
    os.replace(name, file)
