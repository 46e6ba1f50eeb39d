"""The distribution stands alone: it needs no Backline, and its proto file and its compiled form are the same."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import oip_conformance
from reference import reference_server

SOURCE = Path(oip_conformance.__file__).parent
PACKAGE = Path(__file__).parents[1]


def test_no_module_imports_backline() -> None:
    files = [*SOURCE.rglob("*.py"), Path(__file__).with_name("reference.py")]
    assert len(files) > 25
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "backline" for name in names), path


def test_installed_alone_in_an_empty_environment_it_judges_a_server(tmp_path: Path) -> None:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        pytest.skip("uv is not installed")
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "env"], check=True)
    copy = shutil.copytree(PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, copy], check=True)
    listed = subprocess.run([uv, "pip", "list", "--python", python], check=True, capture_output=True, text=True).stdout
    installed = {line.split()[0] for line in listed.splitlines()[2:]}
    assert installed == {"oip-conformance", "numpy", "grpcio", "protobuf", "typing-extensions"}
    with reference_server() as (url, address):
        command = [tmp_path / "env" / "bin" / "oip-conformance", url, "--grpc", address, "--quiet"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert " 0 failed" in result.stdout


def test_compiled_proto_is_that_of_the_proto_file(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    output = tmp_path / "oip.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{SOURCE}", f"--descriptor_set_out={output}", "oip.proto"]
    subprocess.run(command, check=True)
    assert output.read_bytes() == (SOURCE / "oip.binpb").read_bytes()
