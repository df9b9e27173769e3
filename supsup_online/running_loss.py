"""A mask's own running loss: what it usually costs, so that a batch can be said to fit it or not.

A mask that solves a task has a level of loss, and samples scatter around it. `residual` says how far a batch's loss
lies above that level, in units in which +1 is noise. It is the one statistic behind two decisions: the drift detector
reads it batch by batch, and a reuse is believed only when it stays within a tolerance.

    residual = (batch loss - mean) / scale
    scale    = max( sqrt(variance / rows), margin * (chance - mean) / tolerance )

The first term is the standard error of a batch of that many rows. The second keeps a mask that has become very sure
of itself from crying wolf: a batch is within `tolerance` at least as long as it gives up no more than `margin` of
what the mask has learnt (chance = ln classes is the loss of knowing nothing).
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from supsup_online.errors import SpecError

# Weight of the newest batch: a mask gets better fast and is believed at once; it gets worse reluctantly.
FALLING: Final = 0.5
RISING: Final = 0.2
SCATTER: Final = 0.1  # of the variance, which should not follow every batch
_TINY: Final = 1e-6
_MOST_GIVEN_UP: Final = 0.5


@dataclass(frozen=True, slots=True)
class Agreement:
    """When a batch agrees with a mask.

    Attributes:
        tolerance: largest residual that still agrees.
        margin: share of what a mask has learnt that a batch may always give up.
    """

    tolerance: float = 6.0
    margin: float = 0.2

    def __post_init__(self) -> None:
        if not (0 < self.tolerance < math.inf and 0 <= self.margin <= 1):
            raise SpecError(f"tolerance must be positive and margin in [0, 1], not {self.tolerance} and {self.margin}")


@dataclass(slots=True)
class RunningLoss:
    """Level and variance of the per-sample loss before each update, newest batches weighing most."""

    mean: float = 0.0
    variance: float = 0.0
    batches: int = 0

    def observe(self, losses: NDArray[np.float32]) -> None:
        """Take in the losses (n,) of one batch.

        The level is what the mask is capable of by now: while it learns, an average over its past would be far above
        that, and a batch of another task would seem to fit.
        """
        mean, variance = moments(losses)
        first = not self.batches
        weight = 1.0 if first else FALLING if mean < self.mean else RISING
        # A batch above the level shows how batches scatter; one below it shows that the mask learns.
        scatter = variance if first else variance + max(mean - self.mean, 0.0) ** 2
        self.variance += max(1.0 / (self.batches + 1), SCATTER) * (scatter - self.variance)
        self.mean += weight * (mean - self.mean)
        self.batches += 1

    def residual(self, losses: NDArray[np.float32], chance: float, agreement: Agreement) -> float:
        """How far the mean of `losses` (n,) lies above the running mean, in the units described above."""
        if not self.batches:
            return 0.0
        mean, _ = moments(losses)
        spread = math.sqrt(max(self.variance, _TINY) / len(losses))
        allowance = agreement.margin * max(chance - self.mean, 0.0) / agreement.tolerance
        return (mean - self.mean) / max(spread, allowance)

    def recognises(self, losses: NDArray[np.float32], chance: float) -> bool:
        """Whether a batch gives up less than half of what the mask has learnt. Another task mostly gives up all of it.

        A weak mask needs this beside `residual`: it has learnt little, and with its scatter anything agrees.
        """
        return self.mean < chance and moments(losses)[0] - self.mean < _MOST_GIVEN_UP * (chance - self.mean)


def moments(values: NDArray[np.float32]) -> tuple[float, float]:
    """Mean and variance of float32 values, in float64."""
    wide = values.astype(np.float64)
    return float(wide.mean()), float(wide.var())
