"""Calls any server that speaks Triton's protocol with the stock tritonclient, and returns responses as plain
data."""

from __future__ import annotations

import json
import queue
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

#: Seconds to wait for a response.
PATIENCE = 10
Arrays = dict[str, Any]


class Ask:
    """A server on 127.0.0.1 in explicit mode; a model is loaded by the first request to it."""

    def __init__(self, http_port: int, grpc_port: int, metrics_port: int) -> None:
        self._ports = {"http": http_port, "metrics": metrics_port}
        self.http_api = http_client.InferenceServerClient(
            f"127.0.0.1:{http_port}", network_timeout=PATIENCE, connection_timeout=PATIENCE
        )
        self._grpc = f"127.0.0.1:{grpc_port}"
        self.grpc_api = grpc_client.InferenceServerClient(self._grpc)
        self._loaded: dict[str, Any] = {}
        #: The server's log.
        self.log: Callable[[], str] = str

    def close(self) -> None:
        self.http_api.close()
        self.grpc_api.close()

    def load(self, model: str, config: object = None) -> Any:
        """None, or the reason why the model cannot be loaded."""
        if model in self._loaded and config is None:
            return self._loaded[model]
        status, answer = self.post(
            f"/v2/repository/models/{model}/load",
            {"parameters": {"config": json.dumps(config)}} if config else {},
        )
        self._loaded[model] = None if status == 200 else load_error(answer["error"])
        return self._loaded[model]

    def infer(
        self,
        model: str,
        inputs: Arrays,
        outputs: Sequence[str] | None = None,
        *,
        by: str = "http",
        **options: Any,
    ) -> Any:
        """The outputs and everything else in the response, or the error with its status."""
        self.load(model)
        api, client = (http_client, self.http_api) if by == "http" else (grpc_client, self.grpc_api)
        wanted = None if outputs is None else [api.InferRequestedOutput(name) for name in outputs]
        if by == "grpc":
            options["client_timeout"] = PATIENCE
        try:
            answer = client.infer(model, _inputs(api, inputs), outputs=wanted, **options)
        except InferenceServerException as error:
            return _error(error)
        return _answer(answer)

    def stream(
        self,
        model: str,
        *several: Arrays,
        outputs: Sequence[str] | None = None,
        empty_final: bool = True,
        **options: Any,
    ) -> Any:
        """The responses on one stream, up to the last one of each request."""
        self.load(model)
        heard: queue.Queue[Any] = queue.Queue()
        answers = []
        wanted = None if outputs is None else [grpc_client.InferRequestedOutput(name) for name in outputs]
        with grpc_client.InferenceServerClient(self._grpc) as client:
            client.start_stream(lambda result, error: heard.put((result, error)))
            for inputs in several:
                client.async_stream_infer(
                    model,
                    _inputs(grpc_client, inputs),
                    outputs=wanted,
                    enable_empty_final_response=empty_final,
                    **options,
                )
            left = len(several)
            while left:
                result, error = heard.get(timeout=PATIENCE)
                if error is not None:
                    answers.append(_error(error))
                    left -= 1
                    continue
                answer = _answer(result)
                final = answer.get("parameters", {}).pop("triton_final_response", None)
                answers.append({**answer, "final": final})
                left -= bool(final)
            client.stop_stream()
        return answers

    def get(self, path: str) -> tuple[int, Any]:
        return self._http("http", path, None)

    def post(self, path: str, document: object) -> tuple[int, Any]:
        return self._http("http", path, json.dumps(document).encode())

    def metrics(self, prefix: str) -> list[str]:
        """The lines of the metrics page whose names have this prefix."""
        _, text = self._http("metrics", "/metrics", None)
        lines = [
            line
            for line in text.splitlines()
            if line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith(prefix)
        ]
        return sorted(re.sub(r"\.0$", "", line) for line in lines)

    def _http(self, port: str, path: str, data: bytes | None) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self._ports[port]}{path}", data=data, timeout=30
            ) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        try:
            return status, json.loads(body or b"{}")
        except ValueError:
            return status, body.decode()


def plain_text(text: str) -> str:
    """Removes the folders of model files, and frames in Python's own files, which only Triton prints."""
    text = re.sub(r"^  <frozen .*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"((/[\w.-]+)+/)?\bmodels/\w+/", "", text)


def load_error(text: str) -> str:
    """Removes the class of the error and Triton's own frames."""
    text = text.replace("UNAVAILABLE state: Internal: ", "UNAVAILABLE state: ")
    return plain_text(re.sub(r"^  /tmp/.*/triton_python_backend_utils.py.*\n", "", text, flags=re.MULTILINE))


def text(value: str) -> np.ndarray:
    """An input with one string."""
    return np.array([value.encode()], np.object_)


def _inputs(api: Any, arrays: Arrays) -> list[Any]:
    made = []
    for name, given in arrays.items():
        datatype, array = given if isinstance(given, tuple) else (np_to_triton_dtype(given.dtype), given)
        one = api.InferInput(name, list(array.shape), datatype)
        one.set_data_from_numpy(array)
        made.append(one)
    return made


def _answer(answer: Any) -> dict[str, Any]:
    response = answer.get_response()
    document: dict[str, Any] = {"outputs": {}}
    if isinstance(response, dict):
        outputs = [(one["name"], one["datatype"], one["shape"]) for one in response.get("outputs", ())]
        parameters = response.get("parameters", {})
        document["id"] = response.get("id", "")
    else:
        outputs = [(one.name, one.datatype, list(one.shape)) for one in response.outputs]
        parameters = {
            name: getattr(value, value.WhichOneof("parameter_choice"))
            for name, value in response.parameters.items()
        }
        document["id"] = response.id
    for name, datatype, shape in outputs:
        array = answer.as_numpy(name)
        data = [
            one.decode("latin-1") if isinstance(one, bytes) else one for one in array.reshape(-1).tolist()
        ]
        document["outputs"][name] = [datatype, shape, data]
    if parameters:
        document["parameters"] = parameters
    return document


def _error(error: InferenceServerException) -> dict[str, Any]:
    return {"error": plain_text(error.message()), "status": error.status()}
