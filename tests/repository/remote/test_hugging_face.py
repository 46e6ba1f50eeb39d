"""Models on a hub with the API of Hugging Face."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backline.engine.errors import InvalidArgument, NotFound, Unavailable
from support import models
from support.hub import publish
from support.web import Page, WebServer

from .conftest import Open, fetch, scan


@pytest.fixture
def store() -> Iterator[WebServer]:
    """The store of the hub's large files."""
    with WebServer() as running:
        yield running


@pytest.fixture
def hub(
    web: WebServer, store: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, bytes]:
    """The files of acme/models on a hub that HF_ENDPOINT names."""
    folder = tmp_path / "source"
    models.add1(folder / "served")
    models.slow(folder / "served", size=64, layers=2)
    (folder / "served" / "add1" / "config.pbtxt").write_text("max_batch_size: 8")
    (folder / "README.md").write_text("# Models")
    files = {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }
    publish(web, store, "acme/models", files)
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    return files


def test_the_models_in_a_folder_of_the_hub_are_found_and_fetched(hub: dict[str, bytes], opened: Open) -> None:
    repository = opened("hf://acme/models/served")
    found = scan(repository)
    assert sorted(found) == ["add1", "slow"]
    assert found["add1"].config.max_batch_size == 8
    for name in found:
        assert fetch(repository, found[name]).path.read_bytes() == hub[f"served/{name}/1/model.onnx"]


def test_one_file_of_the_hub_is_a_model(hub: dict[str, bytes], opened: Open) -> None:
    repository = opened("hf://acme/models/served/slow/1/model.onnx")
    assert fetch(repository, scan(repository)["model"]).path.read_bytes() == hub["served/slow/1/model.onnx"]


def test_a_revision_can_be_named(
    web: WebServer, store: WebServer, hub: dict[str, bytes], opened: Open
) -> None:
    publish(web, store, "acme/models", hub, revision="v1.0")
    assert sorted(scan(opened("hf://acme/models@v1.0/served"))) == ["add1", "slow"]
    with pytest.raises(NotFound, match=r"the hub has no repository 'acme/models' with revision 'v2\.0'"):
        scan(opened("hf://acme/models@v2.0/served"))


def test_a_listing_of_several_pages_is_read_to_its_end(
    web: WebServer, store: WebServer, hub: dict[str, bytes], opened: Open
) -> None:
    publish(web, store, "acme/models", hub, page_size=2)
    assert sorted(scan(opened("hf://acme/models/served"))) == ["add1", "slow"]


def test_the_token_is_sent_to_the_hub_and_not_to_redirect_targets(
    web: WebServer, store: WebServer, hub: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, opened: Open
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    repository = opened("hf://acme/models/served")
    fetch(repository, scan(repository)["slow"])
    assert {asked.headers.get("authorization") for asked in web.asked} == {"Bearer hf_secret"}
    assert store.asked
    assert all("authorization" not in asked.headers for asked in store.asked)


def test_content_with_a_wrong_hash_is_refused(store: WebServer, hub: dict[str, bytes], opened: Open) -> None:
    for page in store.pages.values():
        page.content = page.content[::-1]
    repository = opened("hf://acme/models/served")
    with pytest.raises(
        Unavailable, match=r"model\.onnx' arrived damaged twice: its checksum is not the announced sha256:"
    ):
        fetch(repository, scan(repository)["slow"])


def test_a_small_file_is_verified_by_gits_hash(web: WebServer, hub: dict[str, bytes], opened: Open) -> None:
    web.pages["/acme/models/resolve/1b2d3f/served/add1/config.pbtxt"].content = b"max_batch_size: 9"
    problem = scan(opened("hf://acme/models/served"))["add1"].problem
    assert "config.pbtxt' arrived damaged twice: its checksum is not the announced git:" in problem


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("", "does not exist, or is private: check the name, or set HF_TOKEN"),
        ("hf_other", "accept the conditions of 'acme/gated' on the hub"),
    ],
)
def test_the_error_for_denied_access_says_what_to_do(
    token: str,
    reason: str,
    web: WebServer,
    hub: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    opened: Open,
) -> None:
    web.pages["/api/models/acme/gated/revision/main"] = Page(status=401)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(Unavailable, match=reason):
        scan(opened("hf://acme/gated"))


def test_a_server_that_is_not_a_hub_is_reported(
    web: WebServer, monkeypatch: pytest.MonkeyPatch, opened: Open
) -> None:
    web.put("/api/models/acme/models/revision/main", b"<html>welcome</html>")
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    with pytest.raises(Unavailable, match="does not answer as the hub does; check HF_ENDPOINT"):
        scan(opened("hf://acme/models"))


def test_a_missing_path_is_reported(hub: dict[str, bytes], opened: Open) -> None:
    with pytest.raises(NotFound, match="hf://acme/models/missing"):
        scan(opened("hf://acme/models/missing"))


def test_a_start_without_the_hub_works_from_the_cache(
    web: WebServer, hub: dict[str, bytes], opened: Open
) -> None:
    first = opened("hf://acme/models/served")
    before = scan(first)
    fetch(first, before["slow"])
    web.stop()
    second = opened("hf://acme/models/served")
    assert scan(second) == before
    assert fetch(second, before["slow"]).path.read_bytes() == hub["served/slow/1/model.onnx"]


@pytest.mark.parametrize(
    "location", ["hf://acme", "hf://acme/models/../other", "hf://acme/mo dels", "hf:///models"]
)
def test_an_invalid_location_is_refused(location: str, opened: Open) -> None:
    with pytest.raises(InvalidArgument, match=r"is not a place on the hub; expected hf://owner/repo"):
        opened(location)
