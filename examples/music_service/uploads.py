"""Clients of the application, which upload recordings to it."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_SECONDS = 60


class UploadError(Exception):
    """Raised when the application does not answer with findings. The message says what it did instead."""


def upload(url: str, recording: Path) -> dict[str, Any]:
    """Returns the application's findings about a recording, by name. Raises UploadError if there are none."""
    boundary = uuid.uuid4().hex
    head = (
        f"--{boundary}\r\n"
        f'Content-Disposition: form-data; name="recording"; filename="{recording.name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    form = b"".join((head.encode(), recording.read_bytes(), f"\r\n--{boundary}--\r\n".encode()))
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    request = urllib.request.Request(f"{url}/analyse", form, kind)
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            findings: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        raise UploadError(
            f"{error.code} {error.reason}: {error.read(500).decode(errors='replace')}"
        ) from None
    except OSError as error:
        raise UploadError(str(error)) from None
    return findings


class Listeners:
    """Several clients that upload a recording repeatedly, until the block ends."""

    def __init__(self, url: str, recording: Path, clients: int) -> None:
        self._url = url
        self._recording = recording
        self._clients = clients
        self._pool = ThreadPoolExecutor(clients, thread_name_prefix="listener")
        self._stopping = threading.Event()
        self._answered = threading.Condition()
        #: The number of answers from each version of each model: (finding, model, version).
        self.answers: Counter[tuple[str, str, str]] = Counter()
        #: The findings of the last answer.
        self.latest: dict[str, Any] = {}
        self.requests = 0
        self.failures: list[str] = []

    def __enter__(self) -> Self:
        for _ in range(self._clients):
            self._pool.submit(self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._pool.shutdown()

    def wait(self, seen: Callable[[Self], bool], seconds: float = _SECONDS) -> None:
        """Waits until `seen` is true after an answer. Raises UploadError if that takes too long."""
        with self._answered:
            if not self._answered.wait_for(lambda: seen(self), seconds):
                raise UploadError(f"not seen within {seconds} s; answers so far: {dict(self.answers)}")

    def versions(self, name: str) -> dict[str, int]:
        """Returns how many answers about `name` came from each model and version, such as {"tempo 1": 20}."""
        return {f"{model} {version}": n for (key, model, version), n in self.answers.items() if key == name}

    def _listen(self) -> None:
        while not self._stopping.is_set():
            try:
                findings = upload(self._url, self._recording)
                failure = "; ".join(
                    f"{name}: {finding['reason']}"
                    for name, finding in findings.items()
                    if finding["value"] is None
                )
            except UploadError as error:
                findings, failure = {}, str(error)
            with self._answered:
                self.requests += 1
                if failure:
                    self.failures.append(failure)
                else:
                    self.latest = findings
                for name, finding in findings.items():
                    self.answers[name, finding["model"], finding.get("version", "")] += 1
                self._answered.notify_all()
            if failure:
                time.sleep(0.05)  # a server that has ended refuses at once, which would fill the list
