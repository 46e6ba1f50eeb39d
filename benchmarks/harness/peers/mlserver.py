"""Runs MLServer with a custom runtime that calls ONNX Runtime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from harness.environment import environment, versions
from harness.folders import BENCH, HARNESS
from harness.model import Model
from harness.peers.peer import Peer
from harness.server_process import ServerProcess, answers_200, free_ports


class MLServer(Peer):
    name = "mlserver"
    ways = frozenset({("http", "json"), ("grpc", "binary")})
    perf_analyzer = False
    setup = (
        "MLServer with a custom ONNX Runtime runtime, parallel_workers 0 "
        "(in the server's process: the quickest for small models); "
        "its REST has no binary tensors and its gRPC no ModelConfig, "
        "so h2load measures it instead of perf_analyzer"
    )

    def start(self, models: list[Model]) -> None:
        folder = environment(self.name, ["mlserver==1.7.1", "onnxruntime"])
        self.http_port, self.grpc_port, metrics_port = free_ports(3)
        repository = self._write_repository(models, metrics_port)
        command = [str(folder / "bin" / "mlserver"), "start", str(repository)]
        self.process = ServerProcess(
            self.name,
            command,
            environment={"PYTHONPATH": str(HARNESS / "peers" / "served")},
            folder=repository,
        )
        self.process.wait_until(lambda: answers_200(f"http://127.0.0.1:{self.http_port}/v2/health/ready"))
        self.versions = versions(folder, ["mlserver", "onnxruntime", "numpy"])

    def _write_repository(self, models: list[Model], metrics_port: int) -> Path:
        repository = BENCH / "repositories" / self.name
        shutil.rmtree(repository, ignore_errors=True)
        repository.mkdir(parents=True)
        settings = {
            "debug": False,
            "host": "127.0.0.1",
            "http_port": self.http_port,
            "grpc_port": self.grpc_port,
            "metrics_port": metrics_port,
            "parallel_workers": 0,
            "grpc_max_message_length": 64 << 20,
        }
        (repository / "settings.json").write_text(json.dumps(settings))
        for model in models:
            (repository / model.name).mkdir()
            parameters = {"uri": str(model.file), "version": "1"}
            described = {
                "name": model.name,
                "implementation": "mlserver_runtime.OnnxModel",
                "parameters": parameters,
            }
            (repository / model.name / "model-settings.json").write_text(json.dumps(described))
        return repository
