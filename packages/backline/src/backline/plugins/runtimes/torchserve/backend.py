"""TorchServe model archives, run in worker processes."""

from __future__ import annotations

import contextlib
import json
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar, Final

from backline.backends.backend import DEFAULT_OPTIONS, HostedModel, LoadOptions
from backline.backends.runtime import cuda_gpus, one_line, read_start, require_trust
from backline.backends.yaml_document import read_yaml
from backline.engine.config.instance_group import InstanceGroup, Kind
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import Gpus
from backline.system.archive_limits import (
    UnpackLimits,
    check_unpacked_bytes,
    check_zip,
    too_many_members,
)
from backline_client.values.errors import InvalidArgument

#: The name of the parameter that passes the settings of an archive (model-config.yaml), as JSON, to the
#: worker.
SETTINGS = "model-config"


class TorchServe:
    """The backend for model archives: zip and gzipped tar files, or folders with MAR-INF/MANIFEST.json."""

    name: ClassVar[str] = "torchserve"
    #: As in TorchServe, the packages that a model requires are added to those of the server.
    on_top: ClassVar[bool] = True

    def check_file(self, path: Path) -> None:
        read_start(path)
        if not is_tar(path):  # listing a compressed archive would mean reading all of it
            with MarFile.opened(path):
                pass

    def gpus(self, path: Path, config: ModelConfig) -> Gpus:
        """Returns all GPUs, because handlers decide how to use them. See GpuBackend."""
        return cuda_gpus()

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> HostedModel:
        """Reads the manifest and settings; code in the archive is only executed in worker processes.

        Raises InvalidArgument for a file that is not an archive, or whose manifest names missing files.
        """
        require_trust(path, config, options)
        if path.is_dir():
            path = path.parent if path.name == "MAR-INF" else path
        else:
            read_start(path)
        with MarFile.opened(path) as archive:
            model = _model_of(archive)
            settings = _settings(archive, model.get("configFile"))
            packed = None if path.is_dir() else archive.root
        return HostedModel(
            path,
            "backline.plugins.runtimes.torchserve.model",
            packed=packed,
            unpack_limits=ARCHIVE_LIMITS,
            parameters={SETTINGS: json.dumps(settings)},
            groups=_groups(settings),
            on_top=self.on_top,
        )


def _groups(settings: Mapping[str, Any]) -> tuple[InstanceGroup, ...]:
    """Returns the instance groups that the settings of an archive describe. Raises InvalidArgument for
    invalid devices.
    """
    kind, ids = settings.get("deviceType"), settings.get("deviceIds", [])
    if kind is None and not ids:
        return ()
    kinds: Mapping[Any, Kind] = {None: "gpu", "gpu": "gpu", "cpu": "cpu"}
    if kind not in kinds:
        raise InvalidArgument(f"model-config.yaml: deviceType is {kind!r}, expected cpu or gpu")
    if not isinstance(ids, list) or not all(type(one) is int and one >= 0 for one in ids):
        raise InvalidArgument(f"model-config.yaml: deviceIds is {ids!r}, expected a list of GPU numbers")
    return (InstanceGroup(0, kind=kinds[kind], gpus=tuple(ids) if kinds[kind] == "gpu" else ()),)


def _model_of(archive: MarFile) -> Mapping[str, Any]:
    """Returns the entry `model` of the manifest.

    Raises InvalidArgument if the manifest is not JSON, or if the entry is invalid or names missing files.
    """
    try:
        manifest = json.loads(archive.read(MANIFEST))
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(
            f"'{archive.path}': {MANIFEST} is not JSON ({error}); pack the archive again with"
            " torch-model-archiver"
        ) from None
    model = manifest.get("model") if isinstance(manifest, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("handler"), str) or not model["handler"]:
        raise InvalidArgument(
            f"'{archive.path}': {MANIFEST} names no handler; expected {{'model': {{'handler': ...}}}}"
        )
    for key in ("serializedFile", "modelFile", "configFile"):
        name = model.get(key)
        if name is not None and not (isinstance(name, str) and archive.holds(name)):
            raise InvalidArgument(
                f"'{archive.path}': its {key} '{name}' is not in the archive; pack it again with"
                " torch-model-archiver"
            )
    return model


