"""Which changes cause a version to be loaded again, and which do not."""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType

import pytest
from msgspec.structs import replace

from backline.engine.config.model_config import ModelConfig, QueuePolicy, VersionPolicy
from backline.repository.fingerprint import load_key
from backline_client.values.datatypes import DataType
from backline_client.values.signature import TensorSpec
from support.repositories import only, put

CONFIG = ModelConfig(
    "m", inputs=(TensorSpec("x", DataType.FP32, (-1,)),), parameters=MappingProxyType({"a": "1", "b": "2"})
)


@pytest.mark.parametrize(
    "change",
    [
        {"version_policy": VersionPolicy(latest=3)},
        {"instance_count": 4},
        {"labels": MappingProxyType({"stable": "1"})},
        {"pinned": True},
        {"queue_policy": QueuePolicy(7)},
        {"on_demand": True},
        {"idle_unload_seconds": 60.0},
        {"load_retries": 3},
        {"declared": b"other"},
        {"source": "other.pbtxt"},
        {"warnings": ("a warning",)},
        {"parameters": MappingProxyType({"b": "2", "a": "1"})},
    ],
    ids=lambda change: next(iter(change)),
)
def test_changes_that_need_no_load_keep_the_key(change: dict[str, object]) -> None:
    assert load_key(replace(CONFIG, **change)) == load_key(CONFIG)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "openvino"},
        {"max_batch_size": 8},
        {"inputs": (TensorSpec("x", DataType.FP64, (-1,)),)},
        {"lane": "thread"},
        {"default_model_filename": "b.onnx"},
        {"parameters": MappingProxyType({"a": "1"})},
    ],
    ids=lambda change: next(iter(change)),
)
def test_changes_that_need_a_load_change_the_key(change: dict[str, object]) -> None:
    assert load_key(replace(CONFIG, **change)) != load_key(CONFIG)  # type: ignore[arg-type]


def test_an_unlisted_field_causes_a_load() -> None:
    """A field added to ModelConfig causes a load unless it is listed as needing none."""
    without_load = {
        name
        for name in ModelConfig.__struct_fields__
        if load_key(replace(CONFIG, **{name: "changed"})) == load_key(CONFIG)
    }

    assert without_load == {
        *(
            "version_policy",
            "instance_count",
            "labels",
            "pinned",
            "on_demand",
            "idle_unload_seconds",
            "load_retries",
        ),
        *("dynamic_batching", "preferred_batch_sizes", "max_queue_delay_us", "queue_policy"),
        *("priority_levels", "default_priority_level", "priority_queue_policies"),
        *("metric_tags", "first_response_bounds_ms", "declared", "places", "source", "warnings"),
    }


def fingerprints(repository: Path) -> list[str]:
    return [version.fingerprint for version in only(repository).versions]


@pytest.mark.parametrize(
    "text",
    [
        "instance_group { count: 3 }",
        "version_policy { all {} }",
        "# a remark",
    ],
)
def test_a_configuration_with_the_same_meaning_for_a_load_keeps_the_fingerprint(
    text: str, tmp_path: Path
) -> None:
    put(tmp_path / "m" / "1" / "model.onnx")
    put(tmp_path / "m" / "config.pbtxt", "")
    before = fingerprints(tmp_path)

    put(tmp_path / "m" / "config.pbtxt", text)

    assert fingerprints(tmp_path) == before


@pytest.mark.parametrize(
    "path",
    [
        "1/model.onnx",
        "1/weights.bin",
        "1/deep/er/weights.bin",
        "warmup/sample",
        "initial_state/zero",
        "labels.txt",
    ],
)
def test_a_changed_or_new_file_that_a_load_needs_changes_the_fingerprint(path: str, tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "model.onnx")
    before = fingerprints(tmp_path)

    put(tmp_path / "m" / path, "changed")

    assert fingerprints(tmp_path) != before


@pytest.mark.parametrize(
    "path", ["2/model.onnx", "1/.model.onnx.part", ".git/index", "configs/other.pbtxt", "rc2/weights.bin"]
)
def test_other_files_do_not_change_the_fingerprint(path: str, tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "model.onnx")
    before = fingerprints(tmp_path)

    put(tmp_path / "m" / path, "changed")

    assert fingerprints(tmp_path)[: len(before)] == before


def test_replacing_a_file_by_one_of_equal_size_and_time_changes_the_fingerprint(
    tmp_path: Path,
) -> None:
    file = put(tmp_path / "m" / "1" / "model.onnx", "aaaa")
    before = fingerprints(tmp_path)
    status = file.stat()
    other = put(tmp_path / ".other", "bbbb")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))

    other.rename(file)

    assert fingerprints(tmp_path) != before
