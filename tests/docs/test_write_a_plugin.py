"""The backend and the command of their pages are installed, and pass the tests that the pages show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

from docs.pages import blocks
from support import models
from support.distributions import install_project
from support.server import serve


def install(page: str, folder: Path) -> None:
    """Writes the files of a page, whose first lines name them, and what pip would write for its project."""
    for block in blocks(page):
        if block.language == "python":
            file = folder / block.text.split("\n", 1)[0].removeprefix("# ")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
    (project,) = (block.text for block in blocks(page) if block.language == "toml")
    install_project(folder, project)


def run(folder: Path, *arguments: str) -> CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_the_backend_of_the_page_passes_the_tests_of_the_page(tmp_path: Path) -> None:
    install("docs/write-a-backend.md", tmp_path)

    done = run(tmp_path, "pytest", "-q", "-p", "no:cacheprovider", "test_linear_models.py")

    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


def test_the_command_of_the_page_runs(tmp_path: Path) -> None:
    install("docs/write-a-command.md", tmp_path / "site")
    models.add1(tmp_path / "models")

    with serve(tmp_path / "models", tmp_path / "log") as server:
        done = run(tmp_path / "site", "backline", "sizes", "--url", server.url)

    assert (done.returncode, done.stdout) == (0, "add1 1 1\n"), done.stderr


def test_the_functions_of_the_pages_run_where_an_event_loop_runs_already(tmp_path: Path) -> None:
    """As in a notebook."""
    models.add1(tmp_path / "models")
    shown = [
        block.text
        for page in ("docs/doctor.md", "docs/tuning.md")
        for block in blocks(page)
        if block.language == "python"
    ]
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio\n\nasync def main(text):\n    exec(text, {})\n\n"
        f"for text in {shown!r}:\n    asyncio.run(main(text))\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert len(shown) == 3
    assert "requests/s" in done.stdout or "No combination has" in done.stdout  # on a busy machine
