"""The packages: what they contain, that they install anywhere, and what works without extras."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from backline import __version__
from docs.conftest import wait_until_loaded
from docs.pages import CLIENT, ROOT, SERVER
from support import models
from support.server import serve
from support.tools import tool

#: Modules that an environment without extras lacks, and the extra that installs each.
EXTRAS = {
    "onnxruntime": "onnx",
    "tokenizers": "embeddings",
    "torch": "torch",
    "tensorflow": "tensorflow",
    "ai_edge_litert": "litert",
    "openvino": "openvino",
    "jax": "jax",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "catboost": "catboost",
    "skops": "sklearn",
    "pandas": "pandas",
    "pyarrow": "arrow",
    "yaml": "mlflow",
    "grpc": "grpc",
    "matplotlib": "plot",
    "watchfiles": "watch",
    "obstore": "cloud",
    "redis": "redis",
    "ray": "ray",
    "tomlkit": "auth",
    "jwt": "auth",
    "cryptography": "auth",
    "PIL": "image",
    "soundfile": "audio",
    "av": "aac",
    "uv": "envs",
    "opentelemetry": "otel",
    "swift_f0": "demo",
}
#: The packages in the order in which a release builds them.
PACKAGES = ("backline-client", "backline")
#: Extras that install what other extras install alone, or in another build.
SEVERAL = {"torchserve", "onnx-gpu"}


@dataclass(frozen=True)
class Packages:
    """The source distribution of the server, and the wheels of the server and of the client."""

    sdist: Path
    wheel: Path
    client: Path


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """The packages, built as a release builds them."""
    folder = tmp_path_factory.mktemp("packages")
    for project in (CLIENT, SERVER):
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, project]
        built = subprocess.run(command, check=False, capture_output=True, text=True, timeout=110)
        assert built.returncode == 0, built.stderr
    wheel, client = (next(folder.glob(f"{name}-[0-9]*.whl")) for name in ("backline", "backline_client"))
    return Packages(next(folder.glob("backline-[0-9]*.tar.gz")), wheel, client)


@pytest.fixture(scope="module")
def wheel(packages: Packages) -> zipfile.ZipFile:
    return zipfile.ZipFile(packages.wheel)


def test_all_packages_have_one_version() -> None:
    projects = [
        tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in (CLIENT, SERVER)
    ]

    assert [project["version"] for project in projects] == [__version__] * 2
    assert f"backline-client=={__version__}" in projects[1]["dependencies"]


def test_the_packages_have_the_version_of_the_code(packages: Packages) -> None:
    assert packages.client.name == f"backline_client-{__version__}-py3-none-any.whl"
    assert packages.wheel.name == f"backline-{__version__}-py3-none-any.whl"
    assert packages.sdist.name == f"backline-{__version__}.tar.gz"


def test_the_sdist_contains_what_a_build_needs_and_no_tests(packages: Packages) -> None:
    with tarfile.open(packages.sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}

    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "src/backline/py.typed",
    } <= names
    assert {name.split("/")[0] for name in names if "/" in name} == {"src"}


def _run(*command: str | Path, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bare(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment into which the wheel was installed without a network, from a folder of wheels."""
    folder = tmp_path_factory.mktemp("bare")
    download = ["-m", "pip", "download", "--quiet", "--dest", "wheels", "--find-links", packages.wheel.parent]
    _run(sys.executable, *download, "backline[onnx,grpc]", folder=folder)
    uv = tool("uv")
    _run(uv, "venv", "--quiet", "--python", sys.executable, "env", folder=folder)
    offline = ["unshare", "--net", "--map-root-user"] if sys.platform == "linux" else []
    install = [uv, "pip", "install", "--quiet", "--python", "env", "--no-index", "--find-links", "wheels"]
    _run(*offline, *install, "backline[onnx,grpc]", folder=folder)
    return folder / "env"


