"""Models on a hub with the API of Hugging Face."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import backline
from backline.backends.registry import FORMATS
from backline.lifecycle.wanted import Sources
from backline.repository.location import open_repository
from backline_client.values.errors import BacklineError, InvalidArgument, NotFound, Unavailable
from support import models
from support.hub import publish
from support.server import serve
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
    assert fetch(repository, scan(repository)["slow"]).path.read_bytes() == hub["served/slow/1/model.onnx"]


@pytest.fixture
def usual(
    web: WebServer, store: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, bytes]:
    """The files of acme/speech, in the layout that is usual on the hub."""
    models.add1(tmp_path / "add1")
    models.ident(tmp_path / "ident", dims=(4,))
    files = {
        "README.md": b"# Speech",
        "config.json": b"{}",
        "model.safetensors": bytes(1000),
        "onnx/model.onnx": (tmp_path / "add1" / "add1" / "1" / "model.onnx").read_bytes(),
        "onnx/model.onnx_data": b"weights" * 100,
        "onnx/model_fp16.onnx": (tmp_path / "ident" / "ident" / "1" / "model.onnx").read_bytes(),
        "onnx/model_fp16.onnx_data": b"halves" * 100,
        "onnx/pytorch_model-00001-of-00002.bin": bytes(500),
        "onnx/labels.txt": b"a b c",
        "openvino/openvino_model.xml": b"<xml/>",
        "openvino/openvino_model.bin": bytes(300),
    }
    publish(web, store, "acme/speech", files)
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    return files


def test_the_usual_layout_is_a_model_named_after_its_repository(
    usual: dict[str, bytes], web: WebServer, opened: Open
) -> None:
    repository = opened("hf://acme/speech")
    found = scan(repository)["speech"]
    assert found.problem == ""
    fetched = fetch(repository, found)
    assert fetched.path.read_bytes() == usual["onnx/model.onnx"]
    got = {file.name: file.read_bytes() for file in fetched.path.parent.iterdir()}
    assert got == {name: usual[f"onnx/{name}"] for name in ("model.onnx", "model.onnx_data", "labels.txt")}, (
        "only what the model needs is downloaded"
    )
    assert not any("safetensors" in asked.path for asked in web.asked)


@pytest.mark.parametrize(
    "location",
    [
        "hf://acme/speech:onnx/model_fp16.onnx",
        "hf://acme/speech:model_fp16.onnx",
        "hf://acme/speech@main:model_fp16.onnx",
        "hf://acme/speech/onnx:model_fp16.onnx",
        "hf://acme/speech/onnx/model_fp16.onnx",
    ],
)
def test_a_file_can_be_chosen(usual: dict[str, bytes], opened: Open, location: str) -> None:
    repository = opened(location)
    fetched = fetch(repository, scan(repository)["speech"])
    assert fetched.path.read_bytes() == usual["onnx/model_fp16.onnx"]
    got = {file.name for file in fetched.path.parent.iterdir()}
    assert got == {"model_fp16.onnx", "model_fp16.onnx_data", "labels.txt"}


def test_a_folder_with_the_name_of_a_format_does_not_name_the_model(
    usual: dict[str, bytes], opened: Open
) -> None:
    assert list(scan(opened("hf://acme/speech/onnx"))) == ["speech"]


def test_a_file_at_the_top_is_served_without_the_weights_of_other_libraries(
    web: WebServer, store: WebServer, usual: dict[str, bytes], opened: Open
) -> None:
    files = {"model.onnx": usual["onnx/model.onnx"], "labels.txt": b"a", "model.safetensors": bytes(900)}
    publish(web, store, "acme/flat", {**files, "onnx/model_q4.onnx": b"small"})
    repository = opened("hf://acme/flat")
    fetched = fetch(repository, scan(repository)["flat"])
    assert {file.name for file in fetched.path.parent.iterdir()} == {"model.onnx", "labels.txt"}


def test_a_given_name_replaces_the_name_of_the_repository(
    usual: dict[str, bytes], hub: dict[str, bytes], opened: Open
) -> None:
    assert list(scan(opened("whisper=hf://acme/speech"))) == ["whisper"]
    with pytest.raises(
        InvalidArgument, match="the name 'x' can be given only to a single model, but 'hf://acme"
    ):
        scan(opened("x=hf://acme/models/served"))


def test_a_server_serves_variants_of_a_model_under_the_names_it_is_given(
    usual: dict[str, bytes], web: WebServer, tmp_path: Path
) -> None:
    folders = ("--cache-dir", str(tmp_path / "cache"), "--state-dir", str(tmp_path / "state"))
    with (
        serve("hf://acme/speech", tmp_path / "log", "--model-name", "whisper", *folders) as server,
        backline.connect(server.url) as client,
    ):
        assert client["whisper"](np.ones((1, 16), np.float32))["OUTPUT0"][0, 0] == 2
    with (
        serve(
            "half=hf://acme/speech:model_fp16.onnx", tmp_path / "log", "hf://acme/speech", *folders
        ) as server,
        backline.connect(server.url) as client,
    ):
        assert {(model.name, model.state) for model in client.models()} == {
            ("half", "READY"),
            ("speech", "READY"),
        }


async def test_models_with_the_same_layout_are_told_apart(
    web: WebServer, store: WebServer, usual: dict[str, bytes], cache: Path
) -> None:
    publish(web, store, "acme/song", usual)
    publish(web, store, "other/song", usual)

    async def names(*locations: str, namespacing: bool = False) -> list[str]:
        opened = [open_repository(location, formats=FORMATS, cache=cache) for location in locations]
        sources = Sources(opened, namespacing=namespacing)
        try:
            return sorted(name for name, source in (await sources.scan()).items() if not source.found.problem)
        finally:
            await sources.close()

    assert await names("hf://acme/speech/onnx", "hf://acme/song/onnx") == ["song", "speech"]
    assert await names("hf://acme/song", "theirs=hf://other/song") == ["song", "theirs"]
    assert await names("hf://acme/song", "theirs=hf://other/song", namespacing=True) == [
        "song",
        "theirs",
    ]
    assert await names("hf://acme/song", "hf://other/song") == []


@pytest.mark.parametrize(
    ("location", "error", "message"),
    [
        ("hf://acme/speech:model_fp61.onnx", NotFound, "did you mean 'onnx/model_fp16.onnx'?"),
        ("hf://acme/speech:config.json", InvalidArgument, "is not a model file; the model files are 'onnx/"),
        ("hf://acme/parts", InvalidArgument, "choose one, such as 'hf://acme/parts:onnx/decoder.onnx'"),
        ("hf://acme/twice:model.onnx", InvalidArgument, "several files have this name: 'a/model.onnx', 'b/"),
        ("hf://acme/speech:", InvalidArgument, "is not a location on the hub"),
    ],
)
def test_errors_say_how_to_choose_a_file(
    web: WebServer,
    store: WebServer,
    usual: dict[str, bytes],
    opened: Open,
    location: str,
    error: type[BacklineError],
    message: str,
) -> None:
    publish(web, store, "acme/parts", {"onnx/encoder.onnx": b"e", "onnx/decoder.onnx": b"d"})
    publish(web, store, "acme/twice", {"a/model.onnx": b"a", "b/model.onnx": b"b"})
    with pytest.raises(error, match=re.escape(message)):
        scan(opened(location))


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
        Unavailable, match=r"model\.onnx' was damaged in two downloads: its checksum differs from sha256:"
    ):
        fetch(repository, scan(repository)["slow"])


def test_a_small_file_is_verified_by_gits_hash(web: WebServer, hub: dict[str, bytes], opened: Open) -> None:
    web.pages["/acme/models/resolve/1b2d3f/served/add1/config.pbtxt"].content = b"max_batch_size: 9"
    problem = scan(opened("hf://acme/models/served"))["add1"].problem
    assert "config.pbtxt' was damaged in two downloads: its checksum differs from git:" in problem


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
    with pytest.raises(Unavailable, match="does not respond as the hub does; check HF_ENDPOINT"):
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
    with pytest.raises(InvalidArgument, match=r"is not a location on the hub; expected hf://owner/repo"):
        opened(location)


TREE = "/api/models/acme/models/tree/1b2d3f?recursive=true"


@pytest.mark.parametrize(
    "listing",
    [
        b"[" * 100_000,
        b'[{"type":"file","path":7}]',
        b'[{"type":"file","path":["a"]}]',
        b'[{"type":7,"path":"1/model.onnx"}]',
        b'[{"type":"file","size":"many","path":"1/model.onnx"}]',
        b'[{"type":"file","size":-1,"path":"1/model.onnx"}]',
        b'[{"type":"file","size":1e999,"path":"1/model.onnx"}]',
    ],
    ids=range(7),
)
def test_a_hostile_listing_is_refused(
    listing: bytes, hub: dict[str, bytes], web: WebServer, opened: Open
) -> None:
    web.put(TREE, listing)
    with pytest.raises(Unavailable, match="does not respond as the hub does"):
        scan(opened("hf://acme/models"))


def test_a_listing_without_an_end_is_refused(hub: dict[str, bytes], web: WebServer, opened: Open) -> None:
    web.pages[TREE] = Page(b"[]", headers={"Link": f'<{web.url}{TREE}>; rel="next"'})
    with pytest.raises(Unavailable, match="does not respond as the hub does"):
        scan(opened("hf://acme/models"))


def test_a_listing_that_is_cut_off_is_refused(hub: dict[str, bytes], web: WebServer, opened: Open) -> None:
    web.pages[TREE].cuts.append(20)
    with pytest.raises(Unavailable):
        scan(opened("hf://acme/models"))
