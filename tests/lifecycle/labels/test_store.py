"""Labels in a document: the same claims for a file, Redis and a bucket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from backline.lifecycle.labels.document import MOST_BYTES, FileDocument
from backline.lifecycle.labels.store import LabelStore, open_labels
from backline.plugins.repositories.object_store import label_document
from backline_client.values.control import Action, Change
from backline_client.values.errors import Internal, InvalidArgument, Unavailable
from support.labels import move
from support.object_stores import Store
from support.redis_server import RedisServer

#: Opens the labels of a server, whose name becomes the name of its state folder.
Open = Callable[[str], LabelStore]


@pytest.fixture(params=["folder", "repository", "redis", "s3"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    repository = tmp_path / "models"
    place = {"folder": str(tmp_path / "shared"), "repository": "repository"}.get(request.param, "")
    if request.param == "redis":
        port = request.getfixturevalue("redis").port
        place = f"redis://127.0.0.1:{port}/0?key={tmp_path.name}"
    elif request.param == "s3":
        store = request.getfixturevalue("bucket")
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        place = store.location(tmp_path.name)
    return lambda server: open_labels(place, [str(repository)], tmp_path / server)


def test_labels_outlive_the_server(opened: Open) -> None:
    store = opened("a")
    store.move(move("stable", "", "1"), "")
    store.move(move("canary", "", "git-3fa9c1"), "")
    store.move(move("stable", "1", "2"), "1")
    again = opened("a")
    assert again.of("m") == {"stable": "2", "canary": "git-3fa9c1"}
    assert [change.version for change in again.history("m")] == ["2", "git-3fa9c1", "1"]


def test_a_removed_label_is_gone(opened: Open) -> None:
    store = opened("a")
    store.move(move("stable", "", "1"), "")
    store.move(move("stable", "1", "", action="unlabel"), "1")
    assert store.of("m") == opened("a").of("m") == {}


def test_servers_see_what_others_have_moved_once(opened: Open) -> None:
    one, other = opened("a"), opened("b")
    one.move(move("stable", "", "1"), "")
    one.move(move("stable", "", "7", model="n"), "")
    assert one.refresh() == frozenset()
    assert other.refresh() == {"m", "n"}
    assert other.refresh() == frozenset()
    assert other.of("m") == other.of("n") | {"stable": "1"}
    assert other.history("m") == one.history("m")


def test_of_two_that_move_a_label_at_once_one_wins_and_the_other_is_refused(opened: Open) -> None:
    one, other = opened("a"), opened("b")
    one.move(move("stable", "", "1"), "")
    with pytest.raises(
        InvalidArgument, match=r"'stable' of 'm' was moved to version 1 by Ada in the meantime; nothing was"
    ):
        other.move(move("stable", "", "2"), "")
    other.move(move("stable", "1", "2"), "1")
    with pytest.raises(InvalidArgument, match="was moved to version 2"):
        one.move(move("stable", "1", "", action="unlabel"), "1")
    assert opened("c").of("m") == {"stable": "2"}


def test_servers_that_move_different_labels_at_once_lose_none(opened: Open) -> None:
    stores = [opened(name) for name in "abcd"]

    async def scenario() -> None:
        async with asyncio.TaskGroup() as group:
            for index, store in enumerate(stores):
                group.create_task(asyncio.to_thread(many_moves, store, index))

    asyncio.run(scenario())
    found = opened("e")
    assert {model: found.of(model) for model in ("m0", "m1", "m2", "m3")} == {
        f"m{index}": {f"label{number}": "1" for number in range(5)} for index in range(4)
    }
    for index, store in enumerate(stores):
        assert store.refresh() == {f"m{other}" for other in range(4) if other != index}


def many_moves(store: LabelStore, index: int) -> None:
    for number in range(5):
        store.move(move(f"label{number}", "", "1", model=f"m{index}"), "")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"m": "1"}',
        '{"m": {"stable": 1}}',
        '{"m": {"stable": ""}}',
        '{"format": 1, "labels": []}',
        '{"format": 1, "labels": {}, "changes": {"m": [{}]}}',
        "\x00",
        "[" * 100_000,
        '{"m": {"stable": "../1"}}',
        '{"m": {"stable": "%s"}}' % ("9" * 5000),
        '{"m": {"\\u001b[2J": "1"}}',
        '{"a/b": {"stable": "1"}}',
        '{"format": 1, "labels": {"m": {"\\u0000": "1"}}}',
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(InvalidArgument, match=r"labels\.json' are damaged.*remove the document"):
        open_labels("", [], tmp_path)


@pytest.mark.parametrize("model", ["m", "format", "labels"])
def test_labels_may_be_written_by_hand(tmp_path: Path, model: str) -> None:
    (tmp_path / "labels.json").write_text(f'{{"{model}": {{"stable": "1"}}}}')
    store = open_labels("", [], tmp_path)
    assert store.of(model) == {"stable": "1"}
    store.move(move("stable", "1", "2", model=model), "1")
    assert open_labels("", [], tmp_path).of(model) == {"stable": "2"}


def test_a_label_that_cannot_be_stored_is_not_set(tmp_path: Path) -> None:
    store = open_labels("", [], tmp_path / "state")
    (tmp_path / "state").write_text("a file where the folder should be")
    with pytest.raises((Internal, Unavailable), match="state"):
        store.move(move("stable", "", "1"), "")
    assert store.of("m") == {}


def test_servers_that_begin_to_share_keep_the_labels_of_the_first(opened: Open, tmp_path: Path) -> None:
    for name, version in (("a", "1"), ("b", "2")):
        open_labels("", [], tmp_path / name).move(move("stable", "", version), "")
    one, other = opened("a"), opened("b")
    assert one.of("m") == other.of("m") == {"stable": "1"}


def test_a_document_that_was_lost_is_written_again(tmp_path: Path) -> None:
    document = FileDocument(tmp_path / "shared.json")
    one, other = (LabelStore(document, FileDocument(tmp_path / name / "labels.json")) for name in "ab")
    one.move(move("stable", "", "1"), "")
    other.refresh()
    (tmp_path / "shared.json").unlink()
    assert (one.refresh(), other.refresh()) == (frozenset(), frozenset())
    assert one.of("m") == other.of("m") == {"stable": "1"}


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "ftp://host/x",
            r"cannot be kept at 'ftp://host/x': expected 'repository', a folder, or one of s3://",
        ),
        ("redis://:s3cret@/0", r"'redis:///0' cannot hold labels; expected redis://\[user:password@\]host"),
        ("redis://:s3cret@host/0?keys=a", r"'redis://host/0\?keys=a' cannot hold labels; expected redis://"),
        ("repository", "cannot be kept in the repository 'hf://owner/repo', which is read-only"),
    ],
)
def test_a_place_that_cannot_hold_labels_is_refused(tmp_path: Path, place: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        open_labels(place, ["hf://owner/repo"], tmp_path)
    assert "s3cret" not in str(caught.value)


def test_a_start_without_the_shared_document_uses_what_was_read_last(
    bucket: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    place = bucket.location("cut-off")
    open_labels(place, [], tmp_path).move(move("stable", "", "3"), "")
    bucket.relay.cut()
    try:
        store = open_labels(place, [], tmp_path)
        assert store.of("m") == {"stable": "3"}
        assert "cannot be reached" in store.unreachable
        with pytest.raises(Unavailable, match="cannot be reached"):
            store.move(move("stable", "3", "4"), "3")
    finally:
        bucket.relay.mend()
    assert store.refresh() == frozenset()
    assert not store.unreachable


def test_only_the_last_changes_of_a_model_are_kept(tmp_path: Path) -> None:
    store = open_labels("", [], tmp_path)
    actions: list[Action] = ["label", "unlabel"]
    for number in range(150):
        action = actions[number % 2]
        store.move(move("stable", "", "1", action=action), "1" if action == "unlabel" else "")
    assert len(store.history("m")) == 100
    assert isinstance(store.history("m")[0], Change)


def test_a_pipe_in_place_of_the_file_makes_nobody_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "labels.json")
    with pytest.raises(InvalidArgument, match="must be a regular file"):
        open_labels("", ["models"], tmp_path)


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "labels.json").open("wb") as file:
        file.truncate(MOST_BYTES + 1)  # sparse
    with pytest.raises(InvalidArgument, match="more than the 64 MiB allowed"):
        open_labels("", ["models"], tmp_path)


def test_a_value_in_redis_that_would_fill_the_memory_is_not_read_whole(
    redis: RedisServer, tmp_path: Path
) -> None:
    with Redis(port=redis.port) as client:
        client.setrange(tmp_path.name, 2 * MOST_BYTES, b"x")
        before = client.info("stats")["total_net_output_bytes"]
        with pytest.raises(InvalidArgument, match="more than the 64 MiB allowed"):
            open_labels(f"redis://127.0.0.1:{redis.port}/0?key={tmp_path.name}", [], tmp_path)
        assert client.info("stats")["total_net_output_bytes"] - before < 1.25 * MOST_BYTES
        client.delete(tmp_path.name)


def test_an_object_that_would_fill_the_memory_is_not_read_whole(
    bucket: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(label_document, "MOST_BYTES", 1 << 20)
    bucket.put("too-large/labels.json", bytes(64 << 20))
    before = bucket.relay.passed
    with pytest.raises(
        InvalidArgument, match=r"object 'too-large/labels\.json' has more than the 1 MiB allowed"
    ):
        open_labels(bucket.location("too-large"), [], tmp_path)
    # The rest are the buffers of sockets.
    assert bucket.relay.passed - before < 32 << 20
