"""The training step of masked MLPs on the CPU, written out: three matrix products a layer and one pass over the scores.

`trainer.EdgePopupTrainer` is the same step by autograd, and the truth this one is tested against. What is saved here is
memory traffic: autograd's step walks over the weights some twenty times (mask, product, gradient, sign, two moments,
update, selection), this one once (`kernels.step`). Beside its scores a hot mask has its effective weights at hand,
made from the scores alone and never stored.

With `bfloat16` the products are those of a ternary network: signed-constant weights are +-c, so a masked one is c times
-1, 0 or 1, which bfloat16 holds exactly, and c moves to the layer's outputs. Activations and gradients are rounded to
eight bits of mantissa; scores and moments stay float32.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from supsup_online.bitpack import Words
from supsup_online.edge_popup import TopK
from supsup_online.errors import SpecError
from supsup_online.kernels import step
from supsup_online.kernels.compiled import spread
from supsup_online.network import Network
from supsup_online.optimisers import SGD, Adam, Optimiser, OptimiserState, RMSprop
from supsup_online.trainer import EdgePopupTrainer, Evaluation, HotMask
from supsup_online.types import Precision

_LEAST: Final = 16  # pieces worth a thread
_ABS: Final = np.int32(0x7FFFFFFF)
_BAND: Final = (0.004, 0.25)  # half width of the band of notes: least and most, as shares of the threshold
_SLACK: Final = 4.0  # the band over how far the threshold moved last


@dataclass(slots=True)
class Effective:
    """What the scores of a hot mask stand for.

    Attributes:
        flat: effective weights (P,), float32; or their signs, bfloat16.
        layers: views of it, one per layer.
        cut: int32 (layers, 2): smallest key kept, and the last index kept among those equal to it (top-k).
        width: half width of each layer's band, as a share of its threshold. Speed depends on it, results do not.
    """

    flat: Tensor
    layers: list[Tensor]
    cut: NDArray[np.int32]
    width: list[float]


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
        self._offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._frozen: NDArray[np.float32] = network.weights.numpy()
        self._dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self._gradient = torch.empty(max(sizes), dtype=self._dtype)
        self._noted = np.empty(network.architecture.weight_count, dtype=np.int32)
        self._scales = [float(part.abs().max()) for part in self._weights]
        variant = network.variant
        self._kept = [variant.kept(size) for size in sizes] if isinstance(variant, TopK) else None

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
            hot.derived = Effective(flat, layers, cut, [_BAND[0]] * len(layers))
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
        self._noted[first:last] = np.arange(first, last, dtype=np.int32)
        self._settle(hot, effective, layer, [(first, last - first)], self._kept[layer])

    def _settle(
        self, hot: HotMask, effective: Effective, layer: int, places: list[tuple[int, int]], missing: int
    ) -> None:
        where, cut = np.array(places, dtype=np.int64), effective.cut[layer]
        step.settle(_keys(hot), self._frozen, _bits(effective.flat), self._noted, where, missing, cut)

    # -- the step ---------------------------------------------------------------------------------------------------

    def evaluate(self, hot: HotMask, x: Tensor, y: Tensor) -> ForwardPass:
        """Logits and losses of prepared inputs (n, *input_shape) and labels (n,) under the mask as it is."""
        weights, inputs = self._effective(hot).layers, []
        h = x.flatten(1).to(self._dtype)
        for layer, weight in enumerate(weights):
            inputs.append(h)
            h = h @ weight.T
            if layer < len(weights) - 1:
                h = self._scaled(h, layer).relu_()
        logits = self._scaled(h.float(), len(weights) - 1)
        log_p = functional.log_softmax(logits, dim=1)
        losses = functional.nll_loss(log_p, y, reduction="none")
        return ForwardPass(logits, log_p, losses, losses.mean(), (), tuple(inputs), y)

    def update(self, hot: HotMask, evaluation: Evaluation) -> None:
        """Edge-popup: gradient to the effective weights, times the frozen weights, straight through to the scores."""
        assert isinstance(evaluation, ForwardPass)  # noqa: S101 - for the type checker; `evaluate` made it
        effective = self._effective(hot)
        kind, constants = _constants(self.optimiser, hot.optimiser)
        above = _output_gradient(evaluation).to(self._dtype)
        for layer in reversed(range(len(effective.layers))):
            inputs, outputs = evaluation.inputs[layer], above
            if layer:  # before the weights change
                above = self._scaled(outputs @ effective.layers[layer], layer)
                above = torch.ops.aten.threshold_backward(above, inputs, 0)
            self._advance(hot, effective, layer, (outputs, inputs), (kind, constants))

    def _scaled(self, outputs: Tensor, layer: int) -> Tensor:
        """Signs stand for weights in bfloat16: their size comes in here."""
        return outputs if self._dtype == torch.float32 else outputs.mul_(self._scales[layer])

    def _advance(
        self,
        hot: HotMask,
        effective: Effective,
        layer: int,
        factors: tuple[Tensor, Tensor],
        rule: tuple[int, NDArray[np.float32]],
    ) -> None:
        """Gradient of a layer, and the pass over its scores while most of it is in a cache."""
        outputs, inputs = factors
        low, high = self._band(effective, layer)
        moments = hot.optimiser.moments
        arrays = (self._frozen, hot.scores.numpy(), moments[0].numpy(), moments[-1].numpy(), _bits(effective.flat))
        begin, end = int(self._offsets[layer]), int(self._offsets[layer + 1])
        gradient = self._gradient[: end - begin]
        torch.mm(outputs.T, inputs, out=gradient.view(outputs.shape[1], -1))
        found: list[tuple[int, int, int]] = []

        def part(first: int, last: int) -> None:
            a, b = begin + first * step.PIECE, min(begin + last * step.PIECE, end)
            above, inside = step.advance(_bits(gradient), *arrays, self._noted, low, high, *rule, a, b, begin)
            found.append((a, int(above), inside))

        spread(-(-(end - begin) // step.PIECE), part, least=_LEAST)
        if self._kept is not None:
            self._cut(hot, effective, layer, sorted(found))

    def _band(self, effective: Effective, layer: int) -> tuple[int, int]:
        """Keys between which the layer's new threshold is expected; -1 without top-k."""
        if self._kept is None:
            return -1, -1
        threshold, width = effective.cut[layer, :1].view(np.float32)[0], np.float32(effective.width[layer])
        ends = np.array([threshold * (1 - width), threshold * (1 + width)], dtype=np.float32).view(np.int32)
        return int(ends[0]), int(ends[1])

    def _cut(self, hot: HotMask, effective: Effective, layer: int, found: list[tuple[int, int, int]]) -> None:
        """Find the layer's exact threshold inside its band, or, where it is not there, among all scores."""
        assert self._kept is not None  # noqa: S101 - for the type checker; `_advance` asked
        threshold = effective.cut[layer, :1].view(np.float32)
        before = float(threshold[0])
        missing = self._kept[layer] - sum(above for _, above, _ in found)
        if 0 < missing <= sum(inside for _, _, inside in found):
            self._settle(hot, effective, layer, [(at, inside) for at, _, inside in found], missing)
        else:
            self._select(hot, effective, layer)
        moved = abs(float(threshold[0]) - before) / before if before > 0 else _BAND[1]
        effective.width[layer] = min(max(_SLACK * moved, _BAND[0]), _BAND[1])


