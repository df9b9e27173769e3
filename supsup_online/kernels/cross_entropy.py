"""Cross-entropy and its gradient from a softmax that is already there: one exponential per logit for both."""

import numpy as np
from numpy.typing import NDArray

from supsup_online.kernels.compiled import compiled

Floats = NDArray[np.float32]


@compiled
def losses_into(logits: Floats, p: Floats, labels: NDArray[np.int64], losses: Floats) -> None:
    """Loss of every row, and behind them their mean.

    The logsumexp of a row is logit - log p of any of its outputs; taken from one with a p that is not tiny it has every
    digit. Some p is at least 1 / outputs, and mostly it is the label's.

    Args:
        logits: float32 (n, s).
        p: their softmax, float32 (n, s); a row with NaN gives NaN.
        labels: int64 (n,), each in 0..s-1.
        losses: float32 (n + 1,), written.
    """
    outputs = logits.shape[1]
    enough, total = np.float32(0.5 / outputs), 0.0
    for row in range(len(labels)):
        label = labels[row]
        likely = label
        if not p[row, likely] >= enough:
            likely = 0
            while likely < outputs - 1 and p[row, likely] < enough:
                likely += 1
        loss = logits[row, likely] - np.log(p[row, likely]) - logits[row, label]
        losses[row] = loss
        total += loss
    losses[len(labels)] = total / len(labels)


@compiled
def gradient_into(p: Floats, labels: NDArray[np.int64], gradient: Floats) -> None:
    """Gradient of the mean loss to the logits, (p - one-hot) / n: float32 (n, s), written."""
    share = np.float32(1) / np.float32(len(labels))
    for row in range(len(labels)):
        source, target = p[row], gradient[row]
        for i in range(len(source)):
            target[i] = source[i] * share
        target[labels[row]] -= share
