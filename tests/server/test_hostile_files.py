"""Damaged and hostile files of many formats, loaded by one server while a client uses an honest model."""

from __future__ import annotations

import ctypes
import gzip
import json
import os
import pickle
import random
import shutil
import sys
import threading
import urllib.error
import urllib.request
from base64 import b85decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from backends.served_models import need
from support import models
from support.server import ServerProcess, serve
from support.waiting import until

#: All files are loaded before the first test, which takes long on a busy machine.
pytestmark = pytest.mark.timeout(900)

need("catboost", "lightgbm", "openvino", "ai_edge_litert", "skops", "xgboost")

#: How many damaged files there are of each format, and what decides how: more, and others, for a long run.
FILES = int(os.environ.get("HOSTILE_FILES", "100"))
SEED = int(os.environ.get("HOSTILE_SEED", "7"))
MEMORY_LIMIT = 600 << 20
#: relu(x) * 2 over FP32 [1, 4] as a LiteRT file, whose converter takes longer to import than this test.
TFLITE = gzip.decompress(
    b85decode(
        "ABzY8000000t0PQJx>Bb5FOwIf)^x+hJu2E#s&qomjFf*J`7$gMH9{h180I@<R4gA7-M6h@h4bXSXdY<D`Twe{R7tGo4vWqLEPNS?!K"
        "FOGxP3JL}YAMR}++`6eTG^G19?>NyC}I*%$yNA7X)UfC!ITeqasIfUog*9F+4sP;At9%gvoiqu#2OjY6ql6rigs?J(ZYcw&1UtJNP`g"
        "HF$EotpiV&ap)y@Nd8i@BrKc*U}5;9iblY`#?<k2~*V7XD*}IpyHg~c<Jt}nws}!>3i?-_UbhtGifS|D4)&evMWTNQj0Zn*>$GemHFj&"
        "LD8P9CG|G85K{%_aH&-*&2;hD!kh!Moh4YRye9PSbj2D`;o1KS;8Nyi&E7%Ba{M>`$)EM)V=ctw%(Xty2k*|Te&LBC?zfMqoz&eo5o7NG"
        "&z<{u2F`d;xgWwW4vC3p%q4+s@T^;DoA}s+5qY#Z=58u4Abp>U|4p+yoX&Zl%JECi6L|i|dc*GW$o*Q2$|Dk&?G*xRkCyQGlu-Jbs^OFQ"
        "ymk4Umh%s4#chqauKc&1(dGZ<?GN*e&RuK+000"
    )
)


def build_one_of_each(folder: Path) -> None:
    """Writes a small model of each format into a folder."""
    # Imported here, because OpenVINO would ask for consent to its telemetry.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import catboost
    import lightgbm
    import openvino
    import xgboost
    from sklearn.linear_model import LogisticRegression
    from skops import io

    rows = np.random.default_rng(1).random((200, 4))
    classes = (rows[:, 0] * 3).astype(int)
    onnx = shutil.copy(models.add1(folder / "repository"), folder / "model.onnx")
    xgboost.XGBClassifier(n_estimators=2, max_depth=2).fit(rows, classes).save_model(folder / "model.ubj")
    settings = {"objective": "multiclass", "num_class": 3, "num_leaves": 4, "verbose": -1}
    lightgbm.train(settings, lightgbm.Dataset(rows, classes), 2).save_model(folder / "model.txt")
    forest = catboost.CatBoostClassifier(
        iterations=2, depth=2, verbose=0, allow_writing_files=False, thread_count=1
    )
    forest.fit(rows, classes).save_model(str(folder / "model.cbm"))
    io.dump(LogisticRegression().fit(rows, classes), folder / "model.skops")
    openvino.save_model(openvino.convert_model(onnx), folder / "model.xml")
    (folder / "model.tflite").write_bytes(TFLITE)


def damage(content: bytes, number: int, chance: random.Random) -> bytes:
    """A copy that is cut short, or has a few wrong bytes."""
    if number % 2:
        return content[: len(content) * number // FILES]
    damaged = bytearray(content)
    for _ in range(chance.choice((1, 2, 8))):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    return bytes(damaged)


class Segfault:
    """A pickle of this reads memory at address 0 when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ctypes.string_at, (0,)


class Flood:
    """A pickle of this writes a file of a gigabyte when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.path)!r}, 'wb').write(bytes(1 << 28))",)


