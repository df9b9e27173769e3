"""One canonical log line per batch, with river's online accuracy over the newest batches."""

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal

import structlog
from river import metrics

from daemon.records import Record
from supsup_online.types import Decision, StepResult

log = structlog.get_logger()

ROLLING_BATCHES: Final = 50

Outcome = Literal["trained", "answered", "overflowed"]


def outcome(result: StepResult) -> Outcome:
    """What became of a batch, in a word."""
    if result.trained:
        return "trained"
    return "overflowed" if result.mask_id is None else "answered"


class Observer:
    """Turns step results into log lines.

    Attributes:
        rolling_accuracy: share right before the update over the newest batches; None before the first.
    """

    def __init__(self) -> None:
        self.rolling_accuracy: float | None = None
        self._accuracy = metrics.Accuracy()
        self._newest: deque[tuple[int, int]] = deque()

    def batch(self, record: Record, result: StepResult, *, decode_s: float, step_s: float) -> None:
        """Log what one record did; times in seconds."""
        fields: dict[str, Any] = {
            "topic": record.partition.topic,
            "partition": record.partition.number,
            "offset": record.offset,
            "stream": result.stream,
            "mask": result.mask_id,
            "rows": result.rows,
            "decode_ms": round(decode_s * 1e3, 3),
            "step_ms": round(step_s * 1e3, 3),
        }
        if result.trained:
            fields |= {"loss": round(result.loss, 4), "accuracy": round(result.accuracy, 4)}
            self.rolling_accuracy = self._rolling(result)
            fields["rolling_accuracy"] = round(self.rolling_accuracy, 4)
        if result.decision is not None:
            fields |= _decision_fields(result.decision)
        event = f"batch.{outcome(result)}"
        log.info(event, **fields)

    def _rolling(self, result: StepResult) -> float:
        self._newest.append((result.correct, result.rows - result.correct))
        _tell(self._accuracy.update, *self._newest[-1])
        if len(self._newest) > ROLLING_BATCHES:
            _tell(self._accuracy.revert, *self._newest.popleft())
        return float(self._accuracy.get())


def _tell(change: Callable[..., None], right: int, wrong: int) -> None:
    """One batch for river's metric: the right answers with their count as weight, then the wrong ones."""
    change(y_true=True, y_pred=True, w=right)
    change(y_true=True, y_pred=False, w=wrong)


def _decision_fields(decision: Decision) -> dict[str, Any]:
    best = decision.candidates[0] if decision.candidates else None
    return {
        "action": decision.action,
        "why": decision.why,
        "rule": decision.rule,
        "previous_mask": decision.previous,
        "evicted_mask": decision.evicted,
        "ratio": decision.ratio,
        "best_candidate": None if best is None else best.mask_id,
        "best_statistic": None if best is None else round(best.statistic, 4),
        "best_residual": None if best is None or best.residual is None else round(best.residual, 2),
    }
