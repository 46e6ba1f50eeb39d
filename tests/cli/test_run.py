"""`backline run`: models of several kinds and inputs of all forms."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from backline.cli.run import command
from support import models
from support.repositories import put
from support.waiting import until
from support.web import WebServer

PYTHON = """
from collections.abc import Iterator
from backline.model import FP32, UINT8, Models

class Model:
    def predict(self, text: str, times: int = 1) -> str:
        return text.upper() * times
"""
WORDS = """
from collections.abc import Iterator

class Model:
    def predict(self, text: str) -> Iterator[str]:
        yield from text.split()
"""
PICTURE = """
from backline.model import UINT8

class Model:
    def predict(self, image: UINT8[8, 8, 3]) -> UINT8[3]:
        return image.reshape(-1, 3).max(axis=0)
"""
SONG = """
from backline.model import FP32

class Model:
    def predict(self, samples: FP32[-1]) -> float:
        return float(abs(samples).max())
"""
CALLER = """
from backline.model import Models

class Model:
    def predict(self, text: str, models: Models) -> str:
        return models["shout"](text)["output"].item().decode() + "!"
"""
TENSOR = '{ name: "%s" data_type: TYPE_STRING dims: [ 1 ] }'
ENSEMBLE = f"""
platform: "ensemble"
input {TENSOR % "a"}
output {TENSOR % "b"}
ensemble_scheduling {{
  step {{
    model_name: "loud" model_version: -1
    input_map {{ key: "text" value: "a" }}
    output_map {{ key: "output" value: "b" }}
  }}
}}
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    models.add1(folder)
    texts = {
        "shout": PYTHON,
        "words": WORDS,
        "picture": PICTURE,
        "song": SONG,
        "caller": CALLER,
        "loud": PYTHON,
    }
    for name, text in texts.items():
        put(folder / name / "1" / "model.py", text)
    put(folder / "both" / "config.pbtxt", ENSEMBLE)
    (folder / "both" / "1").mkdir()
    return folder


def outputs(run) -> dict[str, object]:
    assert run.returncode == 0, run.stderr
    return {name: output["data"] for name, output in json.loads(run.stdout)["outputs"].items()}


def test_a_model_in_a_repository_runs_and_its_times_are_shown(backline: Any, repository: Path) -> None:
    run = backline("run", repository / "shout", "--input", "text=hello", "--input", "times=2", "--json")

    assert outputs(run) == {"output": ["HELLOHELLO"]}
    assert "shout version 1 loaded in" in run.stderr


def test_a_model_file_is_enough(backline: Any, repository: Path) -> None:
    run = backline("run", repository / "add1" / "1" / "model.onnx", "--input", "zeros:1,16")

    assert run.stdout.startswith("OUTPUT0: float32 [1, 16], from 1 to 1")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_are_read_from_and_saved_to_files(
    backline: Any, repository: Path, tmp_path: Path, suffix: str
) -> None:
    sent = np.arange(16, dtype=np.float32).reshape(1, 16)
    given = tmp_path / f"given{suffix}"
    if suffix == ".npy":
        np.save(given, sent)
    else:
        np.savez(given, INPUT0=sent)

    run = backline("run", repository / "add1", "--input", given, "--output", tmp_path / "out.npz")

    assert run.returncode == 0, run.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["OUTPUT0"], sent + 1)


def test_json_holds_inputs_by_name_and_outputs_go_to_a_folder(
    backline: Any, repository: Path, tmp_path: Path
) -> None:
    put(tmp_path / "in.json", '{"text": ["ab"], "times": [3]}')

    run = backline(
        "run", repository / "shout", "--input", tmp_path / "in.json", "--output", tmp_path / "answers"
    )

    assert run.returncode == 0, run.stderr
    assert np.load(tmp_path / "answers" / "output.npy").tolist() == [b"ABABAB"]


def test_text_is_a_single_input(backline: Any, repository: Path, tmp_path: Path) -> None:
    assert outputs(
        backline("run", repository / "shout", "--input", put(tmp_path / "letter.txt", "dear"), "--json")
    ) == {"output": ["DEAR"]}


