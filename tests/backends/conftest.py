"""A server with a real model of every format whose runtime is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from backends.served_models import ISOLATED, MODELS, Formats, available, isolate
from support.server import serve

# Converting a model must not send OpenVINO's telemetry either.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
# Tests import TensorFlow and torch.export in any order; Triton's LLVM aborts the process after TensorFlow's.
sys.modules.setdefault("triton", None)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Formats]:
    repository = tmp_path_factory.mktemp("formats")
    for model in MODELS:
        if available(model):
            version = repository / model.name / "1"
            version.mkdir(parents=True)
            model.build(version)
            if model in ISOLATED:
                isolate(repository, model)
    with serve(repository, tmp_path_factory.mktemp("log") / "server.log", ready=False) as server:
        server.wait_ready(400)
        yield Formats(server, repository)
