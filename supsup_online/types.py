"""What goes into the learner and what comes out, as frozen records."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Action = Literal["reuse", "allocate", "over-budget"]
Why = Literal["start", "window", "drift", "look-again"]

# Choices by name, for settings: kept in a module that imports nothing heavy.
RuleName = Literal["loss", "exact", "one-shot", "paper"]
DetectorName = Literal["page-hinkley", "adwin", "kswin", "none"]
Objective = Literal["H", "G"]
OverBudgetPolicy = Literal["overflow", "evict"]
Precision = Literal["float32", "bfloat16"]
OptimiserName = Literal["adam", "rmsprop", "sgd"]
VariantName = Literal["top-k", "top-m", "threshold"]
WeightInit = Literal["signed-constant", "kaiming-normal"]


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """One labelled (or, with y None, unlabelled) mini-batch.

    Attributes:
        x: inputs, uint8 or float32 of shape (n, *input_shape), n >= 1.
        y: labels, int64 of shape (n,), or None.
        stream: batches of one stream follow each other; batches of different streams have separate histories.
        timestamp_ms: when the data says it was made (a record's timestamp); the library has no clock of its own.
    """

    x: NDArray[np.generic]
    y: NDArray[np.int64] | None = None
    stream: str = ""
    timestamp_ms: int = 0


@dataclass(frozen=True, slots=True)
class Examined:
    """A mask that a decision looked at.

    Attributes:
        mask_id: whose.
        statistic: what the rule ranks masks by: mean loss, mean entropy (nats), or k * nu.
        residual: how far the loss lies above the mask's running loss, in units of noise; None where not asked.
        agrees: whether that is within tolerance; None where not asked.
    """

    mask_id: int
    statistic: float
    residual: float | None = None
    agrees: bool | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """Which mask a stretch of the stream goes to, and why.

    Attributes:
        action: reuse, allocate or over-budget.
        mask_id: the mask chosen; None when over budget.
        why: what asked for the decision: a stream without a mask, the end of a window, drift, or a new mask whose
            first batches another one explains after all.
        rule: the rule that decided.
        candidates: masks examined, best first (at most five).
        ratio: k * max(nu) for the one-shot rules, else None.
        evicted: the mask that had to go, to make room or as one too many; or None.
        previous: the mask the stream had before, or None.
    """

    action: Action
    mask_id: int | None
    why: Why
    rule: str
    candidates: tuple[Examined, ...] = ()
    ratio: float | None = None
    evicted: int | None = None
    previous: int | None = None


@dataclass(frozen=True, eq=False, slots=True)
class StepResult:
    """What one batch did, before and after.

    Attributes:
        stream: the batch's stream.
        rows: samples in it.
        mask_id: the mask it was tested (and trained) under; None when over budget.
        trained: whether an update was made.
        decision: the decision that preceded it, or None when the stream simply went on.
        loss: mean cross-entropy before the update; NaN without labels or mask.
        accuracy: share of right labels before the update; NaN without labels or mask.
        correct: number of right labels before the update.
        entropy: mean output entropy in nats; NaN without a mask.
        predictions: labels int64 (n,); empty without a mask.
    """

    stream: str
    rows: int
    mask_id: int | None
    trained: bool
    decision: Decision | None
    loss: float = float("nan")
    accuracy: float = float("nan")
    correct: int = 0
    entropy: float = float("nan")
    predictions: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def parse_shape(text: str) -> tuple[int, ...]:
    """`28x28` or `28,28` -> (28, 28).

    Raises:
        ValueError: not one to four positive whole numbers.
    """
    shape = tuple(int(part) for part in text.lower().replace(",", "x").split("x"))
    if not 1 <= len(shape) <= 4 or min(shape) < 1:
        raise ValueError(f"{text!r} is no input shape; write for instance 28x28")
    return shape
