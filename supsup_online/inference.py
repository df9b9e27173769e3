"""Which mask fits this input? One-Shot, Binary and exact inference over packed masks.

One-Shot and Binary (section 3.3 of the paper) superpose the masks, p(alpha) = f(x, W * sum_i alpha_i M_i), and read
the task off the gradient of an objective with respect to alpha. *Exact* runs the network under every mask instead;
packed bits make that affordable, and it knows no superposition noise.

Objectives (per batch, smaller means a better mask):
    H  mean entropy of the softmax over all outputs.
    G  logsumexp of the logits, where only the superfluous neurons carry gradient: a mask that fits has learnt to keep
       those down. Needs outputs > classes. Its value means nothing without the gradient; where the outputs under each
       mask are at hand, `misfit` asks the same question of them directly.

The arithmetic over many masks is in `many_masks`; here is what is done with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from supsup_online import many_masks, superposition
from supsup_online.bitpack import Masks
from supsup_online.errors import SpecError
from supsup_online.network import Network
from supsup_online.types import Objective

Floats = NDArray[np.float32]
Slots = NDArray[np.int64]

_HARDLY_ANY: Final = 1e-3  # probability of superfluous neurons; benchmarks/answers.py


@dataclass(frozen=True, eq=False, slots=True)
class OneShot:
    """Outcome of a One-Shot pass over k masks.

    Attributes:
        gradient: dObjective / dalpha_i, float32 (k,).
        nu: softmax(-gradient), float32 (k,); k * max(nu) is the statistic of the NNs rule.
    """

    gradient: Floats
    nu: Floats

    @property
    def best(self) -> int:
        """Position of the mask that fits best."""
        return int(np.argmax(self.nu))

    @property
    def ratio(self) -> float:
        """K * max(nu): 1 when no mask stands out."""
        return float(len(self.nu) * self.nu.max())


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the softmax over the last axis: logits (..., s) -> (...)."""
    return _entropy_of(functional.log_softmax(logits, dim=-1))


def _entropy_of(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).sum(-1)


def superfluous(logits: Tensor, classes: int) -> Tensor:
    """Objective G per row: logsumexp of logits (n, s) with the gradient cut off the first `classes` of them."""
    return torch.cat([logits[..., :classes].detach(), logits[..., classes:]], dim=-1).logsumexp(-1)


def misfit(logits: Tensor, classes: int) -> Tensor:
    """How badly the masks that gave logits (..., s) fit their inputs, from the outputs alone: (...), lower fits better.

    Entropy plus the log of the probability of the superfluous neurons, which no task uses. An image that could be a 4
    or a 9 has a high entropy under its own mask, yet hardly any probability on those; so among hundreds of masks this
    names the right one where the lowest entropy is often a wrong mask's. Below `_HARDLY_ANY` less probability says
    nothing: networks of much room learn to keep those neurons down for all inputs. Entropy alone where there are none.
    """
    log_p = functional.log_softmax(logits, dim=-1)
    uncertainty = _entropy_of(log_p)
    if logits.shape[-1] <= classes:
        return uncertainty
    wasted = log_p[..., classes:].logsumexp(-1)
    return uncertainty + torch.logaddexp(wasted, torch.full_like(wasted, _HARDLY_ANY).log())


def check_objective(network: Network, objective: Objective) -> None:
    """Raise SpecError for objective G without superfluous neurons."""
    if objective == "G" and network.spec.outputs <= network.spec.classes:
        raise SpecError("objective G needs superfluous neurons: choose outputs larger than classes, or objective H")


def one_shot(
    network: Network,
    masks: Masks,
    x: Tensor,
    objective: Objective = "H",
    *,
    mean: Floats | None = None,
    slots: Slots | None = None,
) -> OneShot:
    """One gradient step from equal alphas over masks (k, word_count), for prepared inputs x (n, ...).

    Args:
        network: the frozen weights.
        masks: packed.
        x: prepared inputs.
        objective: H or G.
        mean: the mean of these very masks, float32 (P,), where it is known already.
        slots: int64 (k,), those of `masks` that are superposed; None: all.

    Raises:
        SpecError: objective G without superfluous neurons.
    """
    slots = np.arange(len(masks)) if slots is None else slots
    gradient = _alpha_gradient(network, masks, slots, x, objective, mean=mean)
    shifted = np.exp(gradient.min() - gradient)
    return OneShot(gradient, (shifted / shifted.sum()).astype(np.float32))


def binary(network: Network, masks: Masks, x: Tensor, objective: Objective = "H", slots: Slots | None = None) -> int:
    """Position of the best mask by halving: keep the better half by gradient, renormalise, repeat about log2 k times.

    Arguments as in `one_shot`; the position counts in `slots` where they are given.

    Raises:
        SpecError: objective G without superfluous neurons.
    """
    slots = np.arange(len(masks)) if slots is None else slots
    remaining = np.arange(len(slots))
    while len(remaining) > 1:
        gradient = _alpha_gradient(network, masks, slots[remaining], x, objective)
        keep = np.argsort(gradient, kind="stable")[: (len(remaining) + 1) // 2]
        remaining = remaining[np.sort(keep)]
    return int(remaining[0])


def exact_entropies(network: Network, masks: Masks, x: Tensor) -> Floats:
    """Output entropy of every row under every mask: masks (k, word_count), x (n, ...) -> float32 (k, n).

    Normalised by the statistics of these rows, as in training, whose running entropy this is compared with.
    """
    return _under_each(network, masks, x, entropy)


def exact_losses(network: Network, masks: Masks, x: Tensor, y: Tensor) -> Floats:
    """Cross-entropy of every labelled row under every mask: y (n,) -> float32 (k, n). Normalised as in training."""
    return _under_each(network, masks, x, lambda logits: _cross_entropy(logits, y))


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Logits (k, n, s), labels (n,) -> (k, n)."""
    return functional.cross_entropy(logits.transpose(1, 2), y.expand(len(logits), -1), reduction="none")


def _alpha_gradient(
    network: Network, masks: Masks, slots: Slots, x: Tensor, objective: Objective, *, mean: Floats | None = None
) -> Floats:
    check_objective(network, objective)
    return superposition.alpha_gradient(network, masks, slots, x, _objective(network, objective), mean=mean)


def _objective(network: Network, objective: Objective) -> Callable[[Tensor], Tensor]:
    """Logits (n, outputs) -> (n,)."""
    return entropy if objective == "H" else lambda logits: superfluous(logits, network.spec.classes)


def _under_each(network: Network, masks: Masks, x: Tensor, reduce: Callable[[Tensor], Tensor]) -> Floats:
    found = [reduce(logits).cpu().numpy() for logits in many_masks.exact_logits(network, masks, x, by_batch=True)]
    return np.concatenate([np.zeros((0, len(x)), dtype=np.float32), *found])
