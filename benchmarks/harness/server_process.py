"""Starts, pauses, samples and stops a measured server, which is a group of processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from harness.environment import CannotRun
from harness.folders import BENCH


def free_ports(count: int) -> list[int]:
    """Returns `count` TCP ports that are currently free."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def answers_200(url: str, timeout: float = 2.0, context: ssl.SSLContext | None = None) -> bool:
    """Returns whether a GET of `url` returns 200. An https URL needs a `context`."""
    try:
        with urllib.request.urlopen(url, timeout=timeout, context=context) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError, ValueError):
        return False


def make_certificate(certificate: Path, private: Path) -> None:
    """Creates a certificate for 127.0.0.1, and its key, with openssl."""
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    files = ("-keyout", str(private), "-out", str(certificate))
    subprocess.run(
        ["openssl", *made.split(), "-addext", "subjectAltName=IP:127.0.0.1", *files],
        check=True,
        capture_output=True,
    )


def accepts(port: int) -> bool:
    """Returns whether the port accepts connections."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _environment(changes: dict[str, str]) -> dict[str, str]:
    """Returns the environment variables of a server. They allow it to store compiled modules, so that it does
    not compile them at every start.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, **changes}


def _cpu_seconds(process: psutil.Process) -> float:
    """Returns the processor time of a process: exactly on Linux, elsewhere in steps of 10 ms."""
    try:
        # The id of a process's clock, as clock_getcpuclockid(3) computes it.
        return time.clock_gettime((~process.pid << 3) | 2)
    except OSError:
        times = process.cpu_times()
        return times.user + times.system


class ServerProcess:
    """The process group of a server.

    Servers are suspended (SIGSTOP) between their turns, because some poll their queues while idle and would
    take CPU time from the server being measured.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        *,
        environment: dict[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self.command = command
        self.log = BENCH / "logs" / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(environment or {}),
                cwd=folder,
                start_new_session=True,
            )

    def wait_until(self, ready: object, seconds: float = 60) -> None:
        """Waits until `ready()` is true.

        Raises CannotRun with the last line of the log if the process exits or is not ready after `seconds`.
        """
        deadline = time.monotonic() + seconds
        while not ready():  # type: ignore[operator]
            if self.process.poll() is not None:
                raise CannotRun(
                    f"{self.name} exited with status {self.process.returncode} during startup:"
                    f" {self.last_words()} (log: {self.log})"
                )
            if time.monotonic() > deadline:
                self.end()
                raise CannotRun(
                    f"{self.name} was not ready within {seconds:.0f} s: {self.last_words()} (log: {self.log})"
                )
            time.sleep(0.05)

    def last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:200] if lines else "no output"

    def alive(self) -> bool:
        return self.process.poll() is None

    def pause(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGCONT)

    def tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_seconds(self) -> float:
        """Returns the group's processor time so far, user and system."""
        total = 0.0
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                total += _cpu_seconds(process)
        return total

    def resident_bytes(self) -> int:
        """Returns the resident memory of the group. Shared pages count once per process."""
        total = 0
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def end(self, seconds: float = 10) -> None:
        """Stops the group with SIGTERM, and with SIGKILL after `seconds`."""
        group = self.process.pid
        self.resume()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
