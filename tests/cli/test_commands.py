"""`infer`, `models` and `bench` with a server."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeAlias

import numpy as np
import pytest
import tritonclient.http

from support import models
from support.repositories import put
from support.server import ServerProcess, serve

Run: TypeAlias = Callable[..., "CompletedProcess[str]"]
ONES = json.dumps([[1] * 16])
TWICE = """
platform: "ensemble"
input { name: "x" data_type: TYPE_FP32 dims: [ -1, 16 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ -1, 16 ] }
ensemble_scheduling {
  step { model_name: "add1" model_version: -1
    input_map { key: "INPUT0" value: "x" } output_map { key: "OUTPUT0" value: "between" } }
  step { model_name: "add1" model_version: -1
    input_map { key: "INPUT0" value: "between" } output_map { key: "OUTPUT0" value: "y" } }
}
"""


def test_infer_shows_the_outputs(backline: Run, server: ServerProcess) -> None:
    done = backline("infer", "add1", "--url", server.url, "--input", f"INPUT0={ONES}")
    assert done.returncode == 0, done.stderr
    assert "OUTPUT0: float32 [1, 16], from 2 to 2, mean 2" in done.stdout


@pytest.mark.parametrize("value", [ONES, "INPUT0=random", "zeros", "random:3,16"])
def test_infer_accepts_json_and_generated_values(backline: Run, server: ServerProcess, value: str) -> None:
    done = backline("infer", "add1", "--url", server.grpc_url, "-i", value, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"]["OUTPUT0"]["shape"][1] == 16


def test_infer_says_how_to_save_outputs(backline: Run, server: ServerProcess) -> None:
    done = backline("infer", "add1", "-u", server.url, "-i", "zeros", "--output", "y.npz")
    assert done.returncode == 2
    assert "write --save y.npz" in done.stderr


def test_a_page_of_another_web_server_is_not_printed(backline: Run) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{other.server_port}"
        done = backline("models", "list", "-u", url)
        other.shutdown()
    assert done.stderr == f"Error: {url} responded with status 501\n"


def test_infer_reads_and_writes_npy(backline: Run, server: ServerProcess, tmp_path: Path) -> None:
    value = np.random.default_rng(0).random((2, 16), np.float32)
    np.save(tmp_path / "x.npy", value)
    assert (
        backline(
            "infer", "add1", "-u", server.url, "-i", f"@{tmp_path / 'x.npy'}", "-o", tmp_path / "y.npy"
        ).returncode
        == 0
    )
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), value + 1)
    assert (
        backline(
            "infer", "add1", "-u", server.url, "-i", f"@{tmp_path / 'x.npy'}", "-o", tmp_path / "y.npz"
        ).returncode
        == 0
    )
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["OUTPUT0"], value + 1)


def test_a_single_request_is_a_complete_sequence(backline: Run, tmp_path: Path) -> None:
    tensors = " ".join(
        f'{kind} {{ name: "{name}" data_type: TYPE_FP32 dims: [ 1 ] }}'
        for kind, name in (("input", "x"), ("output", "x"))
    )
    put(
        tmp_path / "models" / "kept" / "config.pbtxt",
        f'backend: "identity" max_batch_size: 1 sequence_batching {{ }} {tensors}',
    )
    (tmp_path / "models" / "kept" / "1").mkdir()
    with serve(tmp_path / "models", tmp_path / "log") as server:
        for url in (server.url, server.grpc_url):
            done = backline("infer", "kept", "-u", url, "-i", "x=[[3]]")
            assert "[[3.]]" in done.stdout, done.stderr
    assert "[[3.]]" in backline("run", tmp_path / "models" / "kept", "-i", "x=[[3]]").stdout


FUNCTIONS = {
    "repeated": "def repeated(text: str, times: int = 2) -> str:\n    return text * times\n",
    "counted": "def counted(times: int = 2) -> int:\n    return times\n",
    "joined": "def joined(blob: bytes, end: bytes, times: int = 1) -> bytes: return blob * times + end\n",
    "exact": """
