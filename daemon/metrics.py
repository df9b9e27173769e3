"""What Prometheus reads: every metric once, in a table, and one method for each thing that happens.

Names begin with `supsup_` and end with their base unit. All carry the label `bank`, which is one per process, so that
alerts can count the trainers of a bank. Labels are bounded: topics and partitions this process was given, and words
from closed lists. Masks and streams are no labels, for nobody knows how many there will be; they are in Redis.

Counters count what this process did, from 0 at its start. What the bank counted over its life is `supsup_bank_counts`.
"""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from daemon.errors import Server
from daemon.observe import Outcome, outcome
from daemon.records import Partition
from supsup_online import __version__
from supsup_online.types import Action, StepResult, Why

Kind = Literal["counter", "gauge", "histogram"]

# Why a record can never be used; what is not listed is counted as `other`, so that the label stays bounded.
REASONS: Final = (
    "columns",
    "compressed",
    "content-type",
    "dtype",
    "empty",
    "label-range",
    "malformed",
    "no-mask",
    "not-finite",
    "nulls",
    "out-of-range",
    "rows",
    "shape",
    "too-large",
    "other",
)
_PLACE: Final = ("topic", "partition")
_SECONDS: Final = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of the table; `labels` stand beside `bank`, which all have."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    meaning: str


_OF_ANY_PROCESS: Final = (
    Metric("supsup_start_time_seconds", "gauge", "seconds", (), "When this process started, since 1970."),
    Metric("supsup_build_info", "gauge", "1", ("version", "python"), "Always 1; the labels say what is running."),
)
METRICS: Final = (
    Metric("supsup_batches_total", "counter", "batches", (*_PLACE, "result"), "Batches trained, answered, overflowed."),
    Metric("supsup_samples_total", "counter", "rows", _PLACE, "Rows of the batches that were trained."),
    Metric("supsup_correct_samples_total", "counter", "rows", _PLACE, "Those answered right before the update."),
    Metric("supsup_dead_letters_total", "counter", "records", ("topic", "reason"), "Records put on TOPIC.dlq."),
    Metric("supsup_decisions_total", "counter", "decisions", ("action", "why"), "Decisions about a batch's mask."),
    Metric("supsup_evictions_total", "counter", "masks", (), "Masks evicted, to make room or by a look again."),
    Metric("supsup_commits_total", "counter", "commits", (), "Commits that Redis took."),
    Metric("supsup_retries_total", "counter", "attempts", ("dependency",), "Attempts that Kafka or Redis did not do."),
    Metric("supsup_rebalances_total", "counter", "times", (), "Rebalances that changed this trainer's partitions."),
    Metric("supsup_lease_losses_total", "counter", "times", (), "Times that another trainer took over the bank."),
    Metric("supsup_decode_seconds", "histogram", "seconds", (), "From a record's bytes to arrays."),
    Metric("supsup_step_seconds", "histogram", "seconds", (), "To test, decide and train one batch."),
    Metric("supsup_commit_seconds", "histogram", "seconds", (), "One commit, side topics and attempts included."),
    Metric("supsup_lag_records", "gauge", "records", _PLACE, "Records behind the trainer's position."),
    Metric("supsup_bank_version", "gauge", "commits", (), "The bank's version: its commits since it was created."),
    Metric("supsup_bank_counts", "gauge", "as named", ("count",), "The bank's counters (`totals` in Redis)."),
    Metric("supsup_masks", "gauge", "masks", (), "Masks in the bank."),
    Metric("supsup_mask_budget", "gauge", "masks", (), "Most masks the bank may hold."),
    Metric("supsup_accuracy_ratio", "gauge", "0 to 1", (), "Right before the update, newest 50 trained batches."),
    Metric("supsup_leader", "gauge", "0 or 1", (), "Whether this trainer writes the bank."),
    Metric("supsup_ready", "gauge", "0 or 1", (), "Whether /readyz says yes."),
    Metric("supsup_heartbeat_age_seconds", "gauge", "seconds", (), "Since the poll loop came round last."),
    *_OF_ANY_PROCESS,
)
# What a replica tells; the names begin with `supsup_serve_`, so that a trainer's alerts do not see them.
SERVING: Final = (
    Metric(
        "supsup_serve_requests_total", "counter", "requests", ("outcome",), "answered, refused (4xx), failed (5xx)."
    ),
    Metric(
        "supsup_serve_request_seconds", "histogram", "seconds", ("inference",), "From a whole request to its answer."
    ),
    Metric("supsup_serve_rows_total", "counter", "rows", ("inference",), "Rows answered, by how the task was found."),
    Metric("supsup_serve_novel_rows_total", "counter", "rows", (), "Those of which no mask was confident."),
    Metric("supsup_serve_batch_rows", "histogram", "rows", (), "Rows answered in one pass."),
    Metric("supsup_serve_queue_rows", "gauge", "rows", (), "Rows that wait or are being answered."),
    Metric("supsup_serve_staleness_seconds", "gauge", "seconds", (), "Since the newest version was known last."),
    Metric("supsup_serve_bank_version", "gauge", "commits", (), "The bank version that answers."),
    Metric("supsup_serve_masks", "gauge", "masks", (), "Masks in it."),
    Metric("supsup_serve_failures_total", "counter", "times", (), "Times that Redis did not tell what it should."),
    Metric("supsup_serve_ready", "gauge", "0 or 1", (), "Whether /v2/health/ready says yes."),
    *_OF_ANY_PROCESS,
)
_BUCKETS: Final = {"seconds": _SECONDS, "rows": tuple(2**power for power in range(13))}
_KINDS: Final[dict[Kind, Any]] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


