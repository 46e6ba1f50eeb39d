"""Jobs over HTTP: submit, wait, results, cancellation, retries, lists, isolation, a full disk, restarts."""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest

from backline.access.keys import hash_key
from backline.plugins.dialects.jobs import PLUGINS
from backline.testing.dialects import DialectConformance, Sample
from jobs.conftest import BODY, JobCaller, add_slow, slow_body
from support.models import add1, ident
from support.server import serve

KEYS = {"ada": "bk_ada", "bob": "bk_bob", "narrow": "bk_narrow"}
AUTH = "".join(
    f'[[keys]]\nname = "{name}"\nsha256 = "{hash_key(key)}"\nscopes = ["infer"]\n'
    + ('models = ["slow"]\n' if name == "narrow" else "")
    for name, key in KEYS.items()
)


class TestConformance(DialectConformance):
    (plugin,) = PLUGINS
    requests = (Sample("POST", "/v2/models/add1/jobs", BODY),)

    @classmethod
    def add_models(cls, repository: Path) -> None:
        add1(repository)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs") / "repository"
    add1(folder)
    ident(folder, dims=("M",))
    add_slow(folder)
    return folder


@pytest.fixture(scope="module")
def ada(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobCaller]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "auth.toml").write_text(AUTH)
    options = ("--state-dir", str(folder / "state"), "--auth", str(folder / "auth.toml"))
    with serve(repository, folder / "log", *options) as server:
        yield JobCaller(server, {"authorization": "Bearer bk_ada"})


def as_caller(ada: JobCaller, name: str) -> JobCaller:
    return JobCaller(ada.server, {"authorization": f"Bearer {KEYS[name]}"})


def test_the_result_is_the_response_to_the_same_request(ada: JobCaller) -> None:
    id = ada.submit(content_type="application/json")
    document = ada.wait(id)
    assert (document["state"], document["attempts"], document["version"]) == ("done", 1, "1")
    result, direct = ada("GET", f"/v2/jobs/{id}/result"), ada("POST", "/v2/models/add1/infer", BODY)
    assert (result.status, result.body) == (200, direct.body)
    assert result.headers["content-type"] == direct.headers["content-type"]


