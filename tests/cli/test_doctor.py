"""`backline doctor` finds faults that were planted in files, the environment, facts and a server."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backline.engine.config.model_config import ModelConfig
from backline.lifecycle.options import LifecycleOptions
from backline.plugins.tools.doctor.addresses import ADDRESSES, Exposure, TriedPort, read_exposure
from backline.plugins.tools.doctor.examination import is_server
from backline.plugins.tools.doctor.files import FILES, ServerFiles, ServerPath, certificate_end, read_files
from backline.plugins.tools.doctor.finding import Severity, diagnose
from backline.plugins.tools.doctor.machine import MACHINE, Machine, read_machine
from backline.plugins.tools.doctor.repository import REPOSITORY, DescribedModel, Repositories
from backline.plugins.tools.doctor.running import RUNNING, ServerFacts, checks_of, open_scopes
from backline.plugins.tools.doctor.software import SOFTWARE, Software
from backline.server import ServerOptions
from backline.wire.tls import TlsFiles
from backline_client.client.address import Address
from backline_client.client.options import ClientOptions
from backline_client.client.records import ModelIndex, Progress
from cli.conftest import Run
from support import models
from support.authority import Authority
from support.repositories import put
from support.server import serve

TENSORS = """
input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "x" data_type: TYPE_FP32 dims: [ -1 ] }
"""
CONFIGURATIONS = {
    "misspelt": "max_batch_sise: 4",
    "greedy": "instance_group { count: 64 kind: KIND_CPU }" + TENSORS,
    "unbatched": "max_batch_size: 0 dynamic_batching { }" + TENSORS,
    "waiting": "max_batch_size: 4 dynamic_batching { max_queue_delay_microseconds: 500000 }" + TENSORS,
    "everything": "max_batch_size: 4 version_policy { all { } }" + TENSORS,
    "accelerated": "instance_group { count: 1 kind: KIND_GPU }" + TENSORS,
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1000000\n"
KEYS = f"""
[[keys]]
name = "old"
sha256 = "{"0" * 64}"
scopes = ["infer"]
expires = 2020-01-01
"""


def plant_models(folder: Path) -> Path:
    """A repository with one fault in each model."""
    for name, text in CONFIGURATIONS.items():
        put(folder / name / "config.pbtxt", f'backend: "identity" {text}')
        (folder / name / "1").mkdir()
    put(
        folder / "padded" / "model.toml",
        'backend = "identity"\nmax_batch_size = 4\npadding = { x = { axis = 1, buckets = [8, 4096] } }\n'
        '[[input]]\nname = "x"\ndata_type = "TYPE_FP32"\ndims = [-1]\n'
        '[[output]]\nname = "x"\ndata_type = "TYPE_FP32"\ndims = [-1]\n',
    )
    (folder / "padded" / "1").mkdir()
    put(folder / "forest" / "1" / "model.pkl")
    put(folder / "unfetched" / "1" / "model.onnx", POINTER)
    folder.chmod(0o777)
    return folder


@contextmanager
def listening() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen(1)
        yield taken.getsockname()[1]


def found(text: str) -> set[tuple[str, str]]:
    """The checks that found something, each with its severity."""
    return {
        (one["check"], one["severity"]) for one in json.loads(text)["findings"] if one["severity"] != "ok"
    }


PLANTED = {
    ("thread-variables", "warning"),
    ("debug-settings", "warning"),
    ("protobuf", "warning"),
    ("environment-variables", "warning"),
    ("compute-threads", "warning"),
    ("ports", "error"),
    ("plain-keys", "warning"),
    ("trusted-code", "note"),
    ("secret-files", "warning"),
    ("key-file", "warning"),
    ("folder-permissions", "warning"),
    ("repository-permissions", "warning"),
    ("interrupted-work", "warning"),
    ("configurations", "error"),
    ("pointer-files", "error"),
    ("pickles", "error"),
    ("gpus", "warning"),
    ("threads", "warning"),
    ("batching", "warning"),
    ("padding", "warning"),
    ("versions", "note"),
    ("reachable", "error"),
}


def test_every_planted_fault_is_found_and_some_are_repaired(backline: Run, tmp_path: Path) -> None:
    repository = plant_models(tmp_path / "models")
    keys = put(tmp_path / "keys.toml", KEYS)
    keys.chmod(0o644)
    state, cache = tmp_path / "state", tmp_path / "cache"
    state.mkdir(mode=0o700)
    state.chmod(0o777)
    left = put(cache / "partial" / "left")
    os.utime(left, (0, 0))
    arguments = (
        *("doctor", repository, tmp_path / "missing", "--json", "--host", "0.0.0.0", "--auth", keys),
        *("--state-dir", state, "--cache-dir", cache, "--compute-threads", 64, "--trust-remote-code"),
        *("--grpc-port", 0, "--metrics-port", 0),
    )
    environment = {
        "OMP_NUM_THREADS": "64",
        "PYTHONASYNCIODEBUG": "1",
        "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python",
        "BACKLINE_HTP_PORT": "9000",
    }

    with listening() as port:
        done = backline(*arguments, "--http-port", port, **environment)
        repaired = backline(*arguments, "--http-port", port, "--fix", **environment)

    planted = PLANTED - ({("gpus", "warning")} if any(Path("/dev").glob("nvidia[0-9]*")) else set())
    assert len(planted) >= 20
    assert done.returncode == 1, done.stderr
    assert found(done.stdout) >= planted
    gone = {"secret-files", "folder-permissions", "repository-permissions", "interrupted-work"}
    assert found(repaired.stdout) & PLANTED == {one for one in planted if one[0] not in gone}
    assert len(json.loads(repaired.stdout)["fixed"]) == 4
    assert not left.exists()
    assert keys.stat().st_mode & 0o777 == 0o600


def test_each_finding_says_why_it_matters_and_what_to_do(backline: Run, tmp_path: Path) -> None:
    repository = plant_models(tmp_path / "models")

    done = backline("doctor", repository, "--state-dir", tmp_path, "--cache-dir", tmp_path)

    assert done.returncode == 1
    assert "forest: 'forest/1/model.pkl' is a pickle, which the server does not load" in done.stdout
    assert "Loading a pickle can execute any code in it." in done.stdout
    assert "-> Convert it to skops or ONNX" in done.stdout


def test_a_certificate_and_a_key_that_do_not_belong_together_are_an_error(
    backline: Run, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    one, other = authority.issue("one"), authority.issue("other")

    done = backline(
        *("doctor", "--json", "--host", "203.0.113.7", "--insecure-open", "--state-dir", tmp_path),
        *("--cache-dir", tmp_path, "--ssl-certificate", one.certificate, "--ssl-key", other.key),
    )

    assert found(done.stdout) >= {("certificate", "error"), ("host", "error"), ("open-server", "error")}


@pytest.mark.parametrize(("days", "severity"), [(90.0, "ok"), (5.0, "warning"), (-0.001, "error")])
def test_the_end_of_a_certificate_is_read(tmp_path: Path, days: float, severity: str) -> None:
    issued = Authority(tmp_path).issue("server", days=days)

    expires = certificate_end(TlsFiles(issued.certificate, issued.key))
    facts = ServerFiles(certificate=issued.certificate, certificate_expires=expires, now=time.time())
    (only,) = FILES["certificate"](facts)

    assert only.severity == severity


def test_an_expired_rule_for_certificates_is_not_reported_as_a_key(tmp_path: Path) -> None:
    rule = '[[certificates]]\nname = "app"\nsubject = "CN=app"\nscopes = ["infer"]\nexpires = 2020-01-02\n'
    keys = put(tmp_path / "keys.toml", f"{KEYS}\n{rule}")
    folders = LifecycleOptions(state_folder=tmp_path, cache_folder=tmp_path)

    of_key, of_rule = FILES["key-file"](read_files(ServerOptions((), lifecycle=folders, auth=keys)))

    assert of_key.what == "The key 'old' expired on 2020-01-01"
    assert "backline keys rotate old" in of_key.advice
    assert of_rule.what == "The rule for client certificates 'app' expired on 2020-01-02"
    assert "the table [[certificates]] named 'app'" in of_rule.advice


def test_the_addresses_of_single_ports_are_checked() -> None:
    options = ServerOptions((), grpc_host="203.0.113.7", http_port=0, grpc_port=0, metrics_port=None)

    diagnoses = diagnose("addresses", ADDRESSES, read_exposure(options))

    wrong = {one.check: one.finding for one in diagnoses if one.finding.severity is not Severity.OK}
    assert wrong.keys() == {"host", "open-server"}
    assert wrong["host"].what == "'203.0.113.7' is not an address of this machine"
    assert "with --grpc-address" in wrong["host"].advice
    assert "anyone who can reach 203.0.113.7 may run the models" in wrong["open-server"].what


SOUND_SOFTWARE = Software(
    python=(3, 13),
    free_threaded=False,
    debugging=(),
    has_uvloop=True,
    protobuf="upb",
    packages={"onnxruntime": "1.30.0"},
    least={"onnxruntime": "1.20"},
    gpu=False,
)
SOUND_MACHINE = Machine(
    cores=8,
    quota=None,
    throttled=0.0,
    threads={},
    memory_total=32 << 30,
    memory_available=16 << 30,
    memory_limit=None,
    memory_used=0,
    open_files=(1024, 1 << 20),
    processes=100,
    max_processes=None,
    shared_memory=1 << 30,
    now=2e9,
    max_connections=4096,
)
SOUND_FILES = ServerFiles(folders=(ServerPath("The state folder", Path("/srv/state")),), now=2e9)
SOUND_EXPOSURE = Exposure((TriedPort("--http-port", 8000),))
SOUND_REPOSITORIES = Repositories((DescribedModel("a", ModelConfig("a"), backend="onnxruntime"),), cores=8)
BUSY = {
    "last_inference": 1,
    "inference_stats": {
        "success": {"count": 1000, "ns": 10**10},
        "fail": {"count": 0, "ns": 0},
        "queue": {"count": 1000, "ns": 10**8},
        "compute_infer": {"count": 1000, "ns": 10**9},
    },
}
SOUND_SERVER = ServerFacts(
    "http://server:8000",
    name="backline",
    version="1",
    own_version="1",
    index=(ModelIndex("a", "1", "READY"),),
    statistics={("a", "1"): BUSY},
    configurations={("a", "1"): {"max_batch_size": 8}},
    skew=0.0,
    certificate_expires=3e9,
    now=2e9,
)
WAITING = BUSY | {"inference_stats": {**BUSY["inference_stats"], "queue": {"count": 1000, "ns": 10**10}}}  # type: ignore[dict-item]
FAILING = BUSY | {"failure_stats": {"queue_full": 500}}
COLD = ModelIndex("b", "1", "ON_DEMAND")
GROUPS: dict[str, tuple[Any, Any]] = {
    "software": (SOFTWARE, SOUND_SOFTWARE),
    "machine": (MACHINE, SOUND_MACHINE),
    "files": (FILES, SOUND_FILES),
    "addresses": (ADDRESSES, SOUND_EXPOSURE),
    "models": (REPOSITORY, SOUND_REPOSITORIES),
    "server": (RUNNING, SOUND_SERVER),
}


def one_model(**changes: Any) -> dict[str, Any]:
    return {"models": (replace(SOUND_REPOSITORIES.models[0], **changes),)}


def port_problem(number: int) -> dict[str, Any]:
    return {"ports": (TriedPort("--http-port", 80, number),)}


FAULTS: list[tuple[str, str, dict[str, Any]]] = [
    ("python", "note", {"python": (3, 99)}),
    ("interpreter-lock", "warning", {"free_threaded": True}),
    ("debug-settings", "warning", {"debugging": ("-X dev",)}),
    ("event-loop", "warning", {"has_uvloop": False}),
    ("protobuf", "warning", {"protobuf": "python"}),
    ("package-versions", "error", {"packages": {"onnxruntime": "1.9.0"}}),
    ("conflicting-packages", "error", {"packages": {"onnxruntime": "1.30", "onnxruntime-gpu": "1.30"}}),
    ("gpu-packages", "warning", {"gpu": True}),
    ("environment-variables", "warning", {"variables": ("BACKLINE_X has no effect; did you mean Y?",)}),
    ("plugins", "error", {"plugin_problems": ("the plug-in 'toy' of toy 1 is old: install another",)}),
    ("cores", "warning", {"quota": 0.5}),
    ("throttling", "warning", {"throttled": 0.2}),
    ("thread-variables", "warning", {"threads": {"OMP_NUM_THREADS": "many"}}),
    ("compute-threads", "warning", {"compute_threads": 0}),
    ("memory", "warning", {"memory_available": 1 << 20}),
    ("memory-limit", "error", {"memory_limit": 1 << 30, "memory_used": 1 << 30}),
    ("open-files", "warning", {"open_files": (1024, 1024)}),
    ("processes", "warning", {"processes": 95, "max_processes": 100}),
    ("shared-memory", "warning", {"shared_memory": 1 << 20, "allow_client_shm": True}),
    ("clock", "error", {"now": 0.0}),
    ("power", "note", {"governors": frozenset({"powersave"})}),
    ("folders", "error", {"folders": (ServerPath("The cache folder", Path("/c"), writable=False),)}),
    ("disk-space", "warning", {"folders": (ServerPath("The cache folder", Path("/c"), free=1),)}),
    ("key-file", "error", {"auth_error": "--auth: 'keys.toml' is not valid"}),
    ("key-file", "warning", {"key_expiries": {"app": 2e9 + 3600}}),
    ("key-file", "warning", {"rule_expiries": {"app": 2e9 + 3600}}),
    ("certificate", "note", {"certificate": Path("/srv/server.crt")}),
    ("environments", "note", {"unused_environments": 3, "unused_bytes": 1 << 32}),
    ("host", "error", port_problem(errno.EADDRNOTAVAIL)),
    ("ports", "error", port_problem(errno.EADDRINUSE)),
    ("privileged-ports", "error", port_problem(errno.EACCES)),
    ("open-server", "warning", {"reachable": ("0.0.0.0",)}),
    ("trusted-code", "note", {"trust_pickle": True}),
    ("empty", "warning", {"models": ()}),
    ("runtimes", "error", one_model(installed=False)),
    ("environment-builder", "error", {**one_model(needs_environment=True), "has_uv": False}),
    ("sizes", "error", {"memory_available": 1, **one_model(size=2)}),
    ("answers", "error", {"problem": "connection refused"}),
    ("answers", "error", {"problem": "this request needs a key", "refused": True}),
    ("server-version", "note", {"version": "0"}),
    ("certificate-of-server", "warning", {"certificate_expires": 2e9 + 3600}),
    ("clocks", "warning", {"skew": -90.0}),
    ("callers-without-key", "warning", {"open_scopes": frozenset({"read", "infer"})}),
    ("readiness", "error", {"ready": False}),
    ("readiness", "note", {"index": (ModelIndex("a", "1", "LOADING", progress=Progress("load", 4.0)),)}),
    ("cold-models", "note", {"index": (COLD,)}),
    ("slow-loads", "warning", {"load_seconds": {("a", "1"): 90.0}}),
    ("unused-models", "note", {"statistics": {("a", "1"): BUSY, ("b", "1"): {}}}),
    ("failures", "warning", {"statistics": {("a", "1"): FAILING}}),
    ("stuck-runs", "error", {"stuck": {("a", "1"): 2.0}}),
    ("batching-in-use", "warning", {"statistics": {("a", "1"): WAITING}}),
    (
        "instance-threads",
        "warning",
        {
            "cores": 4,
            "configurations": {
                ("a", "1"): {
                    "instance_group": [{"count": 4, "kind": "KIND_CPU"}],
                    "parameters": {"intra_op_thread_count": {"string_value": "4"}},
                }
            },
        },
    ),
]


@pytest.mark.parametrize("group", GROUPS)
def test_sound_facts_raise_no_alarm(group: str) -> None:
    checks, sound = GROUPS[group]

    assert {one.finding.severity for one in diagnose(group, checks, sound)} == {Severity.OK}


@pytest.mark.parametrize(
    ("check", "severity", "changes"), FAULTS, ids=[f"{one[0]}-{one[1]}" for one in FAULTS]
)
def test_a_fault_is_found_by_its_check_alone(check: str, severity: str, changes: dict[str, Any]) -> None:
    (group,) = (name for name, (checks, _) in GROUPS.items() if check in checks)
    checks, sound = GROUPS[group]
    facts = replace(sound, **changes)
    if isinstance(facts, ServerFacts):
        checks = checks_of(facts)

    wrong = [one for one in diagnose(group, checks, facts) if one.finding.severity is not Severity.OK]

    assert [(one.check, one.finding.severity.value) for one in wrong] == [(check, severity)]
    assert all(one.finding.why and one.finding.advice for one in wrong)


def test_every_check_has_a_planted_fault() -> None:
    all_checks = {name for checks, _ in GROUPS.values() for name in checks}

    assert not all_checks - {name for name, _ in PLANTED} - {name for name, _, _ in FAULTS}


def test_the_limits_of_a_container_are_read(tmp_path: Path) -> None:
    group = tmp_path / "fs" / "cgroup"
    put(group / "cpu.max", "150000 100000\n")
    put(group / "cpu.stat", "usage_usec 5\nnr_periods 10\nnr_throttled 4\n")
    put(group / "memory.max", "1073741824\n")
    put(group / "memory.current", "73741824\n")
    put(group / "pids.max", "max\n")
    put(tmp_path / "devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")

    machine = read_machine(
        max_connections=1, compute_threads=None, allow_client_shm=False, environment={}, system=tmp_path
    )

    assert (machine.quota, machine.throttled, machine.max_processes) == (1.5, 0.4, None)
    assert machine.memory_available <= machine.memory_limit == 1 << 30  # type: ignore[operator]
    assert machine.governors == {"powersave"}


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("http://host:8000", True),
        ("https://host/", True),
        ("grpc://host:8001", True),
        ("unix:/run/backline.sock", True),
        ("https://proxy/backline", True),
        ("https://host/models.zip", False),
        ("https://host/models.tar.gz#add1", False),
        ("s3://bucket/models", False),
        ("models/", False),
    ],
)
def test_servers_are_told_from_repositories(location: str, expected: bool) -> None:
    assert is_server(location) is expected


def test_a_running_server_is_checked(backline: Run, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    models.add1(repository, "used")
    models.add1(repository, "unused")
    models.add1(repository, "cold")
    put(repository / "cold" / "model.toml", 'load = "on_demand"\n')
    put(repository / "broken" / "1" / "model.onnx", "no model")

    with serve(repository, tmp_path / "log", ready=False) as server:
        server.wait_started()
        backline("infer", "used", "-u", server.url, "-i", "zeros")
        done = backline("doctor", server.url, "--json")
        told = backline("doctor", server.grpc_url)

    assert done.returncode == told.returncode == 1
    assert found(done.stdout) == {("readiness", "error"), ("cold-models", "note"), ("unused-models", "note")}
    assert "broken version 1 is not available" in told.stdout


def test_what_callers_without_a_key_may_do_is_found_out(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    keys = put(tmp_path / "keys.toml", '[anonymous]\nscopes = ["read"]\n')

    with serve(tmp_path / "models", tmp_path / "log", "--auth", str(keys)) as server:
        scopes = open_scopes(Address.parse(server.url), ClientOptions(api_key="not-sent"))

    assert scopes == {"read"}
    facts = replace(SOUND_SERVER, open_scopes=scopes)
    (only,) = RUNNING["callers-without-key"](facts)
    assert only.what == "Callers without a key can use http://server:8000: they may see its models"


def test_a_server_that_does_not_answer_is_an_error(backline: Run) -> None:
    with listening() as port:
        pass

    done = backline("doctor", f"http://127.0.0.1:{port}")

    assert done.returncode == 1
    assert "does not answer: connection refused" in done.stdout