def test_the_wheel_serves_in_a_bare_environment_that_was_installed_without_a_network(
    bare: Path, tmp_path: Path
) -> None:
    models.add1(tmp_path / "models")
    inputs = ["--input", "INPUT0=zeros"]

    with serve(tmp_path / "models", tmp_path / "log", python=bare / "bin" / "python") as server:
        answer = _run(
            bare / "bin" / "backline", "infer", "add1", *inputs, "--url", server.grpc_url, folder=tmp_path
        )

    assert "OUTPUT0" in answer
    assert _run(bare / "bin" / "backline", "--version", folder=tmp_path).split()[-1] == __version__


def test_the_client_installs_alone_and_calls_over_http_and_grpc(packages: Packages, tmp_path: Path) -> None:
    """What an application installs: nothing of the server, and few packages."""
    names = zipfile.ZipFile(packages.client).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"backline_client"}
    assert {"backline_client/py.typed", "backline_client/protos/descriptors.binpb"} <= set(names)
    uv = tool("uv")
    _run(uv, "venv", "--quiet", "--python", sys.executable, "env", folder=tmp_path)
    install = [uv, "pip", "install", "--quiet", "--python", "env"]
    _run(*install, packages.client, folder=tmp_path)
    listed = _run(uv, "pip", "list", "--quiet", "--python", "env", "--format", "freeze", folder=tmp_path)
    assert {line.partition("==")[0] for line in listed.splitlines()} == {
        "backline-client", "httptools", "msgspec", "numpy", "protobuf",
    }  # fmt: skip
    _run(*install, f"backline-client[grpc] @ {packages.client.as_uri()}", folder=tmp_path)
    models.add1(tmp_path / "models")
    ask = (
        "import sys, numpy as np; from backline_client import connect\n"
        "for url in sys.argv[1:]:\n"
        "    with connect(url) as client:\n"
        "        print(client['add1'](np.zeros((1, 16), 'float32'))['OUTPUT0'].max())\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'backline']\n"
        "try: connect('inproc:///models')['add1'].metadata()\n"
        "except Exception as error: print(error)"
    )

    with serve(tmp_path / "models", tmp_path / "log") as server:
        shown = _run(tmp_path / "env/bin/python", "-c", ask, server.url, server.grpc_url, folder=tmp_path)

    assert shown.splitlines()[:2] == ["1.0", "1.0"]
    assert "need the server's package: pip install backline" in shown


RECORD_AND_DECODE = """
import io, sys, av, numpy as np
from backline.model import Audio

sound = (np.sin(2 * np.pi * 440 * np.arange(44100) / 44100) / 2).astype(np.float32)
file = io.BytesIO()
with av.open(file, "w", format="ipod") as container:
    track = container.add_stream("aac", rate=44100, layout="mono")
    frame = av.AudioFrame.from_ndarray(sound[np.newaxis], format="fltp", layout="mono")
    frame.sample_rate = 44100
    container.mux([*track.encode(frame), *track.encode(None)])
decoded = Audio[16000].decode(file.getvalue())
print(round(np.abs(np.fft.rfft(decoded)).argmax() * 16000 / len(decoded), -1))
"""