@pytest.mark.parametrize("size", [100, 100_000])
def test_binary_inputs_and_results_of_any_size(ada: JobCaller, size: int) -> None:
    data = np.arange(size, dtype=np.float32)
    header = {
        "inputs": [
            {
                "name": "INPUT0",
                "datatype": "FP32",
                "shape": [1, size],
                "parameters": {"binary_data_size": data.nbytes},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(header).encode()
    length = {"inference_header_content_length": str(len(text))}
    id = ada.submit("/v2/models/ident/versions/1/jobs", text + data.tobytes(), **length)
    assert ada.wait(id)["state"] == "done"

    result = ada("GET", f"/v2/jobs/{id}/result")
    assert np.array_equal(np.frombuffer(result.body[-data.nbytes :], np.float32), data)
    assert 0 < int(result.headers["inference-header-content-length"]) < len(result.body)

    part = ada("GET", f"/v2/jobs/{id}/result", range=f"bytes={len(result.body) - 40}-")
    assert (part.status, part.body) == (206, result.body[-40:])
    assert part.headers["content-range"].endswith(f"/{len(result.body)}")
    assert ada("GET", f"/v2/jobs/{id}/result", range="bytes=-8").body == result.body[-8:]
    assert ada("GET", f"/v2/jobs/{id}/result", range="bytes=0-9").body == result.body[:10]
    assert ada("GET", f"/v2/jobs/{id}/result", range="bytes=999999999-").status == 416
    assert ada("GET", f"/v2/jobs/{id}/result", range="lines=1-2").status == 200


def test_a_request_that_does_not_fit_is_refused_as_it_would_be_without_a_job(ada: JobCaller) -> None:
    refused = ada("POST", "/v2/models/add1/jobs", b'{"inputs": []}')
    direct = ada("POST", "/v2/models/add1/infer", b'{"inputs": []}')
    assert (refused.status, refused.body) == (direct.status, direct.body)


def test_a_large_request_that_does_not_fit_fails_once_with_the_error_as_its_result(ada: JobCaller) -> None:
    large = b'{"inputs": []}' + b" " * 70_000
    id = ada.submit(body=large)
    document = ada.wait(id)
    direct = ada("POST", "/v2/models/add1/infer", large)
    assert (document["state"], document["attempts"], document["error"]) == ("failed", 1, direct.json["error"])
    result = ada("GET", f"/v2/jobs/{id}/result")
    assert (result.status, result.body) == (direct.status, direct.body)


def test_a_job_that_fails_is_tried_again(ada: JobCaller, repository: Path) -> None:
    (repository.parent / "runs").unlink(missing_ok=True)
    id = ada.submit("/v2/models/slow/jobs", slow_body(-1, 0))
    document = ada.wait(id)
    assert (document["state"], document["attempts"]) == ("done", 2)


def test_the_last_attempt_leaves_its_reason_and_the_caller_may_retry(
    ada: JobCaller, repository: Path
) -> None:
    (repository.parent / "runs").unlink(missing_ok=True)
    id = ada.submit("/v2/models/slow/jobs?attempts=1", slow_body(-1, 0))
    document = ada.wait(id)
    assert document["state"] == "failed"
    assert "not yet" in document["error"]
    assert ada("GET", f"/v2/jobs/{id}/result").status == 500
    assert ada("POST", f"/v2/jobs/{id}/retry").status == 202
    assert ada.wait(id)["state"] == "done"
    refused = ada("POST", f"/v2/jobs/{id}/retry")
    assert (refused.status, "is done" in refused.json["error"]) == (400, True)


def test_an_attempt_that_takes_too_long_ends(ada: JobCaller) -> None:
    id = ada.submit("/v2/models/slow/jobs?attempts=1&attempt_limit=0.2", slow_body(1, 5))
    document = ada.wait(id)
    assert (document["state"], "attempt_limit" in document["error"]) == ("failed", True)


def test_a_queued_or_running_job_can_be_cancelled_and_an_ended_one_removed(ada: JobCaller) -> None:
    running = ada.submit("/v2/models/slow/jobs", slow_body(1, 2))
    behind = ada.submit("/v2/models/slow/jobs?priority=9", slow_body(1, 0))
    early = ada("GET", f"/v2/jobs/{behind}/result")
    assert (early.status, early.headers["retry-after"]) == (409, "1")
    for id in (behind, running):
        cancelled = ada("DELETE", f"/v2/jobs/{id}")
        assert (cancelled.status, cancelled.json["state"]) == (200, "cancelled")
        assert ada("GET", f"/v2/jobs/{id}/result").status == 410
        assert ada("DELETE", f"/v2/jobs/{id}").status == 204
        assert ada("GET", f"/v2/jobs/{id}").status == 404


def test_a_job_that_waits_too_long_expires(ada: JobCaller) -> None:
    first = ada.submit("/v2/models/slow/jobs?priority=1", slow_body(1, 3))
    while ada("GET", f"/v2/jobs/{first}").json["state"] == "queued":
        time.sleep(0.01)
    late = [ada.submit("/v2/models/slow/jobs?expires=0.5", slow_body(1, 3)) for _ in range(3)]
    assert [ada.wait(id)["state"] for id in late][-1] == "expired"
    for id in late:
        ada("DELETE", f"/v2/jobs/{id}")


def test_an_idempotency_key_stands_for_one_job(ada: JobCaller) -> None:
    id = ada.submit(idempotency_key="once")
    assert ada.submit(idempotency_key="once") == id
    assert as_caller(ada, "bob").submit(idempotency_key="once") != id
    other = ada("POST", "/v2/models/add1/jobs", BODY + b" ", idempotency_key="once")
    assert (other.status, id in other.json["error"]) == (422, True)
    assert ada("POST", "/v2/models/add1/jobs", BODY, idempotency_key="k" * 256).status == 400


def test_lists_are_paged_and_filtered(ada: JobCaller) -> None:
    bob = as_caller(ada, "bob")
    ids = [bob.submit() for _ in range(5)]
    for id in ids:
        bob.wait(id)
    ids.append(bob.submit(body=b"{" + b" " * 70_000))
    bob.wait(ids[-1])
    found, cursor = [], ""
    while cursor is not None:
        page = bob("GET", f"/v2/jobs?model=add1&limit=2&cursor={cursor}").json
        found += [job["id"] for job in page["jobs"]]
        cursor = page.get("cursor")
    assert found[:6] == ids[::-1]
    assert [job["id"] for job in bob("GET", "/v2/jobs?state=failed").json["jobs"]] == ids[-1:]
    assert len(bob("GET", "/v2/jobs?state=failed,done&limit=3").json["jobs"]) == 3
    assert bob("GET", "/v2/jobs?model=none").json == {"jobs": []}
    assert "expected queued" in bob("GET", "/v2/jobs?state=lost").json["error"]


@pytest.mark.parametrize("name", ["bob", "narrow"])
def test_nobody_sees_or_touches_the_jobs_of_others(ada: JobCaller, name: str) -> None:
    id = ada.submit()
    other = as_caller(ada, name)
    asked = [("GET", ""), ("GET", "/result"), ("DELETE", ""), ("POST", "/retry")]
    answers = [other(method, f"/v2/jobs/{id}{end}") for method, end in asked]
    unknown = other("GET", f"/v2/jobs/{id[:-32]}{'0' * 32}")
    assert {answer.status for answer in (*answers, unknown)} == {404}
    assert id not in other("GET", "/v2/jobs").body.decode()
    assert ada.wait(id)["state"] == "done"


def test_a_job_needs_the_scope_for_its_model(ada: JobCaller) -> None:
    assert as_caller(ada, "narrow")("POST", "/v2/models/add1/jobs", BODY).status == 403
    assert JobCaller(ada.server)("POST", "/v2/models/add1/jobs", BODY).status == 401


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/none/jobs", 404),
        ("/v2/models/add1/versions/9/jobs", 404),
        ("/v2/models/add1/jobs?priority=0", 400),
        ("/v2/models/add1/jobs?prioriti=1", 400),
        ("/v2/models/add1/jobs?expires=never", 400),
    ],
)
def test_what_cannot_become_a_job_is_refused_at_once(ada: JobCaller, path: str, status: int) -> None:
    assert ada("POST", path, BODY).status == status


@pytest.mark.parametrize("id", ["", "x", "1-", "1-" + "g" * 32, "f" * 16 + "-" + "0" * 32, "-1-" + "0" * 32])
def test_what_is_no_id_is_not_found(ada: JobCaller, id: str) -> None:
    assert ada("GET", f"/v2/jobs/{id}/result").status == 404


def test_a_wait_ends_with_the_client_and_has_a_limit(ada: JobCaller) -> None:
    id = ada.submit("/v2/models/slow/jobs", slow_body(1, 1))
    gone = HTTPConnection("127.0.0.1", ada.server.http_port)
    gone.request("GET", f"/v2/jobs/{id}?wait=60", headers=ada.headers)
    gone.close()
    assert ada("GET", f"/v2/jobs/{id}?wait=61").status == 400
    assert ada.wait(id)["state"] == "done"


def test_a_full_disk_refuses_jobs_and_loses_none(repository: Path, tmp_path: Path) -> None:
    """The limit on the size of files stands for the full disk: writes fail in the same places."""
    with serve(repository, tmp_path / "log", "--state-dir", str(tmp_path / "state")) as server:
        caller = JobCaller(server)
        caller.wait(caller.submit())
        running = caller.submit("/v2/models/slow/jobs", slow_body(1, 1))
        while caller("GET", f"/v2/jobs/{running}").json["state"] == "queued":
            time.sleep(0.01)
        _, most = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1, -1))
        refused = [caller("POST", "/v2/models/add1/jobs", body) for body in (BODY, BODY + b" " * 70_000)]
        assert [answer.status for answer in refused] == [507, 507], refused
        assert "disk" in refused[0].json["error"]
        assert caller("POST", "/v2/models/add1/infer", BODY).status == 200
        assert caller("GET", f"/v2/jobs/{running}?wait=2").json["state"] == "running"
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (most, most))
        assert caller.wait(running)["state"] == "done"
        assert caller.wait(caller.submit())["state"] == "done"
        assert len(caller("GET", "/v2/jobs").json["jobs"]) == 3


