"""Runs an attack while an honest client calls the server and a thread samples the server's process."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from time import monotonic, sleep

import psutil

from attacks import honest
from attacks.attacker import Attacker, Spoils
from attacks.target import Target
from attacks.weapons import Weapon

MIB = 1 << 20
#: Seconds of honest calls before and after the attack.
QUIET = 1.0
#: The allowed memory growth in MiB, and how much of it may remain.
MEMORY = 64
IDLE_WITHIN = 1.0
#: The share of a core below which a server counts as idle, because the honest client keeps calling it.
IDLE_SHARE = 0.25

_context = multiprocessing.get_context("spawn")


@dataclass
class Watch:
    """The memory in MiB and the CPU time in seconds that a process used while it was watched."""

    before: float = 0.0
    peak: float = 0.0
    after: float = 0.0
    cpu: float = 0.0
    #: Seconds from the end of the attack until the server was idle, or None if it was not idle in time.
    idle_after: float | None = None
    alive: bool = True

    @property
    def growth(self) -> float:
        return self.peak - self.before


@dataclass
class Result:
    name: str
    duration: float
    during: honest.Log
    errors: list[honest.Call]
    spoils: Spoils
    watch: Watch
    weapon: Weapon
    valid_p99: float = 0.0
    #: The memory growth in MiB under valid load with bodies of the same size, if the attack is compared with
    #: that.
    valid_growth: float = 0.0
    misses: list[str] = field(default_factory=list)

    def judge(self, slack: float) -> None:
        """Records the missed limits. `slack` is how many milliseconds p99 may exceed the p99 under valid
        load.
        """
        if not self.watch.alive:
            self.misses.append("the server died")
        if self.errors:
            self.misses.append(
                f"{len(self.errors)} honest errors,"
                f" the first: {self.errors[0].protocol} {self.errors[0].error}"
            )
        p99 = self.during.quantile(0.99)
        if p99 > self.valid_p99 + slack:
            self.misses.append(f"p99 {p99:.0f} ms, {self.valid_p99:.0f} ms under valid load")
        if self.watch.growth > self.valid_growth + MEMORY:
            valid = f", {self.valid_growth:.0f} MB under valid load" if self.weapon.compared else ""
            self.misses.append(f"memory grew by {self.watch.growth:.0f} MB{valid}")
        left = self.watch.after - self.watch.before
        if left > MEMORY:
            self.misses.append(f"{left:.0f} MB were not released")
        if self.watch.idle_after is None:
            self.misses.append(f"not idle within {IDLE_WITHIN:.0f} s")


class Sampler:
    """A thread that samples the memory of a process."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self.watch = Watch()
        self._thread = threading.Thread(target=self._run)

    def _memory(self) -> float:
        return self._process.memory_info().rss / MIB

    def cpu(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    def start(self) -> None:
        self.watch.before = self.watch.peak = self._memory()
        self.watch.cpu = -self.cpu()
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            try:
                self.watch.peak = max(self.watch.peak, self._memory())
            except psutil.Error:
                self.watch.alive = False
                return

    def settle(self) -> None:
        """Waits after the attack until the server is idle."""
        try:
            self.watch.cpu += self.cpu()
            began = monotonic()
            while monotonic() - began < IDLE_WITHIN:
                used, at = self.cpu(), monotonic()
                sleep(0.1)
                if (self.cpu() - used) / (monotonic() - at) < IDLE_SHARE:
                    self.watch.idle_after = max(0.0, at - began)
                    break
        except psutil.Error:
            self.watch.alive = False

    def stop(self) -> Watch:
        self._stop.set()
        self._thread.join()
        try:
            self.watch.after = self._memory()
            self.watch.alive = (
                self.watch.alive
                and self._process.is_running()
                and self._process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            self.watch.alive = False
        return self.watch


@contextmanager
def honest_client(target: Target, *, image: bool = False) -> Iterator[Connection]:
    """Runs an honest client in another process during the block. `collect` returns its calls."""
    try:
        process, ours = in_process(honest.run, target, image)
    except EOFError:
        raise RuntimeError(
            f"an honest client got no answer for {honest.PATIENCE:.0f} s before the attack"
        ) from None
    try:
        yield ours
    finally:
        ours.close()
        process.join(5)
        if process.is_alive():
            process.kill()


def collect(control: Connection) -> honest.Log:
    control.send("stop")
    return honest.Log(control.recv())


def _attack(target: Target, weapon: Weapon, duration: float, control: Connection) -> None:
    attacker = Attacker(target, weapon)
    control.send("loaded")
    control.recv()
    control.send(attacker.run(duration))


def in_process(function: Callable[..., None], *arguments: object) -> tuple[BaseProcess, Connection]:
    """Runs a function in another process, with a pipe as an additional last argument.

    Returns once the function has reported on the pipe that it is ready.
    """
    ours, theirs = _context.Pipe()
    process = _context.Process(target=function, args=(*arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    ours.recv()
    return process, ours


def fight(target: Target, name: str, weapon: Weapon, duration: float) -> Result:
    process, attacker = in_process(_attack, target, weapon, duration)
    sampler = Sampler(target.pid)
    with honest_client(target, image=weapon.image) as client:
        sleep(QUIET / 2)
        sampler.start()
        begin = monotonic()
        attacker.send("go")
        try:
            spoils: Spoils = attacker.recv()
        except EOFError:
            raise RuntimeError(f"the attacker of {name!r} failed") from None
        end = monotonic()
        sampler.settle()
        sleep(QUIET)
        log = collect(client)
    watch = sampler.stop()
    process.join(5)
    return Result(name, end - begin, log.between(begin, end), log.errors, spoils, watch, weapon)
