"""The fork server: a process that imports runtimes and forks itself for each trial of a model file.

A fork takes milliseconds, whereas a new interpreter that imports a runtime takes seconds. The first fork
server forks another for each runtime, so that importing one does not delay trials with another, and a runtime
that crashes when it is imported ends only its own fork server. Fork servers read no model file. They end when
the server closes its end of the control socket, or dies.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import selectors
import signal
import socket
import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import NoReturn

from backline.lifecycle.loading.isolation.messages import Report, TrialJob, decode_job, encode_report
from backline.lifecycle.loading.isolation.trial import run_trial
from backline.system.memory import resident_bytes
from backline.workers.child.worker import end_with_parent

#: The number of descriptors that come with a request: the trial's channel, its job, its output, and a socket
#: for its exit status.
DESCRIPTORS = 4
LONGEST_REQUEST = 4096
#: How much lower the priority of trials is than the server's, so that a file that keeps all cores busy does
#: not delay the responses of other models.
NICENESS = 5


@dataclass(frozen=True, slots=True)
class _Trial:
    pid: int
    ending: socket.socket


@dataclass(frozen=True, slots=True)
class _ForRuntime:
    """A child process that is the fork server for one runtime, and the socket that controls it."""

    pid: int
    control: socket.socket


class _ForkServer:
    """Forks itself for trials with the runtime in `imports`, and passes on requests for others."""

    def __init__(self, control: socket.socket, imports: tuple[str, ...] = ()) -> None:
        self._imports = imports
        self._others: dict[tuple[str, ...], _ForRuntime] = {}
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        #: The running trials by their pidfd.
        self._trials: dict[int, _Trial] = {}

    def serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._control:
                    if not self._take():
                        return
                else:
                    self._reap(key.fd)

    def _take(self) -> bool:
        """Starts the trial that the server asks for. Returns False once the server has closed its end."""
        request, descriptors, _, _ = socket.recv_fds(self._control, LONGEST_REQUEST, DESCRIPTORS)
        if not request:
            return False
        channel, job, output, ending = descriptors
        asked = json.loads(request)
        imports = tuple(asked["imports"])
        if imports != self._imports:
            self._pass_on(imports, request, descriptors)
            return True
        gc.freeze()  # so that collections in trials do not copy pages
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            self._become_trial(parent, channel, job, output, ending, asked["limits"])
        for descriptor in (channel, job, output):
            os.close(descriptor)
        said = socket.socket(fileno=ending)
        pidfd = os.pidfd_open(pid)
        self._trials[pidfd] = _Trial(pid, said)
        self._selector.register(pidfd, selectors.EVENT_READ)
        with suppress(OSError):  # the server no longer waits
            socket.send_fds(said, [b"%d %d" % (pid, resident_bytes())], [pidfd])
        return True

    def _pass_on(self, imports: tuple[str, ...], request: bytes, descriptors: Sequence[int]) -> None:
        for _ in range(2):
            other = self._others.get(imports) or self._start_for(imports)
            try:
                socket.send_fds(other.control, [request], descriptors)
                break
            except OSError:  # the process has died: start another
                del self._others[imports]
                other.control.close()
                os.waitpid(other.pid, 0)
        for descriptor in descriptors:
            os.close(descriptor)

    def _start_for(self, imports: tuple[str, ...]) -> _ForRuntime:
        own, given = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            try:
                self._leave(parent)
                own.close()
                import_runtimes(imports)
                _ForkServer(given, imports).serve()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(70)
        given.close()
        self._others[imports] = _ForRuntime(pid, own)
        return self._others[imports]

    def _leave(self, parent: int) -> None:
        """Makes a fork end when this process ends, and closes what only this process needs."""
        end_with_parent()
        if os.getppid() != parent:  # the parent ended before the line above took effect
            os._exit(1)
        self._selector.close()
        self._control.close()
        for other in self._others.values():
            other.control.close()
        for pidfd, trial in self._trials.items():
            os.close(pidfd)
            trial.ending.close()

    def _reap(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        trial = self._trials.pop(pidfd)
        _, status = os.waitpid(trial.pid, 0)
        with suppress(ProcessLookupError, PermissionError):  # processes that the trial has started
            os.killpg(trial.pid, signal.SIGKILL)
        with suppress(OSError):
            trial.ending.send(b"%d" % os.waitstatus_to_exitcode(status))
        trial.ending.close()
        os.close(pidfd)

    def _become_trial(
        self, parent: int, channel: int, job: int, output: int, ending: int, limits: dict[str, int]
    ) -> NoReturn:
        try:
            self._leave(parent)
            os.setsid()
            os.close(ending)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.close(output)
            _limit(limits)
            with os.fdopen(job, "rb") as file:
                decoded = decode_job(file.read(), TrialJob)
            reports = socket.socket(fileno=channel)

            def report(one: Report) -> None:
                reports.send(encode_report(one))

            run_trial(decoded, report)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(70)


def _limit(limits: dict[str, int]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for which, most in ((resource.RLIMIT_CPU, limits["cpu"]), (resource.RLIMIT_FSIZE, limits["file"])):
        _, hard = resource.getrlimit(which)
        if hard == resource.RLIM_INFINITY or hard > most:
            resource.setrlimit(which, (most, most))
    # If memory runs out, the kernel kills this process before the server.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def import_runtimes(imports: Iterable[str]) -> None:
    """Imports the modules and calls the functions of `BackendEntry.imports`.

    A runtime that is missing or broken is reported by the trial, which imports it again.
    """
    for name in imports:
        with suppress(Exception):
            found = resolve_name(name)
            if callable(found):
                found()


def main(control: int) -> None:
    """Runs the fork server on the descriptor of its control socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    _ForkServer(socket.socket(fileno=control)).serve()
