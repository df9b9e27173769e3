"""The training step of one mask: evaluate a batch, then move the scores.

Testing and training share one forward pass: `evaluate` computes the losses a test-then-train protocol reports
*before* the update, and `update` continues from the very same graph. Weights stay frozen; only scores move.

Memory per hot mask: scores and optimiser moments, float32 each: (1 + moments) * 4 * P bytes, 3.8 MB for LeNet 300-100
with Adam, against 43 KB for the packed mask.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from supsup_online.bitpack import Statistics, Words
from supsup_online.edge_popup import initial_scores, rekindled_scores, transferred_scores
from supsup_online.network import Network
from supsup_online.optimisers import Optimiser, OptimiserState, new_state
from supsup_online.parts import fold


@dataclass(slots=True)
class HotMask:
    """A mask in training.

    Attributes:
        scores: float32 (P,).
        optimiser: what the optimiser remembers of it.
        statistics: float32 (F,), those its normalisations keep; empty where there are none.
        derived: what a trainer keeps at hand that follows from the scores alone; never stored, made anew when missing.
    """

    scores: Tensor
    optimiser: OptimiserState
    statistics: Tensor = field(default_factory=lambda: torch.zeros(0))
    derived: object = field(default=None, compare=False, repr=False)

    def __reduce__(self) -> tuple[type["HotMask"], tuple[Tensor, OptimiserState, Tensor]]:
        """A copy has what is learnt; what is derived holds views, which a copy would cut from what they view."""
        return HotMask, (self.scores, self.optimiser, self.statistics)


@dataclass(frozen=True, eq=False, slots=True)
class Evaluation:
    """A batch under one mask, before any update.

    Attributes:
        logits: (n, outputs), without gradient.
        p: their softmax (n, outputs), without gradient.
        losses: cross-entropy per sample, float32 (n,), without gradient.
        mean_loss: scalar that carries the graph.
        weights: the effective weights the graph ends in, one leaf per layer.
        statistics: float32 (F,), those of the batch in the normalisations that keep some, else None.
    """

    logits: Tensor
    p: Tensor
    losses: Tensor
    mean_loss: Tensor
    weights: tuple[Tensor, ...]
    statistics: Tensor | None = field(default=None, kw_only=True)

    @property
    def is_finite(self) -> bool:
        """Whether all that the update goes by are finite numbers."""
        return bool(self.mean_loss.isfinite()) and (self.statistics is None or bool(self.statistics.isfinite().all()))

    def entropies(self, y: Tensor) -> Tensor:
        """Output entropy per sample, nats, float32 (n,), from the losses of labels y (n,) and without a logarithm."""
        logsumexp = self.losses + self.logits.gather(1, y[:, None]).squeeze(1)
        expected: Tensor = torch.linalg.vecdot(self.p, self.logits)
        return (logsumexp - expected).clamp_(min=0)


class EdgePopupTrainer:
    """Trains masks over one frozen network; holds no state of any mask itself."""

    def __init__(self, network: Network, optimiser: Optimiser) -> None:
        self.network = network
        self.optimiser = optimiser
        self._weights = network.architecture.split(network.weights)

    def start(self, mask_id: int, mean: NDArray[np.float32] | None = None) -> HotMask:
        """A fresh mask: scores drawn for this id; with the mean of the masks so far, float32 (P,), they start there."""
        net = self.network
        scores = initial_scores(net.architecture, net.spec.weight_seed, mask_id)
        if mean is not None:
            scores = transferred_scores(net.architecture, net.variant, scores, torch.from_numpy(mean))
        return self._hot(scores, net.layout.fresh_statistics)

    def rekindle(self, mask_id: int, words: Words) -> HotMask:
        """A learnt mask that was cold, ready to learn on: scores made from its bits, fresh optimiser state."""
        net = self.network
        mask = net.layout.unpack(words)
        scores = rekindled_scores(net.architecture, net.variant, net.spec.weight_seed, mask_id, mask)
        return self._hot(scores, net.layout.statistics(words))

    def _hot(self, scores: Tensor, statistics: Statistics) -> HotMask:
        scores = scores.to(self.network.device)
        kept = torch.from_numpy(statistics).to(self.network.device)
        return HotMask(scores, new_state(self.optimiser, scores), kept)

    def pack(self, hot: HotMask) -> Words:
        """The packed mask that the scores stand for now, and its statistics."""
        return self.network.layout.pack(self.network.select(hot.scores), hot.statistics.cpu().numpy())

    def evaluate(self, hot: HotMask, x: Tensor, y: Tensor) -> Evaluation:
        """Logits and losses of prepared inputs (n, *input_shape) and labels (n,) under the mask as it is.

        Normalisations go by the statistics of the batch.
        """
        net = self.network
        noted = torch.zeros_like(hot.statistics) if net.layout.statistics_count else None
        parts = zip(net.architecture.split(hot.scores), self._weights, strict=True)
        effective = tuple((frozen * net.variant.select(part)).requires_grad_() for part, frozen in parts)
        logits = net.architecture.forward(x, effective, noted=noted)
        losses = functional.cross_entropy(logits, y, reduction="none")
        plain = logits.detach()
        return Evaluation(plain, plain.softmax(1), losses.detach(), losses.mean(), effective, statistics=noted)

    def update(self, hot: HotMask, evaluation: Evaluation) -> None:
        """Edge-popup: gradient to the effective weights, times the frozen weights, straight through to the scores.

        The statistics of the batch are folded into those kept with the mask.
        """
        gradients = torch.autograd.grad(evaluation.mean_loss, evaluation.weights)
        parts = zip(gradients, self._weights, self.network.architecture.split(hot.scores), strict=True)
        through = self.network.variant.through
        score_gradient = torch.cat([through(g * frozen, part).flatten() for g, frozen, part in parts])
        self.optimiser.update(hot.scores, score_gradient, hot.optimiser)
        if evaluation.statistics is not None:
            fold(hot.statistics, evaluation.statistics)
