"""Backline compared with Triton 2.51 on the same configurations (triton_2_51.json, see record_triton.py)."""

from __future__ import annotations

import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backline import connect
from backline.engine.config.model_config import ModelConfig
from backline.repository.configuration import read
from backline.repository.configuration.completion import fill_defaults
from backline.repository.configuration.override import read_override
from backline.repository.listing import FileEntry, Listing
from backline_client.client import Client
from backline_client.protos import message, to_plain
from backline_client.values.errors import InvalidArgument
from repository.configuration.cases import MODEL, NOT_COMPLETED, OVERRIDES, PAIRS, REFUSED, TAKEN, TENSORS
from support.server import ServerProcess, serve
from support.triton_server import tritonserver

RECORDED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "triton_2_51.json").read_text())
CASES = {**TAKEN, **REFUSED, **NOT_COMPLETED, **PAIRS}
TAKEN_BY_TRITON = [name for name, record in RECORDED.items() if "config" in record]
REFUSED_BY_TRITON = [name for name, record in RECORDED.items() if "error" in record and name not in PAIRS]

#: Accepted by Triton, refused by Backline.
STRICTER = {
    "input_twice": "is given more than once",
    "output_twice": "is given more than once",
    "instance_count_negative": "it must be positive",
}
#: Refused by Triton, accepted by Backline when it reads the file, and why.
LATER = {
    "instance_gpu": "without a GPU, the model runs on the CPU, with a warning, unless the server is strict",
    "instance_gpus": "the same",
    "platform_unknown": "the repository knows the platforms, the reader does not",
    "version_specific_missing": "the scan of the repository reports it",
    "version_specific_empty": "the same",
    "warm_up_short_file": "the warm-up reports it",
    "warm_up_unknown_input": "the warm-up reports it",
    "warm_up_batch_above": "the warm-up reports it",
    "warm_up_no_inputs": "the warm-up reports it",
    "warm_up_string_random": "the warm-up reports it",
    "version_latest_empty": "a missing number means the default, 1",
    "metrics": "Triton 2.51 does not know the field yet",
    "agent_unknown": "a warning, agents have no effect",
}
#: Refused by both, by Backline in other words, as Triton's say less or name something that Backline lacks.
OTHER_WORDS = {
    "metrics_no_family": "metric_control must specify the 'family' of its metric",
    "unknown_field": "unknown field 'max_batch_sise', did you mean 'max_batch_size'?",
    "unknown_value": "unknown value 'TYPE_FLOAT', did you mean 'TYPE_FP32'?",
    "syntax": 'Expected ":".',
    "override_not_json": "Invalid config override:1:1: the text is not JSON: Expecting value",
    "override_empty": "Invalid config override:1:1: the text is not JSON: Expecting value",
    "override_unknown_field": "Invalid config override: unknown field 'max_batch_sise',"
    " did you mean 'max_batch_size'?",
    "override_wrong_type": "Invalid config override: max_batch_size: 'max_batch_size' is 'many',"
    " expected a whole number",
    "override_wrong_value": "Invalid config override: input[0].data_type:"
    " unknown value 'TYPE_FLOAT', did you mean 'TYPE_FP32'?",
    "override_list": "Invalid config override: expected an object with the fields of a model"
    " configuration, not [1]",
}

_STATE = "version 1 is at UNAVAILABLE state"
#: Rows of the table of differences in docs/from-triton.md, which says why.
_AGENTS = "repository agents are not run"
_LENIENT = "settings are read leniently"
_NEWER = "configurations have a newer field"
_LOADS = "load failures name the file"
#: By case, what the error of a load says instead of Triton's text, and why; nothing if the model is loaded.
OTHER_REFUSALS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("instance_gpu", "instance_gpus"), ("", _LENIENT)),
    "version_latest_empty": ("", _LENIENT),
    "metrics": ("", _NEWER),
    "metrics_no_family": ("metric_control must specify the 'family' of", _NEWER),
    "warm_up_short_file": (f"{_STATE}: warm-up sample 'w' of", _LOADS),
    "warm_up_unknown_input": ("unexpected inference input 'q' for model", _LOADS),
    "warm_up_batch_above": ("inference request batch-size must be <= 8", _LOADS),
    **{name: (OTHER_WORDS[name], _LOADS) for name in ("unknown_field", "unknown_value", "syntax")},
    "agent_unknown": ("", _AGENTS),
    **{name: ("load", _AGENTS) for name in PAIRS if "agent" in name.split("_and_")},
}