@pytest.fixture(scope="module")
def with_aac(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment into which the file of the wheel was installed with the extra aac."""
    folder, uv = tmp_path_factory.mktemp("aac"), tool("uv")
    _run(uv, "venv", "--quiet", "--python", sys.executable, "env", folder=folder)
    wheels = (packages.client, f"{packages.wheel}[aac]")
    _run(uv, "pip", "install", "--quiet", "--python", "env", *wheels, folder=folder)
    return folder / "env"


def test_a_recording_of_a_phone_needs_no_more_than_the_extra_aac(with_aac: Path, tmp_path: Path) -> None:
    pitch = _run(with_aac / "bin" / "python", "-c", RECORD_AND_DECODE, folder=tmp_path)

    assert float(pitch) == 440


def test_an_image_gets_the_wheels_from_which_the_server_was_installed(
    with_aac: Path, packages: Packages, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()

    _run(with_aac / "bin" / "backline", "image", "build", "models", "--output", "image", folder=tmp_path)

    wheels = {wheel.name: wheel.read_bytes() for wheel in (tmp_path / "image" / "wheels").iterdir()}
    assert wheels == {wheel.name: wheel.read_bytes() for wheel in (packages.client, packages.wheel)}


def test_a_release_builds_checks_and_publishes_these_packages() -> None:
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    steps = [line.strip().removeprefix("- run: ") for line in workflow.splitlines() if "run:" in line]

    assert [f"python -m build packages/{name} --outdir dist" for name in (*PACKAGES, "oip-conformance")] == [
        step for step in steps if step.startswith("python -m build")
    ]
    assert any(step.startswith("pip install") and "dist/*.whl" in step for step in steps)
    assert "pypa/gh-action-pypi-publish@" in workflow


def test_the_scripts_of_a_release_can_be_parsed() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    scripts = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]

    assert len(scripts) >= 10
    for script in scripts:
        plain = re.sub(r"\$\{\{.*?\}\}", "value", script)
        parsed = subprocess.run(["bash", "-n"], check=False, input=plain, capture_output=True, text=True)
        assert parsed.returncode == 0, parsed.stderr


def test_the_notes_of_a_release_are_its_section_of_the_changelog(tmp_path: Path) -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    (script,) = (step["run"] for step in jobs["publish"]["steps"] if "notes.md" in step.get("run", ""))
    log = "## [Unreleased]\n\nnothing\n\n## [1.2.3] - 2027-01-01\n\n- news\n\n## [1.2.2]\n\n- old\n"
    (tmp_path / "CHANGELOG.md").write_text(log)
    environment = {**os.environ, "GITHUB_REF_NAME": "v1.2.3"}

    made = "\n".join(line for line in script.splitlines() if not line.startswith("gh "))
    subprocess.run(["bash", "-ec", made], check=True, cwd=tmp_path, env=environment)

    assert (tmp_path / "notes.md").read_text().split() == ["-", "news"]


@pytest.mark.parametrize(
    "name", ["py.typed", "cli/serve/options.py", "plugins/dialects/console/static/index.html"]
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

    assert "failed to load 'add1' version 1" in server.output
    assert "pip install 'backline[onnx]'" in server.output
    assert "Traceback" not in server.output


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["models", "list", "--url", "grpc://127.0.0.1:9"], "grpc"),
        (["models", "list", "--url", "ray://backline"], "ray"),
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
    project = tomllib.loads((SERVER / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [
        Requirement(one) for one in (*project["dependencies"], *(one for extra in extras for one in extra))
    ]
    entries = re.split(r"\n(?=[a-z])", (ROOT / "requirements.lock").read_text())
    found = [re.match(r"([\w.-]+)(?:\[.*?\])?==([\w.+!-]+)", entry) for entry in entries]
    locked: dict[str, list[str]] = {}
    for entry, pinned in zip(entries, found, strict=True):
        assert pinned is not None, entry
        assert "--hash=sha256:" in entry, entry
        locked.setdefault(canonicalize_name(pinned[1]), []).append(pinned[2])

    missing = [  # run `make lock`
        str(one)
        for one in wanted
        if not one.name.startswith("backline")
        and not all(
            one.specifier.contains(version) for version in locked.get(canonicalize_name(one.name), ["0"])
        )
    ]
    assert not missing


def test_the_release_publishes_only_after_the_checks_and_an_approval() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    publishes = {
        name
        for name, job in jobs.items()
        if any(re.search("pypi-publish|docker push|git push|gh release", str(step)) for step in job["steps"])
    }
    needed = {name: {job.get("needs", ())} if isinstance(job.get("needs"), str) else set(job.get("needs", ()))
              for name, job in jobs.items()}  # fmt: skip
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = re.findall(r"'run': 'make ([a-z-]+)", str(jobs))

    assert publishes == {"publish"}
    assert jobs["publish"]["environment"] == "pypi"
    assert needed["publish"] == {"build", "image"}
    assert needed["build"] == {"check"}
    assert needed["image"] == {"build"}
    assert made
    assert set(made) <= targets
