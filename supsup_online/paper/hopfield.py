"""HopSupSup: masks kept in a Hopfield network of constant size, and found again by gradient descent (section 3.5).

A mask chooses among hidden units, not weights (`unit_masks`), or the memory, which is quadratic in its bits, would be
larger than the network. Training learns a mask per task and stores it as an attractor (`hopfield_memory`). To answer, a
new mask is learnt without labels on the images at hand, over T steps, from the mean of all that were stored:

    minimise  gamma * t/T * E(2m - 1) + (1 - t/T) * H(p)

Low entropy H first says which mask fits, then low energy E pulls towards one that was stored. What it stores: a matrix
and two vectors per masked layer, whatever the number of tasks. What it must be told: the task in training; in
inference nothing. Of tasks with labels of their own (SplitMNIST) the label names the task.

The authors take every step on other images of the task's test set, and answer that whole set with the outcome. Here the
images that are asked about are all there is, as they are in service.

`Recovery.recalls` is ours. Under the stored masks the images of a task tell theirs by far (benchmarks/hopfield.py), yet
some descents end in another, or between two. So the memory is asked for what it holds: from random states it comes to
rest in stored patterns, and those are taken under which entropy is lowest: of all combinations of layers, or where
those are too many, for one layer after the other, beginning where the descent ended.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supsup_online import draws
from supsup_online.inference import entropy
from supsup_online.optimisers import SGD, new_state
from supsup_online.paper.hopfield_memory import HopfieldMemory, Rule
from supsup_online.paper.methods import Answers, Batches, Scope, Setup, State, Storage
from supsup_online.paper.unit_masks import MaskTraining, UnitMaskedNetwork, mask_of

_FLOAT: Final = 4
_COMBINATIONS: Final = 100


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a mask is found again; the defaults are the paper's.

    Attributes:
        steps: T.
        gamma: weight of the energy.
        learning_rate, momentum, weight_decay: of SGD on the scores.
        recalls: random states per layer from which stored patterns are recalled; 0: none are, as in the paper.
    """

    steps: int = 30
    gamma: float = 1.5e-3
    learning_rate: float = 500.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    recalls: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """Where a recovery stands.

    Attributes:
        patterns: -1 or 1, float32 (d,), one per masked layer.
        entropy: mean output entropy of the images, nats.
        energy: of the patterns, all layers together.
    """

    patterns: tuple[Tensor, ...]
    entropy: float
    energy: float


