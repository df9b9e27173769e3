"""PSP, parameter superposition: one set of weights for all tasks, each of which sees it turned its own way.

Every task has a context per layer, over the layer's inputs: a random rotation C (an orthogonal matrix), or a vector of
random signs ("binary"). Its effective weights are W C, and all tasks train the one W, each through its own contexts.
In many dimensions random contexts are nearly orthogonal to each other, so that what one task writes looks like noise
to the others: noise that grows with the number of tasks.

Stores W, and per task nothing: a context follows from the seed, and is drawn again when its task is asked for. That is
cheap in bytes and not in time (a QR decomposition per layer). Whether it is fair to count so is an open question: the
authors of SupSup keep contexts as arrays, and such rotations take 4 * sum(inputs**2) bytes a task, more than a network
(LeNet 300-100: 2.9 MB, against 1.1 MB); signs take sum(inputs) bits. Must be told the task, in training and in
inference (scenario GG).

Source: Cheung et al. (2019), "Superposition of many models into one"; settings for MNIST (RMSprop 1e-4) as in Wortsman
et al. (2020). They start W from Xavier normal; here it starts like every other network.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from supsup_online import draws
from supsup_online.models import Architecture
from supsup_online.paper import plain
from supsup_online.paper.methods import Answers, Batches, Scope, Setup, State, Storage
from supsup_online.threads import threads

Contexts = Literal["rotation", "binary"]
_LAYERS = 2**16  # more than a network has: the context of a layer has an index of its own


class ParameterSuperposition:
    """One set of weights, turned by the contexts of a task.

    Args:
        setup: what all methods share.
        contexts: `rotation` or `binary`.
    """

    def __init__(self, setup: Setup, contexts: Contexts = "rotation") -> None:
        self.setup, self.contexts = setup, contexts
        self.architecture = setup.build()
        self._weights = plain.start(setup, self.architecture)
        self._current: tuple[int, list[Tensor]] | None = None

    def learn(self, task: int, batches: Batches) -> None:
        """Train the weights on, through the contexts of the task."""
        leaf = self._weights.clone().requires_grad_()
        plain.train(self.setup, batches, [leaf], lambda x: self._logits(x, leaf, task))
        self._weights = leaf.detach()

    def _logits(self, x: Tensor, flat: Tensor, task: int) -> Tensor:
        contexts = self._contexts_of(task)
        if self.architecture.is_connected:
            return turned_inputs(self.architecture, x, flat, contexts)
        return turned_weights(self.architecture, x, flat, contexts)

    def _contexts_of(self, task: int) -> list[Tensor]:
        """Those of one task are kept at hand: it is trained, and asked, many times in a row."""
        if self._current is None or self._current[0] != task:
            self._current = task, draw_contexts(self.architecture, self.setup.seed, task, self.contexts)
        return self._current[1]

    def answer(self, x: NDArray[np.generic], task: int | None, scope: Scope = "row") -> Answers:  # noqa: ARG002
        """Through the contexts of the task.

        Raises:
            TaskNeededError: no task was told.
        """
        return plain.answer_told("PSP", self.setup, x, task, self._under)

    def _under(self, inputs: Tensor, task: int) -> Tensor:
        return self._logits(inputs, self._weights, task)

    def storage(self) -> Storage:
        """The weights and the seed; nothing per task (but see the module's words on that)."""
        return Storage(self._weights.numel() * plain.FLOAT_BYTES + plain.SEED_BYTES, 0)

    def state(self) -> State:
        """`weights` (P,)."""
        return {"weights": self._weights.numpy().copy()}

    def restore(self, state: State) -> None:
        """The weights of `state`."""
        (self._weights,) = plain.unstacked(state["weights"][None])


def draw_contexts(architecture: Architecture, seed: int, task: int, kind: Contexts) -> list[Tensor]:
    """Contexts of a task, one per layer of i inputs: rotations float32 (i, i), or signs float32 (i,)."""
    draw = _rotation if kind == "rotation" else _signs
    inputs = [layer.weight_shape[1] for layer in architecture.layers]
    return [draw(seed, task * _LAYERS + index, size) for index, size in enumerate(inputs)]


def _rotation(seed: int, index: int, size: int) -> Tensor:
    """Uniform over the orthogonal matrices: QR of normal draws, the sign of each column fixed (Mezzadri, 2007)."""
    drawn = draws.normals(seed, draws.Purpose.CONTEXTS, index, size * size)
    with threads(1):  # its last bits depend on their number
        q, r = torch.linalg.qr(torch.from_numpy(drawn).view(size, size))
    rotation: Tensor = q * r.diagonal().sign()
    return rotation


def _signs(seed: int, index: int, size: int) -> Tensor:
    return torch.from_numpy(draws.bits(seed, draws.Purpose.CONTEXTS, index, size).astype(np.float32) * 2 - 1)


def turned_weights(architecture: Architecture, x: Tensor, flat: Tensor, contexts: list[Tensor]) -> Tensor:
    """Outputs (n, outputs) of inputs under the effective weights W C, whatever the layers are."""
    parts = zip(architecture.split(flat), contexts, strict=True)
    return architecture.forward(x, [_turned(weight, context) for weight, context in parts])


def _turned(weight: Tensor, context: Tensor) -> Tensor:
    """W C over the inputs, the second axis of a weight (o, i, ...)."""
    if context.dim() == 2:
        return torch.einsum("oj...,ji->oi...", weight, context)
    return weight * context.view(1, -1, *[1] * (weight.dim() - 2))


def turned_inputs(architecture: Architecture, x: Tensor, flat: Tensor, contexts: list[Tensor]) -> Tensor:
    """The same for a chain of connected layers, as W (C x): to turn a batch costs less than to turn the weights."""
    x = x.flatten(1)
    for layer, weight, context in zip(architecture.layers, architecture.split(flat), contexts, strict=True):
        x = layer.forward(functional.linear(x, context) if context.dim() == 2 else x * context, weight)
    return x
