"""Backline compared with Triton 2.51 on the same configurations (triton_2_51.json, see record_triton.py)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backline import connect
from backline.client import Client
from backline.engine.config.model_config import ModelConfig
from backline.engine.errors import InvalidArgument
from backline.protos import message, to_plain
from backline.repository.configuration import read, read_override
from backline.repository.configuration.defaults import fill_defaults
from backline.repository.listing import FileEntry, Listing
from repository.configuration.cases import NOT_COMPLETED, OVERRIDES, REFUSED, TAKEN, TENSORS
from support.server import serve

RECORDED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "triton_2_51.json").read_text())
CASES = {**TAKEN, **REFUSED, **NOT_COMPLETED}
TAKEN_BY_TRITON = [name for name, record in RECORDED.items() if "config" in record]
REFUSED_BY_TRITON = [name for name, record in RECORDED.items() if "error" in record]

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
    "platform_unknown": "the choice of a backend reports it when the model is loaded",
    "version_specific_missing": "the scan of the repository reports it",
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
    "labels_missing": "label_filename of output 'z' cannot be read",
    "warm_up_no_file": "input_data_file of warm-up 'w' cannot be read",
    "warm_up_no_type": "model warmup input 'x' must specify 'data_type' for warm_up_no_type",
    "version_specific_empty": "version_policy.specific names no version",
    "sequence_state_initial_file": "data_file of state 'si' cannot be read",
    "override_not_json": "Invalid config override:1:1: is not JSON: Expecting value",
    "override_empty": "Invalid config override:1:1: is not JSON: Expecting value",
    "override_unknown_field": "Invalid config override: unknown field 'max_batch_sise',"
    " did you mean 'max_batch_size'?",
    "override_wrong_type": "Invalid config override: max_batch_size: 'max_batch_size' is 'many',"
    " expected a whole number",
    "override_wrong_value": "Invalid config override: input[0].data_type:"
    " unknown value 'TYPE_FLOAT', did you mean 'TYPE_FP32'?",
    "override_list": "Invalid config override: expected an object with the fields of a model"
    " configuration, not [1]",
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


def folder(name: str, text: str) -> Listing:
    """The folder of a model, as it was for the recording."""
    backend = "" if "platform:" in text else 'backend: "python" '
    contents = {"config.pbtxt": (backend + text).encode(), "labels.txt": b"cat\ndog\n"}
    contents |= {"warmup/x.bin": bytes(16), "warmup/short.bin": bytes(3)}
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

    assert OTHER_WORDS.get(name, words) in raised.value.message


@pytest.mark.parametrize("name", LATER)
def test_configurations_that_fail_later_can_be_read(name: str) -> None:
    assert "error" in RECORDED[name]
    assert read_case(name).name == name
