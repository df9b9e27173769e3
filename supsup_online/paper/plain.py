"""What the baselines share: a network whose weights are trained by torch.optim, with any effective weights in between.

All begin with the same Kaiming normal weights, drawn from the seed, and none has a bias: their networks are SupSup's
but for what is learnt in them. The loss is the cross-entropy over all outputs; a label is the largest of the first
`classes` of them.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from supsup_online import weights
from supsup_online.errors import SpecError
from supsup_online.models import Architecture
from supsup_online.optimisers import SGD, Adam, OptimiserChoice, RMSprop
from supsup_online.paper.methods import Answers, Batches, Setup, TaskNeededError

Logits = Callable[[Tensor], Tensor]
LogitsUnder = Callable[[Tensor, int], Tensor]

FLOAT_BYTES: Final = 4  # of a float32
SEED_BYTES: Final = 8  # of a seed, where something has to be drawn again


def start(setup: Setup, architecture: Architecture) -> Tensor:
    """The weights every baseline begins with, float32 (P,): Kaiming normal, from the seed."""
    return torch.from_numpy(weights.generate(architecture, setup.seed, "kaiming-normal"))


def torch_optimiser(choice: OptimiserChoice, leaves: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The optimiser of torch that moves `leaves`.

    Raises:
        SpecError: the name is unknown, or the learning rate is not positive and finite.
    """
    match choice.build():
        case Adam(learning_rate=rate, betas=betas, eps=eps):
            return torch.optim.Adam(leaves, lr=rate, betas=betas, eps=eps)
        case RMSprop(learning_rate=rate, decay=decay, eps=eps):
            return torch.optim.RMSprop(leaves, lr=rate, alpha=decay, eps=eps)
        case SGD(learning_rate=rate, momentum=momentum):
            return torch.optim.SGD(leaves, lr=rate, momentum=momentum)
        case other:
            raise SpecError(f"torch has no optimiser for {other.name}")


def labels_of(y: NDArray[np.int64]) -> Tensor:
    """Labels as a tensor of its own, int64 (n,)."""
    return torch.from_numpy(y.astype(np.int64))


def step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One update along the gradient of a loss."""
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def train(
    setup: Setup,
    batches: Batches,
    leaves: Sequence[Tensor],
    logits: Logits,
    *,
    choice: OptimiserChoice | None = None,
    penalty: Callable[[], Tensor] | None = None,
) -> None:
    """Move `leaves` down the mean cross-entropy of one batch after the other, in place.

    Args:
        setup: what all methods share.
        batches: raw x and labels y.
        leaves: tensors that require a gradient.
        logits: prepared inputs (n, *input_shape) to outputs (n, outputs), by way of the leaves.
        choice: of the optimiser, which begins anew; None: the set-up's.
        penalty: added to the loss of every batch.
    """
    optimiser = torch_optimiser(choice or setup.optimiser, leaves)
    rate = setup.schedule.follow(optimiser) if setup.schedule else None
    for x, y in batches:
        loss = functional.cross_entropy(logits(setup.prepared(x)), labels_of(y))
        step(optimiser, loss if penalty is None else loss + penalty())
        if rate:
            rate.step()


def best_labels(setup: Setup, logits: Tensor) -> NDArray[np.int64]:
    """Outputs (n, outputs) to labels, int64 (n,)."""
    labels: NDArray[np.int64] = logits[:, : setup.classes].argmax(1).numpy()
    return labels


def answer_told(method: str, setup: Setup, x: NDArray[np.generic], task: int | None, under: LogitsUnder) -> Answers:
    """Labels of raw inputs under the task that is told.

    Args:
        method: its name, for the error.
        setup: what all methods share.
        x: raw inputs.
        task: which task they are of.
        under: prepared inputs and a task to outputs (n, outputs).

    Raises:
        TaskNeededError: no task was told.
    """
    if task is None:
        raise TaskNeededError(method)
    with torch.no_grad():
        labels = best_labels(setup, under(setup.prepared(x), task))
    return Answers(labels, np.full(len(labels), task, dtype=np.int64))


def answer_at_once(setup: Setup, x: NDArray[np.generic], logits: Logits) -> Answers:
    """Labels of raw inputs from a network that knows no tasks."""
    with torch.no_grad():
        return Answers(best_labels(setup, logits(setup.prepared(x))), None)


def cut(architecture: Architecture, flat: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (P,) as those of the trunk and those of the head, the last layer: copies, both flat."""
    trunk, head = torch.split(flat, [architecture.weight_count - architecture.sizes[-1], architecture.sizes[-1]])
    return trunk.clone(), head.clone()


def joined(architecture: Architecture, trunk: Tensor, head: Tensor) -> list[Tensor]:
    """Views of a flat trunk and a flat head, one per layer; a gradient to the head asks none of the trunk."""
    parts = [*torch.split(trunk, list(architecture.sizes[:-1])), head]
    return [part.view(layer.weight_shape) for part, layer in zip(parts, architecture.layers, strict=True)]


def stacked(rows: Sequence[Tensor], width: int) -> NDArray[np.float32]:
    """Vectors, float32 (width,) each, as an array (rows, width); no rows are an array as well."""
    return np.array([row.numpy() for row in rows], dtype=np.float32).reshape(len(rows), width)


def unstacked(rows: NDArray[np.generic]) -> list[Tensor]:
    """The inverse of `stacked`; copies."""
    return list(torch.from_numpy(rows.astype(np.float32)))
