"""BatchE, batch ensembles: shared weights, and two vectors per layer for each task that scale outputs and inputs.

The effective weight of a task is W * s r^T, with s over a layer's outputs and r over its inputs (over channels in a
convolution). W is trained on task 1, together with that task's vectors, and then frozen; later tasks train vectors
only, from random signs. Where a normalisation follows a layer, it undoes all of s but its signs, and little is left to
learn with. With random weights ("Rand W" in the paper) W is never trained. The last layer is scaled like
all others; no task has a head of its own.

Stores W once (random weights follow from the seed), and per task s and r of every layer. Must be told the task in
training. In inference it is told (scenario GG), or finds the task as SupSup does, by One-Shot over the rank-one
matrices in place of masks: the effective weight is W * sum_i alpha_i s_i r_i^T at equal alphas, and the steepest alpha
is the task (figure 5, right). `exact` runs the network once per task instead and takes the lowest entropy, as the
authors' code can as well.

Source: Wen et al. (2020), "BatchEnsemble"; settings for MNIST (Adam, 1e-4 for task 1, 1e-2 for later vectors) as in
Wortsman et al. (2020).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from supsup_online import draws, inference
from supsup_online.errors import SpecError
from supsup_online.models import Architecture
from supsup_online.optimisers import OptimiserChoice
from supsup_online.paper import plain
from supsup_online.paper.methods import Answers, Batches, Scope, Setup, State, Storage, TaskNeededError
from supsup_online.types import Objective

Way = Literal["told", "one-shot", "entropy"]

FIRST_TASK: Final = OptimiserChoice("adam", 1e-4)
LATER_TASKS: Final = OptimiserChoice("adam", 1e-2)


class BatchE:
    """Shared weights, and scales for each task.

    Args:
        setup: what all methods share, but for the optimisers.
        random_weights: whether the weights stay as they were drawn.
        first: the optimiser of the weights and of the vectors of task 1.
        later: of vectors over frozen weights.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        random_weights: bool = False,
        first: OptimiserChoice = FIRST_TASK,
        later: OptimiserChoice = LATER_TASKS,
    ) -> None:
        self.setup, self.random_weights, self.first, self.later = setup, random_weights, first, later
        self.architecture = setup.build()
        self.weights = plain.start(setup, self.architecture)
        self.vectors: list[Tensor] = []

    def learn(self, task: int, batches: Batches) -> None:
        """Train vectors for the task; with task 1 the weights as well, unless they are random."""
        vectors, weights = self._signs(task).requires_grad_(), self.weights
        leaves, choice = [vectors], self.later
        if task == 0 and not self.random_weights:
            weights = weights.clone().requires_grad_()
            leaves, choice = [vectors, weights], self.first
        plain.train(self.setup, batches, leaves, lambda x: self.logits(x, weights, vectors), choice=choice)
        self.weights = weights.detach()
        self.vectors.append(vectors.detach())

    def _signs(self, task: int) -> Tensor:
        """+-1 at random, float32 (K,), as the authors begin."""
        bits = draws.bits(self.setup.seed, draws.Purpose.RANK_ONE, task, vector_size(self.architecture))
        return torch.from_numpy(bits.astype(np.float32) * 2 - 1)

    def logits(self, x: Tensor, weights: Tensor, vectors: Tensor) -> Tensor:
        """Outputs (n, outputs) of prepared inputs, under flat weights (P,) scaled by flat vectors (K,)."""
        scaled = scaled_activations if self.architecture.is_connected else scaled_weights
        return scaled(self.architecture, x, weights, vectors)

    def answering(self, way: Way, objective: Objective = "H") -> "Answering":
        """What was learnt, with the task told or found in some way.

        Raises:
            SpecError: objective G without superfluous neurons.
        """
        return Answering(self, way, objective)

    def answer(self, x: NDArray[np.generic], task: int | None, scope: Scope = "row") -> Answers:
        """Under the vectors of the task that is told, else of the one that One-Shot inference names."""
        return self.answering("one-shot" if task is None else "told").answer(x, task, scope)

    def storage(self) -> Storage:
        """The weights once, or their seed, and the vectors of each task, float32."""
        weights = plain.SEED_BYTES if self.random_weights else self.weights.numel() * plain.FLOAT_BYTES
        return Storage(weights, vector_size(self.architecture) * plain.FLOAT_BYTES)

    def state(self) -> State:
        """`vectors` (tasks so far, K), and `weights` (P,) unless they are random."""
        vectors = {"vectors": plain.stacked(self.vectors, vector_size(self.architecture))}
        return vectors if self.random_weights else vectors | {"weights": self.weights.numpy().copy()}

    def restore(self, state: State) -> None:
        """Weights and vectors of `state`."""
        self.vectors = plain.unstacked(state["vectors"])
        if not self.random_weights:
            (self.weights,) = plain.unstacked(state["weights"][None])


def vector_size(architecture: Architecture) -> int:
    """K, the numbers of one task: outputs and inputs of all layers."""
    return sum(sum(layer.weight_shape[:2]) for layer in architecture.layers)


