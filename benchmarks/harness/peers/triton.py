"""NVIDIA Triton 2.51 from the nvidia-pytriton wheel, running ONNX Runtime in its Python backend."""

from __future__ import annotations

import filecmp
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from harness.environment import CannotRun, environment, versions
from harness.folders import BENCH, HARNESS
from harness.model import Model
from harness.peers.peer import Peer
from harness.server_process import ServerProcess, answers_200, free_ports

#: With numpy 2, the Python backend of this release silently corrupts tensors.
REQUIREMENTS = ["nvidia-pytriton==0.7.0", "numpy<2", "onnxruntime"]


class Triton(Peer):
    name = "triton"
    ways = frozenset({("http", "binary"), ("http", "json"), ("grpc", "binary")})
    setup = (
        "tritonserver 2.51 (C++) from the nvidia-pytriton 0.7.0 wheel, dynamic batching up to 64; "
        "the wheel has no ONNX Runtime backend, "
        "so a Python backend runs ONNX Runtime, one execution per batch"
    )

    def start(self, models: list[Model]) -> None:
        self.start_repository(self._write_repository(models))

    def start_repository(self, repository: Path, *options: str) -> None:
        """Installs the server if needed, starts it with a repository and options, and waits until ready."""
        folder = environment(self.name, REQUIREMENTS)
        server = next(folder.glob("lib/python3.*/site-packages/pytriton/tritonserver"), None)
        if server is None:
            raise CannotRun("the nvidia-pytriton wheel for this machine contains no tritonserver")
        self._place_stub(server)
        self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        ports = {"http-port": self.http_port, "grpc-port": self.grpc_port, "metrics-port": self.metrics_port}
        command = [str(server / "bin" / "tritonserver"), f"--model-repository={repository}"]
        command += [f"--backend-directory={server / 'backends'}", f"--cache-directory={server / 'caches'}"]
        command += [*(f"--{name}={port}" for name, port in ports.items()), *options]
        libraries = [
            str(sysconfig.get_config_var("LIBDIR")),
            str(server / "external_libs"),
            os.environ.get("LD_LIBRARY_PATH", ""),
        ]
        # Triton's stub process runs the first `python` on PATH.
        settings = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        }
        self.process = ServerProcess(self.name, command, environment=settings)
        self.process.wait_until(
            lambda: answers_200(f"http://127.0.0.1:{self.http_port}/v2/health/ready"), seconds=300
        )
        self.versions = {
            "tritonserver": "2.51.0",
            **versions(folder, ["nvidia-pytriton", "onnxruntime", "numpy"]),
        }

    def _place_stub(self, server: Path) -> None:
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = server / "python_backend_stubs" / python / "triton_python_backend_stub"
        if not stub.exists():
            raise CannotRun(f"the wheel has no Python backend for Python {python}")
        place = server / "backends" / "python" / stub.name
        # The stub may be in use by another server of this environment.
        if not (place.exists() and filecmp.cmp(stub, place)):
            shutil.copy(stub, place)

    def _write_repository(self, models: list[Model]) -> Path:
        repository = BENCH / "repositories" / self.name
        shutil.rmtree(repository, ignore_errors=True)
        for model in models:
            version = repository / model.name / "1"
            version.mkdir(parents=True)
            shutil.copy(HARNESS / "peers" / "served" / "triton_model.py", version / "model.py")
            shutil.copy(model.file, version / "model.onnx")
            (repository / model.name / "config.pbtxt").write_text(self._configuration(model))
        return repository

    def _configuration(self, model: Model) -> str:
        outputs = [
            f'{{ name: "{name}" data_type: TYPE_FP32 dims: [ {", ".join(map(str, array.shape[1:]))} ] }}'
            for name, array in model.outputs.items()
        ]
        # Compute-bound models get an instance per core; tiny models gain nothing from a second process.
        instances = (os.cpu_count() or 1) if model.run_ms > 1 else 1
        return (
            f'name: "{model.name}"\nbackend: "python"\nmax_batch_size: 64\ndynamic_batching {{ }}\n'
            f'input [ {{ name: "{model.input_name}" data_type: TYPE_FP32'
            f" dims: [ {', '.join(map(str, model.shape[1:]))} ] }} ]\n"
            f"output [ {', '.join(outputs)} ]\n"
            f"instance_group [ {{ kind: KIND_CPU count: {instances} }} ]\n"
        )
