"""Alive and ready: two questions about this process, answered without asking anybody else.

*Alive* means that the poll loop goes round: its newest beat is younger than a limit. Whether Kafka or Redis answer does
not matter here, for restarting the trainer would not bring them back. Until the first beat a process is starting, which
counts as alive: what starting may take is limited elsewhere (`connect_timeout_s`).

*Ready* means that this process trains and commits: it is the bank's leader and nothing holds it up. Everything that
does is a reason with a name and a sentence. A standby with the bank loaded is alive, and not ready for the reason
`standby`: it waits for another trainer's end, and traffic or a rollout that asks for a working trainer should not count
it.
"""

import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Final, Literal

import structlog

from daemon.errors import ConfigError

log = structlog.get_logger()

Role = Literal["starting", "standby", "leader", "stopping"]

_WAITING: Final[dict[Role, str]] = {
    "starting": "servers and bank are not all there yet",
    "standby": "another trainer writes this bank; this one takes over when that ends",
    "stopping": "the trainer was asked to stop",
}
_TOUCHED_EVERY_S: Final = 1.0


class Health:
    """What the process knows about itself; every method may be called from any thread.

    Args:
        limit_s: age of the newest beat, in seconds, beyond which the loop counts as stuck.
        clock: seconds, for the age alone.
    """

    def __init__(self, limit_s: float = 30.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit_s = limit_s
        self._clock = clock
        self._lock = Lock()
        self._beaten: float | None = None
        self._role: Role = "starting"
        self._held: dict[str, str] = {}

    def beat(self) -> None:
        """The poll loop has come round."""
        with self._lock:
            self._beaten = self._clock()

    @property
    def age_s(self) -> float:
        """Seconds since the newest beat; 0 before the first."""
        with self._lock:
            return 0.0 if self._beaten is None else max(0.0, self._clock() - self._beaten)

    @property
    def alive(self) -> bool:
        """Whether the loop goes round, or has not begun."""
        return self.age_s <= self.limit_s

    @property
    def role(self) -> Role:
        """What this process is among the trainers of its bank."""
        with self._lock:
            return self._role

    @role.setter
    def role(self, role: Role) -> None:
        with self._lock:
            self._role = role

    def hold(self, name: str, text: str) -> None:
        """Not ready from now on, for this reason; a reason of the same name is replaced."""
        with self._lock:
            self._held[name] = text

    def clear(self, name: str) -> None:
        """The reason no longer holds; harmless where it did not."""
        with self._lock:
            self._held.pop(name, None)

    @property
    def reasons(self) -> dict[str, str]:
        """Why the process is not ready, name -> sentence; empty when it is."""
        age_s = self.age_s
        with self._lock:
            found: dict[str, str] = {self._role: _WAITING[self._role]} if self._role in _WAITING else {}
            if age_s > self.limit_s:
                found["stuck"] = f"the poll loop came round {age_s:.1f} s ago, more than {self.limit_s:g} s"
            return {**found, **self._held}

    @property
    def ready(self) -> bool:
        """Whether this process trains and commits."""
        return not self.reasons


class AliveFile:
    """A file whose modification time is that of the newest beat, for probes that look at files.

    Args:
        path: the file; its directory must exist.
        clock: seconds.

    Raises:
        ConfigError: it cannot be written.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._touched = float("-inf")
        self._failed = False
        try:
            path.touch()
        except OSError as error:
            raise ConfigError(
                f"--alive-file (SUPSUP_ALIVE_FILE) {path} cannot be written ({error.strerror}): name a file in a "
                "directory that exists and that the trainer may write to"
            ) from error

    def touch(self) -> None:
        """Touch the file, at most once a second; a file that cannot be touched is told once and does no harm here."""
        now = self._clock()
        if now - self._touched < _TOUCHED_EVERY_S:
            return
        self._touched = now
        try:
            self._path.touch()
        except OSError as error:
            if not self._failed:
                log.warning("alive_file.failed", path=str(self._path), error=error.strerror)
            self._failed = True
        else:
            self._failed = False
