"""Environments that are shipped with a model, as for Triton's Python backend. An environment is a folder, or
an archive made by conda-pack or venv-pack.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from backline.system.archive_limits import UnpackLimits
from backline_client.system.private_file import new_folder, without_keys
from backline_client.values.errors import InvalidArgument, Unavailable
from backline_client.values.names import printable

#: The configuration parameter that holds the path of the environment. The path may begin with
#: $$TRITON_MODEL_DIRECTORY.
PARAMETER: Final = "EXECUTION_ENV_PATH"
_MODEL_FOLDER: Final = "$$TRITON_MODEL_DIRECTORY"
#: The limits for unpacking an archive. For comparison, an environment with CUDA has about 60,000 files.
_LIMITS: Final = UnpackLimits(files=500_000)
_ASK: Final = (
    "import sys, importlib.util as u\n"
    "print('.'.join(map(str, sys.version_info[:2])), *(name for name in ('numpy', 'msgspec') if"
    " u.find_spec(name) is None))"
)


@dataclass(frozen=True, slots=True)
class PackedEnvironment:
    """An environment in `folder`: its interpreter, and the environment variables that a worker process in it
    needs.
    """

    folder: Path
    python: Path
    variables: Mapping[str, str]


def packed_environment(given: str, model_folder: Path, cache: Path) -> PackedEnvironment:
    """Returns the environment at a path.

    The path may begin with $$TRITON_MODEL_DIRECTORY or be relative to the model's folder.

    An archive is unpacked in `cache`; archives with the same contents are unpacked only once. This function
    runs code from the environment; that code is trusted as much as the model's code. Raises InvalidArgument
    if there is no environment at the path, if its Python does not run or lacks packages that a worker needs,
    or if an archive is invalid, and Unavailable if an archive cannot be unpacked for another reason.
    """
    path = model_folder / given.replace(_MODEL_FOLDER, str(model_folder))
    if not path.exists():
        raise InvalidArgument(
            f"{PARAMETER}: '{path}' does not exist; give a folder or archive, such as"
            f" {_MODEL_FOLDER}/environment.tar.gz"
        )
    folder = path if path.is_dir() else _unpacked(path, cache)
    python = next(
        (found for name in ("python", "python3") if (found := folder / "bin" / name).exists()), None
    )
    if python is None:
        raise InvalidArgument(
            f"{PARAMETER}: '{path}' holds no bin/python, so it is not an environment; pack one with"
            " conda-pack or venv-pack"
        )
    variables = {"PATH": f"{folder / 'bin'}:{os.environ.get('PATH', '')}"}
    if (folder / "conda-meta").is_dir():
        variables["LD_LIBRARY_PATH"] = f"{folder / 'lib'}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    return PackedEnvironment(folder, python, {**variables, **_lent(path, python, variables, cache)})


def _unpacked(archive: Path, cache: Path) -> Path:
    """Unpacks an archive, unless it was unpacked before; returns the folder with its contents."""
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = cache / digest[:32]
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with new_folder(folder) as place:
            with tarfile.open(archive) as tar:
                tar.extractall(place, filter=_Members(archive))
            _relocate(place)
    except tarfile.TarError as error:
        raise InvalidArgument(
            f"{PARAMETER}: '{archive}' is not a tar archive that can be unpacked: {error}"
        ) from None
    except OSError as error:
        raise Unavailable(
            f"{PARAMETER}: '{archive}' cannot be unpacked to '{cache}': {error.strerror}; make room, or"
            " choose another folder with --cache-dir"
        ) from None
    return folder


class _Members:
    """Security: a filter that tarfile calls before it unpacks each member, so that nothing is written through
    a link.

    The only links that may point outside the folder are those that venv-pack needs: symbolic links with an
    absolute target, such as bin/python. tarfile's own filter "tar" does not check links. With that filter, an
    archive could overwrite a file outside the folder: it would contain a hard link to the file, followed by a
    member with the name of the link.
    """

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._files = _LIMITS.files
        self._bytes = _LIMITS.bytes_of(archive.stat().st_size)

    def __call__(self, member: tarfile.TarInfo, place: str) -> tarfile.TarInfo:
        # tar_filter refuses names of files outside the folder, and drops setuid bits.
        member = tarfile.tar_filter(member, place)
        self._files -= 1
        self._bytes -= member.size
        if self._files < 0 or self._bytes < 0:
            raise self._refusal(member, "the archive has more files or bytes than the server unpacks")
        root, path = Path(place), Path(os.path.normpath(Path(place, member.name)))
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            raise self._refusal(member, "it is a device or a pipe")
        if _passes_link(root, path):
            raise self._refusal(member, "its path leads through a link")
        if member.issym() and not os.path.isabs(member.linkname):
            target = Path(os.path.normpath(path.parent / member.linkname))
            if not target.is_relative_to(root):
                raise self._refusal(member, f"it is a link to '{member.linkname}', outside the folder")
        if member.islnk():
            target = Path(os.path.normpath(root / member.linkname))
            inside = target.is_relative_to(root) and not _passes_link(root, target)
            if not inside or target.is_symlink() or not target.is_file():
                raise self._refusal(
                    member, f"it is a hard link to '{member.linkname}', which is not a file unpacked earlier"
                )
        if not member.isdir() and path != root and os.path.lexists(path):
            if path.is_dir() and not path.is_symlink():
                raise self._refusal(member, "an earlier member of that name is a folder")
            path.unlink()  # otherwise tarfile would write to the target of a link
        elif member.isdir() and path.is_symlink():
            raise self._refusal(member, "an earlier member of that name is a link")
        return member

    def _refusal(self, member: tarfile.TarInfo, why: str) -> InvalidArgument:
        return InvalidArgument(
            f"{PARAMETER}: '{self._archive}': member '{printable(member.name)}' is refused: {why}"
        )


def _passes_link(root: Path, path: Path) -> bool:
    """Returns whether any folder on the way from `root` down to `path` is a link."""
    return any(
        parent.is_symlink() for parent in path.parents if parent != root and parent.is_relative_to(root)
    )


def _relocate(place: Path) -> None:
    """Runs conda-pack's script, which adapts an environment to its new path."""
    script, python = place / "bin" / "conda-unpack", place / "bin" / "python"
    if script.exists() and python.exists():
        subprocess.run(
            [str(python), str(script)], check=False, capture_output=True, env=without_keys(os.environ)
        )