#: The configurations accepted by Triton that Backline can load with the identity backend, which has no file
#: and returns its inputs: those without control inputs and batch inputs.
LIVE = [
    name
    for name in TAKEN
    if "config" in RECORDED[name]
    and TENSORS in TAKEN[name]
    and not any(text in TAKEN[name] for text in ("model.py", "control_input", "batch_input"))
    and name not in STRICTER
    and name != "ragged"
]


def _files(text: str) -> dict[str, bytes]:
    """The files of a model next to its version, as they were for the recording."""
    backend = "" if "platform:" in text else 'backend: "python" '
    contents = {"config.pbtxt": (backend + text).encode(), "labels.txt": b"cat\ndog\n"}
    return contents | {"warmup/x.bin": bytes(16), "warmup/short.bin": bytes(3)}


def folder(name: str, text: str) -> Listing:
    """The folder of a model, as it was for the recording."""
    contents = _files(text)
    return Listing(
        f"/models/{name}",
        {path: FileEntry(len(c), "") for path, c in contents.items()},
        frozenset(),
        contents.__getitem__,
    )


def read_case(name: str) -> ModelConfig:
    if name in OVERRIDES:
        override = OVERRIDES[name]
        return read_override(
            override if isinstance(override, str) else json.dumps(override), name, folder(name, "")
        )
    config = read(folder(name, CASES[name]), name)
    assert config is not None
    return config


def shown(name: str) -> Any:
    """The complete configuration, as /config shows it."""
    config = message("inference.ModelConfig").FromString(read_case(name).declared)
    fill_defaults(config, name, "model.py")
    return to_plain(config)


def recorded_config(name: str) -> Any:
    # Triton writes the 64-bit integers of these two fields as strings, those of all others as numbers.
    return json.loads(
        re.sub(r'("device_id": |"dims": \[)"(-?\d+)"', r"\1\2", json.dumps(RECORDED[name]["config"]))
    )


