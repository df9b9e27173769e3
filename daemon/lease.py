"""One writer per bank: a lease in Redis, and the thread that keeps it.

A lease says two things. Its *epoch* is the fence: every commit carries it, and Redis refuses one that is older than the
newest (`lua/commit.lua`), so a trainer that was asleep for an hour can do no harm. Its *expiry* is for liveness alone:
while it lies ahead other trainers stand by, and when it has passed, or was given back, one of them takes the next
epoch. Both are judged by Redis and its clock; clocks of trainers do not matter.
"""

import os
import secrets
import socket
from dataclasses import dataclass
from importlib import resources
from threading import Event, Thread
from typing import Any, Final, Self

import redis
import structlog

from daemon.errors import StopError, UnavailableError
from daemon.redis_keys import BankKeys
from daemon.redis_replies import answering
from daemon.telemetry import Telemetry

log = structlog.get_logger()

_RENEWALS_PER_TTL: Final = 3


def new_owner() -> str:
    """A name that no other trainer has, not even another life of this process: `host:pid:random`."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True)
class Term:
    """A trainer's time as the one writer of a bank."""

    epoch: int
    owner: str

    def commit_id(self, records: int | str = "") -> str:
        """The name of the commit after so many records; without them, of what the term's first commit follows."""
        return f"{self.epoch}:{self.owner}:{records}"


@dataclass(frozen=True, slots=True)
class Held:
    """Somebody else has the lease, and for how long it lasts unless it is renewed, in seconds."""

    owner: str
    left_s: float


class Lease:
    """The lease of one bank.

    Args:
        client: a client of its own with short timeouts, so that a slow commit delays no renewal.
        keys: of the bank.
        owner: see `new_owner`.
        ttl_s: how long the lease lasts from its newest renewal on, in seconds.
    """

    def __init__(self, client: redis.Redis, keys: BankKeys, owner: str, ttl_s: float) -> None:
        self._client: Any = client
        self._keys = keys
        self.owner = owner
        self.ttl_s = ttl_s
        source = resources.files("daemon").joinpath("lua/lease.lua").read_text(encoding="utf-8")
        self._script = self._client.register_script(source)

    def acquire(self, *, by_force: bool = False) -> Term | Held:
        """Take the lease if it is free (or `by_force` anyway), under a new epoch that fences everybody before.

        Raises:
            UnavailableError: Redis does not answer.
        """
        epoch, left_ms, owner = self._call("acquire", 0, "1" if by_force else "0")
        return Term(int(epoch), self.owner) if int(epoch) else Held(owner.decode(), int(left_ms) / 1000)

    def renew(self, term: Term) -> None:
        """Make it last another `ttl_s` from now.

        Raises:
            FencedError: another trainer has taken over.
            RewoundError: Redis no longer knows of this term.
            UnavailableError: Redis does not answer.
        """
        self._call("renew", term.epoch)

    def release(self, term: Term) -> None:
        """Give it back, so that a standby need not wait; errors as in `renew`."""
        self._call("release", term.epoch)

    def _call(self, action: str, epoch: int, force: str = "0") -> list[Any]:
        with answering():
            reply: list[Any] = self._script(
                keys=[self._keys.lease], args=[action, epoch, self.owner, int(self.ttl_s * 1000), force]
            )
        return reply


class LeaseKeeper:
    """Renews a lease in a thread while a `with` block runs, and gives it back at its end.

    Args:
        lease: what to keep.
        term: as what it was acquired.
        telemetry: whether the trainer still works (one that hangs must lose its lease, so it is not renewed then), and
            who is told when Redis does not take a renewal.
    """

    def __init__(self, lease: Lease, term: Term, telemetry: Telemetry) -> None:
        self._lease = lease
        self._term = term
        self._telemetry = telemetry
        self._ended = Event()
        self._lost: StopError | None = None
        self._thread = Thread(target=self._run, name="lease", daemon=True)

    def check(self) -> None:
        """Raise what the lease was lost of, if it was.

        Raises:
            FencedError, RewoundError: see `Lease.renew`.
        """
        if self._lost is not None:
            raise self._lost

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._lost is None:
            self._give_back()

    def _run(self) -> None:
        while not self._ended.wait(self._lease.ttl_s / _RENEWALS_PER_TTL):
            if not self._telemetry.health.alive:
                self._not_renewed("the poll loop does not beat")
                continue
            try:
                self._lease.renew(self._term)
            except UnavailableError as error:
                self._not_renewed(str(error))
            except StopError as error:
                self._lost = error
                return
            else:
                self._telemetry.clear("lease")

    def _not_renewed(self, why: str) -> None:
        log.warning("lease.not_renewed", why=why)
        self._telemetry.hold("lease", why)

    def _give_back(self) -> None:
        try:
            self._lease.release(self._term)
        except StopError as error:
            log.warning("lease.not_released", why=str(error))
        else:
            log.info("lease.released", epoch=self._term.epoch)
