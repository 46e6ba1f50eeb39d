"""Polls a blocking socket for a moment before a read sleeps."""

from __future__ import annotations

import select
from socket import socket
from time import perf_counter

from backline.system.busy_poll import has_idle_core
from backline.system.busy_poll_policy import CHECK_INTERVAL, LOST_CORE, WAKE_TIME, BusyPollPolicy


class PolledSocket:
    """Reads from a blocking socket. Before a read sleeps, it polls for as long as its policy says.

    Only one thread may call `recv`.
    """

    def __init__(self, connected: socket) -> None:
        self._socket = connected
        self._policy = BusyPollPolicy(0.0)
        self._next_check = 0.0
        self._look = select.poll()
        self._look.register(connected, select.POLLIN)

    def allow(self, longest: float) -> None:
        """Allows polls of at most `longest` seconds; 0 turns polling off."""
        self._policy = BusyPollPolicy(longest)

    def recv(self, size: int) -> bytes:
        """Waits for bytes, and returns at most `size` of them; an empty result means the end of the
        stream.
        """
        policy = self._policy
        if not policy.longest:
            return self._socket.recv(size)
        began = perf_counter()
        if policy.length and self._poll(began):
            return self._socket.recv(size)
        received = self._socket.recv(size)
        policy.observe(perf_counter() - began - WAKE_TIME)
        return received

    def _poll(self, began: float) -> bool:
        """Polls. Returns True once there is something to read, and False once it should poll no longer."""
        policy, look = self._policy, self._look.poll
        if began > self._next_check:
            self._next_check = began + CHECK_INTERVAL
            if not has_idle_core():
                policy.lose_core()
                return False
        looked = began
        while True:
            ready = look(0)
            now = perf_counter()
            if ready:
                policy.observe(now - began)
                return True
            if now - looked > LOST_CORE:
                policy.lose_core()
                return False
            if now - began > policy.length:
                return False
            looked = now
