"""TensorFlow Serving's gRPC APIs with a client that has TensorFlow, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from backends.served_models import need
from support.models import add1
from support.server import serve

PYTHON = """
from backline.model import FP32


class Model:
    def predict(self, text: str, x: FP32[-1, 2]) -> FP32[-1, 2]:
        return len(text) * x
"""


def test_models_of_three_formats(tmp_path: Path) -> None:
    need("tensorflow", "tensorflow_serving")
    import tensorflow as tf

    models = tmp_path / "models"
    add1(models, version="1")
    add1(models, version="2", constant=2.0)
    (models / "add1" / "config.pbtxt").write_text("version_policy { all {} }\n")
    (models / "python" / "1").mkdir(parents=True)
    (models / "python" / "1" / "model.py").write_text(PYTHON)

    class Half(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
        def __call__(self, x: Any) -> Any:
            return {"y": x / 2 + 2}

    half = Half()
    tf.saved_model.save(half, str(models / "half" / "1" / "model.savedmodel"), signatures=half.__call__)
    client = Path(__file__).with_name("tensorflow_client.py")
    with serve(models, tmp_path / "log") as server:
        told = subprocess.run(
            [sys.executable, "-I", str(client), str(server.grpc_port)],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            check=False,
        )
    assert told.returncode == 0, told.stderr
    assert told.stdout == "17 calls\n"