from backline.model import InvalidArgument

def exact(blob: bytes) -> int:
    if blob != b"\\xff\\0\\x01\\0\\0":
        raise InvalidArgument(f"got {blob!r}")
    return len(blob)
""",
}
#: Not UTF-8, with zero bytes at its end.
BLOB = b"\xff\0\x01\0\0"


@pytest.fixture(scope="module")
def optional(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Serves the models in FUNCTIONS."""
    folder = tmp_path_factory.mktemp("optional")
    for name, code in FUNCTIONS.items():
        put(folder / "models" / name / "1" / "model.py", code)
    with serve(folder / "models", folder / "log") as server:
        yield server


@pytest.mark.parametrize("address", ["url", "grpc_url"])
def test_infer_does_not_demand_optional_inputs(backline: Run, optional: ServerProcess, address: str) -> None:
    url = getattr(optional, address)

    def outputs(*arguments: str) -> object:
        done = backline("infer", *arguments, "-u", url, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["outputs"]["output"]["data"]

    assert outputs("repeated", "-i", "text=ab") == ["abab"]
    assert outputs("repeated", "-i", "ab") == ["abab"]
    assert outputs("repeated", "-i", "text=ab", "-i", "times=[3]") == ["ababab"]
    assert outputs("counted") == [2]
    assert (
        "no value for text. It expects text BYTES[1], times INT64[1] (optional). For example --input"
        " text=random\n" in backline("infer", "repeated", "-u", url, "-i", "times=[3]").stderr
    )


@pytest.mark.parametrize("address", ["url", "grpc_url"])
def test_a_shown_model_says_which_inputs_are_optional(
    backline: Run, optional: ServerProcess, address: str
) -> None:
    url = getattr(optional, address)

    shown = backline("models", "show", "repeated", "-u", url).stdout
    document = json.loads(backline("models", "show", "repeated", "-u", url, "--json").stdout)

    assert "\ninput           text" in shown
    assert "\noptional input  times" in shown
    assert [entry.get("optional") for entry in document["inputs"]] == [None, True]


def test_metadata_over_http_marks_optional_inputs(optional: ServerProcess) -> None:
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{optional.http_port}") as client:
        inputs = client.get_model_metadata("repeated")["inputs"]

    assert inputs == [
        {"name": "text", "datatype": "BYTES", "shape": [1]},
        {"name": "times", "datatype": "INT64", "shape": [1], "parameters": {"optional": True}},
    ]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_infer_shows_all_responses(backline: Run, tmp_path: Path, scheme: str) -> None:
    code = (
        "from collections.abc import Iterator\n"
        "def words(text: str) -> Iterator[str]:\n    yield from text.split()\n"
    )
    put(tmp_path / "models" / "words" / "1" / "model.py", code)
    with serve(tmp_path / "models", tmp_path / "log") as server:
        url = server.url if scheme == "http" else server.grpc_url
        done = backline("infer", "words", "-u", url, "-i", "text=one two", "-o", tmp_path / "word.npz")
    assert done.returncode == 0, done.stderr
    assert "[b'one']" in done.stdout
    assert "words version 1 gave 2 responses in " in done.stdout
    assert [np.load(tmp_path / name)["output"].item() for name in ("word.npz", "word-1.npz")] == [
        b"one",
        b"two",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ad1", "-i", "zeros"), "Did you mean 'add1'?"),
        (("add1",), "no value for INPUT0. It expects INPUT0 FP32[-1, 16]. For example --input INPUT0=random"),
        (("add1", "-i", "OTHER=1"), "no input 'OTHER'"),
        (("add1", "-i", "INPUT0=[[1"), "is not JSON"),
        (
            ("add1", "-i", "@/nowhere.npy"),
            "cannot read '/nowhere.npy' for input 'INPUT0': No such file or directory",
        ),
        (("add1", "-i", "@nowhere"), "cannot read 'nowhere' for input 'INPUT0': No such file or directory"),
        (("add1", "-i", "[[1, 2]]"), "expects shape [-1, 16], got [1, 2]"),
        (("add1", "-i", "zeros", "--output", "NOPE"), "NOPE"),
        (
            ("add1", "-i", "random:99999999999,16"),
            "cannot generate input 'INPUT0' with shape [99999999999, 16]",
        ),
    ],
)
def test_infer_explains_errors(
    backline: Run, server: ServerProcess, arguments: tuple[str, ...], message: str
) -> None:
    done = backline("infer", *arguments, BACKLINE_URL=server.url)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_models_are_listed(backline: Run, server: ServerProcess) -> None:
    assert "add1   1        READY" in backline("models", "list", "-u", server.url).stdout
    entries = json.loads(backline("models", "list", "-u", server.grpc_url, "--json").stdout)
    assert {(entry["name"], entry["version"], entry["state"], entry["ready"]) for entry in entries} >= {
        ("add1", "1", "READY", True)
    }


