"""Fixtures for all tests: one server process with the small models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import models
from support.server import ServerProcess, serve


@pytest.fixture(scope="session")
def model_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with add1, ident and slow."""
    repository = tmp_path_factory.mktemp("repository")
    models.add1(repository)
    models.ident(repository)
    models.slow(repository)
    return repository


@pytest.fixture(scope="session")
def server(model_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A running server for tests that only ask; a test that stops or floods it starts its own."""
    with serve(model_repository, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running
