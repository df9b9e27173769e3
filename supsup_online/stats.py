"""Numbers kept per mask, for people and for the decisions; plain text in the store, exact there and back."""

import math
from dataclasses import dataclass, field, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from supsup_online.errors import CodecError
from supsup_online.running_loss import RISING, RunningLoss

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)


@dataclass(slots=True)
class MaskStats:
    """What happened to one mask.

    Attributes:
        batches: batches trained into it.
        samples: samples in those.
        correct: samples predicted right before the update that used them (prequential).
        loss: running loss and its within-batch variance.
        accuracy: running prequential accuracy, newest batches weigh most.
        entropy: running output entropy, nats.
        ratio: k * max(nu) when it was allocated by a one-shot rule; 0 where no such statistic was taken.
        created_ms, updated_ms: timestamps of the first and the newest batch trained into it (record time, not wall
            time).
        last_used: the learner's step count at its newest batch; orders masks by use.
        stream: stream of its newest batch.
    """

    batches: int = 0
    samples: int = 0
    correct: int = 0
    loss: RunningLoss = field(default_factory=RunningLoss)
    accuracy: float = 0.0
    entropy: float = 0.0
    ratio: float = 0.0
    created_ms: int = 0
    updated_ms: int = 0
    last_used: int = 0
    stream: str = ""

    def observe(self, losses: NDArray[np.float32], correct: int, entropy: float) -> None:
        """Take in one batch as it was before its update: losses (n,), right answers, mean entropy in nats."""
        weight = max(1.0 / (self.batches + 1), RISING)
        self.loss.observe(losses)
        self.accuracy += weight * (correct / len(losses) - self.accuracy)
        self.entropy += weight * (entropy - self.entropy)
        self.batches += 1
        self.samples += len(losses)
        self.correct += correct

    def to_text(self) -> dict[str, str]:
        """Field -> plain text; floats in their shortest form that reads back to the same bits."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["loss"] = self.loss.mean
        values["loss_variance"] = self.loss.variance
        return {name: str(value) for name, value in values.items()}

    @classmethod
    def from_text(cls, text: dict[str, str]) -> "MaskStats":
        """The inverse of `to_text`; other fields are ignored.

        Raises:
            CodecError: a field is missing or does not parse.
        """
        try:
            whole = {n: _whole(text[n], least) for n, least in _WHOLE.items()}
            real = {n: float(text[n]) for n in ("accuracy", "entropy", "ratio")}
            loss = RunningLoss(_level(text["loss"]), float(text["loss_variance"]), whole["batches"])
            return cls(**whole, **real, loss=loss, stream=text["stream"])  # type: ignore[arg-type]
        except (KeyError, ValueError) as error:
            raise CodecError(f"stored statistics are damaged: {error!r}") from error


# A record's time may be before 1970, or the -1 of a record that has none.
_WHOLE: Final = {
    "batches": 0,
    "samples": 0,
    "correct": 0,
    "created_ms": -(2**63),
    "updated_ms": -(2**63),
    "last_used": 0,
}


def _whole(text: str, least: int) -> int:
    value = int(text)
    if not least <= value < 2**63:
        raise ValueError(f"{text[:40]} lies outside {least} to 2**63 - 1")
    return value


def _level(text: str) -> float:
    """A mean of float32 losses; of a mask that has diverged it may be infinite or NaN, beyond that squares overflow."""
    value = float(text)
    if _FLOAT32_MAX < abs(value) < math.inf:
        raise ValueError(f"{text[:40]} is no mean of float32 numbers")
    return value
