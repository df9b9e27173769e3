"""The canonical log line of a batch."""

import json
import math

import numpy as np
import pytest
from structlog.testing import capture_logs

from daemon.observe import ROLLING_BATCHES, Observer
from daemon.records import Partition, Record
from supsup_online.types import Decision, Examined, StepResult

RECORD = Record(Partition("digits", 3), 17, b"k", b"", (), 0)
DECISION = Decision(
    action="reuse",
    mask_id=2,
    why="drift",
    rule="loss",
    candidates=(Examined(2, 0.123456, -0.5, agrees=True), Examined(1, 2.0)),
    ratio=1.25,
    evicted=None,
    previous=1,
)


def result(accuracy: float = 0.75, rows: int = 4, **changed: object) -> StepResult:
    values: dict[str, object] = {
        "stream": "digits/3/k",
        "rows": rows,
        "mask_id": 2,
        "trained": True,
        "decision": None,
        "loss": 0.123456,
        "accuracy": accuracy,
        "correct": 0 if math.isnan(accuracy) else round(accuracy * rows),
        "entropy": 0.1,
        "predictions": np.zeros(rows, dtype=np.int64),
    }
    return StepResult(**(values | changed))


def lines_of(*results: StepResult) -> list[dict[str, object]]:
    observer = Observer()
    with capture_logs() as lines:
        for one in results:
            observer.batch(RECORD, one, decode_s=0.001, step_s=0.0023456)
    return lines


def test_a_trained_batch_says_where_it_came_from_and_how_it_went() -> None:
    [line] = lines_of(result())
    assert line == {
        "event": "batch.trained",
        "log_level": "info",
        "topic": "digits",
        "partition": 3,
        "offset": 17,
        "stream": "digits/3/k",
        "mask": 2,
        "rows": 4,
        "decode_ms": 1.0,
        "step_ms": 2.346,
        "loss": 0.1235,
        "accuracy": 0.75,
        "rolling_accuracy": 0.75,
    }


def test_a_decision_is_told_on_the_line_of_its_batch() -> None:
    [line] = lines_of(result(decision=DECISION))
    expected = {
        "action": "reuse",
        "why": "drift",
        "rule": "loss",
        "previous_mask": 1,
        "evicted_mask": None,
        "ratio": 1.25,
        "best_candidate": 2,
        "best_statistic": 0.1235,
        "best_residual": -0.5,
    }
    assert {name: line[name] for name in expected} == expected


def test_a_decision_without_candidates_leaves_them_empty() -> None:
    decision = Decision(action="allocate", mask_id=0, why="start", rule="loss")
    [line] = lines_of(result(decision=decision))
    assert (line["best_candidate"], line["best_statistic"], line["best_residual"]) == (None, None, None)


@pytest.mark.parametrize(
    ("changed", "event"),
    [({"trained": False, "mask_id": None}, "batch.overflowed"), ({"trained": False}, "batch.answered")],
)
def test_batches_that_are_not_trained_have_another_name_and_no_loss(changed: dict[str, object], event: str) -> None:
    [line] = lines_of(result(loss=math.nan, accuracy=math.nan, **changed))
    assert line["event"] == event
    assert not {"loss", "accuracy", "rolling_accuracy"} & line.keys()
    json.dumps(line, allow_nan=False)


def test_the_rolling_accuracy_weighs_rows_and_forgets_old_batches() -> None:
    lines = lines_of(result(0.0, rows=4), result(1.0, rows=12))
    assert [line["rolling_accuracy"] for line in lines] == [0.0, 0.75]
    lines = lines_of(*[result(0.0)] * 10, *[result(1.0)] * ROLLING_BATCHES)
    assert lines[-2]["rolling_accuracy"] == pytest.approx(1 - 1 / ROLLING_BATCHES)
    assert lines[-1]["rolling_accuracy"] == 1.0
