"""Optimisers over one flat vector of scores, with one state per mask.

torch.optim keeps one state for all of its parameters; with momentum, Adam or weight decay the scores of masks that
are *not* being trained would then drift on, that is, forget. Here a state belongs to one mask and only moves with it.
The update rules are those of torch.optim with its defaults; the tests hold them to it.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol

import torch
from torch import Tensor

from supsup_online.errors import SpecError


@dataclass(slots=True)
class OptimiserState:
    """What an optimiser remembers of one mask: the updates made, and its moments, each float32 (P,)."""

    step: int
    moments: list[Tensor]


class Optimiser(Protocol):
    """An update rule without state of its own."""

    @property
    def name(self) -> str:
        """What it is called in settings."""

    @property
    def moment_count(self) -> int:
        """Vectors as long as the scores that it remembers of a mask."""

    def update(self, scores: Tensor, gradient: Tensor, state: OptimiserState) -> None:
        """Change `scores` and `state` in place."""


def new_state(optimiser: Optimiser, scores: Tensor) -> OptimiserState:
    """The state before the first update."""
    return OptimiserState(0, [torch.zeros_like(scores) for _ in range(optimiser.moment_count)])


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba, 2015); `betas` are the decays of the two moments."""

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    name: ClassVar[str] = "adam"
    moment_count: ClassVar[int] = 2

    def update(self, scores: Tensor, gradient: Tensor, state: OptimiserState) -> None:
        """One step with bias-corrected moments."""
        state.step += 1
        mean, square = state.moments
        mean.lerp_(gradient, 1 - self.betas[0])
        square.mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
        mean_correction = 1 - self.betas[0] ** state.step
        square_correction = 1 - self.betas[1] ** state.step
        denominator = square.sqrt().div_(math.sqrt(square_correction)).add_(self.eps)
        scores.addcdiv_(mean, denominator, value=-self.learning_rate / mean_correction)


@dataclass(frozen=True)
class RMSprop:
    """RMSprop, the optimiser of the paper's MNIST experiments (learning rate 1e-4 there)."""

    learning_rate: float = 1e-4
    decay: float = 0.99
    eps: float = 1e-8
    name: ClassVar[str] = "rmsprop"
    moment_count: ClassVar[int] = 1

    def update(self, scores: Tensor, gradient: Tensor, state: OptimiserState) -> None:
        """One step along the gradient divided by its running root mean square."""
        state.step += 1
        (square,) = state.moments
        square.mul_(self.decay).addcmul_(gradient, gradient, value=1 - self.decay)
        scores.addcdiv_(gradient, square.sqrt().add_(self.eps), value=-self.learning_rate)


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with heavy-ball momentum."""

    learning_rate: float = 0.1
    momentum: float = 0.9
    name: ClassVar[str] = "sgd"
    moment_count: ClassVar[int] = 1

    def update(self, scores: Tensor, gradient: Tensor, state: OptimiserState) -> None:
        """One step along the momentum buffer."""
        state.step += 1
        (velocity,) = state.moments
        velocity.mul_(self.momentum).add_(gradient)
        scores.add_(velocity, alpha=-self.learning_rate)


OPTIMISERS: Final[dict[str, type[Adam] | type[RMSprop] | type[SGD]]] = {
    kind.name: kind for kind in (Adam, RMSprop, SGD)
}


@dataclass(frozen=True)
class OptimiserChoice:
    """An optimiser by name; `learning_rate` None means the default of that optimiser."""

    name: str = "adam"
    learning_rate: float | None = field(default=None)

    def build(self) -> Adam | RMSprop | SGD:
        """The optimiser.

        Raises:
            SpecError: the name is unknown or the learning rate is not positive and finite.
        """
        if self.name not in OPTIMISERS:
            raise SpecError(f"unknown optimiser {self.name!r}: choose {', '.join(OPTIMISERS)}")
        kind = OPTIMISERS[self.name]
        if self.learning_rate is None:
            return kind()
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise SpecError(f"learning rate must be positive, not {self.learning_rate}")
        return kind(learning_rate=self.learning_rate)