def test_an_image_is_decoded_to_the_inputs_shape(backline: Any, repository: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image.new("RGB", (20, 10), (1, 2, 3)).save(tmp_path / "photo.png")

    run = backline("run", repository / "picture", "--input", tmp_path / "photo.png", "--json")

    assert outputs(run) == {"output": [1, 2, 3]}
    assert "photo.png: RGB, values from 0 to 255, resized from 20x10 to 8x8" in run.stderr


def test_audio_is_decoded_to_samples(backline: Any, repository: Path, tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")
    soundfile.write(tmp_path / "tone.wav", np.full((800, 2), 0.5, np.float32), 8000)

    run = backline("run", repository / "song", "--input", tmp_path / "tone.wav", "--json")

    assert outputs(run) == {"output": [0.5]}
    assert "tone.wav: 800 samples at 8000 Hz, mixed from 2 channels" in run.stderr


def test_a_text_is_no_audio_whatever_its_name(backline: Any, repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("soundfile", reason="soundfile is not installed")
    (tmp_path / "text.mp3").write_text("These are the lyrics.")

    run = backline("run", repository / "song", "--input", tmp_path / "text.mp3")

    assert run.returncode == 1
    assert (
        "text.mp3' for input 'samples': the audio cannot be decoded: it is none of WAV, FLAC, OGG"
        in run.stderr
    )
    assert "it begins with the text 'These are the lyrics.'" in run.stderr


def test_audio_that_is_cut_short_is_noted(backline: Any, repository: Path, tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")
    soundfile.write(tmp_path / "whole.wav", np.full(800, 0.5, np.float32), 8000)
    (tmp_path / "half.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:844])

    run = backline("run", repository / "song", "--input", tmp_path / "half.wav", "--json")

    assert outputs(run) == {"output": [0.5]}
    assert "cut short: it has 844 of 1644 bytes" in run.stderr


def test_all_responses_of_a_decoupled_model_are_shown(backline: Any, repository: Path) -> None:
    run = backline("run", repository / "words", "--input", "text=one two", "--json")

    assert [one["outputs"]["output"]["data"] for one in json.loads(run.stdout)] == [["one"], ["two"]]
    assert "gave 2 responses" in run.stderr


def test_with_loads_the_models_it_calls(backline: Any, repository: Path) -> None:
    assert outputs(
        backline("run", repository / "caller", "--with", "shout", "--input", "text=hey", "--json")
    ) == {"output": ["HEY!"]}


def test_a_call_of_a_model_that_is_not_loaded_names_the_option(backline: Any, repository: Path) -> None:
    failed = backline("run", repository / "caller", "--input", "text=hey")

    assert failed.returncode == 1
    assert "'shout' is not found; to load it too, add --with shout\n" in failed.stderr


def test_an_ensemble_loads_its_steps(backline: Any, repository: Path) -> None:
    assert outputs(backline("run", repository / "both", "--input", "a=hey", "--json")) == {"b": ["HEY"]}


@pytest.fixture
def archived(repository: Path) -> Iterator[str]:
    """The URL of an archive of the repository's folder, models/."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        archive.add(repository, "models")
    with WebServer() as web:
        web.put("/models.tgz", made.getvalue())
        yield f"{web.url}/models.tgz"


def test_a_model_in_an_archive_is_shown_with_its_name(backline: Any, archived: str, tmp_path: Path) -> None:
    run = backline(
        "run", f"{archived}#models/add1", "--input", "zeros:1,16", "--cache-dir", tmp_path / "cache"
    )

    assert run.returncode == 0, run.stderr
    assert run.stderr.startswith("add1 version 1 loaded in ")


def test_an_archive_of_a_repository_says_how_to_name_a_model(
    backline: Any, archived: str, tmp_path: Path
) -> None:
    run = backline("run", archived, "--input", "zeros:1,16", "--cache-dir", tmp_path / "cache")

    assert run.returncode == 1
    assert (
        f"'{archived}' is a repository, not a model; it holds add1, both, caller, loud, picture, shout, song,"
        f" words: name the folder of one, such as '{archived}#models/add1'"
    ) in run.stderr


def test_a_failed_load_is_one_error(backline: Any, tmp_path: Path) -> None:
    put(tmp_path / "broken" / "1" / "model.onnx", "no model")

    run = backline("run", tmp_path / "broken", "--input", "zeros")

    assert run.returncode == 1
    assert run.stderr.startswith("Error: load failed for model 'broken': ")
    assert run.stderr.count("\n") == 1


HANGING = """
import pathlib, time

class Model:
    def load(self):
        {load}

    def predict(self, x: str) -> str:
        {predict}
        return x
"""
_HANG = "pathlib.Path({!r}).touch(); time.sleep(600)"


@pytest.mark.parametrize("stage", ["load", "predict"])
def test_ctrl_c_ends_the_command_without_a_traceback(stage: str, tmp_path: Path) -> None:
    reached = tmp_path / "reached"
    code = {"load": "pass", "predict": "pass", stage: _HANG.format(str(reached))}
    put(tmp_path / "slow" / "1" / "model.py", HANGING.format(**code))
    with subprocess.Popen(
        [sys.executable, "-m", "backline", "run", str(tmp_path / "slow"), "--input", "x=a"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            until(reached.exists)
            process.send_signal(signal.SIGINT)
            shown, _ = process.communicate(timeout=30)
        finally:
            process.kill()

    assert (process.returncode, shown.strip()) == (130, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("",), "is a repository, not a model; name one of its models:"),
        (("shuot",), "Did you mean '"),
        (("shout", "--input", "txt=a"), "has no input 'txt'. It expects text BYTES[1]"),
        (("shout",), "no value for text"),
        (("shout", "--input", "text=a", "--output", "x.txt"), "is not a .npz, .npy or .json file"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(repository: Path, arguments: tuple[str, ...], message: str) -> None:
    name, *options = arguments
    run = CliRunner().invoke(command, [str(repository / name), *options])

    assert run.exit_code in (1, 2)
    assert message in run.output + str(run.exception)
