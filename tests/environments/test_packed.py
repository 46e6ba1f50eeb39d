"""EXECUTION_ENV_PATH: environments packed with a model for Triton's Python backend."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as tritonclient

from backline.environments import packed
from backline.environments.packed import packed_environment
from backline.system.archive_limits import UnpackLimits
from backline_client.values.errors import InvalidArgument
from support.repositories import put
from support.server import serve

CONFIG = """
backend: "python"
input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "where" data_type: TYPE_STRING dims: [1] }]
parameters { key: "EXECUTION_ENV_PATH" value { string_value: "$$TRITON_MODEL_DIRECTORY/environment.tar.gz" } }
"""
MODEL = """
import json, sys
import numpy as np
import triton_python_backend_utils as pb_utils
import only_there

class TritonPythonModel:
    def execute(self, requests):
        where = np.array([json.dumps([sys.prefix, only_there.WORD]).encode()], np.object_)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("where", where)]) for _ in requests]
"""


def environment(folder: Path, *packages: str) -> Path:
    """A venv with some of the tests' packages and the module `only_there`."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python3.*/site-packages")
    own = Path(sysconfig.get_path("purelib"))
    for package in packages:
        (site / package).symlink_to(own / package)
        for libraries in own.glob(f"{package}.libs"):
            (site / libraries.name).symlink_to(libraries)
    put(site / "only_there.py", "WORD = 'packed'")
    return folder


def pack(folder: Path, archive: Path) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=".")
    return archive


def test_a_model_runs_in_its_packed_environment(tmp_path: Path) -> None:
    model = tmp_path / "models" / "packed"
    pack(environment(tmp_path / "made", "numpy"), model / "environment.tar.gz")
    put(model / "config.pbtxt", CONFIG)
    put(model / "1" / "model.py", MODEL)

    with serve(tmp_path / "models", tmp_path / "log", "--cache-dir", str(tmp_path / "cache")) as server:
        client = tritonclient.InferenceServerClient(server.url.removeprefix("http://"))
        x = tritonclient.InferInput("x", [1], "FP32")
        x.set_data_from_numpy(np.zeros(1, np.float32))
        prefix, word = json.loads(client.infer("packed", [x]).as_numpy("where")[0])

    assert word == "packed"
    assert Path(prefix).name != Path(sys.prefix).name


def test_an_archive_is_unpacked_once_per_content_and_a_folder_is_used_in_place(tmp_path: Path) -> None:
    made = environment(tmp_path / "made", "numpy", "msgspec")
    first = packed_environment(str(pack(made, tmp_path / "one.tar.gz")), tmp_path, tmp_path / "cache")
    (tmp_path / "two.tar.gz").write_bytes((tmp_path / "one.tar.gz").read_bytes())
    second = packed_environment("$$TRITON_MODEL_DIRECTORY/two.tar.gz", tmp_path, tmp_path / "cache")
    folder = packed_environment("made", tmp_path, tmp_path / "cache")

    assert first.folder == second.folder
    assert folder.python == made / "bin" / "python"
    prefix = subprocess.run(
        [first.python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True
    ).stdout
    assert Path(prefix.strip()) == first.folder


def test_an_invalid_environment_is_refused_with_the_reason(tmp_path: Path) -> None:
    put(tmp_path / "text.tar.gz", "text")
    (tmp_path / "empty").mkdir()
    environment(tmp_path / "bare")
    for given, reason in (
        ("nothing.tar.gz", "does not exist; give a folder"),
        ("text.tar.gz", "is not a tar archive"),
        ("empty", "holds no bin/python"),
        ("bare", "lacks numpy and msgspec"),
    ):
        with pytest.raises(InvalidArgument, match=reason):
            packed_environment(given, tmp_path, tmp_path / "cache")


def crafted(archive: Path, *members: tuple[str, bytes, str | bytes]) -> Path:
    """An archive of members, each a name, a type, and its content or link target."""
    with tarfile.open(archive, "w:gz") as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                tar.addfile(info)
    return archive


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("x", tarfile.LNKTYPE, "../../victim"), ("x", tarfile.REGTYPE, b"evil")], "hard link"),
        ([("x", tarfile.LNKTYPE, "{victim}"), ("x", tarfile.REGTYPE, b"evil")], "hard link"),
        (
            [
                ("d", tarfile.SYMTYPE, "{folder}"),
                ("x", tarfile.LNKTYPE, "d/victim"),
                ("x", tarfile.REGTYPE, b"evil"),
            ],
            "hard link",
        ),
        (
            [
                ("s", tarfile.SYMTYPE, "{victim}"),
                ("x", tarfile.LNKTYPE, "s"),
                ("x", tarfile.REGTYPE, b"evil"),
            ],
            "hard link",
        ),
        (
            [("x", tarfile.SYMTYPE, "../../victim"), ("x", tarfile.REGTYPE, b"evil")],
            "a link to '../../victim', outside the folder",
        ),
        ([("d", tarfile.SYMTYPE, "{folder}"), ("d/victim", tarfile.REGTYPE, b"evil")], "outside"),
        (
            [
                ("d", tarfile.SYMTYPE, "{folder}"),
                ("d", tarfile.DIRTYPE, ""),
                ("d/victim", tarfile.REGTYPE, b"evil"),
            ],
            "outside",
        ),
        ([("d", tarfile.DIRTYPE, ""), ("d", tarfile.SYMTYPE, "{folder}")], "member of that name is a folder"),
        ([("../victim", tarfile.REGTYPE, b"evil")], "outside"),
        ([("x", tarfile.FIFOTYPE, "")], "a device or a pipe"),
        ([("x", tarfile.CHRTYPE, "")], "a device or a pipe"),
    ],
)  # fmt: skip
def test_an_archive_writes_nothing_outside_its_folder(
    tmp_path: Path, members: list[tuple[str, bytes, str | bytes]], reason: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    places = {"victim": str(victim), "folder": str(tmp_path)}
    filled = [(name, kind, c.format(**places) if isinstance(c, str) else c) for name, kind, c in members]
    crafted(tmp_path / "env.tar.gz", *filled)

    with pytest.raises(InvalidArgument, match=reason):
        packed_environment("env.tar.gz", tmp_path, tmp_path / "cache")

    assert victim.read_bytes() == b"mine"
    assert not [*(tmp_path / "cache").iterdir()]


def test_a_file_replaces_a_link_instead_of_overwriting_its_target(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    crafted(
        tmp_path / "env.tar.gz",
        ("bin/python", tarfile.SYMTYPE, str(victim)),
        ("bin/python", tarfile.REGTYPE, b"#!/bin/false\n"),
    )

    with pytest.raises(InvalidArgument):  # no interpreter
        packed_environment("env.tar.gz", tmp_path, tmp_path / "cache")

    assert victim.read_bytes() == b"mine"


def test_an_archive_with_too_many_members_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_LIMITS", UnpackLimits(files=3))
    crafted(tmp_path / "env.tar.gz", *((f"f{i}", tarfile.REGTYPE, b"") for i in range(4)))

    with pytest.raises(InvalidArgument, match="more files or bytes"):
        packed_environment("env.tar.gz", tmp_path, tmp_path / "cache")
