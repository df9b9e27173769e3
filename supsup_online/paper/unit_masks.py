"""The network of HopSupSup: frozen weights, normalised hidden units, and one mask bit per hidden unit (appendix B).

A hidden layer is linear, normalised with the statistics of the batch, masked unit by unit, then Swish:

    a = swish(m * normalise(W x)),    swish(u) = u * sigmoid(u)

and the last layer is linear alone. There are no biases and nothing of the normalisation is learnt, so m is all that
tells two tasks apart. The rows of a batch are not independent of each other: none can be answered for alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from supsup_online import weights
from supsup_online.errors import SpecError
from supsup_online.optimisers import SGD, new_state
from supsup_online.paper.methods import Setup
from supsup_online.paper.schedule import Schedule, Scheduled

_EPS = 1e-5  # of torch.nn.BatchNorm


class UnitMaskedNetwork:
    """Frozen signed-constant weights from the seed of a set-up, masks on the normalised hidden units.

    Args:
        setup: an architecture with at least one hidden layer, its outputs, and the seed of the weights.

    Attributes:
        sizes: hidden units of each masked layer.

    Raises:
        SpecError: an unknown architecture, or one without a hidden layer.
    """

    def __init__(self, setup: Setup) -> None:
        architecture = setup.build()
        if len(architecture.layers) < 2:
            raise SpecError(f"{setup.architecture} has no hidden layer whose units a mask could choose from")
        self._weights = architecture.split(torch.from_numpy(weights.generate(architecture, setup.seed)))
        self.sizes = tuple(weight.shape[0] for weight in self._weights[:-1])

    def features(self, x: Tensor) -> Tensor:
        """The first layer before its mask, which no mask changes: x (n, ...) to float32 (n, sizes[0]).

        Raises:
            SpecError: fewer than two rows, which have no statistics to be normalised with.
        """
        if len(x) < 2:
            raise SpecError("units are normalised with the statistics of the batch: give at least two rows")
        return normalised(functional.linear(x.flatten(1), self._weights[0]))

    def logits(self, features: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Outputs (n, outputs) of `features` (n, sizes[0]) under one mask (sizes[i],) of each hidden layer."""
        hidden = functional.silu(features * masks[0])
        for weight, mask in zip(self._weights[1:-1], masks[1:], strict=True):
            hidden = functional.silu(normalised(functional.linear(hidden, weight)) * mask)
        return functional.linear(hidden, self._weights[-1])


def normalised(units: Tensor) -> Tensor:
    """Units (n, d) less their mean, by their standard deviation over the n rows."""
    return functional.batch_norm(units, None, None, training=True, eps=_EPS)


class _Threshold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:  # noqa: ARG004 - torch's signature
        return (scores >= 0).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004 - torch's signature
        return gradients[0]


def mask_of(scores: Tensor) -> Tensor:
    """Score >= 0 as 0.0 or 1.0, same shape; the gradient goes straight through to the scores."""
    mask: Tensor = _Threshold.apply(scores)  # type: ignore[no-untyped-call]
    return mask


@dataclass(frozen=True, slots=True)
class MaskTraining:
    """How the scores of one task are learnt; the defaults are the paper's for SplitMNIST.

    Attributes:
        learning_rate: of the first batch; it falls along a half cosine to 0 after the last.
        momentum: of SGD.
        weight_decay: added to the gradient, times the score.
    """

    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def scores(self, network: UnitMaskedNetwork, batches: Iterable[tuple[Tensor, Tensor]], steps: int) -> list[Tensor]:
        """Scores of each hidden layer, float32 (sizes[i],), after prepared batches (x, y) of one task.

        All start from zero, the whole network. `steps` is the number of batches, which the cosine has to know.
        """
        flat = torch.zeros(sum(network.sizes))
        rule = Scheduled(SGD(self.learning_rate, self.momentum), Schedule(steps, self.weight_decay))
        state = new_state(rule, flat)
        for x, y in batches:
            flat.requires_grad_()
            masks = [mask_of(scores) for scores in torch.split(flat, list(network.sizes))]
            loss = functional.cross_entropy(network.logits(network.features(x), masks), y)
            (gradient,) = torch.autograd.grad(loss, flat)
            flat = flat.detach()
            rule.update(flat, gradient, state)
        return list(torch.split(flat, list(network.sizes)))
