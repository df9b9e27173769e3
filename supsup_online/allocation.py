"""Reuse a mask or allocate a new one: pure functions from statistics to a choice. Nothing here runs a network.

Two questions, in this order:

1. *Does the bank know this task?* Asked of the best mask by the rule's own statistic.
   `nns`: the paper's rule, k * max(nu) >= 1 + epsilon, over the masks and the untrained pads next in line.
   `familiar`: the output entropy is near what this mask usually has, on the way from there to knowing nothing.
2. *Does it fit what the mask usually costs?* Labels are there in training, so a reuse is believed only when the loss
   agrees with the mask's own running loss (`running_loss`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from supsup_online.inference import OneShot
from supsup_online.types import Examined

Floats = NDArray[np.float32]

_NO_ROOM: Final = 1e-6  # nats; an untrained mask usually knows next to nothing


@dataclass(frozen=True, slots=True)
class Reuse:
    """Go on with a mask of the bank."""

    mask_id: int


@dataclass(frozen=True, slots=True)
class Allocate:
    """No mask fits and there is room: start a new one."""


@dataclass(frozen=True, slots=True)
class OverBudget:
    """No mask fits and the budget is spent."""


Choice = Reuse | Allocate | OverBudget


def nns(outcome: OneShot, trained: int, epsilon: float) -> bool:
    """The NNs rule (section 3.4): whether the best of k superposed masks is a known task.

    Args:
        outcome: One-Shot over the `trained` masks followed by untrained pads (the design superposes at least five,
            because with k = 1 the softmax says 1 whatever the data).
        trained: how many of the superposed masks are trained; a pad that wins means the task is new.
        epsilon: the paper uses 1/8.
    """
    return outcome.best < trained and outcome.ratio >= 1 + epsilon


def familiar(entropy: float, usual: float, outputs: int, margin: float) -> bool:
    """Whether an entropy is at most `margin` of the way from a mask's usual one up to knowing nothing (ln outputs)."""
    return entropy <= usual + margin * max(math.log(outputs) - usual, 0.0)


def confidence(entropies: Floats, usual: Floats, outputs: int) -> Floats:
    """Where output entropies lie between what is usual for their masks (1) and knowing nothing, ln outputs (0).

    A mean entropy is `familiar` exactly when this is at least 1 - margin. NaN gives NaN.

    Args:
        entropies: float32 (n,), nats.
        usual: float32 (n,), what the mask of each usually has.
        outputs: of the network.
    """
    room = np.maximum(np.float32(math.log(outputs)) - usual, np.float32(_NO_ROOM))
    share: Floats = np.clip(1 - (entropies - usual) / room, 0, 1).astype(np.float32)
    return share


def choose(candidates: Sequence[Examined], *, room: bool) -> Choice:
    """The first candidate that is not contradicted by its own running loss, else a new mask, else over budget.

    Args:
        candidates: masks the rule considers known, best first; empty when it knows none, as with an empty bank.
        room: whether the budget allows one more mask.
    """
    for candidate in candidates:
        if candidate.agrees is not False:
            return Reuse(candidate.mask_id)
    return Allocate() if room else OverBudget()
