"""A replica's state: the bank it follows, who answers, what was asked; and whether it is ready.

`follow` belongs to the main thread, answering to the thread of `Answerer`, HTTP to a third; each of them looks at
`follower.snapshot` once and keeps what it got.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Final

import structlog

from daemon.answerer import Answered, Answerer, Question
from daemon.errors import AnotherBankError, StopError, UnavailableError
from daemon.following import Follower
from daemon.redis_replies import answering
from daemon.redis_store import BankReader
from daemon.serving_metrics import ServingMetrics
from daemon.settings import Settings
from supsup_online.snapshot import Snapshot

log = structlog.get_logger()

TRAFFIC_S: Final = 5.0
TRAFFIC_KEPT: Final = 60
_LONGEST_PAUSE_S: Final = 2.0
_UNHEARD_S: Final = 0.5  # a signal does not end a wait: after so long somebody looks whether there was one


class Traffic:
    """Rows answered under each mask, in all and over the last minutes; may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._total: Counter[int] = Counter()
        self._recent: deque[tuple[int, Counter[int]]] = deque(maxlen=TRAFFIC_KEPT)

    def _now(self) -> int:
        return int(self._clock() // TRAFFIC_S)

    def add(self, mask_ids: Counter[int]) -> None:
        """So many rows were answered under these masks."""
        with self._lock:
            self._total.update(mask_ids)
            now = self._now()
            if not self._recent or self._recent[-1][0] != now:
                self._recent.append((now, Counter()))
            self._recent[-1][1].update(mask_ids)

    def shown(self) -> tuple[dict[int, int], dict[int, list[int]]]:
        """Per mask: rows in all; and rows in each of the last intervals, oldest first, where there were any."""
        with self._lock:
            oldest = self._now() - TRAFFIC_KEPT + 1
            recent: dict[int, list[int]] = {}
            for interval, counts in self._recent:
                for mask_id, rows in counts.items():
                    if interval >= oldest:
                        recent.setdefault(mask_id, [0] * TRAFFIC_KEPT)[interval - oldest] += rows
            return dict(self._total), recent


@dataclass(slots=True)
class Replica:
    """What one replica knows and does.

    Attributes:
        settings: of this process.
        reader: of the bank.
        metrics: for Prometheus.
        answerer: who answers.
        follower: the bank, once there is one.
        traffic: rows per mask.
        stopping: asked to end; not ready any more.
        asked_to_stop: whether a signal asked for it that `follow` has not seen yet.
    """

    settings: Settings
    reader: BankReader
    metrics: ServingMetrics
    answerer: Answerer = field(init=False)
    follower: Follower | None = None
    traffic: Traffic = field(default_factory=Traffic)
    stopping: bool = False
    asked_to_stop: Callable[[], bool] = lambda: False
    _trouble: str = ""
    _reached: bool = False

    def __post_init__(self) -> None:
        self.answerer = Answerer(
            newest=self.newest,
            batch_rows=self.settings.batch_rows,
            queue_rows=self.settings.queue_rows,
            wait_s=self.settings.batch_wait_ms / 1000,
            max_sticky=self.settings.max_sticky,
            passed=self._passed,
        )
        self.metrics.watch(
            queue_rows=lambda: self.answerer.waiting,
            staleness_s=lambda: self.staleness_s,
            ready=lambda: not self.reasons,
        )

    def newest(self) -> Snapshot | None:
        """The newest version, or None before there is a bank."""
        return None if self.follower is None else self.follower.snapshot

    @property
    def staleness_s(self) -> float:
        """Seconds since `newest` was known to be the newest; infinite before there is a bank."""
        return float("inf") if self.follower is None else self.follower.staleness_s

    @property
    def reasons(self) -> dict[str, str]:
        """Why this replica is not ready, name -> sentence; empty when it is."""
        snapshot, found = self.newest(), {}
        if self.stopping or self.asked_to_stop():
            found["stopping"] = "this replica was asked to stop"
        if snapshot is None:
            found["no-bank"] = f"there is no bank {self.reader.keys.bank!r} yet: a trainer creates it"
        elif not len(snapshot):
            found["no-mask"] = "the bank holds no mask yet: nothing has been learnt"
        if self.staleness_s > self.settings.staleness_limit_s and snapshot is not None:
            found["stale"] = (
                f"the newest version was last known {self.staleness_s:.1f} s ago, more than "
                f"{self.settings.staleness_limit_s:g} s"
            )
        if self._trouble and found:
            found["redis"] = self._trouble
        return found

    # -- following

    def follow(self, stopped: Callable[[], bool]) -> None:
        """Follow the bank until stopped. While Redis is away the version at hand goes on answering.

        Raises:
            StopError: Redis has never answered, what it holds makes no sense from the start, or another bank has
                taken the name.
        """
        pause_s = self.settings.poll_interval_s
        while not stopped():
            try:
                self._go_on(stopped)
            except AnotherBankError:
                raise
            except StopError as error:
                if self.follower is None and not (self._reached and isinstance(error, UnavailableError)):
                    raise
                self._tell_of(error)
                _pause(pause_s, stopped)
                pause_s = min(2 * pause_s, max(_LONGEST_PAUSE_S, self.settings.poll_interval_s))
            else:
                pause_s = self.settings.poll_interval_s
                if self._trouble:
                    log.info("bank.followed_again", bank=self.reader.keys.bank, version=self._version)
                    self._trouble = ""

    @property
    def _version(self) -> int:
        snapshot = self.newest()
        return 0 if snapshot is None else snapshot.version

    def _go_on(self, stopped: Callable[[], bool]) -> None:
        if self.follower is None:
            self._find(stopped)
            return
        _until(stopped, self.settings.poll_interval_s, self.follower.wait)
        if self.follower.catch_up():
            self._swapped(self.follower.snapshot)

    def _find(self, stopped: Callable[[], bool]) -> None:
        """The bank, if there is one by now; its weights are proved before anybody sees it."""
        with answering():
            there = self.reader.spec_text()
        self._reached = True
        if not there:
            _pause(self.settings.poll_interval_s, stopped)
            return
        network = self.reader.network(self.reader.spec(), self.settings.weights_file)
        follower = Follower(self.reader, network)
        follower.catch_up()
        self.follower = follower
        snapshot = follower.snapshot
        self._swapped(snapshot)
        log.info("replica.ready", bank=self.reader.keys.bank, version=snapshot.version, masks=len(snapshot))

    def _swapped(self, snapshot: Snapshot) -> None:
        self.metrics.follows(version=snapshot.version, masks=len(snapshot))
        log.debug("bank.followed", version=snapshot.version, masks=len(snapshot))

    def _tell_of(self, error: StopError) -> None:
        self.metrics.failed_to_follow()
        if not self._trouble:
            log.warning("bank.away", error=str(error), version=self._version, staleness_s=round(self.staleness_s, 1))
        self._trouble = str(error)

    # -- answering

    def _passed(self, question: Question, answered: Answered) -> None:
        answer = answered.answer
        self.traffic.add(Counter(answer.mask_ids.tolist()))
        how = "told" if question.tasks is not None else question.inquiry.inference
        self.metrics.passed(
            rows=len(answer.labels),
            how=how,
            sticky=0 if question.tasks is not None else len(answer.labels) - answer.inferred,
            novel=int(answer.novel.sum()),
        )


def _pause(seconds: float, stopped: Callable[[], bool]) -> None:
    def sleep(piece_s: float) -> bool:
        time.sleep(piece_s)
        return False

    _until(stopped, seconds, sleep)


def _until(stopped: Callable[[], bool], seconds: float, wait: Callable[[float], bool]) -> None:
    """Wait in pieces, until stopped, until a piece says that it is over, or for some seconds."""
    until = time.monotonic() + seconds
    while not stopped() and (left := until - time.monotonic()) > 0:
        if wait(min(left, _UNHEARD_S)):
            return