def _settings(archive: MarFile, name: str | None) -> dict[str, Any]:
    """Returns the contents of the settings file `name`, often model-config.yaml; {} if `name` is None.

    Raises InvalidArgument if the file is malformed.
    """
    if name is None:
        return {}
    what = "The settings of model archives need PyYAML"
    settings = read_yaml(archive.read(name), f"'{archive.path}': {name}", what=what, extra="torchserve")
    try:
        json.dumps(settings)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"'{archive.path}': {name} cannot be read: {one_line(error)}") from None
    if settings is not None and not isinstance(settings, dict):
        raise InvalidArgument(f"'{archive.path}': {name} must be a mapping of keys to values")
    return settings or {}


MANIFEST: Final = "MAR-INF/MANIFEST.json"
_LARGEST: Final = 1 << 20
#: The limits of an archive. For comparison, a handler with its tokenizer and weights has a few dozen files.
ARCHIVE_LIMITS: Final = UnpackLimits(files=10_000)
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeDecodeError,  # the name of a member is flagged as UTF-8 but is not valid UTF-8
)


class MarFile:
    """An open folder, zip or tar file. `root` is the subfolder with all files ("name/"), or "" if there is
    none.
    """

    def __init__(self, path: Path, packed: zipfile.ZipFile | tarfile.TarFile | None) -> None:
        self.path = path
        self._packed = packed
        self._names = self._list()
        manifest = min(
            (name for name in self._names if name.endswith(MANIFEST) and name.count("/") <= 2),
            key=len,
            default=MANIFEST,
        )
        self.root = manifest.removesuffix(MANIFEST)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path) -> Iterator[MarFile]:
        """Opens an archive. Raises InvalidArgument if the archive is damaged, or not a folder, zip or tar
        file.
        """
        try:
            if path.is_dir():
                yield cls(path, None)
            elif zipfile.is_zipfile(path):
                check_zip(path, ARCHIVE_LIMITS)
                with zipfile.ZipFile(path) as opened:
                    yield cls(path, opened)
            elif is_tar(path):
                with tarfile.open(path, "r:gz") as opened_tar:
                    yield cls(path, opened_tar)
            else:
                raise InvalidArgument(
                    f"'{path}' is not a TorchServe model archive: neither a zip file nor a gzipped tar file;"
                    " pack it with torch-model-archiver"
                )
        except (OSError, *_DAMAGED) as error:
            raise InvalidArgument(f"'{path}' is damaged ({error}); copy or pack it again") from None

    def _list(self) -> dict[str, tarfile.TarInfo | None]:
        """Returns the members by name, with their entries if the archive is a tar file; none for a folder."""
        if isinstance(self._packed, zipfile.ZipFile):
            return dict.fromkeys(self._packed.namelist())
        if isinstance(self._packed, tarfile.TarFile):
            return self._list_tar(self._packed)
        return {}

    def _list_tar(self, packed: tarfile.TarFile) -> dict[str, tarfile.TarInfo | None]:
        names: dict[str, tarfile.TarInfo | None] = {}
        size = 0
        for count, member in enumerate(packed, 1):
            if count > ARCHIVE_LIMITS.files:
                raise too_many_members(str(self.path), ARCHIVE_LIMITS)
            # The size is checked here, because finding the next member means unpacking all of this member.
            size += member.size
            check_unpacked_bytes(self.path, size, ARCHIVE_LIMITS)
            if member.isreg():
                names[member.name.removeprefix("./")] = member
        return names

    def holds(self, name: str) -> bool:
        return self._open(name) is not None

    def read(self, name: str) -> bytes:
        """Reads a small file. Raises InvalidArgument if the file is missing or larger than 1 MiB."""
        stream = self._open(name)
        if stream is None:
            raise InvalidArgument(
                f"'{self.path}' is not a TorchServe model archive: it does not hold {name}; pack it with"
                " torch-model-archiver"
            )
        with stream:
            content = stream.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise InvalidArgument(f"'{self.path}': {name} is larger than {_LARGEST} bytes, the maximum")
        return content

    def _open(self, name: str) -> IO[bytes] | None:
        if self._packed is None:
            file = self.path / name
            inside = file.is_file() and file.resolve().is_relative_to(self.path.resolve())
            return file.open("rb") if inside else None
        member = self.root + name
        if member not in self._names:
            return None
        if isinstance(self._packed, zipfile.ZipFile):
            return self._packed.open(member)
        return self._packed.extractfile(self._names[member] or member)


def is_tar(path: Path) -> bool:
    """Returns whether a file begins with the signature of gzip."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"
