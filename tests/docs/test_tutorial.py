"""docs/tutorial.md: its commands work in the order in which they are printed, in one folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.conftest import Workspace, commands
from docs.pages import Block, blocks
from support.server import free_ports

PAGE = "docs/tutorial.md"
pytestmark = pytest.mark.timeout(240)


def test_the_tutorial_can_be_followed(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, *free_ports(3))
    shown = [block for block in blocks(PAGE) if block.language in ("sh", "python")]
    (serve,) = (index for index, block in enumerate(shown) if block.text.startswith("backline serve"))

    output = "".join(_follow(workspace, block) for block in shown[:serve])
    assert "1 passed" in output
    assert "680.0" in output
    assert "rent: ok" in output

    with workspace.serving(shown[serve].text) as server:
        server.wait_ready()
        output = "".join(_follow(workspace, block) for block in shown[serve + 1 :])

    assert '"output":{"rent": 680.0}' in output
    assert "stable of rent: 2 -> 1" in output
    assert "requests/s" in output
    assert "bk_" in output


def _follow(workspace: Workspace, block: Block) -> str:
    """The output of a block, which is what its comments say."""
    if block.language == "python":
        output = workspace.run_python(block)
        assert output.splitlines() == re.findall(r"print\(.*\)  # (.*)", block.text)
        return output
    return "".join(map(workspace.run_shell, commands(block)))
