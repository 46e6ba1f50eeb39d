"""Polls a blocking socket briefly before a read sleeps."""

from __future__ import annotations

import select
from socket import socket
from time import perf_counter

from backline_client.system.busy_poll import give_way, has_idle_core
from backline_client.system.busy_poll_policy import BusyPollPolicy


class PolledSocket:
    """A blocking socket. Before a read sleeps, the socket is polled for as long as the policy says.

    Only one thread may call `recv_into`.
    """

    def __init__(self, connected: socket) -> None:
        self._socket = connected
        self._policy = BusyPollPolicy(0.0)
        self._look = select.poll()
        self._look.register(connected, select.POLLIN)

    def allow(self, longest: float) -> None:
        """Allows polls of at most `longest` seconds; 0 turns polling off."""
        self._policy = BusyPollPolicy(longest)

    def recv_into(self, buffer: bytearray) -> int:
        """Waits for bytes, and writes them to the start of `buffer`. Returns their number; 0 means the end of
        the stream.
        """
        policy = self._policy
        if not policy.longest:
            return self._socket.recv_into(buffer)
        began = perf_counter()
        if policy.begins(began, has_idle_core) and self._poll(began):
            return self._socket.recv_into(buffer)
        received = self._socket.recv_into(buffer)
        policy.slept(perf_counter() - began)
        return received

    def _poll(self, began: float) -> bool:
        """Polls the socket. Returns True once there is something to read, False once polling should end."""
        policy, look = self._policy, self._look.poll
        checked = perf_counter()  # later than `began` if the policy has checked for an idle core
        while True:
            ready = look(0)
            now = perf_counter()
            if ready:
                policy.observe(now - began)
                return True
            if not policy.continues(began, checked, now):
                return False
            give_way()
            checked = now
