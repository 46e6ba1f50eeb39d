"""Warm-up: the requests that a version must answer before it is ready, and errors about them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from backline.engine.config.model_config import ModelConfig, WarmUpInput, WarmUpSample
from backline.engine.model import ModelState
from backline.engine.request_check import RequestCheck
from backline.lifecycle.loading.warm_up import TENSORFLOW_FILE, WarmUpRequest, warm_up, warm_up_samples
from backline.observe.prediction_log import encode_record
from backline.plugins.runtimes.onnx.runtime import OnnxRuntime
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import Signature
from backline_client.values.tensor import Tensor, encode_tensor
from support import models


class Watched:
    """A loaded model that notes the inputs of its runs."""

    def __init__(self, path: Path) -> None:
        self.model = OnnxRuntime().load(path, ModelConfig("m"))
        self.signature: Signature = self.model.signature
        self.threads_per_run = 1
        self.warnings: tuple[str, ...] = ()
        self.runs: list[dict[str, np.ndarray]] = []

    def run(self, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        self.runs.append(inputs)
        return self.model.run(inputs, outputs)

    def close(self) -> None:
        self.model.close()


def warm(model: Watched, samples: Sequence[WarmUpRequest], batch: int = 64) -> int:
    outputs = tuple(spec.name for spec in model.signature.outputs)
    return warm_up("m", model.run, outputs, RequestCheck("m", model.signature, batch, strict=False), samples)


def configured(
    folder: Path,
    source: str,
    shape: tuple[int, ...] = (16,),
    datatype: DataType = DataType.FP32,
    *,
    size: int = 2,
    count: int = 3,
) -> list[WarmUpRequest]:
    """The samples of a model whose configuration has one sample with one input."""
    sample = WarmUpSample("first", size, count, (WarmUpInput("INPUT0", datatype, shape, source),))
    config = ModelConfig("m", warm_up=(sample,), source=str(folder / "m" / "config.pbtxt"))
    return list(
        warm_up_samples(
            config, batched=size > 0, version_folder=folder / "m" / "1", model_folder=folder / "m"
        )
    )


@pytest.mark.parametrize("source", ["zero", "random"])
def test_a_sample_is_run_as_often_as_it_says_with_copies_of_one_item(tmp_path: Path, source: str) -> None:
    model = Watched(models.add1(tmp_path, "m"))
    assert warm(model, configured(tmp_path, source)) == 3
    assert [run["INPUT0"].shape for run in model.runs] == [(2, 16)] * 3
    first, second = model.runs[0]["INPUT0"]
    assert (first == second).all()
    assert first.any() == (source == "random")


def test_a_count_of_zero_is_one_run(tmp_path: Path) -> None:
    assert warm(Watched(models.add1(tmp_path, "m")), configured(tmp_path, "zero", count=0)) == 1


def test_a_data_file_holds_one_item_as_clients_send_it(tmp_path: Path) -> None:
    model = Watched(models.add1(tmp_path, "m"))
    item = np.arange(16, dtype=np.float32)
    (tmp_path / "m" / "warmup").mkdir()
    (tmp_path / "m" / "warmup" / "item").write_bytes(item.tobytes())
    warm(model, configured(tmp_path, "item"))
    assert model.runs[0]["INPUT0"].tolist() == [item.tolist()] * 2


def test_a_data_file_of_strings_has_a_length_before_each(tmp_path: Path) -> None:
    model = Watched(models.identity_of(tmp_path, "m", TensorProto.STRING))
    (tmp_path / "m" / "warmup").mkdir()
    (tmp_path / "m" / "warmup" / "words").write_bytes(b"\x03\x00\x00\x00one\x00\x00\x00\x00")
    warm(model, configured(tmp_path, "words", (2,), DataType.BYTES))
    assert model.runs[0]["INPUT0"].tolist() == [[b"one", b""]] * 2


@pytest.mark.parametrize(
    ("content", "shape", "reason"),
    [
        (b"\x00" * 60, (16,), r"warmup/item' has 60 bytes, expected 64 bytes for shape \[16\] of FP32"),
        (None, (16,), r"warmup/item' does not exist"),
        (b"", (-1,), r"dims \[-1\]; every dimension needs a fixed size"),
        (b"", (1 << 40,), "more than 1073741824 bytes"),
    ],
)
def test_a_sample_that_cannot_be_made_names_sample_input_and_file(
    tmp_path: Path, content: bytes | None, shape: tuple[int, ...], reason: str
) -> None:
    (tmp_path / "m" / "warmup").mkdir(parents=True)
    if content is not None:
        (tmp_path / "m" / "warmup" / "item").write_bytes(content)
    with pytest.raises(
        InvalidArgument, match=rf"^warm-up sample 'first' of .*m/config\.pbtxt: input 'INPUT0'.*{reason}"
    ):
        configured(tmp_path, "item", shape)


def test_truncated_strings_are_reported_with_their_file(tmp_path: Path) -> None:
    (tmp_path / "m" / "warmup").mkdir(parents=True)
    (tmp_path / "m" / "warmup" / "words").write_bytes(b"\x09\x00\x00\x00one")
    with pytest.raises(
        InvalidArgument,
        match=r"sample 'first'.*input 'INPUT0': '.*warmup/words'.*of length 9 but only 3 bytes",
    ):
        configured(tmp_path, "words", (1,), DataType.BYTES)


@pytest.mark.parametrize("source", ["../secret", "/etc/hostname"])
def test_a_data_file_outside_of_the_folder_is_not_read(tmp_path: Path, source: str) -> None:
    (tmp_path / "m" / "warmup").mkdir(parents=True)
    (tmp_path / "m" / "secret").write_bytes(b"\x00" * 64)
    with pytest.raises(InvalidArgument, match="points outside"):
        configured(tmp_path, source)


def test_a_batch_for_a_model_without_batches_is_refused(tmp_path: Path) -> None:
    config = ModelConfig(
        "m", warm_up=(WarmUpSample("first", 2, 1, (WarmUpInput("INPUT0", DataType.FP32, (1, 16), "zero"),)),)
    )
    with pytest.raises(InvalidArgument, match="batch_size is 2, but the model takes no batches"):
        list(warm_up_samples(config, batched=False, version_folder=tmp_path, model_folder=tmp_path))


def test_a_sample_that_does_not_fit_the_model_fails_with_the_reason(tmp_path: Path) -> None:
    model = Watched(models.add1(tmp_path, "m"))
    with pytest.raises(
        InvalidArgument,
        match=r"unexpected shape for input 'INPUT0' .*; warm-up sample 'first' of .* does not fit the model$",
    ):
        warm(model, configured(tmp_path, "zero", (15,)))
    assert model.runs == []


def test_a_run_that_fails_names_the_sample(tmp_path: Path) -> None:
    model = Watched(models.identity_of(tmp_path, "m", TensorProto.STRING))
    sample = WarmUpRequest(
        "the sample", {"INPUT0": Tensor("INPUT0", DataType.BYTES, (1, 1), np.array([[b"\xff"]], np.object_))}
    )
    with pytest.raises(InvalidArgument, match=r"^the sample failed: .*not UTF-8"):
        warm(model, [sample])


def request_of(rows: int, width: int = 16) -> dict[str, Tensor]:
    data = np.ones((rows, width), np.float32)
    return {"INPUT0": Tensor("INPUT0", DataType.FP32, data.shape, data)}


def test_the_requests_of_tensorflow_servings_file_are_run(tmp_path: Path) -> None:
    model = Watched(models.add1(tmp_path, "m"))
    file = tmp_path / "m" / "1" / TENSORFLOW_FILE
    file.parent.mkdir()
    file.write_bytes(encode_record("m", request_of(1)) + encode_record("m", request_of(5)))
    samples = list(
        warm_up_samples(
            ModelConfig("m"), batched=True, version_folder=file.parent.parent, model_folder=tmp_path / "m"
        )
    )
    assert warm(model, samples) == 2
    assert [run["INPUT0"].shape for run in model.runs] == [(1, 16), (5, 16)]


def test_recorded_requests_of_another_signature_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Watched(models.add1(tmp_path, "m"))
    recorded = tmp_path / "recorded"
    recorded.write_bytes(encode_record("m", request_of(1, 7)) + encode_record("m", request_of(2)))
    with caplog.at_level(logging.WARNING, "backline.lifecycle"):
        samples = warm_up_samples(
            ModelConfig("m"), batched=True, version_folder=tmp_path, model_folder=tmp_path, recorded=recorded
        )
        assert warm(model, list(samples)) == 1
    assert (
        f"a recorded request is skipped: warm-up request 1 of '{recorded}' does not fit the model: "
        in caplog.text
    )


def test_a_damaged_file_of_requests_fails_the_load(tmp_path: Path) -> None:
    file = tmp_path / TENSORFLOW_FILE
    file.parent.mkdir()
    record = bytearray(encode_record("m", request_of(1)))
    record[40] ^= 1
    file.write_bytes(record)
    with pytest.raises(InvalidArgument, match="tf_serving_warmup_requests', record 1: wrong checksum"):
        list(warm_up_samples(ModelConfig("m"), batched=True, version_folder=tmp_path, model_folder=tmp_path))


def test_a_sample_may_ask_for_some_outputs_only(tmp_path: Path) -> None:
    model = Watched(models.add1(tmp_path, "m"))
    with pytest.raises(InvalidArgument, match="unexpected inference output 'OTHER'"):
        warm(model, [WarmUpRequest("one", request_of(1), outputs=("OTHER",))])
    assert len(encode_tensor(request_of(1)["INPUT0"])) == 64
    assert warm(model, [WarmUpRequest("one", request_of(1), outputs=("OUTPUT0",))]) == 1


def test_a_version_whose_warm_up_fails_is_not_served_and_says_which_sample(
    home: Any, repository: Path
) -> None:
    models.add1(repository)
    sample = (
        'name: "first" batch_size: 1 inputs { key: "INPUT0" value { data_type: TYPE_FP32 dims: 16'
        ' input_data_file: "item" } }'
    )
    (repository / "add1" / "config.pbtxt").write_text(f"max_batch_size: 4 model_warmup [ {{ {sample} }} ]")
    (repository / "add1" / "warmup").mkdir()
    (repository / "add1" / "warmup" / "item").write_bytes(bytes(60))

    async def scenario() -> None:
        async with home(repository) as server:
            model = server.engine.find("add1")
            assert model.state is ModelState.UNAVAILABLE
            assert "warm-up sample 'first'" in model.reason
            assert "warmup/item' has 60 bytes, expected 64 bytes" in model.reason
        (repository / "add1" / "warmup" / "item").write_bytes(bytes(64))
        async with home(repository) as server:
            assert await server.answer() == 1
            assert server.engine.find("add1").statistics.execution_count == 1  # warm-up does not count

    asyncio.run(scenario())
