"""`backline config` on model folders, compared with what a server returns."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, TypeAlias

import pytest

from backline import connect
from backline.repository.configuration import text, toml
from backline_client.protos import message
from support import models
from support.repositories import put
from support.server import serve

Run: TypeAlias = Callable[..., "CompletedProcess[str]"]
CONFIG = """\
max_batch_size: 4
parameters { key: "backline.lane" value { string_value: "thread" } }
optimization { priority: PRIORITY_MAX }
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository: add1 with a configuration, ident without."""
    models.add1(tmp_path / "models")
    models.ident(tmp_path / "models")
    (tmp_path / "models" / "add1" / "config.pbtxt").write_text(CONFIG)
    return tmp_path / "models"


@pytest.mark.parametrize("command", [(), ("show",), ("explain",), ("validate",), ("convert",)])
def test_every_command_has_help_with_an_example(backline: Run, command: tuple[str, ...]) -> None:
    done = backline("config", *command, "--help")

    assert done.returncode == 0
    assert f"  backline config {' '.join(command)}".rstrip() in done.stdout


def test_show_prints_what_a_server_returns(backline: Run, repository: Path, tmp_path: Path) -> None:
    done = backline("config", "show", repository / "add1", "--json")

    assert done.returncode == 0, done.stderr
    with serve(repository, tmp_path / "server.log") as server, connect(server.url) as client:
        answered = client["add1"].config(explained=True)
    shown = json.loads(done.stdout)
    for config in (shown, answered):  # measured values differ between runs
        del config["parameters"]["backline.placement"]
        config["instance_group"][0].pop("count")
    assert shown == answered


@pytest.mark.parametrize(("form", "parse"), [("pbtxt", text.parse), ("toml", toml.parse)])
def test_show_prints_a_readable_configuration(backline: Run, repository: Path, form: str, parse: Any) -> None:
    done = backline("config", "show", repository / "add1", "--format", form, "--no-inspect")

    assert parse(done.stdout, "printed").message.max_batch_size == 4


def test_explain_gives_the_origin_of_each_value(backline: Run, repository: Path) -> None:
    done = backline("config", "explain", repository / "add1", "--json")

    assert done.returncode == 0, done.stderr
    values = {
        value["path"]: (value["value"], value["origin"], value["where"]) for value in json.loads(done.stdout)
    }
    folder = repository / "add1"
    assert values["max_batch_size"] == (4, "file", f"{folder}/config.pbtxt:1:1")
    assert values["parameters[backline.lane].string_value"] == (
        "thread",
        "file",
        f"{folder}/config.pbtxt:2:43",
    )
    assert values["input[0].dims"] == ([16], "model", f"{folder}/1/model.onnx")
    assert values["version_policy.latest.num_versions"] == (1, "default", "")
    assert values["instance_group[0].count"][1] == "server"


def test_explain_prints_a_table_and_the_warnings(backline: Run, repository: Path) -> None:
    done = backline("config", "explain", repository / "add1", "--no-inspect")

    assert any(
        line.split() == ["max_batch_size", "4", "file", "config.pbtxt:1:1"]
        for line in done.stdout.splitlines()
    )
    assert (
        "warning: config.pbtxt of 'add1': optimization.priority is not supported yet and has no effect"
        in done.stderr
    )


def test_a_single_file_is_a_model(backline: Run, repository: Path) -> None:
    file = repository / "ident" / "1" / "model.onnx"

    done = backline("config", "explain", file, "--json")

    assert {"path": "input[0].name", "value": "INPUT0", "origin": "model", "where": str(file)} in json.loads(
        done.stdout
    )


def test_explain_marks_overridden_values(backline: Run, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "load.json").write_text('{"max_batch_size": 2}')

    done = backline(
        "config",
        "explain",
        repository / "add1",
        "--override",
        tmp_path / "load.json",
        "--no-inspect",
        "--json",
    )

    (value,) = [value for value in json.loads(done.stdout) if value["path"] == "max_batch_size"]
    assert value == {
        "path": "max_batch_size",
        "value": 2,
        "origin": "override",
        "where": "load parameter 'config'",
    }


def test_validate_lists_errors(backline: Run, repository: Path) -> None:
    (repository / "ident" / "model.toml").write_text("max_batch_sise = 4\n")

    done = backline("config", "validate", repository)

    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "add1: ok",
        "  warning: config.pbtxt of 'add1': optimization.priority is not supported yet and has no effect",
        "ident: wrong",
        (
            f"  error: {repository}/ident/model.toml:1:1: unknown key 'max_batch_sise',"
            " did you mean 'max_batch_size'?"
        ),
    ]


def test_validate_with_load_finds_disagreements_with_the_model(backline: Run, repository: Path) -> None:
    (repository / "add1" / "config.pbtxt").write_text(
        'input { name: "OTHER" data_type: TYPE_FP32 dims: [ 4, 16 ] }'
    )
    assert backline("config", "validate", repository / "add1").returncode == 0

    done = backline("config", "validate", repository / "add1", "--load", "--json")

    assert done.returncode == 1
    (checked,) = json.loads(done.stdout)
    assert checked["model"] == "add1"
    assert "names the input 'OTHER', which" in checked["errors"][0]


@pytest.mark.parametrize("load", [(), ("--load",)])
def test_validate_refuses_labels_of_versions_that_do_not_exist(
    backline: Run, repository: Path, load: tuple[str, ...]
) -> None:
    put(repository / "ident" / "model.toml", 'labels = { stable = "1", canary = "4" }')

    done = backline("config", "validate", repository / "ident", *load)

    assert done.returncode == 1
    assert done.stdout.splitlines()[1:] == [
        "  error: label 'canary' of 'ident' points to version 4, which does not exist; available: 1"
    ]


def test_validate_refuses_a_policy_that_selects_no_version(backline: Run, repository: Path) -> None:
    put(repository / "ident" / "config.pbtxt", "version_policy { specific { versions: [ 7 ] } }")

    done = backline("config", "validate", repository / "ident")

    assert done.returncode == 1
    assert "holds none of the versions that version_policy names: 7 (it holds 1)" in done.stdout


FILES = {
    "model.onnx": ("an essay", "is not an ONNX model, whatever its name says"),
    "model.pt": ("an essay", "is not a PyTorch file"),
    "model.tflite": ("an essay", "is not a LiteRT model"),
    "model.cbm": ("an essay", "is not a CatBoost model"),
    "model.txt": ("an essay", "is not a model that LightGBM's save_model wrote"),
    "model.json": ("an essay", "is not a model that XGBoost's save_model wrote"),
    "model.skops": ("an essay", "is not a skops file"),
    "model.mar": ("an essay", "is not a TorchServe model archive"),
}


def test_validate_refuses_files_that_are_no_models_without_loading_them(
    backline: Run, repository: Path
) -> None:
    for name, (content, _) in FILES.items():
        put(repository / name.rpartition(".")[2] / "1" / name, content)
    whole = (repository / "add1" / "1" / "model.onnx").read_bytes()
    for part in (len(whole) // 2, len(whole) - 1):
        cut = put(repository / f"cut{part}" / "1" / "model.onnx")
        cut.write_bytes(whole[:part])
    with zipfile.ZipFile(put(repository / "broken" / "1" / "model.pt"), "w") as archive:
        archive.writestr("model/data.pkl", "x" * 1000)
    broken = repository / "broken" / "1" / "model.pt"
    broken.write_bytes(broken.read_bytes()[:500])

    done = backline("config", "validate", repository, "--json")

    errors = {checked["model"]: checked["errors"] for checked in json.loads(done.stdout)}
    assert errors.pop("add1") == errors.pop("ident") == []
    for name, (_, reason) in FILES.items():
        (error,) = errors.pop(name.rpartition(".")[2])
        assert reason in error
        assert name in error
    assert errors.pop("broken")[0].endswith("was it copied completely?")
    assert len(errors) == 2
    assert all(error.endswith("is truncated; was it copied completely?") for (error,) in errors.values())


ENSEMBLE = """
platform: "ensemble"
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [ 16 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 16 ] }
ensemble_scheduling {
  step { model_name: "add1" model_version: -1
    input_map { key: "INPUT0" value: "x" } output_map { key: "OUTPUT0" value: "y" } }
}
"""
PYTHON = """
from backline.model import FP32

