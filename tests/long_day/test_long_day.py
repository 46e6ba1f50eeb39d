"""A user's day with every command and every kind of model, from an empty folder to the last rollback.

Each chapter continues where the one before ended. A command that no chapter uses fails the day.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import backline
from backline_client.client.errors import BacklineError
from long_day import repository
from long_day.user import User, leaves
from support import models
from support.repositories import put
from support.server import ServerProcess

ONES = f"INPUT0={repository.ONES}"
SERVE = (
    "--model-control-mode", "explicit", "--load-model", "*", "--strict-readiness",
    "--cache-config", "local,size=4MiB", "--rate-limit", "execution_count",
)  # fmt: skip


@pytest.mark.timeout(900)
def test_a_long_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = User(tmp_path)
    start_from_an_empty_folder(user)
    collect_models_of_all_kinds(user)
    read_the_configuration(user)
    build_the_environment(user)
    keys = make_keys(user)
    prepare_for_production(user)
    make_certificates(user)
    folders = ("--state-dir", str(tmp_path / "state"), "--cache-dir", str(tmp_path / "cache"))
    with user.serve("--auth", str(tmp_path / "auth.toml"), *folders, *SERVE) as server:
        user.server = server
        log_in(user, keys)
        see_what_is_served(user)
        watch_the_server(user, keys["operator"])
        call_every_model(user)
        call_from_a_program(server, keys["app"])
        keep_others_out(user, keys)
        measure(user)
        put_a_new_version_into_service_under_load(user, keys["app"])
        spread_requests_by_a_route(user)
        leave_work_for_later(user, keys["operator"])
        survive_a_file_that_is_no_model(user)
        roll_a_bad_version_back(user)
        find_out_what_went_wrong(user, keys["operator"])
        take_a_model_out_of_service(user)
        watch_requests(user)
        lock_the_app_out(user, keys)
        read_the_audit_log(user, keys, tmp_path / "state")
        log_out(user)
        assert server.stop() == 0
        assert "Traceback" not in server.output
    user.server = None
    with user.serve("--no-grpc", "--no-metrics", *folders, "--model-control-mode", "explicit") as server:
        user.server = server
        find_everything_as_it_was(user)
    user.server = None
    list_the_plug_ins(user)
    embed_the_models(user)
    tidy_up(user)
    assert user.used >= set(leaves()), "a user's day should use every command: add the new ones to it"


def start_from_an_empty_folder(user: User) -> None:
    assert user.backline("--version").out == f"backline, version {backline.__version__}\n"
    shown = user.backline("--help").out
    assert all(name.split()[0] in shown for name in leaves())
    (user.folder / "models").mkdir()
    for template, name in repository.CREATED.items():
        made = user.backline("new", f"models/{name}", "--template", template).out
        assert f"wrote models/{name}/" in made
        assert f"backline serve models/{name}\n" in made
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "models/tagger", "models/linear"],
        cwd=user.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 passed" in ran.stdout
    ran_once = user.backline("run", "models/tagger", "--input", "text=Backline sleeps", "--json")
    (answer,) = ran_once.json["outputs"]["output"]["data"]
    assert answer == {"Backline": "name", "sleeps": "unknown"}
    assert "tagger version 1 loaded in" in ran_once.err
    # The pipeline is a repository with two models, which join the others.
    alone = user.backline("run", "models/sorter/sorter", "--input", "text=a bc", status=1)
    assert "to load it too, add --with words" in alone.err
    nested = user.backline("config", "validate", "models", status=1).out
    assert "sorter: wrong\n" in nested
    assert "it is a repository; give its location instead of the location of the folder above it" in nested
    shutil.move(user.folder / "models" / "sorter", user.folder / "pipeline")
    for part in ("sorter", "words"):
        shutil.move(user.folder / "pipeline" / part, user.folder / "models" / part)
    together = user.backline("run", "models/sorter", "--with", "words", "--input", "text=a bc", "--json")
    assert together.json["outputs"]["output"]["data"] == [["bc", "a"]]


def collect_models_of_all_kinds(user: User) -> None:
    repository.build(user.folder / "models")
    repository.put_files(user.folder)
    assert len(repository.kinds()) >= 12
    config = user.folder / "models" / "licensed" / "config.pbtxt"
    correct = config.read_text()
    put(config, correct.replace("max_batch_size", "max_batch_sise"))
    wrong = user.backline("config", "validate", "models", status=1).out
    assert "licensed: wrong\n" in wrong
    assert "did you mean 'max_batch_size'?" in wrong
    put(config, correct)
    checked = user.backline("config", "validate", "models").out
    assert set(checked.splitlines()) == {f"{name}: ok" for name in names(user)}
    loaded = user.backline("config", "validate", "models/add1", "models/total", "--load", "--json").json
    assert loaded == [{"model": name, "errors": [], "warnings": []} for name in ("add1", "total")]


def names(user: User) -> list[str]:
    return sorted(folder.name for folder in (user.folder / "models").iterdir())


def read_the_configuration(user: User) -> None:
    shown = user.backline("config", "show", "models/add1", "--json").json
    assert (shown["name"], shown["backend"]) == ("add1", "onnxruntime")
    assert shown["max_batch_size"] > 1
    assert user.backline("config", "show", "models/spread", "--json").json["max_batch_size"] == 0
    lines = [line.split() for line in user.backline("config", "explain", "models/total").out.splitlines()]
    assert ["max_batch_size", "4", "file", "config.pbtxt:2:9"] in lines
    assert ["input[0].name", '"x"', "file", "config.pbtxt:3:17"] in lines
    assert "max_batch_size = 4" in user.backline("config", "convert", "models/total").out
    user.backline("config", "convert", "models/total", "--output", "models/total/model.toml")
    both = user.backline("config", "validate", "models/total", status=1).out
    assert "config.pbtxt" in both
    assert "model.toml" in both
    (user.folder / "models" / "total" / "config.pbtxt").unlink()
    assert user.backline("config", "validate", "models/total").out == "total: ok\n"


def build_the_environment(user: User) -> None:
    cache = ("--cache-dir", "cache")
    assert "No environments in" in user.backline("env", "list", *cache).out
    built = user.backline("env", "build", "models", *cache).out
    if any(kind.name == "notebook" for kind in repository.kinds()):
        assert "notebook: built" in built
        (listed,) = user.backline("env", "list", "--json", *cache).json["environments"]
        assert [used["model"] for used in listed["models"]] == ["notebook"]
        assert "tinydb==4.8.0" in listed["packages"]


def make_keys(user: User) -> dict[str, str]:
    assert "there is no file" in user.backline("keys", "list", status=1).err
    scopes = [
        word for scope in ("infer", "read", "manage", "metrics", "admin") for word in ("--scope", scope)
    ]
    made = user.backline("keys", "create", "operator", *scopes)
    assert "This is the only time that the key 'operator' is shown" in made.err
    leaked = user.backline("keys", "create", "app", "--model", "add*", "--expires", "30d", "--json").json
    assert "already has a key named 'app'" in user.backline("keys", "create", "app", status=1).err
    rotated = user.backline("keys", "rotate", "app", "--json").json
    assert leaked["key"] != rotated["key"]
    listed = user.backline("keys", "list", "--json").json["keys"]
    assert [(entry["name"], entry["models"]) for entry in listed] == [("operator", ["*"]), ("app", ["add*"])]
    assert made.out.strip() not in (user.folder / "auth.toml").read_text()
    random = user.backline("keys", "generate").out.strip()
    assert len({random, made.out.strip(), rotated["key"]}) == 3
    return {"operator": made.out.strip(), "app": rotated["key"], "leaked": leaked["key"], "none": random}


def make_certificates(user: User) -> None:
    made = user.backline("certs", "create", "--host", "models.example", "--out", "certs").out
    assert "--ssl-certificate" in made
    written = {path.name for path in (user.folder / "certs").iterdir()}
    assert {name.rpartition(".")[2] for name in written} >= {"crt", "key"}


def log_in(user: User, keys: dict[str, str]) -> None:
    refused = user.backline("models", "list", status=1).err
    assert f"run 'backline login {user.server.url}'" in refused
    put(user.folder / "operator.key", keys["operator"])
    put(user.folder / "leaked.key", keys["leaked"])
    refused = user.backline("login", user.server.url, "--api-key", "@leaked.key", status=1).err
    assert "was not stored" in refused
    for url in (user.server.url, user.server.grpc_url):
        kept = user.backline("login", url, "--api-key", "@operator.key").out
        assert kept.startswith("Stored the key for ")
        assert keys["operator"] not in kept


def see_what_is_served(user: User) -> None:
    listed = user.backline("models", "list", "--json").json
    assert {entry["name"]: entry["state"] for entry in listed} == dict.fromkeys(names(user), "READY")
    lines = [line.split() for line in user.backline("models", "list").out.splitlines()]
    assert lines[0] == ["model", "version", "state", "labels", "memory", "inferences", "reason"]
    assert ["add1", "1", "READY", "-"] in [line[:4] for line in lines]
    shown = user.backline("models", "show", "chant").out
    assert "optional input  times" in shown
    assert "ensemble of stream, decorate, any number of responses" in shown
    user.server.wait_started()
    printed = user.server.output
    assert "for cached" in printed
    assert "with a key for KEY" in printed


def prepare_for_production(user: User) -> None:
    ports = ("--http-port", 0, "--grpc-port", 0, "--metrics-port", 0)
    checked = user.backline("doctor", "models/linear", "--json", *ports).json["findings"]
    assert not [one for one in checked if one["group"] == "Models" and one["severity"] == "error"]
    assert "combinations considered" in user.backline("tune", "models/linear", "--pace", "0.2").out
    user.backline("image", "build", "models/linear", "--output", "image")
    assert "FROM" in (user.folder / "image" / "Containerfile").read_text()
    assert "_backline_completion" in user.backline("completion", "bash").out
    assert "--model-repository" in user.backline("tritonserver", "--help").out
    assert "Heard:" in user.backline("demo", "--once").out


def watch_the_server(user: User, key: str) -> None:
    assert "add1" in user.backline("top", "--once", key=key).out
    shown = user.backline("logs", "--file", user.folder / "server.log", "--lines", "1000").out
    assert "add1" in shown
    user.backline("client", "generate", "add1", "--output", "add1_client.py", key=key)
    assert "INPUT0" in (user.folder / "add1_client.py").read_text()


def call_every_model(user: User) -> None:
    urls = (user.server.url, user.server.grpc_url)
    requests = [(kind.name, kind.inputs, kind.shows) for kind in repository.kinds()]
    requests += [(name, (value,), shows) for name, value, shows in repository.CREATED_KINDS]
    for number, (name, inputs, shows) in enumerate(requests):
        values = [word for value in inputs for word in ("--input", value)]
        answer = user.backline("infer", name, *values, "--json", "--url", urls[number % 2])
        assert shows in answer.out, name
        assert '"version": "1"' in answer.out


def call_from_a_program(server: ServerProcess, key: str) -> None:
    for url in (server.url, server.grpc_url):
        with backline.connect(url, api_key=key) as client:
            answer = client["add1"](np.ones((3, 16), np.float32))
            np.testing.assert_array_equal(answer["OUTPUT0"], np.full((3, 16), 2, np.float32))


def keep_others_out(user: User, keys: dict[str, str]) -> None:
    for name in ("leaked", "none"):
        refused = user.backline("infer", "add1", "-i", "zeros", key=keys[name], status=1).err
        assert "key" in refused
        assert keys[name] not in refused
    assert "for model 'tagger'" in user.backline("infer", "tagger", "-i", "x", key=keys["app"], status=1).err
    assert "'manage'" in user.backline("models", "promote", "add1", "1", key=keys["app"], status=1).err
    assert "INPUT0" in user.backline("models", "show", "add1", key=keys["app"]).out
    assert "[[1. 1." in user.backline("infer", "add1", "-i", "zeros", key=keys["app"]).out


def answers(user: User, version: str = "") -> float:
    """What add1 adds, in the version that serves the request."""
    wanted = ("--model-version", version) if version else ()
    answer = user.backline("infer", "add1", "-i", "zeros", "--json", *wanted).json
    return float(answer["outputs"]["OUTPUT0"]["data"][0][0])


def arrive(user: User, version: str, constant: float) -> None:
    """Copies a new version of add1 into the repository."""
    models.add1(user.folder / "incoming", "add1", version, constant=constant)
    shutil.move(user.folder / "incoming" / "add1" / version, user.folder / "models" / "add1" / version)


@contextmanager
def load_on_add1(user: User, key: str) -> Iterator[list[float]]:
    """One caller that never pauses, until the block ends. Yields the answers, which the thread extends."""
    seen: list[float] = []
    ended = threading.Event()

    def call() -> None:
        with backline.connect(user.server.url, api_key=key) as client:
            while not ended.is_set():
                seen.append(client["add1"](np.zeros((1, 16), np.float32))["OUTPUT0"][0, 0].item())

    with ThreadPoolExecutor(1) as threads:
        calls = threads.submit(call)
        try:
            yield seen
        finally:
            ended.set()
            calls.result(60)  # raises what a call raised


def measure(user: User) -> None:
    files = ("--json", "bench.json", "--html", "bench.html")
    printed = user.backline("bench", "add1", "-c", "2", "--duration", "1", "--warm-up", "0", *files).out
    (step,) = json.loads((user.folder / "bench.json").read_text())["steps"]
    assert step["errors"] == {}
    assert step["answered"] > 0
    assert "INPUT0 FP32[1, 16]" in printed
    assert (printed.split()[-11], printed.split()[-1]) == ("2", "0")  # in flight and errors, in the last row
    page = (user.folder / "bench.html").read_text()
    assert "<title>add1 at" in page
    assert "<svg" in page


def put_a_new_version_into_service_under_load(user: User, key: str) -> None:
    # Without the label, requests that name no version would go to version 2 as soon as it is loaded.
    assert user.backline("models", "promote", "add1", "1").out == "stable of add1: (none) -> 1\n"
    with load_on_add1(user, key) as seen:
        arrive(user, "2", 2)
        assert "add1" in user.backline("models", "refresh").out
        assert user.backline("models", "label", "add1", "canary", "2").out == "canary of add1: (none) -> 2\n"
        assert (answers(user), answers(user, "canary")) == (1, 2)
        recorded = user.backline("models", "record", "add1", "--model-version", "1", "--count", "4").out
        assert "add1 version 1: recorded 4 of 4 requests" in recorded
        assert user.backline("models", "promote", "add1", "2").out == "stable of add1: 1 -> 2\n"
        assert answers(user) == 2
    assert set(seen) == {1, 2}
    assert seen == sorted(seen)  # no request failed, and none went back to the old version


def spread_requests_by_a_route(user: User) -> None:
    said = user.backline("traffic", "split", "adder", "add1@stable=9", "add1@canary=1").out
    assert said == "adder: revision 1: add1@stable 90 %, add1@canary 10 %\n"
    answer = user.backline("infer", "adder", "--input", ONES, "--json").json
    assert answer["outputs"]["OUTPUT0"]["data"][0][0] == 3
    assert "add1@stable" in user.backline("traffic", "show", "adder").out
    assert "revision 2" in user.backline("traffic", "promote", "adder", "add1@stable").out
    assert "add1@canary 10 %" in user.backline("traffic", "rollback", "adder").out
    assert "revision 4" in user.backline("traffic", "shadow", "adder", "add1@canary", "--share", "0.5").out
    assert "rollback to 1" in user.backline("traffic", "history", "adder").out
    user.backline("traffic", "shadow", "adder", "--off")
    user.backline("traffic", "promote", "adder", "add1@stable")
    begun = user.backline("traffic", "rollout", "adder", "add1@canary", "--guard", "errors<1%").out
    assert "adder" in begun
    assert "removed" in user.backline("traffic", "remove", "adder").out
    put(user.folder / "routes.toml", '[adder]\ntargets = {"add1@stable" = 1}\n')
    assert "adder" in user.backline("traffic", "apply", "routes.toml").out
    user.backline("traffic", "remove", "adder")


def leave_work_for_later(user: User, key: str) -> None:
    with backline.connect(user.server.url, api_key=key) as client:
        jobs = [client["add1"].submit(np.full((1, 16), number, np.float32)) for number in range(3)]
    ids = [job.id for job in jobs]
    user.backline("jobs", "wait", *ids)
    assert ids[0] in user.backline("jobs", "list", "--state", "done").out
    assert user.backline("jobs", "show", ids[1]).json["state"] == "done"
    assert user.backline("jobs", "result", ids[2], "--json").json["outputs"]["OUTPUT0"]["data"][0][0] == 4
    assert "no job" in user.backline("jobs", "cancel", "1-" + "0" * 32, status=1).err
    assert "done" in user.backline("jobs", "retry", ids[0], status=1).err


def survive_a_file_that_is_no_model(user: User) -> None:
    put(user.folder / "models" / "add1" / "3" / "model.onnx", "half a copy")
    found = user.backline("config", "validate", "models/add1", status=1).out
    assert "is not an ONNX model" in found
    refused = user.backline("models", "load", "add1", status=1).err
    assert "load failed for model 'add1': version 3 is at UNAVAILABLE state: " in refused
    assert refused.count("\n") == 1
    states = {
        entry["version"]: entry["state"]
        for entry in user.backline("models", "show", "add1", "--json").json["states"]
    }
    assert states["2"] == "READY"
    assert states["3"] == "UNAVAILABLE"
    assert answers(user) == 2
    shutil.rmtree(user.folder / "models" / "add1" / "3")


def roll_a_bad_version_back(user: User) -> None:
    arrive(user, "4", -1000)
    lines = user.backline("models", "load", "add1", "--model-version", "4").out.splitlines()
    assert ["add1", "4", "READY"] in [line.split()[:3] for line in lines]
    stale = user.backline("models", "promote", "add1", "4", "--expect", "1", status=1).err
    assert "nothing was changed" in stale
    assert user.backline("models", "promote", "add1", "4", "--expect", "2").out == "stable of add1: 2 -> 4\n"
    assert answers(user) == -1000
    assert user.backline("models", "rollback", "add1").out == "stable of add1: 4 -> 2\n"
    assert answers(user) == 2
    canary = user.backline("models", "rollback", "add1", "--label", "canary", status=1).err
    assert "label 'canary' of 'add1' has no earlier version" in canary


def find_out_what_went_wrong(user: User, key: str) -> None:
    history = user.backline("models", "history", "add1", "--json").json
    moves = [
        (entry["action"], entry["before"], entry["version"])
        for entry in history
        if entry["label"] == "stable"
    ]
    assert moves == [
        ("rollback", "4", "2"),
        ("promote", "2", "4"),
        ("promote", "1", "2"),
        ("promote", "", "1"),
    ]
    (failed,) = [entry for entry in history if entry["action"] == "fail"]
    assert "is not an ONNX model" in failed["detail"]
    assert all(getpass.getuser() in entry["who"] for entry in history)
    assert "4 -> 2" in user.backline("models", "history", "--limit", "1").out
    shown = user.backline("models", "show", "add1", "--json").json
    counts = {str(entry["version"]): int(entry["inference_count"]) for entry in shown["statistics"]}
    assert counts["4"] >= 1
    assert counts["2"] > 1
    wrong = (
        user.backline("infer", "thumbnail", "-i", "picture=no picture", status=1)
        if installed("thumbnail")
        else None
    )
    assert wrong is None or "the image cannot be decoded" in wrong.err
    assert "ERROR" in user.server.output
    assert "failed to load 'add1' version 3" in user.server.output
    request = urllib.request.Request(f"{user.server.url}/metrics", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=30) as page:
        metrics = page.read().decode()
    assert 'nv_inference_request_success{model="add1",version="2"}' in metrics
    assert "nv_cache_num_misses_per_model" in metrics


def installed(name: str) -> bool:
    return any(kind.name == name for kind in repository.kinds())


def take_a_model_out_of_service(user: User) -> None:
    user.backline("models", "unload", "add1")
    assert "'add1'" in user.backline("infer", "twice", "-i", ONES, status=1).err
    loaded = [line.split()[:3] for line in user.backline("models", "load", "add1").out.splitlines()]
    assert ["add1", "2", "READY"] in loaded
    assert "5.0, 5.0" in user.backline("infer", "twice", "-i", ONES, "--json").out
    assert (
        user.backline("models", "label", "add1", "canary", "--remove").out == "canary of add1: 2 -> (none)\n"
    )
    assert user.backline("models", "label", "add1", "--json").json == {"stable": "2"}


def read_the_audit_log(user: User, keys: dict[str, str], state: Path) -> None:
    told = user.backline("audit", "--state-dir", str(state), "--limit", "1000", "--json").out
    entries = [json.loads(line) for line in told.splitlines()]
    assert any(entry.get("identity") == "operator" for entry in entries), entries[-3:]
    assert any("promote" in json.dumps(entry) or "label" in json.dumps(entry) for entry in entries)
    assert not [key for key in keys.values() if key in told]


def list_the_plug_ins(user: User) -> None:
    assert "onnxruntime" in user.backline("plugins", "list").out


def watch_requests(user: User) -> None:
    watching = threading.Thread(
        target=lambda: lines.append(user.backline("watch", "--model", "add1", "--count", "1", "--json").out)
    )
    lines: list[str] = []
    watching.start()
    while watching.is_alive():
        user.backline("infer", "add1", "-i", ONES)
    assert json.loads(lines[0])["model"] == "add1"


def lock_the_app_out(user: User, keys: dict[str, str]) -> None:
    assert user.backline("keys", "revoke", "app").out == "Revoked 'app'\n"
    end = time.monotonic() + 60
    with backline.connect(user.server.url, api_key=keys["app"]) as client:
        with contextlib.suppress(BacklineError):
            while time.monotonic() < end:
                client["add1"](np.zeros((1, 16), np.float32))
        with pytest.raises(BacklineError, match="key"):
            client["add1"](np.zeros((1, 16), np.float32))


def log_out(user: User) -> None:
    assert user.backline("logout", user.server.url).out.startswith("Removed the key for ")
    assert "backline login" in user.backline("models", "list", status=1).err


def find_everything_as_it_was(user: User) -> None:
    assert "add1" in user.backline("models", "load", "add1").out
    assert answers(user) == 2
    assert user.backline("models", "label", "add1", "--json").json == {"stable": "2"}
    assert len(user.backline("models", "history", "add1", "--json").json) >= 6


def embed_the_models(user: User) -> None:
    models_folder = user.folder / "models"
    with (
        backline.connect(f"inproc://{models_folder / 'total'}") as client,
        client["total"].sequence() as total,
    ):
        sums = [total(np.full((1, 1), value, np.float32))["sum_out"].item() for value in (1, 2, 3)]
    assert sums == [1, 3, 6]
    url = f"inproc://{models_folder / 'add1'}"
    said = user.backline("infer", "add1", "-i", "zeros", "--url", url)
    assert "[[-1000. " in said.out  # labels belong to a server; without one, the newest version serves
    steps = ("-c", "1", "--duration", "0.2", "--warm-up", "0", "--json", "embedded.json")
    assert "INPUT0 FP32[1, 16]" in user.backline("bench", "add1", *steps, "--url", url).out
    (step,) = json.loads((user.folder / "embedded.json").read_text())["steps"]
    assert step["answered"] > 0
    assert step["errors"] == {}


def tidy_up(user: User) -> None:
    cache = ("--cache-dir", "cache")
    assert user.backline("env", "prune", "--json", *cache).json["removed"] == []
    would = user.backline("env", "prune", "--all", "--dry-run", *cache).out
    removed = user.backline("env", "prune", "--all", "--json", *cache).json["removed"]
    assert len(removed) == installed("notebook")
    assert all("would remove" in would for _ in removed)
    assert user.backline("env", "list", "--json", *cache).json["environments"] == []
