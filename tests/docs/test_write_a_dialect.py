"""The dialect of the page is installed, and passes the tests that the page shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from docs.pages import blocks
from support.distributions import install_project

PAGE = "docs/write-a-dialect.md"


def test_the_dialect_of_the_page_passes_the_tests_of_the_page(tmp_path: Path) -> None:
    shown = blocks(PAGE)
    dialect, tests = (block.text for block in shown if block.language == "python")
    (project,) = (block.text for block in shown if block.language == "toml")
    (tmp_path / "toy_dialect.py").write_text(dialect)
    (tmp_path / "test_toy.py").write_text(tests)
    install_project(tmp_path, project)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_toy.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