class Model:
    max_batch_size = 8

    def predict(self, x: FP32[4]) -> FP32[4]:
        return x
"""
CONTROL = """
max_batch_size: 4
sequence_batching { control_input [{
  name: "START" control [{ kind: CONTROL_SEQUENCE_START fp32_false_true: [0, 1] }]
}] }
"""


def test_models_of_every_kind_are_validated_with_load(backline: Run, repository: Path) -> None:
    put(repository / "both" / "config.pbtxt", ENSEMBLE)
    (repository / "both" / "1").mkdir()
    put(repository / "good" / "1" / "model.py", PYTHON)
    put(repository / "bad" / "1" / "model.py", "def bad(x: 5) -> str: ...")
    put(repository / "ident" / "config.pbtxt", CONTROL)

    done = backline("config", "validate", repository, "--load", "--json")

    assert done.stderr == ""
    errors = {checked["model"]: checked["errors"] for checked in json.loads(done.stdout)}
    assert errors["add1"] == errors["both"] == errors["good"] == []
    assert "model.py" in errors["bad"][0]
    assert "names the input 'START', which the model does not have" in errors["ident"][0]


def test_models_can_be_validated_with_the_defaults_of_triton(backline: Run, repository: Path) -> None:
    (repository / "add1" / "config.pbtxt").unlink()
    put(repository / "large" / "config.pbtxt", ENSEMBLE.replace("max_batch_size: 4", "max_batch_size: 8"))

    here = backline("config", "validate", repository, "--load")
    there = backline("config", "validate", repository, "--load", "--tritonserver")

    assert (here.returncode, there.returncode) == (0, 1), here.stdout
    assert "allows maximum batch size 8, but it contains model add1" in there.stdout
    assert "add --load" in backline("config", "validate", repository, "--tritonserver").stderr


def test_steps_of_ensembles_are_checked_against_the_other_models(
    backline: Run, repository: Path, tmp_path: Path
) -> None:
    put(repository / "good" / "config.pbtxt", ENSEMBLE)
    put(
        repository / "outer" / "config.pbtxt",
        ENSEMBLE.replace("add1", "good").replace("INPUT0", "x").replace("OUTPUT0", "y"),
    )
    put(repository / "typo" / "config.pbtxt", ENSEMBLE.replace("add1", "add2"))
    put(repository / "version" / "config.pbtxt", ENSEMBLE.replace("model_version: -1", "model_version: 7"))
    put(repository / "tensor" / "config.pbtxt", ENSEMBLE.replace("OUTPUT0", "OUTPUT1"))
    models.add1(tmp_path / "more", "add2")

    def errors(*arguments: object) -> dict[str, list[str]]:
        done = backline("config", "validate", *arguments, "--json")
        return {
            checked["model"]: checked["errors"] for checked in json.loads(done.stdout) if checked["errors"]
        }

    missing = {
        "typo": [
            "ensemble typo contains models that are not available or ambiguous: add2. Did you mean 'add1'?"
        ]
    }
    version = {"version": ["ensemble 'version' depends on 'add1' whose required version 7 is not loaded."]}
    tensor = {
        "tensor": [
            "in ensemble tensor, ensemble tensor y is mapped from non-existing output OUTPUT1 in model add1"
        ]
    }
    assert errors(repository) == missing | version
    assert errors(repository, "--load") == missing | version | tensor
    assert errors(repository, tmp_path / "more") == version
    assert errors(repository / "typo") == {}


def test_validate_with_load_finds_bad_warm_up_and_ineffective_parameters(
    backline: Run, repository: Path
) -> None:
    warm_up = (
        'model_warmup { name: "w" batch_size: 1'
        ' inputs { key: "X" value { data_type: TYPE_FP32 dims: 16 zero_data: true } } }'
    )
    put(repository / "add1" / "config.pbtxt", f"max_batch_size: 4 {warm_up}")
    put(
        repository / "ident" / "config.pbtxt",
        'parameters { key: "intra_op_threads" value { string_value: "2" } }',
    )

    done = backline("config", "validate", repository, "--load")

    assert "error: Invalid argument: [request id: <id_unknown>] unexpected inference input 'X'" in done.stdout
    assert "; warm-up sample 'w' of " in done.stdout
    assert "does not fit the model" in done.stdout
    assert "warning: parameter 'intra_op_threads' of model 'ident' is not known" in done.stdout
    assert (
        "did you mean 'intra_op_thread_count'?" in backline("config", "explain", repository / "ident").stderr
    )


def test_explain_inspects_python_models(backline: Run, repository: Path) -> None:
    put(repository / "good" / "1" / "model.py", PYTHON)

    values = {
        value["path"]: value
        for value in json.loads(backline("config", "explain", repository / "good", "--json").stdout)
    }

    assert (values["max_batch_size"]["value"], values["input[0].name"]["value"]) == (8, "x")


def test_convert_round_trips(backline: Run, repository: Path) -> None:
    folder = repository / "add1"
    assert backline("config", "convert", folder, "--output", folder / "model.toml").returncode == 0
    assert (
        folder / "model.toml"
    ).read_text() == 'max_batch_size = 4\nlane = "thread"\n\n[optimization]\npriority = "PRIORITY_MAX"\n'

    done = backline("config", "convert", folder / "model.toml", "--json")

    converted = json.loads(done.stdout)
    assert converted["format"] == "pbtxt"
    assert (
        text.parse(converted["text"], "").message
        == text.parse(CONFIG, "").message
        != message("inference.ModelConfig")()
    )


def test_convert_does_not_overwrite_a_file(backline: Run, repository: Path) -> None:
    done = backline(
        "config", "convert", repository / "add1", "--output", repository / "add1" / "config.pbtxt"
    )

    assert done.returncode == 1
    assert "File exists" in done.stderr
    assert (repository / "add1" / "config.pbtxt").read_text() == CONFIG


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("show", "models"), "is a repository, not a model; name the folder of a model: "),
        (("show", "nowhere"), "'nowhere' does not exist"),
        (("convert", "models/ident"), "has neither config.pbtxt nor model.toml"),
        (("convert", "models/ident/1/model.onnx"), "is neither a .pbtxt nor a .toml file"),
    ],
)
def test_errors_are_explained(
    backline: Run, repository: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], reason: str
) -> None:
    monkeypatch.chdir(repository.parent)

    done = backline("config", *arguments)

    assert done.returncode in (1, 2)
    assert reason in done.stderr
