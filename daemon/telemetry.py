"""The one object the loop tells what happens; log line, metrics, readiness and service manager follow from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog

from daemon.errors import Server, UnavailableError
from daemon.health import AliveFile, Health, Role
from daemon.metrics import TrainerMetrics
from daemon.observe import Observer
from daemon.records import Partition, Record
from daemon.systemd import Notifier
from supsup_online.types import StepResult

log = structlog.get_logger()


@dataclass(slots=True)
class Telemetry:
    """Who wants to know what the trainer does. As it is made by default, nobody outside the process does.

    `beat` and `lags` belong to the thread that polls, `batch` to the one that trains; the rest may be called from any.

    Attributes:
        health: alive and ready.
        metrics: for Prometheus.
        observer: the log line of each batch.
        manager: systemd, or whoever understands its protocol.
        alive_file: touched with each beat, if there is one.
    """

    health: Health = field(default_factory=Health)
    metrics: TrainerMetrics = field(default_factory=TrainerMetrics)
    observer: Observer = field(default_factory=Observer)
    manager: Notifier = field(default_factory=Notifier)
    alive_file: AliveFile | None = None
    _partitions: set[Partition] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.metrics.watch(age_s=lambda: self.health.age_s, ready=lambda: self.health.ready)

    # -- what this process is

    def beat(self) -> None:
        """The poll loop has come round: to be called at least every few seconds, whatever else goes on."""
        self.health.beat()
        self.manager.pat()
        if self.alive_file is not None:
            self.alive_file.touch()

    def started(self, role: Role) -> None:
        """Starting is over, as the leader or as a standby."""
        self.become(role)
        self.manager.ready(role)

    def become(self, role: Role) -> None:
        """Another role from now on."""
        self.health.role = role
        self.metrics.leading(leads=role == "leader")
        if role == "stopping":
            self.manager.stopping()
        else:
            self.manager.status(role)

    def lease_lost(self) -> None:
        """Another trainer has taken over the bank."""
        self.metrics.lease_lost()
        self.become("standby")

    # -- what it does

    def batch(self, record: Record, result: StepResult, *, decode_s: float, step_s: float) -> None:
        """One batch was trained, answered or found no room; times in seconds."""
        self.observer.batch(record, result, decode_s=decode_s, step_s=step_s)
        accuracy = self.observer.rolling_accuracy
        self.metrics.batch(record.partition, result, decode_s=decode_s, step_s=step_s, accuracy=accuracy)

    def dead_lettered(self, record: Record, reason: str) -> None:
        """A record can never be used."""
        self.metrics.dead_lettered(record.partition, reason)

    def restored(self, *, version: int, masks: int, budget: int, totals: Mapping[str, int]) -> None:
        """The bank as it was found."""
        self.metrics.bank(version=version, masks=masks, budget=budget, totals=totals)

    def committed(self, seconds: float, *, version: int, masks: int, budget: int, totals: Mapping[str, int]) -> None:
        """Redis took a commit, and the broker everything before it; `seconds` with all attempts."""
        self.metrics.committed(seconds)
        self.metrics.bank(version=version, masks=masks, budget=budget, totals=totals)
        self.answered("redis")

    # -- whom it depends on

    def retried(self, error: UnavailableError) -> None:
        """Kafka or Redis did not do what was asked; not ready until it does."""
        log.warning("server.away", server=error.server, error=str(error))
        self.metrics.retried(error.server)
        self.health.hold(error.server, str(error))

    def answered(self, server: Server) -> None:
        """Kafka or Redis does what is asked."""
        self.health.clear(server)

    def hold(self, name: str, text: str) -> None:
        """Not ready for this reason until `clear`."""
        self.health.hold(name, text)

    def clear(self, name: str) -> None:
        """The reason no longer holds."""
        self.health.clear(name)

    # -- what it reads

    def lags(self, records: Mapping[Partition, int | None]) -> None:
        """Records behind the position of every partition this trainer reads; None where that is not known yet."""
        if records.keys() != self._partitions:
            self._rebalance(set(records))
        for partition, count in records.items():
            if count is not None:
                self.metrics.lag(partition, count)

    def _rebalance(self, partitions: set[Partition]) -> None:
        for partition in partitions - self._partitions:
            self.metrics.assigned(partition)
        for partition in self._partitions - partitions:
            self.metrics.forget(partition)
        self._partitions = partitions
        self.metrics.rebalanced()

    def close(self) -> None:
        """Nothing is told to a service manager any more."""
        self.manager.close()
