"""Containers: podman, a base image with Python, and Backline's image built on it, without any registry."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from docs.pages import ROOT
from support import models
from support.tools import tool

#: The base image: Debian with Python 3.13, without documentation, as in the "slim" images of registries.
BASE = "localhost/backline-test-base"
_PACKAGES = "python3-minimal,python3-venv,ca-certificates,libstdc++6"
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


@dataclass(frozen=True)
class Podman:
    """Runs podman with a configuration that also works in a virtual machine without all capabilities."""

    environment: dict[str, str]

    def run(self, *arguments: str | Path, timeout: float = 110, status: int | None = 0) -> str:
        """The output of a command; `status` is the expected exit status, None for any."""
        done = subprocess.run(
            ["podman", *arguments],
            check=False,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert status is None or done.returncode == status, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def inspect(self, *what: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self.run(*what))
        return found[0]


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    """Skips the test unless containers are asked for: `make test-containers` needs podman and the network."""
    if not os.environ.get("TESTS_CONTAINERS"):
        pytest.skip("containers are tested by make test-containers")
    tool("podman")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    runtime = '[engine]\nruntime = "runc"\n' if shutil.which("runc") else ""
    conf = tmp_path_factory.mktemp("podman") / "containers.conf"
    limits = f'"nofile={files}:{files}", "nproc={processes}:{processes}"'
    conf.write_text(f"[containers]\ndefault_ulimits = [{limits}]\n{runtime}")
    return Podman({**os.environ, "CONTAINERS_CONF": str(conf), "PODMAN_IGNORE_CGROUPSV1_WARNING": "1"})


@pytest.fixture(scope="session")
def base_image(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The base image, made from Debian's packages unless an earlier run has made it."""
    if podman.run("images", "--quiet", BASE).strip():
        return BASE
    tool("mmdebstrap")
    folder = tmp_path_factory.mktemp("base")
    options = [option for path in _LEFT_OUT for option in ("--dpkgopt", f"path-exclude={path}")]
    subprocess.run(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            f"--include={_PACKAGES}",
            *options,
            "trixie",
            "root.tar",
        ],
        check=True,
        cwd=folder,
        timeout=110,
    )
    (folder / "Containerfile").write_text("FROM scratch\nADD root.tar /\n")
    podman.run("build", "--quiet", "--tag", BASE, folder)
    return BASE


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the model add1, which containers may read."""
    folder = tmp_path_factory.mktemp("repository")
    for parent in (folder, folder.parent, folder.parent.parent):
        parent.chmod(0o755)
    models.add1(folder / "models")
    return folder / "models"


@pytest.fixture(scope="session")
def image(podman: Podman, base_image: str, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Backline's image for the repository, built by the command from wheels only."""
    wheels = tmp_path_factory.mktemp("wheels")
    for project in ("backline-client", "backline"):
        build = ["-m", "build", "--no-isolation", "--wheel", "--outdir", wheels, ROOT / "packages" / project]
        subprocess.run([sys.executable, *build], check=True, capture_output=True, timeout=110)
    version = podman.run("run", "--rm", "--network=none", base_image, "python3", "--version").split()[1]
    download = ["--quiet", "--only-binary=:all:", "--python-version", version, "--find-links", wheels]
    wanted = ["backline[onnx]", "cyclonedx-bom"]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", *download, "--dest", wheels, *wanted],
        check=True,
        timeout=110,
    )
    options = ["--wheels", wheels, "--no-index", "--base", base_image, "--tag", "localhost/backline-test"]
    command = [
        sys.executable,
        "-m",
        "backline",
        "image",
        "build",
        repository,
        "--builder",
        "podman",
        *options,
    ]
    done = subprocess.run(
        command, check=False, env=podman.environment, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(extras: onnx, " in done.stdout
    return "localhost/backline-test"
