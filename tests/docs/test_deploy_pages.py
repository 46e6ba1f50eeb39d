"""Every snippet of docs/deploy is run, or checked by what would run it; the others are listed with the
reason."""

from __future__ import annotations

import ast
import asyncio
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec, patch

import pytest
import yaml
from click.testing import CliRunner

from backline.cli import serve
from backline.plugins.ray import Deployment, deployment
from backline.plugins.ray.needs import read_needs
from backline.plugins.tools.image import command as image
from backline.repository import configuration
from backline.repository.listing import FileEntry, Listing
from backline_client.client import AsyncClient, Client
from docs.conftest import commands
from docs.pages import ROOT, SERVER, Block, blocks, read
from support import models
from support.repositories import put
from support.tools import run, tool

PAGES = sorted(path.name for path in (ROOT / "docs" / "deploy").glob("*.md"))
CHART = ROOT / "deploy" / "helm" / "backline"
#: Programs that no test runs as printed, and why.
NOT_RUN = {
    "podman run": "tests/deploy/test_image.py runs the image with these and stricter options",
    "podman push": "needs a registry",
    "docker build": "docker needs its daemon; tests/deploy/conftest.py builds the same files with podman",
    "pip install": "Ray is too large for the usual tests: make test-ray installs it and starts a cluster",
    "--engine ray": "needs a cluster: tests/fleet/test_ray_deployment.py runs it under make test-ray",
    "deployment(": "needs a cluster, as above",
}


def _prometheus(block: Block, folder: Path) -> None:
    rules = {"groups": [{"name": "page", "rules": [{"record": "page", "expr": block.text}]}]}
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    run("promtool", "check", "rules", str(folder / "rules.yaml"))


def _keda_trigger(block: Block, folder: Path) -> None:
    """tests/observe/test_scaling.py asks a server what KEDA asks the address of this trigger."""
    (trigger,) = yaml.safe_load(block.text)["triggers"]
    (grpc_port,) = (param.default for param in serve.command.params if param.name == "grpc_port")

    assert (trigger["type"], trigger["metricType"]) == ("external", "Value")
    assert trigger["metadata"]["scalerAddress"].endswith(f":{grpc_port}")


def _image_commands(block: Block, folder: Path) -> None:
    for line in commands(block):
        program, verb, *arguments = shlex.split(line)
        if f"{program} {verb}" in NOT_RUN:
            continue
        assert (program, verb) == ("backline", "image"), line
        with chdir(folder):
            models.add1(Path("models"))
            to_file = [] if "--output" in arguments else ["--output", "image/"]
            done = CliRunner().invoke(image.command, [*arguments, *to_file])
            assert done.exit_code == 0, done.output
            assert "onnx" in Path("image/Containerfile").read_text()


def _clients(block: Block, folder: Path) -> None:
    # A client connects with its first request, so no server is needed for this.
    for line in ast.parse(block.text).body:
        assert isinstance(line, ast.Assign)
        names: dict[str, object] = {}
        exec(f"import backline\n{ast.unparse(line)}", names)
        client = names["client"]
        assert isinstance(client, Client | AsyncClient)
        if isinstance(client, Client):
            client.close()


def _model_configuration(block: Block, folder: Path) -> None:
    contents = {"config.pbtxt": block.text.encode()}
    listing = Listing("m", {path: FileEntry(0, "") for path in contents}, frozenset(), contents.__getitem__)

    config = configuration.read(listing, "m")

    assert config is not None
    assert config.backend == "remote"
    assert config.warnings == ()


def _inference_service(block: Block, folder: Path) -> None:
    runtime = yaml.safe_load((ROOT / "deploy" / "kserve" / "backline-runtime.yaml").read_text())
    model = yaml.safe_load(block.text)["spec"]["predictor"]["model"]

    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert model["modelFormat"]["name"] in {one["name"] for one in runtime["spec"]["supportedModelFormats"]}


def _helm(block: Block, folder: Path) -> None:
    for line in commands(block):
        program, verb, release, chart, *options = shlex.split(line)
        assert (program, verb) == ("helm", "install")
        assert "kind: Deployment" in run("helm", "template", release, str(ROOT / chart), *options)


def _secrets(block: Block, folder: Path) -> None:
    """The file of values, which comes next on the page, names all of them and no other."""
    created = {
        words[4]
        for line in commands(block)
        if (words := shlex.split(line))[:3] == ["kubectl", "create", "secret"]
    }
    (values,) = (
        yaml.safe_load(one.text)
        for one in blocks("docs/deploy/kubernetes.md")
        if "kind:" not in one.text and one.language == "yaml"
    )

    assert created == {
        values["envFrom"][0]["secretRef"]["name"], values["tls"]["secret"], values["auth"]["secret"],
        values["serviceMonitor"]["keySecret"],
    }  # fmt: skip


