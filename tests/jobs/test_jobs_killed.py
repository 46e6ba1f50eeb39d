"""No accepted job is lost, whatever is killed, and each has exactly one result."""

from __future__ import annotations

import json
import random
import threading
import time
from http.client import HTTPException
from pathlib import Path

from jobs.conftest import JobCaller
from support.models import add1
from support.server import serve

JOBS = 400
KILLS = 5
SUBMITTERS = 4


def body(number: int) -> bytes:
    """A request with a number; every tenth is large enough to be kept in a file."""
    data = [float(number)] * 16
    inputs = [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": data}]
    return json.dumps({"inputs": inputs}).encode() + b" " * (70_000 if number % 10 == 0 else 0)


class Submitter(threading.Thread):
    """Submits jobs to whichever server runs, each again until it is accepted."""

    def __init__(self, numbers: range, accepted: dict[int, str], server: list[JobCaller]) -> None:
        super().__init__()
        self._numbers, self._accepted, self._server = numbers, accepted, server

    def run(self) -> None:
        for number in self._numbers:
            while number not in self._accepted:
                try:
                    answer = self._server[0](
                        "POST", "/v2/models/add1/jobs", body(number), idempotency_key=f"job {number}"
                    )
                    if answer.status == 202:
                        self._accepted[number] = answer.json["id"]
                except (OSError, HTTPException, ValueError):
                    time.sleep(0.01)  # the server was killed; the next one starts


def test_no_job_is_lost_and_each_has_one_result_however_often_the_server_is_killed(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    add1(repository)
    accepted: dict[int, str] = {}
    results: dict[int, bytes] = {}
    server: list[JobCaller] = []
    threads = [Submitter(range(one, JOBS, SUBMITTERS), accepted, server) for one in range(SUBMITTERS)]
    options = ("--state-dir", str(tmp_path / "state"))

    def look() -> None:
        """Compares the results that are visible with those seen before."""
        for number, id in list(accepted.items()):
            answer = server[0]("GET", f"/v2/jobs/{id}/result")
            assert answer.status in (200, 409), (number, answer)
            if answer.status == 200:
                assert results.setdefault(number, answer.body) == answer.body
            else:
                assert number not in results, "a result has disappeared"

    for kill in range(KILLS):
        with serve(repository, tmp_path / f"log{kill}", *options) as running:
            server[:] = [JobCaller(running)]
            for thread in threads:
                if kill == 0:
                    thread.start()
            target = min(JOBS, len(accepted) + JOBS // (KILLS + 1))
            while len(accepted) < target:
                time.sleep(0.005)
            time.sleep(random.random() / 20)
            running.process.kill()
            running.process.wait()
        assert "Traceback" not in running.output, running.output
    with serve(repository, tmp_path / "log", *options) as running:
        server[:] = [JobCaller(running)]
        for thread in threads:
            thread.join()
        assert len(accepted) == len(set(accepted.values())) == JOBS
        for id in accepted.values():
            assert server[0].wait(id)["state"] == "done"
        look()
        assert len(results) == JOBS
        for number, result in results.items():
            assert json.loads(result)["outputs"][0]["data"][0] == number + 1
        listed, cursor = 0, ""
        while cursor is not None:
            page = server[0]("GET", f"/v2/jobs?limit=1000&cursor={cursor}").json
            listed, cursor = listed + len(page["jobs"]), page.get("cursor")
        assert listed == JOBS
    files = tmp_path / "state" / "resumed" / "jobs" / "files"
    assert list(files.iterdir()) == []  # the inputs of jobs that are done
