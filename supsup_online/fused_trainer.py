"""The training step of masked MLPs on the CPU, written out: three matrix products a layer and one pass over the scores.

`trainer.EdgePopupTrainer` is the same step by autograd, and the truth this one is tested against. What is saved here is
memory traffic: autograd's step walks over the weights some twenty times (mask, product, gradient, sign, two moments,
update, selection), this one once (`kernels.step`). Beside its scores a hot mask has its effective weights at hand,
made from the scores alone and never stored.

With `bfloat16` the products are those of a ternary network: signed-constant weights are +-c, so a masked one is c times
-1, 0 or 1, which bfloat16 holds exactly, and c moves to the layer's outputs. Activations and gradients are rounded to
eight bits of mantissa; scores and moments stay float32.
"""

import itertools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supsup_online.bitpack import Words
from supsup_online.device_trainer import DeviceTrainer
from supsup_online.edge_popup import Largest
from supsup_online.errors import SpecError
from supsup_online.kernels import cross_entropy, moving, step
from supsup_online.network import Network
from supsup_online.optimisers import SGD, Adam, Optimiser, RMSprop
from supsup_online.trainer import EdgePopupTrainer, Evaluation, HotMask
from supsup_online.types import Precision

_ABS: Final = np.int32(0x7FFFFFFF)


@dataclass(slots=True)
class Effective:
    """What the scores of a hot mask stand for.

    Attributes:
        flat: effective weights (P,), float32; or their signs, bfloat16.
        layers: views of it, one per layer.
        arrays: scores, first and second moment (P,) and the effective weights, as the kernels take them.
        cut: int32 (layers, 2): smallest key kept, and the last index kept among those equal to it (top-k).
        width: float32 (layers,): half width of each layer's band, as a share of its threshold.
    """

    flat: Tensor
    layers: list[Tensor]
    arrays: tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
    cut: NDArray[np.int32]
    width: NDArray[np.float32]


