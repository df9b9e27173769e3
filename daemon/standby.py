"""Waiting for the lease with the bank loaded, so that a death costs seconds and not a start."""

import time
from collections.abc import Callable
from typing import Final

import structlog

from daemon.errors import BankMismatchError, UnavailableError
from daemon.lease import Held, Lease, Term
from daemon.redis_replies import answering
from daemon.redis_store import RedisStore, WarmMasks
from daemon.telemetry import Telemetry
from supsup_online.network import Network

log = structlog.get_logger()

_LOOK_S: Final = 0.5  # longest time between two looks at the lease


class Standby:
    """A trainer that is ready to take over a bank.

    Args:
        lease: what it waits for.
        store: of the bank.
        network: of the bank.
        patience_s: how long Redis may be away, in seconds.
        telemetry: who is told what happens.

    Attributes:
        warm: the bank's masks, as up to date as the last look.
    """

    def __init__(
        self, lease: Lease, store: RedisStore, network: Network, *, patience_s: float, telemetry: Telemetry
    ) -> None:
        self._lease = lease
        self._store = store
        self._network = network
        self._patience_s = patience_s
        self._telemetry = telemetry
        self.warm = WarmMasks()

    def wait(self, stopped: Callable[[], bool], *, by_force: bool = False) -> Term | None:
        """Return as the bank's writer, or None when stopped before.

        Args:
            stopped: asked at each look.
            by_force: take the lease from whoever holds it.

        Raises:
            UnavailableError: Redis was away for longer than `patience_s`.
        """
        answered, holder = time.monotonic(), ""
        while not stopped():
            self._telemetry.beat()
            try:
                found = self._lease.acquire(by_force=by_force)
                if isinstance(found, Term):
                    log.info("lease.acquired", epoch=found.epoch, ttl_s=self._lease.ttl_s)
                    return found
                self._warm_up()
                self._telemetry.answered("redis")
                answered = time.monotonic()
                holder = self._tell(found, holder)
            except UnavailableError as error:
                if time.monotonic() - answered > self._patience_s:
                    raise
                self._telemetry.retried(error)
            time.sleep(min(_LOOK_S, self._lease.ttl_s / 4))
        return None

    def _warm_up(self) -> None:
        try:
            with answering():
                self.warm.refresh(self._store, self._network)
        except BankMismatchError as error:
            # Evicted between two reads, most likely. If it is damage, the load after taking over says so and stops.
            log.debug("standby.mask_unread", error=str(error))

    def _tell(self, held: Held, holder: str) -> str:
        if held.owner != holder:
            self._telemetry.started("standby")
            log.info("standby.waiting", holder=held.owner, masks=len(self.warm.words), version=self.warm.version)
        return held.owner