def test_a_stop_hands_jobs_back_and_the_next_server_runs_them(repository: Path, tmp_path: Path) -> None:
    options = ("--state-dir", str(tmp_path / "state"))
    with serve(repository, tmp_path / "log", *options) as server:
        caller = JobCaller(server)
        ids = [caller.submit("/v2/models/slow/jobs", slow_body(1, 0.3)) for _ in range(6)]
        assert server.stop() == 0
    assert "rror" not in server.output
    with serve(repository, tmp_path / "log2", *options) as server:
        caller = JobCaller(server)
        documents = [caller.wait(id) for id in ids]
        assert {document["state"] for document in documents} == {"done"}
        assert {document["attempts"] for document in documents} == {1}


def test_a_job_runs_on_the_version_that_accepted_it(tmp_path: Path) -> None:
    models, options = tmp_path / "models", ("--state-dir", str(tmp_path / "state"))
    add_slow(models)
    with serve(models, tmp_path / "log", *options) as server:
        caller = JobCaller(server)
        ids = [caller.submit("/v2/models/slow/jobs", slow_body(1, 0.5)) for _ in range(4)]
    shutil.copytree(models / "slow" / "1", models / "slow" / "2")
    with serve(models, tmp_path / "log2", *options) as server:  # serves the newest version only
        caller = JobCaller(server)
        assert caller.wait(caller.submit("/v2/models/slow/jobs", slow_body(1, 0)))["version"] == "2"
        assert caller("GET", f"/v2/jobs/{ids[-1]}").json["state"] == "queued"
    (models / "slow" / "model.toml").write_text('versions = ["1", "2"]\n')
    with serve(models, tmp_path / "log3", *options) as server:
        caller = JobCaller(server)
        for id in ids:
            assert caller.wait(id)["version"] == "1"
            assert caller("GET", f"/v2/jobs/{id}/result").json["model_version"] == "1"


def test_a_model_that_is_not_served_takes_no_jobs(repository: Path, tmp_path: Path) -> None:
    control = ("--model-control-mode", "explicit", "--state-dir", str(tmp_path / "state"))
    with serve(repository, tmp_path / "log", *control) as server:
        caller = JobCaller(server)
        direct, refused = (caller("POST", f"/v2/models/add1/{end}", BODY) for end in ("infer", "jobs"))
        assert (refused.status, refused.body) == (direct.status, direct.body)
