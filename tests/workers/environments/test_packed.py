"""EXECUTION_ENV_PATH: environments that come with a model of Triton's Python backend."""

from __future__ import annotations

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

from backline.engine.errors import InvalidArgument
from backline.workers.environments.packed import packed_environment
from support.repositories import put
from support.server import serve

CONFIG = """
backend: "python"
input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "told" data_type: TYPE_STRING dims: [1] }]
parameters { key: "EXECUTION_ENV_PATH" value { string_value: "$$TRITON_MODEL_DIRECTORY/environment.tar.gz" } }
"""
MODEL = """
import json, sys
import numpy as np
import triton_python_backend_utils as pb_utils
import only_there

class TritonPythonModel:
    def execute(self, requests):
        told = np.array([json.dumps([sys.prefix, only_there.WORD]).encode()], np.object_)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("told", told)]) for _ in requests]
"""


def environment(folder: Path, *packages: str) -> Path:
    """A venv with some of the packages that the tests run with, and a module of its own."""
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


def test_a_model_runs_in_the_environment_that_comes_with_it(tmp_path: Path) -> None:
    model = tmp_path / "models" / "packed"
    pack(environment(tmp_path / "made", "numpy"), model / "environment.tar.gz")
    put(model / "config.pbtxt", CONFIG)
    put(model / "1" / "model.py", MODEL)

    with serve(tmp_path / "models", tmp_path / "log", "--cache-dir", str(tmp_path / "cache")) as server:
        client = tritonclient.InferenceServerClient(server.url.removeprefix("http://"))
        x = tritonclient.InferInput("x", [1], "FP32")
        x.set_data_from_numpy(np.zeros(1, np.float32))
        prefix, word = json.loads(client.infer("packed", [x]).as_numpy("told")[0])

    assert word == "packed"
    assert Path(prefix).name != Path(sys.prefix).name


def test_an_archive_is_unpacked_once_for_its_content_and_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
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


def test_what_is_no_environment_is_refused_with_the_reason(tmp_path: Path) -> None:
    put(tmp_path / "text.tar.gz", "text")
    (tmp_path / "empty").mkdir()
    environment(tmp_path / "bare")
    for given, told in (
        ("nothing.tar.gz", "there is no"),
        ("text.tar.gz", "is no tar archive"),
        ("empty", "holds no bin/python"),
        ("bare", "lacks numpy and msgspec"),
    ):
        with pytest.raises(InvalidArgument, match=told):
            packed_environment(given, tmp_path, tmp_path / "cache")