class HopSupSup:
    """Masks as attractors.

    Args:
        setup: what all methods share; an architecture with hidden layers.
        rule: how masks are stored.
        training: how masks are learnt.
        recovery: how they are found again.
    """

    def __init__(
        self,
        setup: Setup,
        rule: Rule = "storkey",
        training: MaskTraining | None = None,
        recovery: Recovery | None = None,
    ) -> None:
        self.setup = setup
        self.training = training or MaskTraining()
        self.recovery = recovery or Recovery()
        self.network = UnitMaskedNetwork(setup)
        self.memories = tuple(HopfieldMemory(units, rule) for units in self.network.sizes)
        self._known: tuple[int, list[Tensor]] = (0, [])

    def learn(self, task: int, batches: Batches) -> None:  # noqa: ARG002 - the memory knows no numbers
        """Learn the task's mask, and store it."""
        for memory, pattern in zip(self.memories, self.train(batches), strict=True):
            memory.store(pattern)

    def train(self, batches: Batches) -> list[Tensor]:
        """The patterns of a task, -1 or 1, float32 (d,), one per masked layer."""
        prepared = [(self.setup.prepared(x), torch.from_numpy(y)) for x, y in batches]
        scores = self.training.scores(self.network, prepared, len(prepared))
        return [2 * mask_of(part).detach() - 1 for part in scores]

    def answer(self, x: NDArray[np.generic], task: int | None, scope: Scope = "batch") -> Answers:  # noqa: ARG002
        """Labels of raw inputs, whatever the scope: all rows decide together, and their statistics normalise.

        Raises:
            SpecError: fewer than two rows.
        """
        features = self.network.features(self.setup.prepared(x))
        logits = self._logits(features, self.recover(features).patterns)
        return Answers(logits[:, : self.setup.classes].argmax(1).numpy(), None)

    def recover(self, features: Tensor) -> Step:
        """The mask that is found for `features` (n, sizes[0])."""
        end = list(self.descend(features, self.mean()))[-1]
        return self._among_recalled(features, end) if self.recovery.recalls else end

    def mean(self) -> tuple[Tensor, ...]:
        """Where the paper starts: the mean of the stored patterns, which is kept, not they."""
        return tuple(memory.mean for memory in self.memories)

    def _among_recalled(self, features: Tensor, end: Step) -> Step:
        """The recalled patterns with the lowest entropy: all combinations of layers, or one layer after the other."""
        recalled = self._recalled()
        if math.prod(map(len, recalled)) <= _COMBINATIONS:
            tried = (self._step(features, patterns) for patterns in itertools.product(*recalled))
            return min(tried, key=lambda step: step.entropy, default=end)
        for layer, patterns in enumerate(recalled):
            tried = (
                self._step(features, [*end.patterns[:layer], pattern, *end.patterns[layer + 1 :]])
                for pattern in patterns
            )
            end = min(tried, key=lambda step: step.entropy, default=end)
        return end

    def _recalled(self) -> list[Tensor]:
        """Patterns (found, d) of each layer; drawn anew when one was stored since."""
        if self._known[0] != self.memories[0].stored:
            self._known = (
                self.memories[0].stored,
                [
                    memory.recall(self._random_states(layer, len(memory.total)))
                    for layer, memory in enumerate(self.memories)
                ],
            )
        return self._known[1]

    def _random_states(self, layer: int, units: int) -> Tensor:
        count = self.recovery.recalls
        drawn = draws.bits(self.setup.seed, draws.Purpose.STARTS, layer, count * units)
        return torch.from_numpy(drawn).float().view(count, units) * 2 - 1

    def descend(self, features: Tensor, start: Sequence[Tensor]) -> Iterator[Step]:
        """Gradient descent on energy and entropy from some scores (d,) per layer; where it stands after each step."""
        rule = self.recovery
        flat = torch.cat(list(start)).clone()
        optimiser, state = SGD(rule.learning_rate, rule.momentum), new_state(SGD(), flat)
        for step in range(1, rule.steps + 1):
            flat.requires_grad_()
            masks = [mask_of(scores) for scores in self._parts(flat)]
            share = step / rule.steps
            objective = rule.gamma * share * self._energy(masks) + (1 - share) * self._entropy(features, masks)
            (gradient,) = torch.autograd.grad(objective, flat)
            flat = flat.detach()
            optimiser.update(flat, gradient.add_(flat, alpha=rule.weight_decay), state)
            yield self._step(features, [2 * mask_of(part) - 1 for part in self._parts(flat)])

    def _parts(self, flat: Tensor) -> tuple[Tensor, ...]:
        return torch.split(flat, list(self.network.sizes))

    def _energy(self, masks: Sequence[Tensor]) -> Tensor:
        terms = [memory.energy(2 * mask - 1) for memory, mask in zip(self.memories, masks, strict=True)]
        return torch.stack(terms).sum()

    def _entropy(self, features: Tensor, masks: Sequence[Tensor]) -> Tensor:
        return entropy(self.network.logits(features, masks)).mean()

    @torch.no_grad()
    def _step(self, features: Tensor, patterns: Sequence[Tensor]) -> Step:
        masks = [(pattern + 1) / 2 for pattern in patterns]
        return Step(tuple(patterns), float(self._entropy(features, masks)), float(self._energy(masks)))

    @torch.no_grad()
    def _logits(self, features: Tensor, patterns: Sequence[Tensor]) -> Tensor:
        return self.network.logits(features, [(pattern + 1) / 2 for pattern in patterns])

    def storage(self) -> Storage:
        """Matrices and sums of patterns; the seed is all that is kept of the weights."""
        return Storage(shared=8 + sum(_FLOAT * (units**2 + units) for units in self.network.sizes), per_task=0)

    def state(self) -> State:
        """Matrices, sums and the number of masks stored."""
        arrays: dict[str, NDArray[np.generic]] = {"stored": np.array(self.memories[0].stored)}
        for layer, memory in enumerate(self.memories):
            arrays |= {f"matrix-{layer}": memory.matrix.numpy(), f"total-{layer}": memory.total.numpy()}
        return arrays

    def restore(self, state: State) -> None:
        """The inverse of `state`."""
        for layer, memory in enumerate(self.memories):
            memory.matrix = torch.from_numpy(np.array(state[f"matrix-{layer}"]))
            memory.total = torch.from_numpy(np.array(state[f"total-{layer}"]))
            memory.stored = int(state["stored"])
