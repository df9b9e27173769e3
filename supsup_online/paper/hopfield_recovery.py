"""From unlabelled inputs and a Hopfield network to the mask of their task (section 3.5, appendix B).

Two ways. Neither looks at a stored mask: both see the matrices and the running sums of `HopfieldMemory` alone.

`PaperRecovery` is the paper's: real scores s start at the mean of the stored patterns, m = (s >= 0), z = 2m - 1, and
gradient descent with momentum runs straight through the threshold on

    gamma t/T E(z) + (1 - t/T) H(p),    t = 1 .. T

with E summed over the layers and H the mean entropy of the outputs. Early steps decide, late ones round. It fails in
two manners, both decided by the early steps: it descends to the mask of another task; or, since nothing but H ties the
layers together and H fades, one layer comes to rest in one task and the next in another, or in a mixture of three.
Nothing in it notices, though the entropy it ends with is several times that of the right mask.

`ProjectedRecovery` differs in three things (benchmarks/hopfield.py). The scores stay soft: m = (s + 1) / 2 at the mean
of the patterns is the superposition with alpha = 1/k of the paper's One-Shot. The gradient of H goes through W: that is
nearly sum_i z_i z_i' / d, so W g is nearly sum_i z_i (z_i' g) / d, a step on the alphas of that superposition without
any z_i at hand, and what lies off the patterns is dropped. A few such steps, then every layer settles by Hopfield's own
dynamics. And it looks again: what was found is forgotten in a copy of W, and of a few finds the one with the lowest
entropy is kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supsup_online.inference import entropy
from supsup_online.paper.hopfield_memory import HopfieldMemory
from supsup_online.paper.unit_masks import UnitMaskedNetwork

Memories = Sequence[HopfieldMemory]


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """One step of a recovery, before its update.

    Attributes:
        entropy: mean over the rows it looked at, in nats.
        energy: of the thresholded state, summed over the layers.
        mask: bool (units,), all layers one after the other.
    """

    entropy: float
    energy: float
    mask: NDArray[np.bool_]

    def distances(self, masks: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Share of bits that differ from each of `masks` (k, units): float64 (k,)."""
        share: NDArray[np.float64] = (masks != self.mask).mean(axis=1)
        return share


@dataclass(frozen=True, eq=False, slots=True)
class Recovered:
    """What a recovery ends with.

    Attributes:
        masks: float32 (d,) of 0 and 1 for each layer.
        entropy: under these masks, of the last rows looked at.
        path: the steps that led there, and the end as one step more.
    """

    masks: list[Tensor]
    entropy: float
    path: list[Step]


class Recovery(Protocol):
    """A way to find the mask of a task."""

    def recover(self, network: UnitMaskedNetwork, memories: Memories, batches: Sequence[Tensor]) -> Recovered:
        """The mask under which inputs of one task make sense.

        Args:
            network: whose masks are looked for.
            memories: one for each hidden layer, at least one pattern stored.
            batches: features (n, sizes[0]) of inputs, see `UnitMaskedNetwork.features`.
        """


@dataclass(frozen=True, slots=True)
class PaperRecovery:
    """The paper's recovery.

    Attributes:
        steps: T; None takes the number of batches. Step t looks at batch t, beginning again after the last.
        learning_rate, momentum, weight_decay: of SGD. The decay is not in the paper; the authors' code has it.
        gamma: weight of the energy.
    """

    steps: int | None = 30
    learning_rate: float = 500.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    gamma: float = 1.5e-3

    def recover(self, network: UnitMaskedNetwork, memories: Memories, batches: Sequence[Tensor]) -> Recovered:
        """See `Recovery`."""
        steps = self.steps or len(batches)
        scores = torch.cat([memory.mean for memory in memories])
        velocity = torch.zeros_like(scores)
        path = []
        for step in range(steps):
            batch, late = batches[step % len(batches)], (step + 1) / steps
            state = _signs(scores)
            uncertainty, gradient = _entropy_gradient(network, batch, state)
            path.append(_step(uncertainty, memories, state))
            # The threshold is passed straight through, dm/ds = 1; the energy is of z = 2m - 1, so dz/ds = 2.
            pull = _fields(memories, state).mul_(-2 * self.gamma * late).add_(gradient, alpha=1 - late)
            velocity.mul_(self.momentum).add_(pull).add_(scores, alpha=self.weight_decay)
            scores = scores.sub(velocity, alpha=self.learning_rate)
        return _recovered(network, memories, batches[(steps - 1) % len(batches)], _signs(scores), path)