@dataclass
class HonestClient(threading.Thread):
    """Sends requests to add1, one after another, until it is stopped."""

    url: str
    answers: int = 0
    errors: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [0.0] * 16}
        body = json.dumps({"inputs": [tensor]}).encode()
        while not self.stopped.wait(0.005):
            try:
                with urllib.request.urlopen(f"{self.url}/v2/models/add1/infer", body, timeout=60) as answer:
                    assert json.load(answer)["outputs"][0]["data"] == [1.0] * 16
                self.answers += 1
            except (OSError, AssertionError) as error:
                self.errors.append(repr(error))


@dataclass(frozen=True)
class Outcome:
    """A server that has tried to load all files: the state and reason of each, and what the client saw."""

    server: ServerProcess
    folder: Path
    states: dict[str, tuple[str, str]]
    client: HonestClient


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    folder = tmp_path_factory.mktemp("hostile")
    build_one_of_each(folder)
    repository = folder / "repository"  # with add1, from which the other ONNX files are made
    chance = random.Random(SEED)
    for file in sorted(folder.glob("model.*")):
        for number in range(FILES if file.name != "model.bin" else 0):
            version = repository / f"{file.suffix[1:]}-{number}" / "1"
            version.mkdir(parents=True)
            (version / file.name).write_bytes(damage(file.read_bytes(), number, chance))
            if file.suffix == ".xml":
                shutil.copy(folder / "model.bin", version)
    models.endless(repository, "an_endless_run", grows=False)
    models.endless(repository, "an_endless_output", grows=True)
    for name, pickled in (("a_segfault", Segfault()), ("a_flood", Flood(folder / "flood"))):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.pkl").write_bytes(pickle.dumps(pickled))
    options = (
        "--isolate=new",
        "--no-strict-readiness",
        "--trust-pickle",
        "--load-timeout-secs=15",
        f"--load-memory-limit={MEMORY_LIMIT}",
        f"--state-dir={folder / 'state'}",
    )
    with serve(repository, folder / "log", *options, ready=False) as server:
        until(lambda: _is_ready(server, "add1"), seconds=600)
        client = HonestClient(server.url)
        client.start()
        server.wait_started(800)
        client.stopped.set()
        client.join()
        yield Outcome(server, folder, _states(server), client)


def _is_ready(server: ServerProcess, model: str) -> bool:
    try:
        with urllib.request.urlopen(f"{server.url}/v2/models/{model}/ready", timeout=30) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _states(server: ServerProcess) -> dict[str, tuple[str, str]]:
    request = urllib.request.Request(f"{server.url}/v2/repository/index", method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return {entry["name"]: (entry["state"], entry.get("reason", "")) for entry in json.load(answer)}


def test_each_damaged_file_is_served_or_refused_with_a_reason(outcome: Outcome) -> None:
    damaged = {name: state for name, state in outcome.states.items() if "-" in name}

    assert len(damaged) == 7 * FILES
    assert {state for state, _ in damaged.values()} <= {"READY", "UNAVAILABLE"}
    assert all(reason for state, reason in damaged.values() if state == "UNAVAILABLE")


def test_the_server_lives_and_an_honest_client_sees_no_error(outcome: Outcome) -> None:
    assert outcome.server.process.poll() is None
    assert outcome.client.errors == []
    assert outcome.client.answers > 0
    assert _is_ready(outcome.server, "add1")


def test_a_crash_of_the_runtime_is_an_error_of_its_model(outcome: Outcome) -> None:
    _, reason = outcome.states["a_segfault"]

    assert "scikit-learn " in reason
    assert "crashed while loading '" in reason
    assert "model.pkl' (SIGSEGV); the server is not affected" in reason


def test_a_model_that_does_not_end_is_stopped(outcome: Outcome) -> None:
    _, reason = outcome.states["an_endless_run"]

    assert "did not finish running '" in reason
    assert "within 15 s, so its process was killed" in reason
    assert "raise --load-timeout-secs" in reason


def test_a_model_that_takes_ever_more_memory_is_stopped(outcome: Outcome) -> None:
    _, reason = outcome.states["an_endless_output"]

    assert "used more than 600 MiB of memory while running '" in reason
    assert "raise --load-memory-limit" in reason


def test_a_model_cannot_fill_the_disk(outcome: Outcome) -> None:
    _, reason = outcome.states["a_flood"]

    assert "File too large" in reason
    assert (outcome.folder / "flood").stat().st_size < 65 << 20


def test_nothing_of_the_trials_is_left(outcome: Outcome) -> None:
    server = psutil.Process(outcome.server.process.pid)

    until(lambda: not server.children(recursive=True), seconds=60)
