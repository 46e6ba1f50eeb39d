"""Labels on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from backline.engine.errors import Internal, InvalidArgument
from backline.lifecycle.records import LabelStore


def test_labels_outlive_the_server(tmp_path: Path) -> None:
    store = LabelStore(tmp_path / "state")
    store.set("m", "stable", "1")
    store.set("m", "canary", "git-3fa9c1")
    store.set("m", "stable", "2")
    assert LabelStore(tmp_path / "state").of("m") == {"stable": "2", "canary": "git-3fa9c1"}


def test_a_removed_label_is_gone(tmp_path: Path) -> None:
    store = LabelStore(tmp_path)
    store.set("m", "stable", "1")
    store.remove("m", "stable")
    assert LabelStore(tmp_path).of("m") == {}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"m": "1"}', '{"m": {"stable": 1}}', '{"m": {"stable": ""}}', "\x00", "[" * 100_000]
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(InvalidArgument, match=r"labels\.json' .*is damaged.*remove it"):
        LabelStore(tmp_path)


def test_a_label_that_cannot_be_stored_is_not_set(tmp_path: Path) -> None:
    store = LabelStore(tmp_path / "state")
    (tmp_path / "state").write_text("a file where the folder should be")
    with pytest.raises(Internal, match="--state-dir"):
        store.set("m", "stable", "1")
    assert store.of("m") == {}
