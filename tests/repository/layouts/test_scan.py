"""A scan of any files ends, reports on every model, and remembers nothing outdated."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from backline.backends.registry import FORMATS
from backline.repository.layouts.scan import scan_listing
from backline.repository.listing import FileEntry, Listing
from backline.repository.local import LocalRepository
from backline_client.values.errors import BacklineError, InvalidArgument
from backline_client.values.names import version_order
from support.repositories import ONNX, put

PARTS = st.sampled_from(
    [
        *(
            "a",
            "b",
            "1",
            "2",
            "10",
            "007",
            "1.4.2",
            "2026-11-24",
            "rc1",
            "warmup",
            "configs",
            "a b ",
            "x\ny",
            "..",
            "%",
            ".hidden",
        ),
        *(
            "model.onnx",
            "net.onnx",
            "saved_model.pb",
            "model.savedmodel",
            "model.xml",
            "weights.bin",
            "labels.txt",
        ),
        *("config.pbtxt", "model.toml", "model-settings.json", "MLmodel"),
    ]
)
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
ENTRIES = st.builds(
    FileEntry,
    st.integers(0, 100),
    st.sampled_from(["one", "two"]),
    st.sampled_from(["", "", "", "it is broken"]),
)
CONTENTS = st.sampled_from(
    [
        b"",
        b"max_batch_size: 8",
        b"max_batch_size = 8",
        b'{"name": "b", "parameters": {"uri": "net.onnx", "version": "2"}}',
        b'{"parameters": {"uri": "../a"}}',
        b"\xff\x00{",
        b'name: "x"',
    ]
)


@st.composite
def listings(draw: st.DrawFn) -> Listing:
    files = draw(st.dictionaries(PATHS, ENTRIES, max_size=12))
    folders = draw(st.sets(PATHS, max_size=3)) | {
        "/".join(path.split("/")[:cut]) for path in files for cut in range(1, path.count("/") + 1)
    }
    contents = {path: draw(CONTENTS) for path in files}
    return Listing("s3://bucket/place", files, frozenset(folders), contents.__getitem__)


@given(listings())
@settings(max_examples=400, deadline=None)
def test_any_files_are_models_or_have_a_reason(listing: Listing) -> None:
    try:
        found = scan_listing(listing, formats=FORMATS)
    except InvalidArgument:
        return  # clearly a model without a version; any other error fails the test

    names = [model.name for model in found]
    assert len(set(names)) == len(names)
    for model in found:
        versions = [version.version for version in model.versions]
        assert bool(model.problem) != bool(versions)
        assert len(set(versions)) == len(versions)
        assert versions == sorted(versions, key=version_order)
        for version in model.versions:
            assert bool(version.problem) == (version.path is None) == (not version.fingerprint)
            assert version.path is None or not any(entry.problem for entry in version.files.values())
            assert version.path is None or any(
                file == version.path or file.startswith(version.path) for file in version.files
            )
            assert version.problem or (model.name.isprintable() and "/" not in version.version)


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["write", "remove"]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["1/model.onnx", "2/model.onnx", "1", "", "config.pbtxt", "warmup/x"]),
        st.sampled_from(
            ["max_batch_size: 4", "max_batch_size: 8", "max_batch_sise: 1", "version_policy { all {} }"]
        ),
    ),
    min_size=1,
    max_size=10,
)


@given(CHANGES)
@settings(max_examples=40, deadline=None)
def test_a_scan_with_known_models_finds_what_a_new_scan_finds(
    changes: list[tuple[str, str, str, str]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        put(folder / "a" / "1" / "model.onnx")
        repository = LocalRepository(folder, formats=[ONNX])
        for action, model, file, content in changes:
            path = folder / model / file
            if action == "remove" and path.is_dir():
                shutil.rmtree(path)
            elif action == "remove":
                path.unlink(missing_ok=True)
            elif not path.is_dir() and "." in path.name:
                put(path, content)

            assert outcome(repository) == outcome(LocalRepository(folder, formats=[ONNX]))


def outcome(repository: LocalRepository) -> object:
    try:
        return repository.scan_now()
    except BacklineError as error:
        return error.message


def test_an_unchanged_model_is_not_read_again(tmp_path: Path) -> None:
    read: list[str] = []

    def listing(identity: str) -> Listing:
        files = {
            "a/config.pbtxt": FileEntry(1, "one"),
            "a/1/model.onnx": FileEntry(1, "one"),
            "b/config.pbtxt": FileEntry(1, identity),
            "b/1/model.onnx": FileEntry(1, "one"),
        }
        return Listing(
            "place", files, frozenset({"a", "a/1", "b", "b/1"}), lambda path: (read.append(path), b"")[1]
        )

    known: dict[str, tuple[Listing, str, object]] = {}
    scan_listing(listing("one"), formats=[ONNX], known=known)  # type: ignore[arg-type]
    read.clear()

    scan_listing(listing("two"), formats=[ONNX], known=known)  # type: ignore[arg-type]

    assert read == ["b/config.pbtxt"]
