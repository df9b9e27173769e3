"""Online EWC, elastic weight consolidation: one network, in which weights that mattered to earlier tasks resist change.

How much a weight matters is the diagonal of the empirical Fisher information, the mean squared gradient of single
rows' losses. After each task it is added to what earlier tasks left of it (times gamma). The next task pays
strength / 2 * sum(fisher * (weights - anchor)**2), the anchor being where the last task ended.

Stores the network and the Fisher information, once, and per task nothing; the latter is needed to learn on, not to
answer. Must be told in training when a task ends; in inference nothing: it answers without knowing tasks. It has one
head, so that tasks share their labels; labels of each task's own, as in the number that the paper quotes for it, are
`own_labels`.

Source: Kirkpatrick et al. (2017); the online form: Schwarz et al. (2018). Strength and gamma are the best of a coarse
search on ten permutations of MNIST (LeNet 300-100, 1000 batches a task), as those of the sources belong to other
networks: stronger, and later tasks are not learnt; weaker, and earlier ones are forgotten.
"""

from collections import deque
from collections.abc import Collection
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional

from supsup_online.models import Architecture
from supsup_online.paper import plain
from supsup_online.paper.methods import Answers, Batches, Scope, Setup, State, Storage
from supsup_online.parts import statistics_count

_ROWS_AT_ONCE: Final = 16  # each has a gradient of its own, P floats


class OnlineEWC:
    """One network, held back where it matters.

    Args:
        setup: what all methods share.
        strength: lambda, the weight of the penalty; 0 is plain training, one task after the other.
        gamma: what is left of the information of earlier tasks, 0 to 1, after each task.
        fisher_batches: last batches of a task from which its information is measured.
    """

    def __init__(self, setup: Setup, *, strength: float = 100.0, gamma: float = 0.9, fisher_batches: int = 4) -> None:
        self.setup, self.strength, self.gamma, self.fisher_batches = setup, strength, gamma, fisher_batches
        self.architecture = setup.build()
        self._weights = plain.start(setup, self.architecture)
        self._fisher = torch.zeros_like(self._weights)

    def learn(self, task: int, batches: Batches) -> None:  # noqa: ARG002 - that one task ends is all it needs to know
        """Train the network on under the penalty, and then measure what mattered."""
        last: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.fisher_batches)

        def noted() -> Batches:
            for x, y in batches:
                last.append((self.setup.prepared(x), plain.labels_of(y)))
                yield x, y

        leaf, anchor = self._weights.clone().requires_grad_(), self._weights
        plain.train(
            self.setup,
            noted(),
            [leaf],
            lambda x: self._logits(x, leaf),
            penalty=lambda: self.strength / 2 * (self._fisher * (leaf - anchor).square()).sum(),
        )
        self._weights = leaf.detach()
        self._fisher = self.gamma * self._fisher + fisher_information(self.architecture, self._weights, last)

    def _logits(self, x: Tensor, flat: Tensor) -> Tensor:
        return self.architecture.forward(x, self.architecture.split(flat))

    def answer(self, x: NDArray[np.generic], task: int | None, scope: Scope = "row") -> Answers:  # noqa: ARG002
        """Under the one network."""
        return plain.answer_at_once(self.setup, x, lambda inputs: self._logits(inputs, self._weights))

    def storage(self) -> Storage:
        """Weights and Fisher information, float32."""
        return Storage(2 * self._weights.numel() * plain.FLOAT_BYTES, 0)

    def state(self) -> State:
        """`weights`, the anchor of the next task, and `fisher`, (P,) each."""
        return {"weights": self._weights.numpy().copy(), "fisher": self._fisher.numpy().copy()}

    def restore(self, state: State) -> None:
        """Weights and information of `state`."""
        (self._weights,) = plain.unstacked(state["weights"][None])
        (self._fisher,) = plain.unstacked(state["fisher"][None])


def fisher_information(architecture: Architecture, flat: Tensor, batches: Collection[tuple[Tensor, Tensor]]) -> Tensor:
    """Diagonal of the empirical Fisher information, float32 (P,).

    Args:
        architecture: of the network.
        flat: its weights (P,).
        batches: prepared x (n, *input_shape) and labels y (n,); none: zeros. Normalisations go by the statistics of the
            batch, for one image alone has others.
    """

    def loss(weights: Tensor, statistics: Tensor | None, row: Tensor, label: Tensor) -> Tensor:
        logits = architecture.forward(row[None], architecture.split(weights), statistics)
        return functional.cross_entropy(logits, label[None])

    of_each = vmap(grad(loss), in_dims=(None, None, 0, 0))
    total = torch.zeros_like(flat)
    for x, y in batches:
        statistics = _statistics(architecture, flat, x)
        for rows, labels in zip(torch.split(x, _ROWS_AT_ONCE), torch.split(y, _ROWS_AT_ONCE), strict=True):
            total += of_each(flat, statistics, rows, labels).square().sum(0)
    return total / max(1, sum(len(y) for _, y in batches))


def _statistics(architecture: Architecture, flat: Tensor, x: Tensor) -> Tensor | None:
    """Of the normalisations of a batch, float32 (F,); None where the network keeps none."""
    count = statistics_count(architecture.body.channels)
    if not count:
        return None
    noted = torch.zeros(count)
    with torch.no_grad():
        architecture.forward(x, architecture.split(flat), noted=noted)
    return noted