def _lent(path: Path, python: Path, variables: Mapping[str, str], cache: Path) -> dict[str, str]:
    """Returns the environment variables that make the server's msgspec package importable in an environment
    that lacks only this package, if both have the same Python version. Empty if the environment lacks
    nothing.

    Raises InvalidArgument if the environment's Python does not run, or if packages would still be missing.
    """
    command, environ = [str(python), "-c", _ASK], {**without_keys(os.environ), **variables}
    asked = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or [f"exit status {asked.returncode}"])[-1]
        raise InvalidArgument(f"{PARAMETER}: the Python of '{path}' does not run: {last}")
    version, *missing = asked.stdout.split()
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    if missing == ["msgspec"] and version == own:
        spec = find_spec("msgspec")
        assert spec is not None and spec.origin is not None, "the server has it"  # noqa: PT018
        lent = cache / f"lent-{own}"
        lent.mkdir(parents=True, exist_ok=True, mode=0o700)
        link = lent / "msgspec"
        if not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(Path(spec.origin).parent)
        return {"PYTHONPATH": os.pathsep.join(filter(None, (str(lent), os.environ.get("PYTHONPATH"))))}
    if missing:
        raise InvalidArgument(
            f"{PARAMETER}: '{path}' (Python {version}) lacks {' and '.join(missing)}, which every worker"
            " needs; install what is missing in the environment"
        )
    return {}