def split_vectors(architecture: Architecture, vectors: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Vectors (..., K) as views s (..., outputs) and r (..., inputs), one pair per layer."""
    sizes = [size for layer in architecture.layers for size in layer.weight_shape[:2]]
    parts = torch.split(vectors, sizes, dim=-1)
    return list(zip(parts[::2], parts[1::2], strict=True))


def scaled_weights(architecture: Architecture, x: Tensor, weights: Tensor, vectors: Tensor) -> Tensor:
    """Outputs (n, outputs) of inputs under the effective weights W * s r^T, whatever the layers are."""
    parts = zip(architecture.split(weights), split_vectors(architecture, vectors), strict=True)
    return architecture.forward(x, [weight * _over(s, 0, weight) * _over(r, 1, weight) for weight, (s, r) in parts])


def scaled_activations(architecture: Architecture, x: Tensor, weights: Tensor, vectors: Tensor) -> Tensor:
    """The same for a chain of connected layers, as s * W (r * x): no pass over the weights but the product itself."""
    parts = list(zip(architecture.split(weights), split_vectors(architecture, vectors), strict=True))
    x = x.flatten(1)
    for index, (weight, (s, r)) in enumerate(parts, start=1):
        x = functional.linear(x * r, weight) * s
        x = torch.relu(x) if index < len(parts) else x
    return x


def _over(vector: Tensor, axis: int, weight: Tensor) -> Tensor:
    """A view of a vector that lies along one axis of a weight."""
    shape = [1] * weight.dim()
    shape[axis] = -1
    return vector.view(shape)


@dataclass(frozen=True)
class Answering:
    """What BatchE has learnt, with some knowledge in inference.

    Attributes:
        method: it.
        way: `told`, `one-shot`, or `entropy`: the vectors of every task one after the other, and the least entropy
            (what the authors' code does).
        objective: H or G, of One-Shot.

    Raises:
        SpecError: objective G without superfluous neurons.
    """

    method: BatchE
    way: Way
    objective: Objective = "H"

    def __post_init__(self) -> None:
        if self.objective == "G" and self.method.setup.outputs <= self.method.setup.classes:
            raise SpecError("objective G needs superfluous neurons: choose outputs larger than classes")

    def answer(self, x: NDArray[np.generic], task: int | None, scope: Scope = "row") -> Answers:
        """Labels of raw inputs; `task` is looked at only where it is told.

        Raises:
            TaskNeededError: the way is `told`, and nothing was.
        """
        inputs = self.method.setup.prepared(x)
        if self.way == "told":
            if task is None:
                raise TaskNeededError("BatchE in scenario GG")
            return self._under(inputs, np.full(len(x), task, dtype=np.int64))
        if self.way == "one-shot":
            return self._under(inputs, self._steepest(inputs, scope))
        return self._under(inputs, self._surest(inputs, scope))

    def _steepest(self, inputs: Tensor, scope: Scope) -> NDArray[np.int64]:
        gradient = superposition(self.method, self._objective())
        if scope == "row":
            return np.array([int(gradient(row).argmin()) for row in inputs[:, None]], dtype=np.int64)
        found = int(gradient(inputs[:1] if scope == "first" else inputs).argmin())
        return np.full(len(inputs), found, dtype=np.int64)

    def _objective(self) -> Callable[[Tensor], Tensor]:
        classes = self.method.setup.classes
        return inference.entropy if self.objective == "H" else lambda logits: inference.superfluous(logits, classes)

    @torch.no_grad()
    def _surest(self, inputs: Tensor, scope: Scope) -> NDArray[np.int64]:
        asked = inputs[:1] if scope == "first" else inputs
        method = self.method
        outputs = [method.logits(asked, method.weights, vectors) for vectors in method.vectors]
        entropies = torch.stack([inference.entropy(logits) for logits in outputs])
        if scope == "row":
            found: NDArray[np.int64] = entropies.argmin(0).numpy()
            return found
        return np.full(len(inputs), int(entropies.mean(1).argmin()), dtype=np.int64)

    @torch.no_grad()
    def _under(self, inputs: Tensor, tasks: NDArray[np.int64]) -> Answers:
        """Each row under the vectors of its task."""
        method, labels = self.method, np.zeros(len(tasks), dtype=np.int64)
        for task in np.unique(tasks).tolist():
            rows = np.flatnonzero(tasks == task)
            logits = method.logits(inputs[torch.from_numpy(rows)], method.weights, method.vectors[task])
            labels[rows] = plain.best_labels(method.setup, logits)
        return Answers(labels, tasks)


def superposition(method: BatchE, objective: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The rank-one matrices of all k tasks in superposition, as a function from prepared inputs to a gradient.

    That is dObjective/dalpha_i = s_i^T (dObjective/dW_eff * W) r_i, summed over layers, at equal alphas: float32 (k,).

    Args:
        method: what was learnt.
        objective: of logits (n, outputs): values (n,), of which the mean is meant.
    """
    architecture = method.architecture
    pairs = split_vectors(architecture, torch.stack(method.vectors))
    weights = architecture.split(method.weights)
    means = [s.T @ r / len(s) for s, r in pairs]
    effective = [weight * _matrix_over(mean, weight) for weight, mean in zip(weights, means, strict=True)]

    def gradient(x: Tensor) -> Tensor:
        leaves = [weight.detach().requires_grad_() for weight in effective]
        found = torch.autograd.grad(objective(architecture.forward(x, leaves)).mean(), leaves)
        return _dots(found, weights, pairs)

    return gradient


def _dots(gradients: Sequence[Tensor], weights: Sequence[Tensor], pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    total = torch.zeros(len(pairs[0][0]))
    for gradient, weight, (s, r) in zip(gradients, weights, pairs, strict=True):
        through = (gradient * weight).flatten(2).sum(2) if weight.dim() > 2 else gradient * weight
        total += ((s @ through) * r).sum(1)
    return total


def _matrix_over(matrix: Tensor, weight: Tensor) -> Tensor:
    """A view of a matrix (outputs, inputs) that lies along the first two axes of a weight."""
    return matrix.view(*matrix.shape, *[1] * (weight.dim() - 2))
