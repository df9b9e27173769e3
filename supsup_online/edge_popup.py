"""Edge-popup (Ramanujan et al., CVPR 2020): learn which edges of a random network to keep.

Every edge has a real *score*. The forward pass keeps some edges (the *mask*) and multiplies them with the frozen
weights; the backward pass goes straight through the choice: the gradient of the loss to an edge's score is the
gradient to the effective weight times the frozen weight, whether the edge was kept or not.

Three variants choose the mask:

* `TopK`: exactly the `keep_fraction` of each layer with the largest abs(score); ties go to the lower index. The
  gradient passes through abs, that is, it takes the sign of the score.
* `TopM`: the same with as many edges per layer as it has inputs and outputs, times m (the paper's ImageNet and CIFAR
  experiments): wide layers become sparser than narrow ones.
* `Threshold`: every edge whose score is >= 0 (the paper's MNIST experiments).

Scores come from a seed (`initial_scores`: Kaiming uniform with a = sqrt 5, so uniform on +-1/sqrt(fan_in)), from the
mean of the masks learnt so far (`transferred_scores`), or from the bits of a mask that was learnt before
(`rekindled_scores`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from supsup_online import draws
from supsup_online.bitpack import Bits
from supsup_online.errors import SpecError
from supsup_online.models import Architecture


class MaskVariant(Protocol):
    """How scores become a mask, and what that does to their gradient."""

    def select(self, scores: Tensor) -> Tensor:
        """Mask (bool, same shape) of one layer's scores."""

    def through(self, gradient: Tensor, scores: Tensor) -> Tensor:
        """Gradient to the scores, given the gradient to what the mask is computed from."""

    def rekindle(self, mask: Tensor, unit: Tensor, sign: Tensor, bound: float) -> Tensor:
        """Scores that reproduce `mask`, from uniform draws `unit` in [0, 1) and signs, for a layer's score bound."""

    def transfer(self, mean: Tensor, drawn: Tensor, bound: Tensor, share: float) -> Tensor:
        """Scores between those of a fresh mask, `drawn`, and the share of masks that keep an edge, `mean`."""


class Largest(ABC):
    """Keep exactly `kept(shape)` of a layer's edges: those with the largest abs(score)."""

    @abstractmethod
    def kept(self, shape: Sequence[int]) -> int:
        """Number of edges kept of a layer whose weight has this shape: at least one."""

    def select(self, scores: Tensor) -> Tensor:
        """Exact top-k by selection, not by sorting: linear in the number of edges."""
        magnitude = scores.abs()
        if scores.device.type != "cpu":
            return self._select_on_device(magnitude)
        # abs(float32) >= 0, so its bits as an integer order like the number, and integers select faster.
        keys = magnitude.numpy().reshape(-1).view(np.int32)
        kept = self.kept(scores.shape)
        threshold = np.partition(keys, keys.size - kept)[keys.size - kept]
        mask = keys >= threshold
        surplus = int(np.count_nonzero(mask)) - kept
        if surplus:  # scores tied at the threshold: drop the last of them
            mask[np.flatnonzero(keys == threshold)[-surplus:]] = False
        return torch.from_numpy(mask.reshape(scores.shape))

    def _select_on_device(self, magnitude: Tensor) -> Tensor:
        flat = magnitude.flatten()
        order = torch.sort(flat, descending=True, stable=True).indices
        mask = torch.zeros_like(flat, dtype=torch.bool)
        mask.scatter_(0, order[: self.kept(magnitude.shape)], value=True)
        return mask.view(magnitude.shape)

    def through(self, gradient: Tensor, scores: Tensor) -> Tensor:
        """The mask is computed from abs(score): the gradient takes the score's sign."""
        return gradient * torch.sign(scores)

    def rekindle(self, mask: Tensor, unit: Tensor, sign: Tensor, bound: float) -> Tensor:
        """Kept edges in [b, 2b), the others in [0, b/2), with random signs.

        The gap of b/2 is deliberate. The first steps of a fresh Adam move every score by the full learning rate,
        whatever its gradient; across a gap they change no mask bit until the moments mean something. Without it a
        returning task loses several points of accuracy at first (measured in docs/performance.md).
        """
        return torch.where(mask, bound * (1 + unit), bound * 0.5 * unit) * sign

    def transfer(self, mean: Tensor, drawn: Tensor, bound: Tensor, share: float) -> Tensor:
        """The larger the share of masks that keep an edge, the larger the magnitude."""
        return torch.sign(drawn) * (share * bound * mean + (1 - share) * drawn.abs())


