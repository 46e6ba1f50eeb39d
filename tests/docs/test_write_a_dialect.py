"""The dialect of the page is installed, and passes the tests that the page shows."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from docs.pages import blocks

PAGE = "docs/write-a-dialect.md"


def test_the_dialect_of_the_page_passes_the_tests_of_the_page(tmp_path: Path) -> None:
    shown = blocks(PAGE)
    dialect, tests = (block.text for block in shown if block.language == "python")
    (project,) = (tomllib.loads(block.text)["project"] for block in shown if block.language == "toml")
    (tmp_path / "toy_dialect.py").write_text(dialect)
    (tmp_path / "test_toy.py").write_text(tests)
    info = tmp_path / "backline_toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
    ((group, points),) = project["entry-points"].items()
    lines = [f"{name} = {target}" for name, target in points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))

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
