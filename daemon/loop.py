"""The poll loop: follow records from Kafka to the training thread here; `apply` follows them to Redis.

    poll -> one order over all partitions -> decode -> hand over (a few ahead) -> training thread

The loop never waits for a step, a commit or a server: it polls at least twice a second, so the group keeps this
trainer, and a signal is heard. When the group changes, what was handed over and not begun is taken back, what was
applied is committed, and every partition goes on from its position in Redis.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

import structlog

from daemon.apply import Applier, Decoded, decode
from daemon.errors import StopError, UnavailableError, UnreadableError
from daemon.kafka_client import POLL_LIMIT_S
from daemon.records import Partition, Position
from daemon.source_process import SourceProcess
from daemon.telemetry import Telemetry
from daemon.training import TrainingThread
from supsup_online import wire

log = structlog.get_logger()

T = TypeVar("T")

_AWAY_PAUSE_S: Final = 0.5
_OFFER_S: Final = 0.1  # longest wait for room in the training thread before the next poll
_OFFERS: Final = 16  # records handed over between two polls
_BLOCKED_S: Final = 0.02  # longest poll while a record waits for those of other partitions
_KEEP_ALIVE_S: Final = 0.05


@dataclass(slots=True)
class StopRequest:
    """Set by a signal handler, read by the loop.

    A plain attribute on purpose: the handler runs in the middle of whatever the main thread does, so a lock (of an
    event, of a logger) that is held there would never be given back.
    """

    signal: str = ""

    def requested(self) -> bool:
        """Whether to stop."""
        return bool(self.signal)


@dataclass(slots=True)
class TrainerLoop:
    """Reads, hands over, and tends the group until told to stop.

    Attributes:
        source: records in.
        applier: what becomes of them.
        limits: what a record may look like.
        stop: set from a signal handler; heard after the batch in hand.
        still_leading: raises when this trainer is no longer the bank's writer.
        burst: stop by itself when everything is read.
        patience_s: how long the broker may be away before the loop gives up, in seconds.
        stop_deadline_s: how long the end may take once it was asked for, in seconds.
        rebalance_budget_s: how long a change in the group may wait for the step in hand before it is told, in seconds.
        telemetry: who is told what happens.
    """

    source: SourceProcess
    applier: Applier
    limits: wire.RecordLimits
    stop: StopRequest
    still_leading: Callable[[], None]
    burst: bool
    patience_s: float
    stop_deadline_s: float
    rebalance_budget_s: float
    telemetry: Telemetry = field(default_factory=Telemetry)
    training: TrainingThread = field(init=False)
    _in_hand: Decoded | None = None
    _away_since: float | None = None
    _stopping_since: float | None = None
    _told: Mapping[Partition, Position] | None = None

    def __post_init__(self) -> None:
        self.training = TrainingThread(self.applier)

    def run(self) -> None:
        """Until stopped, or caught up in a burst; what is applied by then is committed.

        Raises:
            StopError: see `daemon.errors`; what was not committed is read again at the next start.
        """
        self.training.start()
        try:
            while not self.stop.requested():
                self._tend()
                if not self._round():
                    break
            self._finish()
        finally:
            self.applier.hurry = True
            self.training.abandon(self.stop_deadline_s)

    def _round(self) -> bool:
        """One round: place, hand over, poll; returns whether there may be more to do."""
        try:
            if self.source.unsettled:
                self._settle()
            more = self._hand_over()
            if self.burst and not more and self.training.idle and self.source.caught_up:
                return False
            self.source.poll(0.0 if more else _BLOCKED_S if self.source.waiting else POLL_LIMIT_S)
            self._heard_of_kafka()
        except UnreadableError:
            while self._hand_over():  # whoever moves the position over that record must not lose those before it
                self._tend()
            self._finish()
            raise
        except UnavailableError as error:
            self._bear(error)
        return True

    def _tend(self) -> None:
        """What every wait does in between: beat, hear the other threads, tell Kafka what is committed, mind the end."""
        if self.applier.step_age_s <= self.telemetry.health.limit_s:  # a step that hangs must be seen, too
            self.telemetry.beat()
        self.training.check()
        self.still_leading()
        if self.applier.committed is not self._told:
            self._told = self.applier.committed
            self.source.tell_group(self._told or {})
        if self.stop.requested():
            self.applier.hurry = True
            self._stopping_since = self._stopping_since or time.monotonic()
            if time.monotonic() - self._stopping_since > self.stop_deadline_s:
                raise StopError(
                    f"the step in hand was not committed within {self.stop_deadline_s:g} s (--stop-deadline-s) of "
                    f"{self.stop.signal}; its records are read again at the next start"
                )

    def _hand_over(self) -> bool:
        """Decode the next records and give them to the training thread; returns whether more lie ready."""
        for _ in range(_OFFERS):
            if self._in_hand is None:
                record = self.source.next()
                if record is None:
                    return False
                self._in_hand = decode(record, self.limits)
            if self.stop.requested() or not self.training.offer(self._in_hand, _OFFER_S):
                return True
            self._in_hand = None
        return True

    def _heard_of_kafka(self) -> None:
        self._away_since = None
        self.telemetry.answered("kafka")
        self.telemetry.lags(self.source.lags())
        if self.source.elsewhere:
            self.telemetry.hold("partitions", f"another member of the group has {self.source.elsewhere}")
        elif not self.source.placed:
            self.telemetry.hold("partitions", "the group has given this trainer no partition yet")
        else:
            self.telemetry.clear("partitions")

    def _bear(self, error: UnavailableError) -> None:
        """A broker may be away for a while; Redis too, but that is borne in the training thread, by `Applier`."""
        now = time.monotonic()
        self._away_since = self._away_since or now
        if error.server != "kafka" or now - self._away_since > self.patience_s:
            raise error
        self.telemetry.retried(error)
        time.sleep(_AWAY_PAUSE_S)

    # -- the group has changed

    def _settle(self) -> None:
        """Take back what was not begun, commit what was applied, and go on from the positions in Redis."""
        self.source.hold()
        self.training.drop()
        self._in_hand = None
        try:
            logs = self.source.logs()
            positions = self._in_training(partial(self.applier.settle, logs))
        except UnavailableError:
            self.source.settle_again()
            raise
        self.source.place(positions)

    def _in_training(self, action: Callable[[], T]) -> T:
        """Have something done behind the step in hand, which may take long; the group must not notice."""
        done = self.training.call(action)
        begun, told = time.monotonic(), False
        while not done.done():
            self._tend()
            with contextlib.suppress(UnavailableError):
                self.source.poll(_KEEP_ALIVE_S)
            if not told and time.monotonic() - begun > self.rebalance_budget_s:
                told = True
                log.warning("rebalance.slow", seconds=self.rebalance_budget_s)
        return done.result()

    # -- the end

    def _finish(self) -> None:
        """Let the step in hand end, and commit.

        Raises:
            StopError: it took too long, or the commit failed.
        """
        self.telemetry.become("stopping")
        if self.stop.requested():
            log.info("trainer.stopping", signal=self.stop.signal)
            self.training.drop()
        self.training.end()
        while not self.training.ended(_KEEP_ALIVE_S):
            self._tend()
        self._tend()