class MetricSet:
    """The metrics of one process, in a registry of their own; methods may be called from any thread.

    Args:
        bank: name of the bank, a label of every metric.
        table: what there is.
    """

    def __init__(self, bank: str, table: Sequence[Metric]) -> None:
        self.registry = CollectorRegistry()
        self._bank = bank
        self._metrics = {metric.name: self._build(metric) for metric in table}
        ProcessCollector(registry=self.registry)
        self._of("supsup_build_info", __version__, platform.python_version()).set(1)
        self._of("supsup_start_time_seconds").set(time.time())

    def _build(self, metric: Metric) -> Any:
        options = {"buckets": _BUCKETS[metric.unit]} if metric.kind == "histogram" else {}
        labels = ("bank", *metric.labels)
        return _KINDS[metric.kind](metric.name, metric.meaning, labels, registry=self.registry, **options)

    def _of(self, name: str, *labels: object) -> Any:
        return self._metrics[name].labels(self._bank, *labels)

    def render(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)


class TrainerMetrics(MetricSet):
    """The metrics of one trainer.

    Args:
        bank: name of the bank, a label of every metric.
    """

    def __init__(self, bank: str = "default") -> None:
        super().__init__(bank, METRICS)
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Counters are there from the start: Prometheus sees no increase in one that appears with its first count."""
        for metric in METRICS:
            if not metric.labels and metric.name != "supsup_accuracy_ratio":
                self._of(metric.name)
        for action in get_args(Action):
            for why in get_args(Why):
                self._of("supsup_decisions_total", action, why)
        for server in get_args(Server):
            self._of("supsup_retries_total", server)

    # -- what is read by other means than counting

    def watch(self, *, age_s: Callable[[], float], ready: Callable[[], bool]) -> None:
        """Where to ask for the heartbeat's age and for readiness when somebody reads the metrics."""
        self._of("supsup_heartbeat_age_seconds").set_function(age_s)
        self._of("supsup_ready").set_function(lambda: float(ready()))

    # -- what happens

    def assigned(self, partition: Partition) -> None:
        """This trainer reads a partition: its counters begin at 0."""
        place = (partition.topic, partition.number)
        for result in get_args(Outcome):
            self._of("supsup_batches_total", *place, result)
        self._of("supsup_samples_total", *place)
        self._of("supsup_correct_samples_total", *place)
        for reason in REASONS:
            self._of("supsup_dead_letters_total", partition.topic, reason)

    def batch(
        self, partition: Partition, result: StepResult, *, decode_s: float, step_s: float, accuracy: float | None
    ) -> None:
        """One batch was trained, answered or found no room.

        Args:
            partition: where it came from.
            result: what it did.
            decode_s: time from bytes to arrays, seconds.
            step_s: time to test, decide and train, seconds.
            accuracy: rolling, right before the update; None before the first trained batch.
        """
        place = (partition.topic, partition.number)
        self._of("supsup_batches_total", *place, outcome(result)).inc()
        self._of("supsup_decode_seconds").observe(decode_s)
        self._of("supsup_step_seconds").observe(step_s)
        if result.trained:
            self._of("supsup_samples_total", *place).inc(result.rows)
            self._of("supsup_correct_samples_total", *place).inc(result.correct)
        if accuracy is not None:
            self._of("supsup_accuracy_ratio").set(accuracy)
        if result.decision is not None:
            self._of("supsup_decisions_total", result.decision.action, result.decision.why).inc()
            self._of("supsup_evictions_total").inc(result.decision.evicted is not None)

    def dead_lettered(self, partition: Partition, reason: str) -> None:
        """A record can never be used."""
        self._of("supsup_dead_letters_total", partition.topic, reason if reason in REASONS else "other").inc()

    def committed(self, seconds: float) -> None:
        """Redis took a commit; `seconds` is what it took altogether."""
        self._of("supsup_commits_total").inc()
        self._of("supsup_commit_seconds").observe(seconds)

    def bank(self, *, version: int, masks: int, budget: int, totals: Mapping[str, int]) -> None:
        """The bank as it was loaded, or as it is with a commit."""
        self._of("supsup_bank_version").set(version)
        self._of("supsup_masks").set(masks)
        self._of("supsup_mask_budget").set(budget)
        for count, value in totals.items():
            self._of("supsup_bank_counts", count).set(value)

    def retried(self, server: Server) -> None:
        """Kafka or Redis did not do what was asked; it will be asked again."""
        self._of("supsup_retries_total", server).inc()

    def lag(self, partition: Partition, records: int) -> None:
        """How many records lie between the trainer's position and the end of the partition."""
        self._of("supsup_lag_records", partition.topic, partition.number).set(records)

    def forget(self, partition: Partition) -> None:
        """Somebody else reads this partition now; its lag is theirs to tell."""
        self._metrics["supsup_lag_records"].remove(self._bank, partition.topic, partition.number)

    def rebalanced(self) -> None:
        """The group gave this trainer other partitions than before."""
        self._of("supsup_rebalances_total").inc()

    def leading(self, *, leads: bool) -> None:
        """Whether this trainer writes the bank."""
        self._of("supsup_leader").set(leads)

    def lease_lost(self) -> None:
        """Another trainer has taken over the bank."""
        self._of("supsup_lease_losses_total").inc()
        self.leading(leads=False)