def _values(block: Block, folder: Path) -> None:
    (folder / "values.yaml").write_text(block.text)
    text = run("helm", "template", "notes", str(CHART), "--values", str(folder / "values.yaml"))

    assert all(name in text for name in yaml.safe_load(block.text)["options"])


def _manifests(block: Block, folder: Path) -> None:
    """tests/deploy/test_helm.py validates them for Kubernetes."""
    assert yaml.safe_load(block.text)["kind"] == "Deployment"


def _environment(block: Block, folder: Path) -> None:
    known = {param.envvar for param in serve.command.params}

    assert {line.partition("=")[0] for line in block.text.splitlines()} <= known


def _function(block: Block, folder: Path) -> None:
    models.add1(folder / "models")
    names: dict[str, Any] = {}
    with chdir(folder):
        exec(block.text, names)
    (answer,) = (names[name] for name in ("handler", "answer") if name in names)

    assert callable(answer)


def _user_unit(block: Block, folder: Path) -> None:
    (started,) = (line for line in block.text.splitlines() if line.startswith("ExecStart="))
    program, name, *arguments = shlex.split(started.removeprefix("ExecStart="))
    (folder / "page.service").write_text(block.text.replace(program, "/bin/true"))
    checked = subprocess.run(
        [tool("systemd-analyze"), "verify", "--man=no", str(folder / "page.service")],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert (Path(program).name, name) == ("backline", "serve")
    serve.command.make_context(name, arguments)
    assert "page.service" not in checked.stderr, checked.stderr


def _installation(block: Block, folder: Path) -> None:
    (line,) = commands(block)
    *pip, package = shlex.split(line)
    name, _, extras = package.removesuffix("]").partition("[")
    project = tomllib.loads((SERVER / "pyproject.toml").read_text())["project"]

    assert (pip, name) == (["pip", "install"], project["name"])
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()


def _serve_command(block: Block, folder: Path) -> None:
    (line,) = commands(Block(block.language, block.text.replace("\\\n", ""), block.line))
    program, name, *arguments = shlex.split(line)

    assert (program, name) == ("backline", "serve")
    serve.command.make_context(name, arguments)


def _ray_deployment(block: Block, folder: Path) -> None:
    stand_in = create_autospec(deployment, return_value=create_autospec(Deployment, instance=True))
    with patch("backline.plugins.ray.deployment", stand_in):
        exec(block.text, {})

    stand_in.assert_called_once()


def _serve_scaler(block: Block, folder: Path) -> None:
    with patch("backline.plugins.ray.ServeScaler.run") as run:
        exec(block.text, {})

    run.assert_called_once()


def _native_settings(block: Block, folder: Path) -> None:
    put(folder / "m" / "model.toml", f'backend = "identity"\n{block.text}')
    put(folder / "m" / "1" / "empty", "")

    (need,) = asyncio.run(read_needs([str(folder)]))

    assert need.amounts == tomllib.loads(block.text)["ray_actor_options"]


#: What runs each snippet, in the order of the page.
CHECKS: dict[str, list[Callable[[Block, Path], None]]] = {
    "autoscaling.md": [_prometheus, _keda_trigger],
    "container.md": [_image_commands, _image_commands],
    "fleet.md": [_clients, _model_configuration],
    "kserve.md": [_inference_service],
    "kubernetes.md": [_image_commands, _helm, _secrets, _values, _manifests],
    "ray.md": [
        _installation,
        _serve_command,
        _ray_deployment,
        _clients,
        _ray_deployment,
        _native_settings,
        _serve_scaler,
    ],
    "serverless.md": [_function, _function],
    "systemd.md": [_environment, _user_unit],
}


def _snippets() -> list[object]:
    return [
        pytest.param(block, check, id=f"{page}:{block.line}")
        for page in PAGES
        for block, check in zip(blocks(f"docs/deploy/{page}"), CHECKS.get(page, []), strict=False)
    ]


@pytest.mark.parametrize(("block", "check"), _snippets())
def test_the_snippet_works(block: Block, check: Callable[[Block, Path], None], tmp_path: Path) -> None:
    check(block, tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_of_a_page_has_a_check(page: str) -> None:
    shown = len(blocks(f"docs/deploy/{page}"))

    assert shown == len(CHECKS.get(page, [])), f"docs/deploy/{page}: add the check of each snippet to CHECKS"


def test_what_is_not_run_is_on_a_page() -> None:
    pages = "".join(read(f"docs/deploy/{page}") for page in PAGES)

    assert all(program in pages for program in NOT_RUN)