@dataclass(frozen=True, eq=False, slots=True)
class ForwardPass(Evaluation):
    """An evaluation with what the backward pass needs.

    Attributes:
        inputs: of each layer (n, inputs).
        labels: (n,).
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor


def trainer_for(network: Network, optimiser: Optimiser, precision: Precision = "float32") -> EdgePopupTrainer:
    """The fastest trainer for a network.

    Raises:
        SpecError: bfloat16 for a network whose masked weights it does not hold exactly, or that autograd has to train.
    """
    if network.has_kernels:
        return FusedTrainer(network, optimiser, precision)
    if precision != "float32":
        raise SpecError("bfloat16 products need fully connected layers on the CPU")
    if network.device.type == "cuda" and network.is_connected:
        return DeviceTrainer(network, optimiser)
    return EdgePopupTrainer(network, optimiser)


class FusedTrainer(EdgePopupTrainer):
    """Trains masks over one frozen MLP; holds buffers, and no state of any mask itself.

    Memory: a list of indices for the whole network, 4 bytes per weight, and the gradient of the largest layer; per hot
    mask, beside scores and moments, 4 bytes per weight (2 in bfloat16).
    """

    def __init__(self, network: Network, optimiser: Optimiser, precision: Precision = "float32") -> None:
        super().__init__(network, optimiser)
        if precision == "bfloat16" and network.spec.weight_init != "signed-constant":
            raise SpecError("bfloat16 products need signed-constant weights: only their signs are exact in it")
        self.precision = precision
        sizes = network.architecture.sizes
        self._offsets = [0, *itertools.accumulate(sizes)]
        self._frozen: NDArray[np.float32] = network.weights.numpy()
        self._dtype = torch.float32 if precision == "float32" else torch.bfloat16
        gradient = torch.empty(max(sizes), dtype=self._dtype)  # of one layer at a time
        self._gradients = [gradient[: part.numel()].view_as(part) for part in self._weights]
        self._gradient = _bits(gradient)
        self._rule = _rule(optimiser)
        self._noted = np.empty(network.architecture.weight_count, dtype=np.int32)
        self._scales = [float(part.abs().max()) for part in self._weights]
        variant = network.variant
        self._kept = [variant.kept(part.shape) for part in self._weights] if isinstance(variant, Largest) else None

    def __reduce__(self) -> tuple[type["FusedTrainer"], tuple[Network, Optimiser, Precision]]:
        """A copy gets buffers of its own."""
        return FusedTrainer, (self.network, self.optimiser, self.precision)

    # -- the mask that scores stand for -----------------------------------------------------------------------------

    def pack(self, hot: HotMask) -> Words:
        """The packed mask that the scores stand for now."""
        if self._kept is None:
            return self.network.layout.pack(hot.scores.numpy() >= 0)
        mask = np.empty(len(self._noted), dtype=np.bool_)
        for layer, (threshold, last) in enumerate(self._effective(hot).cut):
            part = slice(self._offsets[layer], self._offsets[layer + 1])
            keys = _keys(hot)[part] & _ABS
            np.greater(keys, threshold, out=mask[part])
            until = slice(part.start, last + 1)
            mask[until] |= keys[: last + 1 - part.start] == threshold
        return self.network.layout.pack(mask)

    def _effective(self, hot: HotMask) -> Effective:
        """The effective weights, made anew where the scores came from somewhere else."""
        if not isinstance(hot.derived, Effective) or hot.derived.flat.dtype != self._dtype:
            flat = torch.empty(len(self._noted), dtype=self._dtype)
            layers = self.network.architecture.split(flat)
            cut = np.zeros((len(layers), 2), dtype=np.int32)
            width = np.full(len(layers), step.NARROWEST, dtype=np.float32)
            moments = hot.optimiser.moments
            arrays = (hot.scores.numpy(), moments[0].numpy(), moments[-1].numpy(), _bits(flat))
            hot.derived = Effective(flat, layers, arrays, cut, width)
            for layer in range(len(layers)):
                self._select(hot, hot.derived, layer)
        return hot.derived

    def _select(self, hot: HotMask, effective: Effective, layer: int) -> None:
        """The mask of a layer from all of its scores."""
        first, last = self._offsets[layer], self._offsets[layer + 1]
        if self._kept is None:
            step.keep_positive(
                hot.scores.numpy()[first:last], self._frozen[first:last], _bits(effective.flat)[first:last]
            )
            return
        arrays = _keys(hot), self._frozen, _bits(effective.flat), self._noted
        step.select(*arrays, self._kept[layer], effective.cut[layer], first, last)

    # -- the step ---------------------------------------------------------------------------------------------------

    def evaluate(self, hot: HotMask, x: Tensor, y: Tensor) -> ForwardPass:
        """Logits and losses of prepared inputs (n, *input_shape) and labels (n,) under the mask as it is."""
        weights, inputs = self._effective(hot).layers, []
        h = x.reshape(len(x), -1).to(self._dtype)
        for layer, weight in enumerate(weights):
            inputs.append(h)
            h = h @ weight.T
            if layer < len(weights) - 1:
                h = self._scaled(h, layer).relu_()
        logits = self._scaled(h.float(), len(weights) - 1)
        p, losses = logits.softmax(1), torch.empty(len(y) + 1)
        cross_entropy.losses_into(logits.numpy(), p.numpy(), y.numpy(), losses.numpy())
        return ForwardPass(logits, p, losses[:-1], losses[-1], (), tuple(inputs), y)

    def update(self, hot: HotMask, evaluation: Evaluation) -> None:
        """Edge-popup: gradient to the effective weights, times the frozen weights, straight through to the scores."""
        assert isinstance(evaluation, ForwardPass)  # noqa: S101 - for the type checker; `evaluate` made it
        effective = self._effective(hot)
        hot.optimiser.step += 1
        above = _output_gradient(evaluation).to(self._dtype)
        for layer in reversed(range(len(effective.layers))):
            inputs, outputs = evaluation.inputs[layer], above
            if layer:  # before the weights change
                above = self._scaled(outputs @ effective.layers[layer], layer)
                step.cut_where_zero(_bits(inputs), _bits(above))
            self._advance(hot, effective, layer, outputs, inputs)

    def _scaled(self, outputs: Tensor, layer: int) -> Tensor:
        """Signs stand for weights in bfloat16: their size comes in here."""
        return outputs if self._dtype == torch.float32 else outputs.mul_(self._scales[layer])

    def _advance(self, hot: HotMask, effective: Effective, layer: int, outputs: Tensor, inputs: Tensor) -> None:
        """Gradient of a layer from those to its outputs, and the pass over its scores while it is in a cache."""
        torch.mm(outputs.T, inputs, out=self._gradients[layer])
        arrays = self._gradient, self._frozen, *effective.arrays
        rule = *self._rule, hot.optimiser.step
        where = self._offsets[layer], self._offsets[layer + 1]
        if self._kept is None:
            step.advance_threshold(*arrays, *rule, *where)
        else:
            band = effective.cut[layer], effective.width[layer : layer + 1]
            step.advance_top_k(*arrays, self._noted, *rule, *where, self._kept[layer], *band)


def _output_gradient(evaluation: ForwardPass) -> Tensor:
    """Gradient of the mean loss to the logits: (softmax - one-hot) / n."""
    gradient = torch.empty_like(evaluation.p)
    cross_entropy.gradient_into(evaluation.p.numpy(), evaluation.labels.numpy(), gradient.numpy())
    return gradient


def _keys(hot: HotMask) -> NDArray[np.int32]:
    return hot.scores.numpy().view(np.int32)


def _bits(tensor: Tensor) -> NDArray[Any]:
    """A tensor as an array; bfloat16, which numpy has not, as its bits."""
    return tensor.numpy() if tensor.dtype == torch.float32 else tensor.view(torch.uint16).numpy()


def _rule(optimiser: Optimiser) -> tuple[int, NDArray[np.float64]]:
    """Kind and hyperparameters of an optimiser: learning rate, decay of the mean, decay of the square, eps.

    Raises:
        TypeError: an optimiser the step is not written out for.
    """
    match optimiser:
        case Adam():
            return moving.ADAM, np.array([optimiser.learning_rate, *optimiser.betas, optimiser.eps])
        case RMSprop():
            return moving.RMSPROP, np.array([optimiser.learning_rate, 0, optimiser.decay, optimiser.eps])
        case SGD():
            return moving.SGD, np.array([optimiser.learning_rate, 0, optimiser.momentum, 0])
    raise TypeError(f"the step is not written out for {type(optimiser).__name__}")
