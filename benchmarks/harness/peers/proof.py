"""Runs a speed proof: a minimal program, `PROGRAM MODEL.onnx PORT`, that serves one model on one protocol."""

from __future__ import annotations

from pathlib import Path

from harness.case import Case
from harness.environment import CannotRun, environment, versions
from harness.model import Model
from harness.peers.peer import Peer
from harness.server_process import ServerProcess, accepts, free_ports

REQUIREMENTS = ["uvloop", "httptools", "hpack", "orjson", "numpy", "onnxruntime", "tritonclient[grpc]"]


class Proof(Peer):
    """A proof that serves one model. It has no health route, so it is considered ready when it listens."""

    name = "proof"
    ways = frozenset({("http", "binary"), ("grpc", "binary")})
    setup = "a minimal program that parses, runs and answers: no limits, no errors, no flow control"

    def __init__(self, program: Path, protocol: str) -> None:
        super().__init__()
        if not program.exists():
            raise CannotRun(f"{program} does not exist")
        self.program = program
        self.protocol = protocol
        self.model: Model | None = None

    def start(self, models: list[Model]) -> None:
        (self.model,) = models
        folder = environment("proofs", REQUIREMENTS)
        (port,) = free_ports(1)
        self.http_port = self.grpc_port = port
        command = [str(folder / "bin" / "python"), str(self.program), str(self.model.file), str(port)]
        self.process = ServerProcess(f"{self.program.stem}-{self.model.name}", command)
        self.process.wait_until(lambda: accepts(port))
        self.versions = versions(folder, ["uvloop", "httptools", "hpack", "orjson", "numpy", "onnxruntime"])

    def measures(self, case: Case) -> bool:
        return case.protocol == self.protocol and case.model == self.model and super().measures(case)

    def batched(self, model: Model) -> bool:
        return True
