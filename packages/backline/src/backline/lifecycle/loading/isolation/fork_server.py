"""The fork server: a process that imports runtimes and forks itself for each trial of a model file.

A fork takes milliseconds, whereas a new interpreter that imports a runtime takes seconds. The first fork
server forks another for each runtime, so that the import of one runtime does not delay trials with another
runtime, and a runtime that crashes during its import ends only its own fork server. Fork servers read no
model file. They end when the server closes its end of the control socket, or when the server dies.
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
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import NoReturn

from msgspec.structs import replace

from backline.lifecycle.loading.isolation.messages import (
    LONGEST_TEXT,
    Began,
    Passed,
    Report,
    TrialJob,
    TrialRefused,
    decode_job,
    encode_report,
)
from backline.lifecycle.loading.loader import LoadHost, load
from backline.lifecycle.loading.measurement_file import device_names
from backline.lifecycle.loading.version_load import warm_up_version
from backline.lifecycle.loading.warm_up import warm_up_items
from backline.system.cores import pinned
from backline.system.memory import fill_blocks, resident_bytes
from backline.workers.child.worker import end_with_parent
from backline_client.values.errors import BacklineError

#: The byte that fills new and freed memory. A damaged file that makes a runtime read such memory should crash
#: the trial; with the zeros of a new process, the file might pass the trial and crash the server later.
_FILLING = 0x5A


class _TrialHost(LoadHost):
    """Reports the phases of a trial."""

    def __init__(self, report: Callable[[Report], None]) -> None:
        self._report = report

    def on_phase(self, phase: str) -> None:
        # Memory is not filled during the trial runs, because they are timed.
        fill_blocks(0 if phase == "probe" else _FILLING)
        if phase in ("load", "probe", "warm-up"):
            self._report(Began(phase))  # type: ignore[arg-type]


def run_trial(job: TrialJob, report: Callable[[Report], None]) -> None:
    """Loads, tests, measures and warms up a file as the server would, and reports each phase.

    The last report is a Passed or TrialRefused. Each warm-up sample runs once, whatever its `count`.
    """
    config = replace(job.config, warm_up=tuple(replace(sample, count=1) for sample in job.config.warm_up))

    host = _TrialHost(report)
    try:
        with pinned(config.cpus):
            samples = warm_up_items(config, job.model_folder)
            loaded = load(job.path, config, None, host, job.options, samples)
            host.on_phase("warm-up")
            warm_up_version(config, loaded, job.path, job.model_folder, job.recorded)
            report(Passed(loaded.measured, device_names(loaded.placed)))
    except BacklineError as error:
        report(TrialRefused(type(error).__name__, error.message[:LONGEST_TEXT]))
    except MemoryError:
        report(TrialRefused("", "there is not enough memory to load it"))
    except Exception as error:
        traceback.print_exc()
        report(TrialRefused("", f"{type(error).__name__}: {error}"[:LONGEST_TEXT]))


#: The number of descriptors that the server sends with a request: the trial's channel, its job, its output,
#: and the socket on which the fork server reports the trial's exit status.
DESCRIPTORS = 4
LONGEST_REQUEST = 4096
#: The amount by which the niceness of trials exceeds the server's, so that a file that keeps all cores busy
#: does not delay the responses of other models.
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
    """The process that forks itself for trials with the runtime in `imports`, and passes on requests for
    other runtimes.
    """

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
        """Starts the trial that the server asks for. Returns False once the server has closed its end of the
        control socket.
        """
        request, descriptors, _, _ = socket.recv_fds(self._control, LONGEST_REQUEST, DESCRIPTORS)
        if not request:
            return False
        channel, job, output, ending = descriptors
        asked = json.loads(request)
        imports = tuple(asked["imports"])
        if imports != self._imports:
            self._pass_on(imports, request, descriptors)
            return True
        gc.freeze()  # so that garbage collection in a trial does not copy shared pages
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            self._become_trial(parent, channel, job, output, ending, asked["limits"])
        for descriptor in (channel, job, output):
            os.close(descriptor)
        said = socket.socket(fileno=ending)
        # The pid cannot have been reused yet, because only `_reap` waits for the trial.
        pidfd = os.pidfd_open(pid)
        self._trials[pidfd] = _Trial(pid, said)
        self._selector.register(pidfd, selectors.EVENT_READ)
        with suppress(OSError):  # the server may have closed the socket
            socket.send_fds(said, [b"%d %d" % (pid, resident_bytes())], [pidfd])
        return True

    def _pass_on(self, imports: tuple[str, ...], request: bytes, descriptors: Sequence[int]) -> None:
        for _ in range(2):
            other = self._others.get(imports) or self._start_for(imports)
            try:
                socket.send_fds(other.control, [request], descriptors)
                break
            except OSError:  # the process has died: start a new one
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
        """Makes a fork end when its parent ends, and closes the descriptors that only the parent needs.
        Called in the fork.
        """
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
        # Also kills processes that the trial has started. The trial has ended but has not been reaped, so no
        # other process can have its id yet.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(trial.pid, signal.SIGKILL)
        _, status = os.waitpid(trial.pid, 0)
        with suppress(OSError):
            trial.ending.send(b"%d" % os.waitstatus_to_exitcode(status))
        trial.ending.close()
        os.close(pidfd)

    def _become_trial(
        self, parent: int, channel: int, job: int, output: int, ending: int, limits: dict[str, int]
    ) -> NoReturn:
        try:
            self._leave(parent)
            # The trial leads a process group, so `_reap` can also kill processes that the trial starts.
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
    """Imports the modules, and calls the functions, that `BackendPlugin.imports` names.

    Errors are ignored: each trial imports the runtime again, and reports a missing or broken one.
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
