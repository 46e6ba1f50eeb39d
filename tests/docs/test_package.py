"""The installed package: the contents of the wheel, and what works without extras."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from docs.conftest import wait_until_loaded
from docs.pages import ROOT
from support import models
from support.server import serve

#: Modules that an environment without extras lacks, and the extra that installs each.
EXTRAS = {
    "onnxruntime": "onnx",
    "torch": "torch",
    "tensorflow": "tensorflow",
    "ai_edge_litert": "litert",
    "openvino": "openvino",
    "jax": "jax",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "catboost": "catboost",
    "skops": "sklearn",
    "yaml": "mlflow",
    "grpc": "grpc",
    "matplotlib": "plot",
    "watchfiles": "watch",
    "obstore": "cloud",
    "redis": "redis",
    "tomlkit": "auth",
    "jwt": "auth",
    "cryptography": "auth",
    "PIL": "image",
    "soundfile": "audio",
    "av": "aac",
    "uv": "envs",
    "opentelemetry": "otel",
}
#: Extras that install what other extras install alone, or in another build.
SEVERAL = {"torchserve", "onnx-gpu"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that pip builds from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT]
    built = subprocess.run(command, check=False, capture_output=True, text=True, timeout=110)
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip("the build backend cannot be installed: no package registry")
    assert built.returncode == 0, built.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


@pytest.mark.parametrize(
    "name", ["py.typed", "protos/descriptors.binpb", "protos/inference.proto", "cli/serve/options.py"]
)
def test_the_wheel_contains_what_the_program_needs(wheel: zipfile.ZipFile, name: str) -> None:
    assert f"backline/{name}" in wheel.namelist()


def test_the_wheel_contains_only_the_package(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0].split("-")[0] for name in wheel.namelist()} == {"backline"}
    assert not [name for name in wheel.namelist() if "__pycache__" in name]


def test_the_metadata_name_licence_page_and_command(wheel: zipfile.ZipFile) -> None:
    folder = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    metadata = email.message_from_bytes(wheel.read(f"{folder}/METADATA"))

    assert metadata["License-Expression"] == "Apache-2.0"
    assert str(metadata.get_payload()).startswith("# Backline")
    assert set(metadata.get_all("Provides-Extra", [])) == set(EXTRAS.values()) | SEVERAL
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()
    assert b"backline = backline.cli.main:main" in wheel.read(f"{folder}/entry_points.txt")


@pytest.fixture(scope="module")
def without_extras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables that hide the packages of all extras."""
    folder = tmp_path_factory.mktemp("missing")
    for name in EXTRAS:
        (folder / f"{name}.py").write_text(f"raise ImportError('No module named {name}', name='{name}')\n")
    return {"PYTHONPATH": str(folder)}


def _backline(*arguments: str | Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "backline", *arguments]
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], ["serve", "--help"], ["infer", "--help"], ["bench", "--help"]]
)
def test_commands_start_without_extras(without_extras: dict[str, str], arguments: list[str]) -> None:
    shown = _backline(*arguments, environment=without_extras)

    assert shown.returncode == 0, shown.stderr
    assert "backline" in shown.stdout


def test_a_model_without_its_runtime_names_the_extra(without_extras: dict[str, str], tmp_path: Path) -> None:
    models.add1(tmp_path / "models")

    shown = _backline(
        "infer",
        "add1",
        "--input",
        "INPUT0=zeros",
        "--url",
        f"inproc://{tmp_path}/models",
        environment=without_extras,
    )

    assert shown.returncode == 1
    assert "pip install 'backline[onnx]'" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_server_without_the_runtime_reports_it_and_keeps_running(
    without_extras: dict[str, str], tmp_path: Path
) -> None:
    models.add1(tmp_path / "models")

    with serve(tmp_path / "models", tmp_path / "log", ready=False, environment=without_extras) as server:
        wait_until_loaded(server)
        assert server.stop() == 0

    assert "model 'add1' version 1 is not available" in server.output
    assert "pip install 'backline[onnx]'" in server.output
    assert "Traceback" not in server.output


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["models", "list", "--url", "grpc://127.0.0.1:9"], "grpc"),
        (["bench", "add1", "--png", "picture.png"], "plot"),
    ],
)
def test_a_feature_of_a_missing_extra_names_the_extra(
    without_extras: dict[str, str], arguments: list[str], extra: str
) -> None:
    shown = _backline(*arguments, environment=without_extras)

    assert shown.returncode == 1
    assert f"pip install 'backline[{extra}]'" in shown.stderr


def test_serve_imports_nothing_optional() -> None:
    script = (
        "import sys, backline.cli.serve; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )

    imported = set(
        subprocess.run(
            [sys.executable, "-c", script], check=True, capture_output=True, text=True
        ).stdout.split()
    )

    assert not imported & {*EXTRAS, "rich", "prometheus_client", "typer", "pydantic"}


def test_the_lock_file_has_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *(one for extra in project["project"]["optional-dependencies"].values() for one in extra),
        *(one for group in project["dependency-groups"].values() for one in group if isinstance(one, str)),
    ]
    names = {re.split(r"[\[<>=;~! ]", one, maxsplit=1)[0].lower().replace("_", "-") for one in wanted}
    locked = {one["name"]: one for one in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}

    assert names - locked.keys() == set()  # run `make lock`
    for name, one in locked.items():
        files = [*one.get("wheels", ()), *filter(None, [one.get("sdist")])]
        assert name == "backline" or files, name
        assert all(file["hash"].startswith("sha256:") for file in files), name
