"""What Prometheus reads of a replica; the table is `metrics.SERVING`."""

from collections.abc import Callable
from typing import Literal, get_args

from daemon.metrics import SERVING, MetricSet
from supsup_online.answering import Inference

Outcome = Literal["answered", "refused", "failed"]
HOW = ("told", "sticky", *get_args(Inference))


class ServingMetrics(MetricSet):
    """The metrics of one replica; methods may be called from any thread.

    Args:
        bank: name of the bank, a label of every metric.
    """

    def __init__(self, bank: str = "default") -> None:
        super().__init__(bank, SERVING)
        for metric in SERVING:
            if not metric.labels:
                self._of(metric.name)
        for outcome in get_args(Outcome):
            self._of("supsup_serve_requests_total", outcome)
        for how in HOW:
            self._of("supsup_serve_rows_total", how)

    def watch(
        self, *, queue_rows: Callable[[], int], staleness_s: Callable[[], float], ready: Callable[[], bool]
    ) -> None:
        """Where to ask when somebody reads the metrics."""
        self._of("supsup_serve_queue_rows").set_function(queue_rows)
        self._of("supsup_serve_staleness_seconds").set_function(staleness_s)
        self._of("supsup_serve_ready").set_function(lambda: float(ready()))

    def responded(self, outcome: Outcome, how: str = "", seconds: float = 0.0) -> None:
        """A request has its response; `how` the task was asked for and seconds for those that were answered."""
        self._of("supsup_serve_requests_total", outcome).inc()
        if how:
            self._of("supsup_serve_request_seconds", how).observe(seconds)

    def passed(self, *, rows: int, how: str, sticky: int, novel: int) -> None:
        """One pass: its rows, those that a stream's last mask answered, those that are novel."""
        self._of("supsup_serve_batch_rows").observe(rows)
        self._of("supsup_serve_rows_total", how).inc(rows - sticky)
        self._of("supsup_serve_rows_total", "sticky").inc(sticky)
        self._of("supsup_serve_novel_rows_total").inc(novel)

    def follows(self, *, version: int, masks: int) -> None:
        """Another version answers from now on."""
        self._of("supsup_serve_bank_version").set(version)
        self._of("supsup_serve_masks").set(masks)

    def failed_to_follow(self) -> None:
        """Redis did not answer, or what it holds makes no sense."""
        self._of("supsup_serve_failures_total").inc()

    def counted(self, outcome: Outcome) -> int:
        """Requests with this outcome so far."""
        return int(self._of("supsup_serve_requests_total", outcome)._value.get())  # noqa: SLF001 - no other way
