"""Defines what the harness needs of a measured server."""

from __future__ import annotations

import http.client
import json
import time
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from harness import h2load, perf_analyzer, wrk
from harness.case import Case, Measurement
from harness.environment import CannotRun
from harness.model import Model
from harness.server_process import ServerProcess


class Peer(ABC):
    """A server under measurement. Methods raise CannotRun if the server cannot be measured."""

    name: ClassVar[str]
    #: Supported pairs of protocol and encoding.
    ways: ClassVar[frozenset[tuple[str, str]]]
    #: Whether perf_analyzer can be used with the server, for which the server must return a model's
    #: configuration and statistics.
    perf_analyzer: ClassVar[bool] = True
    #: The server's settings, for the reader of the table.
    setup: ClassVar[str]

    def __init__(self) -> None:
        self.process: ServerProcess | None = None
        self.http_port = 0
        self.grpc_port = 0
        self.versions: dict[str, str] = {}

    @abstractmethod
    def start(self, models: list[Model]) -> None:
        """Installs the server if needed and starts it with `models`. Returns when it is ready."""

    def measures(self, case: Case) -> bool:
        """Returns whether the server supports the case."""
        return (case.protocol, case.encoding) in self.ways and (
            case.generator != "perf_analyzer" or self.perf_analyzer
        )

    def infer_path(self, model: Model) -> str:
        return f"/v2/models/{model.name}/infer"

    def infer_url(self, model: Model) -> str:
        return f"http://127.0.0.1:{self.http_port}{self.infer_path(model)}"

    def http_post(self, model: Model) -> h2load.Post:
        """Returns the request with binary tensors, in the form that h2load sends."""
        return h2load.Post(self.infer_url(model), *model.binary_request())

    def grpc_post(self, model: Model) -> h2load.Post:
        return h2load.grpc_post(self.grpc_port, model.grpc_request())

    def batched(self, model: Model) -> bool:
        """Returns whether the server reports that it adds the batch dimension."""
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=10)
            connection.request("GET", f"/v2/models/{model.name}/config")
            return json.loads(connection.getresponse().read()).get("max_batch_size", 0) > 0
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise CannotRun(f"it does not return the configuration of {model.name}: {error}") from error

    def check(self, case: Case) -> None:
        """Sends one request as the load generators do. Raises CannotRun if the answer is wrong."""
        case.model.check(
            self.ask_grpc(case.model) if case.protocol == "grpc" else self.ask_http(case.model, case.encoding)
        )

    def ask_http(self, model: Model, encoding: str) -> dict[str, np.ndarray]:
        body, headers = model.request(encoding)
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=60)
            connection.request("POST", self.infer_path(model), body, headers)
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise CannotRun(f"it does not answer a request for {model.name}: {error!r}") from error
        if answer.status != 200:
            raise CannotRun(f"it answers a request for {model.name} with {answer.status}: {data[:200]!r}")
        length = int(answer.headers.get("Inference-Header-Content-Length", len(data)))
        outputs, offset = {}, length
        for tensor in json.loads(data[:length])["outputs"]:
            size = tensor.get("parameters", {}).get("binary_data_size")
            if size is None:
                outputs[tensor["name"]] = np.asarray(tensor["data"], np.float32)
            else:
                outputs[tensor["name"]] = np.frombuffer(data, np.float32, size // 4, offset)
                offset += size
        return outputs

    def ask_grpc(self, model: Model) -> dict[str, np.ndarray]:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}", options) as channel:
            request = service_pb2.ModelInferRequest.FromString(model.grpc_request())
            try:
                answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
            except grpc.RpcError as error:
                raise CannotRun(
                    f"it answers a gRPC request for {model.name} with {error.code()}: {error.details()}"
                ) from error  # type: ignore[attr-defined]
        if answer.raw_output_contents:
            data = [np.frombuffer(raw, np.float32) for raw in answer.raw_output_contents]
        else:
            data = [np.asarray(tensor.contents.fp32_contents, np.float32) for tensor in answer.outputs]
        return {tensor.name: array for tensor, array in zip(answer.outputs, data, strict=True)}

    def measure(self, case: Case, seconds: float) -> Measurement:
        """Runs the case's load generator once. Also measures the server's processor time per request."""
        process = self.running()
        before = process.cpu_seconds()
        if case.generator == "wrk":
            body, headers = case.model.request(case.encoding)
            name = f"{case.model.name}-{case.encoding}"
            result = wrk.run(
                self.infer_url(case.model), name, body, headers, concurrency=case.concurrency, seconds=seconds
            )
        elif case.generator == "h2load":
            result = h2load.run(self.grpc_post(case.model), concurrency=case.concurrency, seconds=seconds)
        else:
            port = self.grpc_port if case.protocol == "grpc" else self.http_port
            return perf_analyzer.run(case, port, seconds=seconds, batched=self.batched(case.model))
        spent = process.cpu_seconds() - before
        return replace(result, cpu_us=spent / result.requests * 1e6) if result.requests else result

    def settle(self, case: Case) -> None:
        """Waits until the server is idle: some servers continue after the client has disconnected."""
        deadline = time.monotonic() + 120
        while True:
            try:
                self.check(case)
            except CannotRun:
                if time.monotonic() > deadline or not self.running().alive():
                    raise
            else:
                return

    def remarks(self) -> list[str]:
        """Returns remarks for the reader of the table."""
        return []

    def pause(self) -> None:
        if self.process is not None:
            self.process.pause()

    def resume(self) -> None:
        if self.process is not None:
            self.process.resume()

    def running(self) -> ServerProcess:
        if self.process is None or not self.process.alive():
            words = (
                "it was not started" if self.process is None else f"it exited: {self.process.last_words()}"
            )
            raise CannotRun(words)
        return self.process

    def end(self) -> None:
        if self.process is not None:
            self.process.end()
