"""Unmodified tools and clients of other servers, in plain text and over TLS."""

from __future__ import annotations

import importlib.util
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from support import models
from support.perf_analyzer import run_perf_analyzer, throughput
from support.server import ServerProcess, serve
from support.tools import Certificate, make_certificate, run

BODY = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [1.5] * 16}]})
MUSIC = {
    "basic_pitch": ("basic_pitch", "saved_models/icassp_2022/nmp.onnx"),
    "silero_vad": ("silero_vad", "data/silero_vad.onnx"),
}


def package_file(package: str, file: str) -> Path | None:
    """A file of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / file


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    models.add1(folder)
    models.ident(folder)
    for name, source in MUSIC.items():
        file = package_file(*source)
        if file is not None:
            (folder / name / "1").mkdir(parents=True)
            (folder / name / "1" / "model.onnx").write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="module")
def plain(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(repository, tmp_path_factory.mktemp("plain") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def secure(
    repository: Path, certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    options = ("--ssl-certificate", str(certificate.certificate), "--ssl-key", str(certificate.key))
    with serve(repository, tmp_path_factory.mktemp("secure") / "log", *options, ready=False) as running:
        running.wait_ready(context=ssl.create_default_context(cafile=str(certificate.certificate)))
        yield running


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
@pytest.mark.parametrize("port", ["http_port", "grpc_port", "metrics_port"])
def test_curl_infers_on_every_port(plain: ServerProcess, version: str, port: str) -> None:
    url = f"http://127.0.0.1:{getattr(plain, port)}/v2/models/add1/infer"
    assert (
        json.loads(run("curl", "-sSf", version, url, "-d", BODY).splitlines()[-1])["outputs"][0]["data"]
        == [2.5] * 16
    )


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl_infers_over_tls(secure: ServerProcess, certificate: Certificate, version: str) -> None:
    url = f"https://127.0.0.1:{secure.http_port}/v2/models/add1/infer"
    answer = run(
        "curl",
        "-sSf",
        version,
        "--cacert",
        str(certificate.certificate),
        "-w",
        "%{http_version}",
        url,
        "-d",
        BODY,
    )
    document, _, spoken = answer.rpartition("}")
    assert json.loads(document + "}")["outputs"][0]["data"] == [2.5] * 16
    assert spoken.strip() == {"--http1.1": "1.1", "--http2": "2"}[version]


@pytest.mark.parametrize("tls", [False, True])
def test_nghttp_infers(request: pytest.FixtureRequest, tmp_path: Path, tls: bool) -> None:
    server: ServerProcess = request.getfixturevalue("secure" if tls else "plain")
    (tmp_path / "body").write_text(BODY)
    url = f"{'https' if tls else 'http'}://127.0.0.1:{server.http_port}/v2/models/add1/infer"
    answer = run("nghttp", "--no-verify-peer", "-d", str(tmp_path / "body"), url)
    assert json.loads(answer[answer.index("{") : answer.rindex("}") + 1])["outputs"][0]["data"] == [2.5] * 16


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("version", ["--h1", "--npn-list=h2"])
def test_every_request_of_h2load_succeeds(
    request: pytest.FixtureRequest, tmp_path: Path, tls: bool, version: str
) -> None:
    server: ServerProcess = request.getfixturevalue("secure" if tls else "plain")
    (tmp_path / "body").write_text(BODY)
    url = f"{'https' if tls else 'http'}://127.0.0.1:{server.http_port}/v2/models/add1/infer"
    streams = "1" if version == "--h1" else "16"
    answer = run("h2load", version, "-n", "2000", "-c", "4", "-m", streams, "-d", str(tmp_path / "body"), url)
    assert "2000 succeeded, 0 failed, 0 errored, 0 timeout" in answer


@pytest.mark.parametrize("protocol", ["http", "grpc", "grpc --streaming"])
@pytest.mark.parametrize("concurrency", [1, 16, 64])
@pytest.mark.parametrize("model", ["add1", "ident", "basic_pitch", "silero_vad"])
def test_perf_analyzer_measures_without_errors(
    plain: ServerProcess, repository: Path, tmp_path: Path, protocol: str, concurrency: int, model: str
) -> None:
    if not (repository / model).exists():
        pytest.skip(f"the package of {model} is not installed")
    arguments = ["--shape", "INPUT0:16"] if model == "add1" else []
    if model == "silero_vad":
        data = {
            "input": {"content": [0.0] * 576, "shape": [1, 576]},
            "state": {"content": [0.0] * 256, "shape": [2, 1, 128]},
        }
        (tmp_path / "data.json").write_text(json.dumps({"data": [data | {"sr": [16000]}]}))
        arguments = ["--input-data", str(tmp_path / "data.json")]
    port = plain.http_port if protocol == "http" else plain.grpc_port
    # Fast models are measured for a number of requests, the others for a time: with a request count,
    # perf_analyzer hangs if everything is answered before its first look.
    counts = {"basic_pitch": max(2 * concurrency, 20), "ident": 500}
    measured = (
        ["--request-count", str(counts[model])] if model in counts else ["-p", "300", "-s", "999", "-r", "20"]
    )
    answer = run_perf_analyzer(
        plain.url, "-m", model, "-i", *protocol.split(), "-u", f"127.0.0.1:{port}", *arguments,
        "--concurrency-range", str(concurrency), *measured,
    )  # fmt: skip
    assert throughput(answer) > 0


def test_tritonclient_over_tls(secure: ServerProcess, certificate: Certificate) -> None:
    x = np.arange(16, dtype=np.float32).reshape(1, 16)
    context = ssl.create_default_context(cafile=str(certificate.certificate))

    http_input = triton_http.InferInput("INPUT0", [1, 16], "FP32")
    http_input.set_data_from_numpy(x)
    http = triton_http.InferenceServerClient(
        f"127.0.0.1:{secure.http_port}", ssl=True, ssl_context_factory=lambda: context
    )
    assert http.infer("add1", [http_input]).as_numpy("OUTPUT0").tolist() == (x + 1).tolist()
    http.close()

    rpc_input = triton_grpc.InferInput("INPUT0", [1, 16], "FP32")
    rpc_input.set_data_from_numpy(x)
    rpc = triton_grpc.InferenceServerClient(
        f"localhost:{secure.grpc_port}", ssl=True, root_certificates=str(certificate.certificate)
    )
    assert rpc.infer("add1", [rpc_input]).as_numpy("OUTPUT0").tolist() == (x + 1).tolist()
    rpc.close()


def test_grpcio_over_tls(secure: ServerProcess, certificate: Certificate) -> None:
    credentials = grpc.ssl_channel_credentials(certificate.certificate.read_bytes())
    with grpc.secure_channel(f"localhost:{secure.grpc_port}", credentials) as channel:
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        assert live(b"", timeout=10) == b"\x08\x01"
