"""The training step of masked MLPs on a GPU: written out on fixed buffers, recorded once, replayed as a CUDA graph.

A step of LeNet is some sixty small kernels, and starting them one by one takes longer than running them. A graph starts
all with one call, but has the addresses of its tensors built in. So there is one set of buffers, into which a mask's
state is copied when it is its turn, and two recordings for each size of batch: `evaluate` and `update`, between which
the learner may look at the losses. After an update the state is copied back: what a hot mask holds is always current.

`trainer.EdgePopupTrainer` is the same step by autograd. On a CPU nothing is recorded and the same functions are called:
so they are tested everywhere, and only the recording needs a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from supsup_online.network import Network
from supsup_online.optimisers import Adam, Optimiser, OptimiserState
from supsup_online.trainer import EdgePopupTrainer, Evaluation, HotMask

_SIZES: Final = 4  # sizes of batches with a recording; for one more, that unused for longest is dropped
_WARM_UPS: Final = 3  # calls before a recording: libraries allocate in the first ones

Tensors = tuple[Tensor, ...]


@dataclass(eq=False, slots=True)
class Pass:
    """Both halves of a step for one size of batch.

    Attributes:
        x: inputs (n, features), filled before `forward`.
        y: labels (n,), likewise.
        forward: gives logits, softmax, losses and mean loss, and keeps what `backward` needs.
        backward: moves the scores in the buffers.
    """

    x: Tensor
    y: Tensor
    forward: Callable[[], Tensors]
    backward: Callable[[], Tensors]


class DeviceTrainer(EdgePopupTrainer):
    """Trains masks over one MLP on a device.

    Memory beside the hot masks: buffers of (4 + moments) * 4 * P bytes, and activations per size of batch. The tensors
    of an evaluation are buffers too: they hold until the next one.
    """

    def __init__(self, network: Network, optimiser: Optimiser) -> None:
        super().__init__(network, optimiser)
        self._scores = torch.zeros_like(network.weights)
        self._moments = [torch.zeros_like(network.weights) for _ in range(optimiser.moment_count)]
        self._updates = torch.zeros((), dtype=torch.float64, device=network.device)
        self._effective = torch.zeros_like(network.weights)
        self._gradient = torch.zeros_like(network.weights)
        self._passes: dict[int, Pass] = {}
        self._loaded: tuple[HotMask, int] | None = None

    def __reduce__(self) -> tuple[type["DeviceTrainer"], tuple[Network, Optimiser]]:
        """A copy gets buffers of its own."""
        return DeviceTrainer, (self.network, self.optimiser)

    def evaluate(self, hot: HotMask, x: Tensor, y: Tensor) -> Evaluation:
        """Logits and losses of prepared inputs (n, *input_shape) and labels (n,) under the mask as it is."""
        self._load(hot)
        current = self._pass(len(x))
        current.x.copy_(x.flatten(1))
        current.y.copy_(y)
        logits, p, losses, mean = current.forward()
        return Evaluation(logits, p, losses, mean, ())

    def update(self, hot: HotMask, evaluation: Evaluation) -> None:
        """Edge-popup for the evaluation made last, which must be of this mask.

        Raises:
            ValueError: another mask was evaluated since.
        """
        if self._loaded is None or self._loaded[0] is not hot:
            raise ValueError("a mask is updated right after it was evaluated")
        self._passes[len(evaluation.losses)].backward()
        hot.optimiser.step += 1
        hot.scores.copy_(self._scores)
        for kept, moved in zip(hot.optimiser.moments, self._moments, strict=True):
            kept.copy_(moved)
        self._loaded = (hot, hot.optimiser.step)

    # -- buffers ----------------------------------------------------------------------------------------------------

    def _load(self, hot: HotMask) -> None:
        """A mask's state into the buffers, unless it is there."""
        if self._loaded is not None and self._loaded[0] is hot and self._loaded[1] == hot.optimiser.step:
            return
        self._scores.copy_(hot.scores)
        for buffer, kept in zip(self._moments, hot.optimiser.moments, strict=True):
            buffer.copy_(kept)
        self._updates.fill_(hot.optimiser.step)
        self._choose()
        self._loaded = (hot, hot.optimiser.step)

    def _pass(self, rows: int) -> Pass:
        found = self._passes.pop(rows, None) or self._recorded(rows)
        self._passes[rows] = found  # the newest is the last
        if len(self._passes) > _SIZES:
            del self._passes[next(iter(self._passes))]
        return found

    def _recorded(self, rows: int) -> Pass:
        device, inputs = self.network.device, self.network.architecture.layers[0].fan_in
        x, y = torch.zeros(rows, inputs, device=device), torch.zeros(rows, dtype=torch.int64, device=device)
        kept: list[Tensor] = []  # of the forward pass, for the backward pass
        state = [self._scores, *self._moments, self._updates, self._effective]
        forward = _recording(lambda: self._forward(x, y, kept), device, [])
        return Pass(x, y, forward, _recording(lambda: self._backward(y, kept), device, state))

    # -- the step, over the buffers ---------------------------------------------------------------------------------

    def _forward(self, x: Tensor, y: Tensor, kept: list[Tensor]) -> Tensors:
        weights, inputs = self.network.architecture.split(self._effective), []
        h = x
        for layer, weight in enumerate(weights):
            h = h.relu() if layer else h
            inputs.append(h)
            h = h @ weight.T
        losses = functional.cross_entropy(h, y, reduction="none")
        p = h.softmax(1)
        kept[:] = [p, *inputs]
        return h, p, losses, losses.mean()

    def _backward(self, y: Tensor, kept: list[Tensor]) -> Tensors:
        split, (p, *inputs) = self.network.architecture.split, kept
        weights, gradients = split(self._effective), split(self._gradient)
        above = p.scatter_add(1, y[:, None], torch.full_like(p[:, :1], -1)) / len(y)
        for layer in reversed(range(len(weights))):
            torch.mm(above.T, inputs[layer], out=gradients[layer])
            if layer:
                above = (above @ weights[layer]) * (inputs[layer] > 0)
        parts = zip(gradients, self._weights, split(self._scores), strict=True)
        through = torch.cat([self.network.variant.through(g * w, s).flatten() for g, w, s in parts])
        self._updates += 1
        _move(self.optimiser, self._scores, through, self._moments, self._updates)
        self._choose()
        return ()

    def _choose(self) -> None:
        """Effective weights of the scores in the buffers."""
        split, variant = self.network.architecture.split, self.network.variant
        for target, frozen, scores in zip(split(self._effective), self._weights, split(self._scores), strict=True):
            torch.mul(frozen, variant.select(scores), out=target)


def _move(optimiser: Optimiser, scores: Tensor, gradient: Tensor, moments: list[Tensor], updates: Tensor) -> None:
    """One update. Adam's corrections depend on the number of updates, which a recording must not have built in."""
    if not isinstance(optimiser, Adam):
        optimiser.update(scores, gradient, OptimiserState(0, moments))
        return
    mean, square = moments
    slow, slower = optimiser.betas
    mean.lerp_(gradient, 1 - slow)
    square.mul_(slower).addcmul_(gradient, gradient, value=1 - slower)
    rate = (optimiser.learning_rate / (1 - slow**updates)).float()
    root = (1 - slower**updates).sqrt().float()
    scores.sub_(rate * mean / (square.sqrt() / root + optimiser.eps))


def _recording(function: Callable[[], Tensors], device: torch.device, changed: list[Tensor]) -> Callable[[], Tensors]:
    """The function as a CUDA graph, or itself on a CPU. What it changes is as before when the recording is done."""
    if device.type != "cuda":
        return function
    before = [tensor.clone() for tensor in changed]
    aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UPS):
            function()
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    for tensor, value in zip(changed, before, strict=True):
        tensor.copy_(value)

    def replay() -> Tensors:
        graph.replay()
        return outputs

    return replay
