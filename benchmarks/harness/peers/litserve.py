"""Runs LitServe, which lacks the v2 protocol, with an endpoint per model that takes the same JSON."""

from __future__ import annotations

from harness.environment import environment, versions
from harness.folders import HARNESS
from harness.model import Model
from harness.peers.peer import Peer
from harness.server_process import ServerProcess, answers_200, free_ports


class LitServe(Peer):
    name = "litserve"
    ways = frozenset({("http", "json")})
    perf_analyzer = False
    setup = (
        "no v2 protocol: a custom endpoint with the same JSON body and answer; one worker per core, "
        "no batching, "
        "no binary tensors, no gRPC"
    )

    def start(self, models: list[Model]) -> None:
        folder = environment(self.name, ["litserve==0.2.19", "onnxruntime"])
        (self.http_port,) = free_ports(1)
        pairs = [f"{model.name}={model.file}" for model in models]
        command = [
            str(folder / "bin" / "python"),
            str(HARNESS / "peers" / "served" / "litserve_app.py"),
            str(self.http_port),
            *pairs,
        ]
        self.process = ServerProcess(self.name, command)
        self.process.wait_until(lambda: answers_200(f"http://127.0.0.1:{self.http_port}/health"))
        self.versions = versions(folder, ["litserve", "onnxruntime", "numpy"])
