"""The calls that the console offers to copy: no name that a model's author chose is code in them."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from backline.plugins.dialects.console.service import FOLDER
from support.tools import tool

PROOF = "touch proof"
NAME = f"a'$({PROOF})`{PROOF}`;{PROOF}#"
INPUT = f'x"; {NAME} \\'
OUTPUT = f'y"]); {NAME} \n{PROOF}'
FILE = f"-f $({PROOF}) {NAME}.wav"


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """The language and the text of each call: with inputs as JSON, as a stream, and with a file."""
    folder = tmp_path_factory.mktemp("console")
    for file in FOLDER.glob("*.js"):
        shutil.copy(file, folder / file.name)
    (folder / "package.json").write_text('{"type": "module"}')
    told = {
        "inputs": [{"name": name, "shape": [1], "datatype": "BYTES"} for name in (INPUT, "plain")],
        "outputs": [{"name": OUTPUT, "shape": [1]}],
    }
    given = json.dumps([NAME, "http://h:8000", {INPUT: [NAME], "plain": [NAME]}, told])
    (folder / "run.mjs").write_text(
        'import { snippets } from "./snippets.js";\n'
        f"const given = {given};\n"
        f'const forms = [[false, ""], [true, ""], [false, {json.dumps(FILE)}]];\n'
        "console.log(JSON.stringify(forms.flatMap((form) => snippets(...given, ...form))));\n"
    )
    made = subprocess.run(
        [tool("node"), "run.mjs"], cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    found: list[tuple[str, str]] = [(language, text) for language, text in json.loads(made.stdout)]
    assert {language for language, _ in found} >= {"curl", "Python", "requests", "tritonclient", "JavaScript"}
    return found


def test_a_shell_runs_nothing_but_curl(calls: list[tuple[str, str]], tmp_path: Path) -> None:
    curl = tmp_path / "bin" / "curl"
    curl.parent.mkdir()
    curl.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> called\n')
    curl.chmod(0o755)
    path = f"{curl.parent}{os.pathsep}{os.environ['PATH']}"
    for language, text in calls:
        if text.startswith("curl"):
            subprocess.run(["sh", "-ec", text], cwd=tmp_path, env={"PATH": path}, timeout=60, check=True)
            assert (tmp_path / "called").exists(), language
            assert not (tmp_path / "proof").exists(), text
    called = (tmp_path / "called").read_text()
    for whole in (f"application/x-npy; output={OUTPUT}", f"@{FILE}", json.dumps(NAME)):
        assert whole in called


def test_names_are_only_texts_in_python(calls: list[tuple[str, str]]) -> None:
    for language, text in calls:
        if language in ("Python", "requests", "tritonclient"):
            nodes = ast.walk(ast.parse(text))
            texts = [node.value for node in nodes if isinstance(node, ast.Constant)]
            assert sum(str(one).count(PROOF) for one in texts) == text.count(PROOF), text