def _output_gradient(evaluation: ForwardPass) -> Tensor:
    """Gradient of the mean loss to the logits: (softmax - one-hot) / n."""
    rows = len(evaluation.labels)
    gradient = evaluation.log_p.exp()
    gradient.numpy()[np.arange(rows), evaluation.labels.numpy()] -= 1  # torch's indexing takes six times as long
    return gradient.div_(rows)


def _keys(hot: HotMask) -> NDArray[np.int32]:
    return hot.scores.numpy().view(np.int32)


def _bits(tensor: Tensor) -> NDArray[Any]:
    """A tensor as an array; bfloat16, which numpy has not, as its bits."""
    return tensor.numpy() if tensor.dtype == torch.float32 else tensor.view(torch.uint16).numpy()


def _constants(optimiser: Optimiser, state: OptimiserState) -> tuple[int, NDArray[np.float32]]:
    """Kind and constants of `kernels.step.advance` for the next update, which is counted.

    Raises:
        TypeError: an optimiser the step is not written out for.
    """
    state.step += 1
    match optimiser:
        case Adam():
            mean, square = (1 - beta**state.step for beta in optimiser.betas)
            root, (slow, slower) = square**0.5, optimiser.betas
            rate = optimiser.learning_rate / mean * root
            return step.ADAM, _floats(rate, 1 - slow, slower, 1 - slower, optimiser.eps * root)
        case RMSprop():
            decay = optimiser.decay
            return step.RMSPROP, _floats(optimiser.learning_rate, 0, decay, 1 - decay, optimiser.eps)
        case SGD():
            return step.SGD, _floats(optimiser.learning_rate, 0, optimiser.momentum, 0, 0)
    raise TypeError(f"the step is not written out for {type(optimiser).__name__}")


def _floats(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)