def test_a_model_is_shown(backline: Run, server: ServerProcess) -> None:
    shown = backline("models", "show", "add1", "-u", server.url).stdout
    assert "input   INPUT0   FP32      [-1, 16]" in shown
    document = json.loads(backline("models", "show", "add1", "-u", server.grpc_url, "--json").stdout)
    assert document["outputs"] == [{"name": "OUTPUT0", "datatype": "FP32", "shape": [-1, 16]}]
    assert document["config"]["name"] == "add1"


def test_an_ensemble_is_shown_without_instances(backline: Run, tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    put(tmp_path / "models" / "twice" / "config.pbtxt", TWICE)
    with serve(tmp_path / "models", tmp_path / "log") as server:
        shown = backline("models", "show", "twice", "-u", server.url).stdout
    assert "input   x" in shown
    assert "instances" not in shown
    assert "?" not in shown


def test_bench_notes_responses_from_the_cache(backline: Run, tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    put(tmp_path / "models" / "add1" / "config.pbtxt", "response_cache { enable: true }")
    with serve(tmp_path / "models", tmp_path / "log", "--cache-config", "local,size=1MiB") as server:
        done = backline(
            "bench", "add1", "-u", server.url, "-c", "1,2", "--duration", "0.1", "--warm-up", "0.1"
        )
    assert "At concurrency 1, 2, responses came from the response cache" in done.stdout


@pytest.mark.parametrize("scheme", ["http", "grpc", "inproc"])
def test_bench_measures_a_closed_loop(
    backline: Run, server: ServerProcess, model_repository: Path, tmp_path: Path, scheme: str
) -> None:
    url = {"http": server.url, "grpc": server.grpc_url, "inproc": f"inproc://{model_repository}"}[scheme]
    done = backline(
        "bench",
        "add1",
        "-u",
        url,
        "-c",
        "1,4",
        "--duration",
        "0.3",
        "--warm-up",
        "0.1",
        "--json",
        tmp_path / "b.json",
    )
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "b.json").read_text())
    assert [step["concurrency"] for step in document["steps"]] == [1, 4]
    for step in document["steps"]:
        percentiles = list(step["percentiles_us"].values())
        assert step["answered"] > 10
        assert not step["errors"]
        assert 0 < percentiles[0] <= percentiles[1] <= percentiles[2] <= percentiles[3] <= step["max_us"]
        assert 0 < step["server"]["compute_us"] < step["mean_us"]
        assert step["server"]["batch"] >= 1


