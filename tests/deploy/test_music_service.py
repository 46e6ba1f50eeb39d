"""The example music_service in containers: its manifests are valid, and both parts run from them."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deploy.conftest import Podman
from deploy.test_helm import CHART, CUSTOM, VERSIONS
from docs.pages import ROOT, blocks
from support.tools import run

SERVICE = ROOT / "examples" / "music_service"
DEPLOY = SERVICE / "deploy"


def _documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


def _rendered() -> list[dict[str, Any]]:
    values = ["--values", str(DEPLOY / "server-values.yaml")]
    return _documents(run("helm", "template", "music-models", str(CHART), *values))


def test_the_servers_values_render_valid_manifests() -> None:
    for document in _rendered():
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("name", ["application", "cluster", "machine", "server"])
def test_the_manifests_are_valid(name: str) -> None:
    for document in _documents((DEPLOY / f"{name}.yaml").read_text()):
        for version in (VERSIONS[0], VERSIONS[-1]):
            kubernetes_validate.validate(document, version, strict=True)


def test_the_application_asks_the_headless_service_of_the_chart() -> None:
    services = {one["metadata"]["name"] for one in _rendered() if one["kind"] == "Service"}
    (address,) = (
        one for one in _documents((DEPLOY / "cluster.yaml").read_text()) if one["kind"] == "ConfigMap"
    )
    host = address["data"]["BACKLINE_URL"].removeprefix("dns+http://").removesuffix(":8000")

    assert host in services


def _tutorial(beginning: str) -> list[list[str]]:
    """The words of each command in docs/music-service.md that begins so."""
    text = "".join(block.text for block in blocks("docs/music-service.md")).replace("\\\n", "")
    return [shlex.split(line) for line in text.splitlines() if line.startswith(beginning)]


def test_the_tutorial_creates_what_both_parts_refer_to() -> None:
    created = {words[4] if words[2] == "secret" else words[3] for words in _tutorial("kubectl create")}
    ((_, _, release, chart, *values),) = _tutorial("helm install")
    values = [str(ROOT / value) if value.endswith(".yaml") else value for value in values]
    servers = _documents(run("helm", "template", release, str(ROOT / chart), *values))
    (patch,) = _documents((DEPLOY / "secured.yaml").read_text())
    (application,) = _documents((DEPLOY / "application.yaml").read_text())
    patched = _patched(application, patch)

    kubernetes_validate.validate(patched, VERSIONS[-1], strict=True)
    assert created == {name for one in (*servers, patched) for name in _references(one)} - {"music-service"}
    (url,) = (one["value"] for one in _container(patched)["env"] if one["name"] == "BACKLINE_URL")
    assert url == "https://music-models-backline:8000"
    assert "music-models-backline" in {one["metadata"]["name"] for one in servers if one["kind"] == "Service"}


def _container(deployment: dict[str, Any]) -> dict[str, Any]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


def _patched(deployment: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """The Deployment as `kubectl patch` leaves it, if its lists have nothing in common with the patch's."""
    container, added = _container(deployment), dict(_container(patch))
    assert added.pop("name") == container["name"]
    for name, values in added.items():
        container[name] = [*container.get(name, []), *values]
    pod = deployment["spec"]["template"]["spec"]
    pod["volumes"] = [*pod["volumes"], *patch["spec"]["template"]["spec"]["volumes"]]
    return deployment


def _references(document: Any) -> set[str]:
    """The names of Secrets and ConfigMaps to which a manifest refers."""
    if isinstance(document, list):
        return {name for one in document for name in _references(one)}
    if not isinstance(document, dict):
        return set()
    found = {name for value in document.values() for name in _references(value)}
    for kind in ("secret", "configMap", "secretKeyRef", "configMapRef"):
        if isinstance(named := document.get(kind), dict):
            found.add(named.get("secretName") or named["name"])
    return found


@pytest.mark.timeout(500)  # it builds two images
def test_both_parts_run_from_their_manifests(
    podman: Podman, image: str, base_image: str, tmp_path: Path
) -> None:
    repository = _repository(tmp_path)
    _build_application(podman, base_image, tmp_path)
    server = tmp_path / "server.yaml"
    text = (DEPLOY / "server.yaml").read_text()
    server.write_text(
        text.replace("/path/to/models", str(repository)).replace(
            "localhost/backline:latest", f"{image}:latest"
        )
    )
    application = DEPLOY / "application.yaml"
    try:
        podman.run("kube", "play", "--network=host", server)
        podman.run("kube", "play", "--network=host", f"--configmap={DEPLOY / 'machine.yaml'}", application)
        found = _upload(tmp_path)
    finally:
        podman.run("kube", "down", application, status=None)
        podman.run("kube", "down", server, status=None)

    assert found["key"]["model"] == "key"


def _repository(folder: Path) -> Path:
    """A repository of one model, which needs no package that the tests' image lacks."""
    version = folder / "models" / "key" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(
        "def predict(recording: bytes) -> dict:\n    return {'key': 'D major'}\n"
    )
    for parent in (folder, folder.parent, folder.parent.parent):
        parent.chmod(0o755)
    return folder / "models"


def _build_application(podman: Podman, base_image: str, folder: Path) -> None:
    """The application's image, from wheels: without a registry of images, and without a network."""
    wheels = folder / "wheels"
    for project in ("backline-client", "backline"):
        build = ["-m", "build", "--no-isolation", "--wheel", "--outdir", wheels, ROOT / "packages" / project]
        subprocess.run([sys.executable, *build], check=True, capture_output=True, timeout=110)
    version = podman.run("run", "--rm", "--network=none", base_image, "python3", "--version").split()[1]
    only = ["--only-binary=:all:", "--python-version", version, "--find-links", wheels, "--dest", wheels]
    download = [sys.executable, "-m", "pip", "download", "--quiet", *only]
    subprocess.run([*download, "--requirement", SERVICE / "requirements.txt"], check=True, timeout=110)
    arguments = [f"BASE={base_image}", "PIP_NO_INDEX=1", "PIP_FIND_LINKS=/wheels"]
    options = [f"--build-arg={argument}" for argument in arguments]
    options += ["--network=none", f"--volume={wheels}:/wheels:ro", "--tag", "localhost/music-service"]
    podman.run("build", "--quiet", *options, SERVICE)
    shutil.rmtree(wheels)


def _upload(folder: Path) -> dict[str, Any]:
    """What the application answers, once both parts are up."""
    (folder / "song.ogg").write_bytes(b"sound")
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen("http://127.0.0.1:8080/ready", timeout=5):
                break
        except OSError:
            assert time.monotonic() < end, "the application was not ready after 60 s"
            time.sleep(0.1)
    answer = run("curl", "-s", "-F", f"recording=@{folder / 'song.ogg'}", "http://127.0.0.1:8080/analyse")
    found: dict[str, Any] = json.loads(answer)
    return found
