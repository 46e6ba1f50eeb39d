"""A server serves the models at a URL of the scheme."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

import backline

MODEL = b"def double(x: float) -> float:\n    return 2 * x\n"


def test_a_model_in_a_database_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    database = sqlite3.connect(tmp_path / "models.db")
    with database:
        database.execute("CREATE TABLE files (path TEXT, content BLOB)")
        database.execute("INSERT INTO files VALUES ('double/1/model.py', ?)", [MODEL])
    database.close()

    with backline.serve(f"NAME://{tmp_path}/models.db") as server:
        (found,) = server.client.models()

    assert found.name == "double"
    assert "trust-remote-code" in found.reason  # code from elsewhere runs only if the server trusts it
