"""Which files of a repository on the hub are served, and under which name."""

from __future__ import annotations

import pytest

from backline.backends.registry import FORMATS
from backline.repository.layouts.hub import find_served, hub_name
from backline.repository.listing import FileEntry, Listing
from backline_client.values.errors import InvalidArgument


def listing(*paths: str) -> Listing:
    """Files that nobody reads: the model is found by names alone."""
    folders = {path[:cut] for path in paths for cut in range(len(path)) if path[cut] == "/"}
    files = {path: FileEntry(1, path) for path in paths}
    return Listing(
        "hf://acme/speech", files, frozenset(folders), lambda path: pytest.fail(f"{path} was read")
    )


def served(*paths: str, wanted: str = "") -> set[str]:
    folder, files = find_served(listing(*paths), FORMATS, wanted)
    return {f"{folder}/{path}" if folder else path for path in files}


@pytest.mark.parametrize(
    ("paths", "chosen"),
    [
        ("model.onnx config.json model.safetensors onnx/model_q4.onnx", "model.onnx config.json"),
        ("optimizer.pt scheduler.pt onnx/model.onnx", "onnx/model.onnx"),
        ("onnx/a.onnx openvino/openvino_model.xml", "onnx/a.onnx"),
        (
            "openvino/openvino_model.xml openvino/openvino_model.bin pytorch_model.bin",
            "openvino/openvino_model.xml openvino/openvino_model.bin",
        ),
        (
            "openvino/model.xml openvino/model.bin openvino/model_int8.xml openvino/model_int8.bin",
            "openvino/model.xml openvino/model.bin",
        ),
        (
            "tf/saved_model.pb tf/variables/variables.index README.md",
            "tf/saved_model.pb tf/variables/variables.index",
        ),
        ("model.py model.safetensors tokenizer.json", "model.py model.safetensors tokenizer.json"),
        (
            "onnx/model.onnx onnx/weights/part.bin onnx/old/model.onnx",
            "onnx/model.onnx onnx/weights/part.bin",
        ),
        ("add1/1/model.onnx add2/1/model.onnx README.md", "add1/1/model.onnx add2/1/model.onnx README.md"),
        ("1/model.onnx 2/model.onnx", "1/model.onnx 2/model.onnx"),
    ],
)
def test_only_what_the_model_needs_is_served(paths: str, chosen: str) -> None:
    assert served(*paths.split()) == set(chosen.split())


def test_a_chosen_variant_comes_with_its_own_data() -> None:
    files = ("model.xml", "model.bin", "model_int8.xml", "model_int8.bin", "labels.txt")
    paths = [f"openvino/{file}" for file in files]
    assert served(*paths, wanted="model_int8.xml") == {
        "openvino/model_int8.xml",
        "openvino/model_int8.bin",
        "openvino/labels.txt",
    }


def test_several_models_in_one_folder_are_not_guessed_at() -> None:
    with pytest.raises(InvalidArgument, match=r"choose one, such as \'hf://acme/speech:onnx/decoder\.onnx\'"):
        served("onnx/encoder.onnx", "onnx/decoder.onnx")


def test_weights_that_no_backend_loads_are_an_error() -> None:
    with pytest.raises(InvalidArgument, match=r"holds no model file \(\*\.onnx, .*export the model"):
        served("model.safetensors", "config.json")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("", "speech"),
        ("onnx", "speech"),
        ("onnx/model.onnx", "speech"),
        ("onnx/model_fp16.onnx", "speech"),
        ("onnx/decoder.onnx", "decoder"),
        ("openvino/openvino_model_qint8.xml", "speech"),
        ("models/whisper", "whisper"),
        ("models/whisper/3/model.onnx", "whisper"),
        ("v1.2", "speech"),
        ("tiny.en", "tiny.en"),
    ],
)
def test_formats_variants_and_versions_do_not_name_a_model(path: str, name: str) -> None:
    assert hub_name("speech", path, FORMATS) == name
