"""How the fork server ends trials."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess

import psutil
import pytest

from backline.lifecycle.loading.isolation.fork_server import _ForkServer, _Trial


def test_a_trial_is_not_reaped_before_its_group_is_signalled(monkeypatch: pytest.MonkeyPatch) -> None:
    unreaped: list[bool] = []
    monkeypatch.setattr(os, "killpg", lambda pid, number: unreaped.append(psutil.pid_exists(pid)))
    control, given = socket.socketpair()
    ending, said = socket.socketpair()
    server = _ForkServer(given)
    with subprocess.Popen(["false"], start_new_session=True) as trial:
        pidfd = os.pidfd_open(trial.pid)
        server._trials[pidfd] = _Trial(trial.pid, said)
        server._selector.register(pidfd, selectors.EVENT_READ)
        assert server._selector.select(20)
        server._reap(pidfd)

    assert unreaped == [True]
    assert ending.recv(32) == b"1"
    for end in (control, given, ending):
        end.close()
