"""Options of `backline serve` for reading and naming models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeAlias

import numpy as np
import pytest

from backline_client.client import connect
from backline_client.client.errors import InvalidArgument
from support import models
from support.server import ServerProcess, serve

Run: TypeAlias = Callable[..., "CompletedProcess[str]"]

COMPLETE = """
input { name: "INPUT0" data_type: TYPE_FP32 dims: [-1, 16] }
output { name: "OUTPUT0" data_type: TYPE_FP32 dims: [-1, 16] }
"""


def ones(server: ServerProcess, name: str) -> float:
    """The model's output for 0."""
    with connect(server.url) as client:
        return float(client[name](np.zeros((1, 16), np.float32))["OUTPUT0"][0, 0])


def test_without_auto_completion_only_models_with_complete_configurations_are_served(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    for name in ("bare", "half", "whole"):
        models.add1(repository, name)
    (repository / "half" / "config.pbtxt").write_text("max_batch_size: 4")
    (repository / "whole" / "config.pbtxt").write_text(COMPLETE)
    options = ("--disable-auto-complete-config", "--model-control-mode", "explicit", "--load-model", "*")
    with (
        serve(repository, tmp_path / "log", *options, ready=False) as server,
        connect(server.url, timeout=30) as client,
    ):
        server.wait_started()
        reasons = {entry.name: entry.reason for entry in client.models()}
        assert ones(server, "whole") == 1
        with pytest.raises(InvalidArgument, match="must specify at least one input for whole"):
            client.load("whole", config="{}")
    assert reasons["whole"] == ""
    assert reasons["bare"].endswith(
        "models/bare/config.pbtxt: No such file or directory; configurations are not completed from the"
        " model, so add this file"
    )
    assert reasons["half"].endswith(
        "half/config.pbtxt: must specify at least one input for half,"
        " as configurations are not completed from the model"
    )


@pytest.mark.parametrize("location", ["plain.onnx", "folder", "served"])
def test_model_name_names_a_single_model(tmp_path: Path, location: str) -> None:
    file = models.add1(tmp_path / "built")
    (tmp_path / "folder").mkdir()
    for copy in ("plain.onnx", "folder/net.onnx"):
        (tmp_path / copy).write_bytes(file.read_bytes())
    (tmp_path / "served" / "1").mkdir(parents=True)
    (tmp_path / "served" / "1" / "model.onnx").write_bytes(file.read_bytes())
    with serve(tmp_path / location, tmp_path / "log", "--model-name", "adder") as server:
        assert ones(server, "adder") == 1


def test_model_name_is_refused_for_several_models(backline: Run, tmp_path: Path) -> None:
    models.add1(tmp_path / "models", "one")
    models.add1(tmp_path / "models", "two")
    done = backline(
        "serve", tmp_path / "models", "--model-name", "adder", "--http-port", 0, "--no-grpc", "--no-metrics"
    )
    assert done.returncode == 1
    assert "holds 'one', 'two'" in done.stderr
    done = backline(
        "serve",
        tmp_path / "models",
        tmp_path,
        "--model-name",
        "adder",
        "--http-port",
        0,
        "--no-grpc",
        "--no-metrics",
    )
    assert done.returncode == 1
    assert "'adder' can be given only with one repository, but there are 2" in done.stderr