@dataclass(frozen=True, slots=True)
class ProjectedRecovery:
    """Recovery that moves among the stored patterns only, looks more than once and keeps the most certain.

    Attributes:
        steps: steps of each attempt.
        rate: length of a step, as a share of the length of the mean of so many unrelated patterns.
        attempts: how many patterns it tries at most.
    """

    steps: int = 10
    rate: float = 0.3
    attempts: int = 3

    def recover(self, network: UnitMaskedNetwork, memories: Memories, batches: Sequence[Tensor]) -> Recovered:
        """See `Recovery`."""
        best: Recovered | None = None
        left = memories
        for _ in range(min(self.attempts, memories[0].stored)):
            found = self._attempt(network, left, batches)
            if best is None or found.entropy < best.entropy:
                best = found
            left = [memory.without(2 * mask - 1) for memory, mask in zip(left, found.masks, strict=True)]
        if best is None:
            raise ValueError("no attempt, or nothing stored")
        return best

    def _attempt(self, network: UnitMaskedNetwork, memories: Memories, batches: Sequence[Tensor]) -> Recovered:
        state = torch.cat([memory.mean for memory in memories])
        length = self.rate * math.sqrt(len(state) / memories[0].stored)
        path = []
        for step in range(self.steps):
            soft = state.clamp(-1, 1)
            uncertainty, gradient = _entropy_gradient(network, batches[step % len(batches)], soft)
            path.append(_step(uncertainty, memories, _signs(state)))
            # A field is the negative gradient of the energy: W g, the part of g along the patterns.
            along = _fields(memories, gradient)
            state = state.sub(along, alpha=length / max(float(along.norm()), 1e-30))
        parts = zip(memories, _split(memories, _signs(state)), strict=True)
        settled = torch.cat([memory.settle(part) for memory, part in parts])
        return _recovered(network, memories, batches[(self.steps - 1) % len(batches)], settled, path)


def _entropy_gradient(network: UnitMaskedNetwork, features: Tensor, state: Tensor) -> tuple[float, Tensor]:
    """Mean entropy under the masks (z + 1) / 2, which may be soft, and its gradient to the masks (units,)."""
    masks = ((state + 1) / 2).requires_grad_()
    uncertainty = entropy(network.logits(features, torch.split(masks, list(network.sizes)))).mean()
    return uncertainty.item(), torch.autograd.grad(uncertainty, masks)[0]


def _signs(scores: Tensor) -> Tensor:
    return torch.where(scores >= 0, 1.0, -1.0)


def _split(memories: Memories, state: Tensor) -> tuple[Tensor, ...]:
    return torch.split(state, [len(memory.total) for memory in memories])


def _fields(memories: Memories, state: Tensor) -> Tensor:
    """W z of each layer, (units,)."""
    return torch.cat([memory.matrix @ part for memory, part in zip(memories, _split(memories, state), strict=True)])


def _step(uncertainty: float, memories: Memories, state: Tensor) -> Step:
    parts = zip(memories, _split(memories, state), strict=True)
    energy = sum(float(memory.energy(part)) for memory, part in parts)
    return Step(uncertainty, energy, (state > 0).numpy())


def _recovered(
    network: UnitMaskedNetwork, memories: Memories, features: Tensor, state: Tensor, path: list[Step]
) -> Recovered:
    masks = list(_split(memories, (state + 1) / 2))
    uncertainty = float(entropy(network.logits(features, masks)).mean())
    return Recovered(masks, uncertainty, [*path, _step(uncertainty, memories, state)])
