"""Object stores and web servers for these tests, and a separate cache for each test."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backline.backends.registry import FORMATS
from backline.repository.location import open_repository
from backline.repository.repository import FetchedVersion, FoundModel, Repository
from support.object_stores import Store, azure, gcs, s3
from support.web import WebServer

_numbers = itertools.count(1)
#: Variables that may be set where the tests run, and must not affect them.
_ENVIRONMENT = (
    "AWS_",
    "AZURE_",
    "GOOGLE_",
    "STORAGE_EMULATOR_HOST",
    "TRITON_",
    "HF_",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "http_proxy",
    "https_proxy",
)


@pytest.fixture(scope="session")
def log_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="session")
def s3_server(log_folder: Path) -> Iterator[Store]:
    with s3(log_folder / "s3.log") as running:
        yield running


@pytest.fixture(scope="session")
def gcs_server(log_folder: Path) -> Iterator[Store]:
    with gcs(log_folder / "gcs.log") as running:
        yield running


@pytest.fixture(scope="session")
def azure_server(log_folder: Path) -> Iterator[Store]:
    with azure(log_folder / "azure.log") as running:
        yield running


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in tuple(os.environ):
        if name.startswith(_ENVIRONMENT):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@contextlib.contextmanager
def bucket_of(server: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A new bucket, and the environment that leads to it."""
    bucket = replace(server, bucket=f"bucket-{next(_numbers)}")
    bucket.make_bucket(bucket.bucket)
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    yield bucket
    with contextlib.suppress(OSError):
        bucket.relay.mend()


@pytest.fixture(params=["s3", "gcs", "azure"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A new bucket of each kind of store in turn."""
    with bucket_of(request.getfixturevalue(f"{request.param}_server"), monkeypatch) as bucket:
        yield bucket


@pytest.fixture
def s3_store(s3_server: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with bucket_of(s3_server, monkeypatch) as bucket:
        yield bucket


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


#: Opens the repository at a location.
Open = Callable[[str], Repository]


@pytest.fixture
def opened(cache: Path) -> Iterator[Open]:
    """Opens repositories with this test's cache, and closes them at its end."""
    repositories: list[Repository] = []

    def open_one(location: str) -> Repository:
        repositories.append(open_repository(location, formats=FORMATS, cache=cache))
        return repositories[-1]

    yield open_one
    for repository in repositories:
        asyncio.run(repository.close())


def scan(repository: Repository) -> dict[str, FoundModel]:
    return {model.name: model for model in asyncio.run(repository.scan())}


def fetch(
    repository: Repository, model: FoundModel, version: str = "1", heard: list[tuple[int, int]] | None = None
) -> FetchedVersion:
    wanted = next(found for found in model.versions if found.version == version)
    reported = heard if heard is not None else []
    return asyncio.run(repository.fetch(model, wanted, lambda here, total: reported.append((here, total))))