@dataclass(frozen=True, slots=True)
class TopK(Largest):
    """Keep the same share of each layer.

    Attributes:
        keep_fraction: that share, in (0, 1].
    """

    keep_fraction: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.keep_fraction <= 1.0:
            raise SpecError(f"keep_fraction must lie in (0, 1], not {self.keep_fraction}")

    def kept(self, shape: Sequence[int]) -> int:
        """That share, rounded down, at least one."""
        return max(1, int(self.keep_fraction * math.prod(shape)))


@dataclass(frozen=True, slots=True)
class TopM(Largest):
    """Keep m edges per channel of a layer, inputs and outputs counted, and never more than half of its edges.

    That is the paper's density min(0.5, m (out + in) / (out in kh kw)).

    Attributes:
        edges_per_channel: m, at least 1.
    """

    edges_per_channel: int = 8

    def __post_init__(self) -> None:
        if self.edges_per_channel < 1:
            raise SpecError(f"edges_per_channel must be at least 1, not {self.edges_per_channel}")

    def kept(self, shape: Sequence[int]) -> int:
        """Of a layer (out, in, ...), at least one."""
        return max(1, min(math.prod(shape) // 2, self.edges_per_channel * (shape[0] + shape[1])))


@dataclass(frozen=True, slots=True)
class Threshold:
    """Keep the edges whose score is >= 0; how many that are is learnt."""

    def select(self, scores: Tensor) -> Tensor:
        """Scores >= 0."""
        return scores >= 0

    def through(self, gradient: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002 - the variants share a signature
        """Straight through."""
        return gradient

    def rekindle(self, mask: Tensor, unit: Tensor, sign: Tensor, bound: float) -> Tensor:  # noqa: ARG002 - as above
        """Kept edges in [b/4, b), the others in (-b, -b/4]: a gap around zero, for the same reason as in `Largest`."""
        magnitude = bound * (0.25 + 0.75 * unit)
        return torch.where(mask, magnitude, -magnitude)

    def transfer(self, mean: Tensor, drawn: Tensor, bound: Tensor, share: float) -> Tensor:
        """Above zero what most masks keep, below zero what most drop."""
        return share * bound * (2 * mean - 1) + (1 - share) * drawn


def initial_scores(architecture: Architecture, seed: int, mask_id: int) -> Tensor:
    """Scores of mask `mask_id` before any training: float32 (P,), uniform on +-1/sqrt(fan_in) in each layer."""
    unit = torch.from_numpy(draws.uniforms(seed, draws.Purpose.SCORES, mask_id, architecture.weight_count))
    return (2 * unit - 1) * score_bounds(architecture)


def transferred_scores(
    architecture: Architecture, variant: MaskVariant, drawn: Tensor, mean: Tensor, share: float = 0.5
) -> Tensor:
    """Scores float32 (P,) that start from the mean (P,) of the masks so far (the paper's Transfer).

    The paper takes the mean alone. Half of it and half of a fresh mask's own scores (`drawn`) learns faster in the
    first hundred batches, and edges that equally many masks keep are told apart (benchmarks/transfer.py).
    """
    return variant.transfer(mean, drawn, score_bounds(architecture), share)


def rekindled_scores(architecture: Architecture, variant: MaskVariant, seed: int, mask_id: int, mask: Bits) -> Tensor:
    """Scores float32 (P,) that reproduce a learnt mask (P,) from its bits alone, ready to learn on."""
    count = architecture.weight_count
    unit = torch.from_numpy(draws.uniforms(seed, draws.Purpose.REKINDLE, 2 * mask_id, count))
    sign = torch.from_numpy(draws.bits(seed, draws.Purpose.REKINDLE, 2 * mask_id + 1, count)).float() * 2 - 1
    scores = torch.empty(count)
    parts = (architecture.split(flat) for flat in (scores, torch.from_numpy(mask), unit, sign))
    for layer, target, bits, units, signs in zip(architecture.layers, *parts, strict=True):
        target.copy_(variant.rekindle(bits, units, signs, 1 / math.sqrt(layer.fan_in)))
    return scores


def score_bounds(architecture: Architecture) -> Tensor:
    """1/sqrt(fan_in) of each weight's layer, float32 (P,)."""
    bounds = [1 / math.sqrt(layer.fan_in) for layer in architecture.layers]
    return torch.repeat_interleave(torch.tensor(bounds), torch.tensor(architecture.sizes))


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, variant: MaskVariant) -> Tensor:
        ctx.save_for_backward(scores)
        ctx.variant = variant
        return variant.select(scores.detach()).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (scores,) = ctx.saved_tensors
        return ctx.variant.through(gradients[0], scores), None


def straight_through_reference(scores: Tensor, variant: MaskVariant) -> Tensor:
    """The mask as a differentiable function of the scores: the truth that `trainer` is tested against."""
    mask: Tensor = _StraightThrough.apply(scores, variant)  # type: ignore[no-untyped-call]
    return mask