def test_bench_writes_a_page_and_a_plot(backline: Run, server: ServerProcess, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page, picture = tmp_path / "b.html", tmp_path / "b.png"
    options = (
        "--rate",
        "50,100",
        "--arrivals",
        "constant",
        "--duration",
        "0.4",
        "--warm-up",
        "0",
        "--html",
        page,
        "--png",
        picture,
    )
    done = backline("bench", "add1", "-u", server.url, *options)
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in page.read_text()
    assert "src=" not in page.read_text()
    assert done.stdout.splitlines()[3].split()[0] == "50"


def test_bench_reads_inputs_from_a_file(backline: Run, server: ServerProcess, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", INPUT0=np.ones((5, 16), np.float32))
    done = backline(
        "bench",
        "add1",
        "-u",
        server.url,
        "-c",
        "1",
        "--duration",
        "0.1",
        "--warm-up",
        "0",
        "--data",
        tmp_path / "x.npz",
    )
    assert "INPUT0 FP32[5, 16]" in done.stdout


def put_blob(folder: Path, form: str) -> str:
    """Writes BLOB in one of several forms; returns the --input that reads it."""
    path = folder / form
    if form == "folder":
        put(path / ".hidden", "")
        (path / "blob.bin").write_bytes(BLOB)
    elif form == "by_name.json":
        path.write_text(json.dumps({"blob": [{"b64": base64.b64encode(BLOB).decode()}]}))
    elif form == "value":
        return f"blob={json.dumps({'b64': base64.b64encode(BLOB).decode()})}"
    else:
        path.write_bytes(BLOB)
    return f"{'blob=' if form.startswith('value') else ''}@{path}"


@pytest.mark.parametrize("form", ["value", "value.bin", "file.png", "by_name.json", "folder"])
def test_bytes_reach_the_model_unchanged(
    backline: Run, optional: ServerProcess, tmp_path: Path, form: str
) -> None:
    item = put_blob(tmp_path, form)
    load = ("-u", optional.url, "-c", "1", "--duration", "0.1", "--warm-up", "0")

    done = backline("infer", "exact", "-u", optional.url, "-i", item, "--json")
    measured = backline("bench", "exact", *load, "-i", item)

    assert done.returncode == 0, done.stderr
    assert measured.returncode == 0, measured.stderr
    assert "blob BYTES[1]" in measured.stdout
    if not form.startswith("value"):
        assert backline("bench", "exact", *load, "--data", item.removeprefix("@")).returncode == 0


def test_a_folder_holds_a_file_for_each_input(backline: Run, optional: ServerProcess, tmp_path: Path) -> None:
    folder = tmp_path / "inputs"
    put(folder / "blob.txt", "ab")
    put(folder / "end", "!")
    put(folder / "times.json", "[2]")

    done = backline("infer", "joined", "-u", optional.url, "-i", f"@{folder}", "--json")
    put(folder / "tims.json", "[2]")
    misspelt = backline("infer", "joined", "-u", optional.url, "-i", f"@{folder}")

    assert json.loads(done.stdout)["outputs"]["output"]["data"] == ["abab!"]
    assert "has tims, but the inputs of model 'joined' are blob, end, times" in misspelt.stderr


def test_arrays_that_cannot_hold_bytes_are_noted(
    backline: Run, optional: ServerProcess, tmp_path: Path
) -> None:
    np.save(tmp_path / "fixed.npy", np.array([BLOB]))
    np.save(tmp_path / "objects.npy", np.array([BLOB], object), allow_pickle=True)

    def sent(name: str) -> str:
        return backline("infer", "exact", "-u", optional.url, "-i", f"@{tmp_path / name}").stderr

    assert "no element fills the 5 bytes of its dtype S5, so trailing zero bytes are lost" in sent(
        "fixed.npy"
    )
    assert "is an array of Python objects, which only pickle can read" in sent("objects.npy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ad1",), "Did you mean 'add1'?"),
        (("add1", "--data", "/"), "but the inputs of model 'add1' are INPUT0"),
        (("add1", "-i", "OTHER=1"), "no input 'OTHER'"),
        (("add1", "--input-shape", "X:1"), "has no input 'X'; it has INPUT0"),
        (("add1", "--input-shape", "INPUT0:a"), "is not a shape for input 'INPUT0'"),
        (("add1", "--input-shape", "INPUT0:1,17"), "expects shape [-1, 16], got [1, 17]"),
    ],
)
def test_bench_explains_errors(
    backline: Run, server: ServerProcess, arguments: tuple[str, ...], message: str
) -> None:
    done = backline("bench", *arguments, "-u", server.url)
    assert done.returncode == 1
    assert message in done.stderr
