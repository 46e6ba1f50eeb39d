"""The pages' Python and shell snippets run as printed, against a server started by the pages' own command."""

from __future__ import annotations

import json
import re
import shutil
import ssl
import time
import tomllib
import urllib.request
from contextlib import suppress

import pytest

from docs.conftest import Workspace, commands
from docs.pages import ROOT, SERVER, Block, blocks, code, read

RUN = (
    "README.md",
    "docs/installation.md",
    "docs/client.md",
    "docs/embedding.md",
    "docs/configuration.md",
    "docs/protocol.md",
    "docs/operations.md",
    "docs/tracing.md",
    "docs/jobs.md",
)
#: Commands that set up an environment: not run, but their arguments are checked.
SETUP = ("make", "pip")
SERVE = "backline serve"


def _blocks(language: str) -> list[object]:
    return [
        pytest.param(block, id=f"{page}:{block.line}")
        for page in RUN
        for block in blocks(page)
        if block.language == language
    ]


def _shell_blocks() -> list[object]:
    """Shell blocks with requests to a server without TLS."""
    shown = [
        (page, block)
        for page in RUN
        for block in blocks(page)
        if block.language == "sh"
        and not any(line.startswith((*SETUP, SERVE)) for line in commands(block))
        and "https:" not in block.text
    ]
    return [pytest.param(block, id=f"{page}:{block.line}") for page, block in shown]


@pytest.mark.parametrize("block", _blocks("python")[1:])  # the first one creates the models
def test_python_prints_what_its_comments_say(workspace: Workspace, block: Block) -> None:
    expected = set(re.findall(r"print\(.*\)  # (.*)", block.text))

    assert set(workspace.run_python(block).splitlines()) == expected


@pytest.mark.parametrize("block", _shell_blocks())
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_shell_commands_succeed(workspace: Workspace, block: Block) -> None:
    for line in commands(block):
        assert '{"error"' not in workspace.run_shell(line)  # curl exits with 0 whatever the status


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_gets_the_answer_that_the_readme_shows(workspace: Workspace) -> None:
    readme = blocks("README.md")
    (shown,) = (block for block in readme if block.language == "json")
    asked = readme[readme.index(shown) - 1]

    assert json.loads(workspace.run_shell(asked.text)) == json.loads(shown.text)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_raw_request_gets_its_tensor(workspace: Workspace) -> None:
    (line,) = (
        line for block in blocks("docs/protocol.md") for line in commands(block) if line.startswith("printf")
    )

    workspace.run_shell(line)

    answer = (workspace.folder / "answer.bin").read_bytes()
    assert answer.endswith(4 * b"\0\0\x80?")  # four times 1.0


@pytest.mark.skipif(
    shutil.which("curl") is None or shutil.which("openssl") is None, reason="curl or openssl is not installed"
)
def test_tls_can_be_tried_as_shown(idle_workspace: Workspace) -> None:
    made, asked = (block for block in blocks("docs/operations.md") if "server.crt" in block.text)
    certificate, serve = commands(made)
    idle_workspace.run_shell(certificate)

    with idle_workspace.serving(serve) as server:
        _wait_for_https(f"https://localhost:{server.http_port}/v2/health/ready", idle_workspace)
        for line in commands(asked):
            assert '"error"' not in idle_workspace.run_shell(line)


def _wait_for_https(url: str, workspace: Workspace) -> None:
    context = ssl.create_default_context(cafile=str(workspace.folder / "server.crt"))
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with suppress(OSError), urllib.request.urlopen(url, context=context, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.05)
    raise AssertionError((workspace.folder / "server.log").read_text())


def _mentions(word: str) -> list[str]:
    """All commands in the pages that begin with a word, in blocks and in prose."""
    pages = (
        *RUN,
        "ARCHITECTURE.md",
        *(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "decisions").glob("*.md")),
    )
    lines = [
        line for page in pages for block in blocks(page) if block.language == "sh" for line in commands(block)
    ]
    return [
        text
        for text in [*lines, *(text for page in pages for text in code(read(page)))]
        if text.startswith(f"{word} ")
    ]


def test_every_target_of_make_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    listed = _mentions("make")

    assert len(listed) >= 6
    for command in listed:
        target, *variables = command.split()[1:]
        assert re.search(rf"^{target}:.*##", makefile, re.MULTILINE), command
        for variable in re.findall(r"(\w+)=", " ".join(variables)):
            assert variable in makefile, command


def test_every_extra_exists() -> None:
    project = tomllib.loads((SERVER / "pyproject.toml").read_text())["project"]
    listed = {
        extra
        for command in _mentions("pip")
        for names in re.findall(r"'(?:\.|backline)\[([\w,]+)\]'", command)
        for extra in names.split(",")
    }

    assert listed == {"onnx", "grpc", "redis", "otel", "demo", "auth"}
    assert listed <= project["optional-dependencies"].keys()


def test_every_script_exists() -> None:
    for command in _mentions("python"):
        assert (ROOT / command.split()[1]).is_file(), command


def test_the_table_of_extras_is_complete() -> None:
    project = tomllib.loads((SERVER / "pyproject.toml").read_text())["project"]
    rows = re.findall(r"^\| `([\w-]+)` \| \S+", read("docs/installation.md"), re.MULTILINE)

    assert set(rows) == project["optional-dependencies"].keys()


def test_the_readme_states_the_current_version() -> None:
    import backline

    assert f"Backline {backline.__version__} is an alpha version." in read("README.md")
