"""The trainers of a round: one, or a leader and a standby, started again when they end as a supervisor would do it."""

import json
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from daemon.errors import ExitCode
from fault.nursery import Brake, Death, Nursery

# What a supervisor starts again after: Redis or Kafka was away or has lost something, or another trainer took over.
STARTED_AGAIN: Final = (ExitCode.LOST_GROUND, ExitCode.UNAVAILABLE, ExitCode.FENCED)
RECOVERY_S: Final = 90.0

_POLL_S: Final = 0.01
_TELLING: Final = {"standby.waiting", "lease.acquired", "trainer.ready", "partition.assigned", "redis.lost_commits"}
_LEADING: Final = {"trainer.ready", "partition.assigned"}


class FaultError(AssertionError):
    """Something did not go as it must."""


@dataclass
class Life:
    """One process, from its start to its end.

    Attributes:
        pid: of the process.
        log: its standard error.
        fatal: the point at which it kills itself.
        doomed: whether it was killed, so that its end needs no explanation.
        events: event -> how often it was logged.
        newest: the newest event that tells what it is doing, see `_TELLING`, and when that was.
    """

    nursery: Nursery
    pid: int
    log: Path
    fatal: Death | None = None
    doomed: bool = False
    events: dict[str, int] = field(default_factory=dict)
    newest: tuple[str, str] = ("", "")
    _read: int = 0
    _half: bytes = b""

    @property
    def code(self) -> int | None:
        """How it ended; None while it runs."""
        return self.nursery.exit_code(self.pid)

    def said(self, event: str) -> int:
        """How often it has logged this event."""
        self._look()
        return self.events.get(event, 0)

    def send(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.code is None:
            os.kill(self.pid, number)

    def last_words(self) -> str:
        """What it said of its end."""
        return next((line for line in reversed(self.log.read_text(errors="replace").splitlines()) if line), "")

    def tail(self) -> str:
        """The end of its log without the lines of batches."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if '"batch.' not in line][-12:])

    def _look(self) -> None:
        with self.log.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        self._read += len(data)
        *lines, self._half = (self._half + data).split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                told = json.loads(line)
                event = told["event"]
                self.events[event] = self.events.get(event, 0) + 1
                if event in _TELLING:
                    self.newest = told["timestamp"], event

    @property
    def doing(self) -> tuple[str, str]:
        """The newest of the telling events: when, and which."""
        self._look()
        return self.newest


class Trainers:
    """The processes on one bank.

    Args:
        nursery: where they come from.
        arguments: of each.
        directory: for logs.
        brake: holds their steps.
        pair: whether there is always a standby.

    Attributes:
        restarts: exit code -> how often one was started again because of it.
        last_words: what each of those said at its end.
        deadly: where those that are started next kill themselves.
    """

    def __init__(self, nursery: Nursery, arguments: list[str], directory: Path, brake: Brake, *, pair: bool) -> None:
        self._nursery = nursery
        self._arguments = arguments
        self._directory = directory
        self.brake = brake
        self.wanted = 2 if pair else 1
        self.lives: list[Life] = []
        self.restarts: dict[str, int] = {}
        self.last_words: list[str] = []
        self.deadly: deque[Death] = deque()
        self._started = 0

    def start(self) -> Life:
        """One more."""
        log = self._directory / f"trainer-{self._started:03}.log"
        self._started += 1
        log.write_bytes(b"")
        death = self.deadly.popleft() if self.deadly else None
        life = Life(self._nursery, self._nursery.start(self._arguments, log, self.brake.path, death), log, death)
        self.lives.append(life)
        return life

    def tend(self) -> None:
        """Look who has ended, and start as many as are wanted.

        Raises:
            FaultError: one has ended as no trainer should.
        """
        for life in list(self.lives):
            code = life.code
            if code is None:
                continue
            self.lives.remove(life)
            if life.fatal and code == -signal.SIGKILL and not life.doomed:
                self.on_death(life)
            elif code in STARTED_AGAIN:
                name = ExitCode(code).name.lower()
                self.restarts[name] = self.restarts.get(name, 0) + 1
                self.last_words.append(f"{life.log.name}, {name}: {life.last_words()}")
            elif not life.doomed:
                raise FaultError(f"{life.log.name} ended with exit code {code}:\n{life.tail()}")
        while len(self.lives) < self.wanted:
            self.start()

    def on_death(self, life: Life) -> None:
        """One has killed itself at its point; whoever wants to know replaces this."""

    def wait(self, condition: Callable[[], Any], what: str, timeout_s: float = RECOVERY_S) -> None:
        """Tend until a condition holds.

        Raises:
            FaultError: it did not in time.
        """
        begun = time.monotonic()
        while not condition():
            self.tend()
            if time.monotonic() - begun > timeout_s:
                tails = "\n\n".join(f"{life.log.name} (pid {life.pid}):\n{life.tail()}" for life in self.lives)
                raise FaultError(f"not within {timeout_s:g} s: {what}\n{tails}")
            time.sleep(_POLL_S)

    @property
    def leader(self) -> Life | None:
        """Who became the bank's writer last, of those that run."""
        leaders = [life for life in self.lives if life.code is None and life.doing[1] in _LEADING]
        return max(leaders, key=lambda life: life.doing, default=None)

    @property
    def standby(self) -> Life | None:
        """Who waits for the lease."""
        for life in self.lives:
            if life.code is None and life.doing[1] == "standby.waiting":
                return life
        return None

    def kill_all(self) -> None:
        """The end of a round, good or bad."""
        self.wanted = 0
        for life in self.lives:
            life.doomed = True
            life.send(signal.SIGKILL)
        deadline = time.monotonic() + 10
        while any(life.code is None for life in self.lives) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
