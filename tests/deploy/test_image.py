"""The container image: what is in it, how it is confined, how fast it starts and how it stops."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

import backline
from backline.plugins.tools.image import command as image_command
from deploy.conftest import Podman
from docs.pages import code, table
from support import models
from support.repositories import put
from support.server import serve

PAGE = "docs/deploy/container.md"
#: The most bytes of an image with ONNX Runtime.
LARGEST = 300e6


@pytest.fixture(scope="module")
def container(podman: Podman, image: str, repository: Path) -> Iterator[str]:
    """A running server: 256 MB, a read-only root, no capabilities, and no network but the loopback."""
    confined = ["--read-only", "--memory=256m", "--network=none", "--cap-drop=all"]
    name = podman.run("run", "--detach", *confined, f"--volume={repository}:/models:ro", image).strip()
    try:
        _wait_for(podman, name, "Ctrl-C stops")
        yield name
    finally:
        podman.run("rm", "--force", "--time=0", name)


def _wait_for(podman: Podman, container: str, text: str, timeout: float = 30) -> None:
    end = time.monotonic() + timeout
    while text not in (logs := podman.run("logs", container)):
        running = podman.run("inspect", "--format", "{{.State.Running}}", container).strip()
        assert running == "true", logs
        assert time.monotonic() < end, logs
        time.sleep(0.05)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text[:26].rstrip("Z+").rstrip())


def test_it_answers_in_its_confinement(podman: Podman, container: str) -> None:
    answer = podman.run("exec", container, "backline", "infer", "add1", "--input", "INPUT0=zeros")

    assert "OUTPUT0" in answer


def test_it_is_small_and_holds_no_compiler_no_pip_and_no_model(podman: Podman, image: str) -> None:
    size = podman.inspect("image", "inspect", image)["Size"]
    shell = ["run", "--rm", "--network=none", "--entrypoint", "sh", image, "-c"]
    found = podman.run(*shell, "command -v gcc cc pip; ls /models; ls /opt/backline/bin; id -u")

    print(f"size of the image: {size / 1e6:.0f} MB")
    assert size < LARGEST
    assert "gcc" not in found
    assert "pip" not in found
    assert "add1" not in found
    assert found.split()[-1] == "10001"


def test_it_starts_within_a_second(podman: Podman, container: str) -> None:
    began = podman.inspect("inspect", container)["State"]["StartedAt"]
    lines = podman.run("logs", "--timestamps", container).splitlines()
    ready = next(line.split()[0] for line in lines if "Ctrl-C stops" in line)
    took = (_moment(ready) - _moment(began)).total_seconds()

    print(f"from the start of the container to ready: {took:.2f} s")
    # A second on an idle machine; tests run on busy ones.
    assert took < 4


def test_it_names_its_version_port_signal_health_check_and_packages(podman: Podman, image: str) -> None:
    config = podman.inspect("image", "inspect", image)["Config"]
    shell = ["run", "--rm", "--network=none", "--entrypoint", "cat", image]
    bill = json.loads(podman.run(*shell, "/opt/backline/sbom.cdx.json"))

    assert config["User"] == "10001:0"
    assert config["StopSignal"] == "SIGTERM"
    assert {"8000/tcp", "8001/tcp", "8002/tcp"} <= set(config["ExposedPorts"])
    assert config["Labels"]["org.opencontainers.image.version"]
    assert {"backline", "numpy", "onnxruntime"} <= {entry["name"] for entry in bill["components"]}


def test_its_health_check_passes(podman: Podman, container: str) -> None:
    podman.run("healthcheck", "run", container)


def test_it_drains_and_ends_with_status_0_when_stopped(podman: Podman, image: str, repository: Path) -> None:
    options = ["--network=none", "--env=BACKLINE_LOG_LEVEL=info", f"--volume={repository}:/models:ro"]
    name = podman.run("run", "--detach", *options, image).strip()
    try:
        _wait_for(podman, name, "Ctrl-C stops")
        podman.run("stop", "--time=20", name)

        assert podman.inspect("inspect", name)["State"]["ExitCode"] == 0
        assert podman.run("logs", name).rstrip().endswith("Stopped")
    finally:
        podman.run("rm", "--force", "--time=0", name)


# what `backline image build` writes, which needs no podman


def _written(repository: Path, output: Path, *options: str) -> str:
    command = ["build", str(repository), "--output", str(output), *options]
    done = CliRunner().invoke(image_command.command, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return (output / "Containerfile").read_text()


def test_an_image_has_the_extras_of_its_models(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    put(tmp_path / "models/forest/1/model.txt", "tree")
    put(tmp_path / "models/both/config.pbtxt", 'backend: "identity"\n')
    put(tmp_path / "models/both/1/empty", "")

    text = _written(tmp_path / "models", tmp_path / "image", "--extra", "redis")

    assert "ARG BACKLINE=backline[lightgbm,onnx,redis]==" in text
    assert not any((tmp_path / "image" / "models").iterdir())


def test_from_a_clone_the_image_has_the_wheels_of_the_clone(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")

    _written(tmp_path / "models", tmp_path / "image")

    wheels = sorted(wheel.name for wheel in (tmp_path / "image" / "wheels").iterdir())
    suffix = f"-{backline.__version__}-py3-none-any.whl"
    assert wheels == [f"backline{suffix}", f"backline_client{suffix}"]


def test_a_server_without_writable_folders_logs_no_warning(tmp_path: Path) -> None:
    """As in a container with a read-only root and without volumes. Not even root may write below /proc."""
    models.add1(tmp_path / "models")
    folders = {"BACKLINE_STATE_DIR": "/proc/state", "BACKLINE_CACHE_DIR": "/proc/cache", "HOME": "/proc/home"}
    with serve(tmp_path / "models", tmp_path / "log", environment=folders) as server:
        server.wait_started()
        server.stop()

    assert "WARNING" not in server.output
    assert "ERROR" not in server.output


def test_a_python_model_brings_its_requirements_but_not_its_weights(tmp_path: Path) -> None:
    put(tmp_path / "models/tagger/1/model.py", "def tagger(x: float) -> float:\n    return x\n")
    put(tmp_path / "models/tagger/requirements.txt", "six\n")
    put(tmp_path / "models/tagger/1/weights.bin", "0" * 100)

    _written(tmp_path / "models", tmp_path / "image")

    copied = (tmp_path / "image" / "requirements").rglob("*")
    names = {str(path.relative_to(tmp_path / "image" / "requirements")) for path in copied if path.is_file()}
    assert names == {"tagger/1/model.py", "tagger/requirements.txt"}
    digests = [_digest(folder, tmp_path) for folder in ("models", "image/requirements")]
    assert digests[0] == digests[1]


def _digest(folder: str, workspace: Path) -> str:
    """The identity of the environment that the model in a folder needs. It is not built: uv is not found."""
    command = [sys.executable, "-m", "backline", "env", "build", folder, "--json", "--cache-dir", "none"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={"PATH": ""}, cwd=workspace, timeout=60
    )
    digest: str = json.loads(done.stdout)["environments"][0]["environment"]
    return digest


def test_models_are_copied_on_request_only(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")

    _written(tmp_path / "models", tmp_path / "image", "--with-models")

    assert (tmp_path / "image" / "models" / "add1" / "1" / "model.onnx").is_file()


def test_the_page_lists_the_options_of_the_command() -> None:
    known = {param.opts[0] for param in image_command.build.params if param.opts[0].startswith("--")}
    listed = {text.split()[0] for row in table(PAGE, "option") for text in code(row["option"])}

    assert listed | {"--no-index"} == known


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--no-index"], "--no-index needs --wheels"),
        (["--builder", "no-such-builder"], "no program named no-such-builder was found"),
    ],
    ids=["index", "builder"],
)
def test_what_cannot_work_is_refused(tmp_path: Path, options: list[str], message: str) -> None:
    models.add1(tmp_path / "models")
    done = CliRunner().invoke(image_command.command, ["build", str(tmp_path / "models"), *options])

    assert done.exit_code
    assert message in f"{done.output}{done.exception}"
