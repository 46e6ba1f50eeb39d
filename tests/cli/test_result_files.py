"""Results in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from backline.cli.result_files import documents, save
from backline_client.client.result import InferResult
from backline_client.values.datatypes import DataType
from backline_client.values.messages import InferResponse
from backline_client.values.tensor import Tensor


def test_outputs_of_any_name_are_saved_together(tmp_path: Path) -> None:
    names = ["file", "allow_pickle", "a/b", "y"]
    outputs = [Tensor(name, DataType.FP32, (2,), np.float32([1, 2])) for name in names]
    save(tmp_path / "y.npz", InferResult(InferResponse("m", "1", "", outputs)))
    with np.load(tmp_path / "y.npz") as saved:
        assert saved.files == names
        assert all(saved[name].tolist() == [1, 2] for name in names)


def test_bytes_are_bytes_in_json() -> None:
    outputs = [Tensor("y", DataType.BYTES, (1,), np.array([b"a"], object))]

    printed = documents([InferResult(InferResponse("m", "1", "", outputs))])

    assert printed["outputs"]["y"] == {"shape": [1], "datatype": "BYTES", "data": ["a"]}