def differences(got: Any, triton: Any, path: str = "") -> Iterator[str]:
    if isinstance(got, dict) and isinstance(triton, dict):
        for key in got.keys() | triton.keys():
            yield from differences(got.get(key, "nothing"), triton.get(key, "nothing"), f"{path}.{key}")
    elif isinstance(got, list) and isinstance(triton, list) and len(got) == len(triton):
        for index, (one, other) in enumerate(zip(got, triton, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
    elif got != triton:
        yield f"{path}: {got!r}, Triton {triton!r}"


#: Fields that a server shows with the identity backend, and Triton does not show with its Python backend.
_OTHER_BACKEND = ("backend", "platform", "default_model_filename", "parameters")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server with the models of LIVE."""
    place = tmp_path_factory.mktemp("live")
    for name in LIVE:
        (place / "models" / name / "1").mkdir(parents=True)
        (place / "models" / name / "config.pbtxt").write_text(f'backend: "identity" {TAKEN[name]}')
        (place / "models" / name / "warmup").mkdir()
        (place / "models" / name / "warmup" / "x.bin").write_bytes(bytes(16))
    with serve(place / "models", place / "server.log") as server, connect(server.url) as client:
        yield client


@pytest.mark.parametrize("name", LIVE)
def test_a_server_shows_what_triton_shows(live: Client, name: str) -> None:
    shown = live[name].config()
    recorded = recorded_config(name)
    if "instance_group {" not in TAKEN[name] and "instance_group [" not in TAKEN[name]:
        shown["instance_group"][0]["count"] = 1  # the server decides how many
    for key in _OTHER_BACKEND:
        shown[key] = recorded[key]

    assert list(differences(shown, recorded)) == []


def test_at_least_thirty_of_each_were_recorded() -> None:
    assert len(TAKEN_BY_TRITON) >= 30
    assert len(REFUSED_BY_TRITON) >= 30
    assert RECORDED.keys() == CASES.keys() | OVERRIDES.keys()


@pytest.mark.parametrize("name", [name for name in TAKEN_BY_TRITON if name not in STRICTER])
def test_the_complete_configuration_is_that_of_triton(name: str) -> None:
    assert list(differences(shown(name), recorded_config(name))) == []


@pytest.mark.parametrize("name", STRICTER)
def test_meaningless_configurations_are_refused_although_triton_accepts_them(name: str) -> None:
    assert "config" in RECORDED[name]
    with pytest.raises(InvalidArgument, match=STRICTER[name]):
        read_case(name)


@pytest.mark.parametrize("name", [name for name in REFUSED_BY_TRITON if name not in LATER])
def test_an_invalid_configuration_is_refused_in_tritons_words(name: str) -> None:
    error = RECORDED[name]["error"].strip()
    words = re.sub(
        r"^load failed .*?: version 1 is at UNAVAILABLE state: [\w ]+: |^\[request id: <id_unknown>\] |;$",
        "",
        error,
    )
    words = re.sub(r"^\[request id: <id_unknown>\] ", "", words)

    with pytest.raises(InvalidArgument) as raised:
        read_case(name)

    assert OTHER_WORDS.get(name, words.replace("<repository>", "/models")) in raised.value.message


class Loads:
    """A running `backline tritonserver`, and loads of models with the configurations of the recordings."""

    def __init__(self, server: ServerProcess, repository: Path) -> None:
        self._server = server
        self._repository = repository

    def load(self, name: str) -> str:
        """Why the load failed; empty if the model was loaded."""
        folder = self._repository / name
        for path, content in _files(CASES[name]).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        (folder / "1").mkdir()
        (folder / "1" / "model.py").write_text(MODEL)
        try:
            path = f"{self._server.url}/v2/repository/models/{name}/load"
            urllib.request.urlopen(path, data=b"{}", timeout=60).close()
        except urllib.error.HTTPError as refusal:
            return str(json.loads(refusal.read())["error"])
        finally:
            shutil.rmtree(folder)
        return ""


@pytest.fixture(scope="module")
def loads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loads]:
    place = tmp_path_factory.mktemp("loads")
    repository = place / "models"
    repository.mkdir()
    options = ("--model-control-mode=explicit", "--cache-config=local,size=1048576")
    with tritonserver(repository, place / "server.log", *options) as server:
        server.wait_started()
        yield Loads(server, repository)


@pytest.mark.parametrize("name", [name for name in (*REFUSED, *PAIRS) if "error" in RECORDED[name]])
def test_a_load_is_refused_in_the_words_of_triton(loads: Loads, name: str) -> None:
    error = loads.load(name)

    if name in OTHER_REFUSALS:
        says, _ = OTHER_REFUSALS[name]
        assert says in error if says else error == ""
        return
    # Clients see paths from the repository's name on.
    recorded = RECORDED[name]["error"].replace("<repository>", "models").rstrip(";\n")
    if recorded.startswith("load failed for model"):
        assert error.startswith(recorded)
    else:  # Triton gives the reason only in its log
        assert error.startswith(f"failed to load '{name}', failed to poll from model repository: ")
        assert recorded in error


@pytest.mark.parametrize("name", LATER)
def test_configurations_that_fail_later_can_be_read(name: str) -> None:
    assert "error" in RECORDED[name]
    assert read_case(name).name == name
