"""The two bounds between which methods of continual learning lie: weights shared without care, and nothing shared.

Lower Bound: all tasks train one trunk, one after the other, and each has a head of its own. It stores the trunk once
and a head per task. Its trunk forgets.

Upper Bound: each task trains a whole network. It stores a network per task, and forgets nothing.

Both must be told the task, in training and in inference (scenario GG). They are the bounds of section 4.1 of Wortsman
et al. (2020).
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from supsup_online.paper import plain
from supsup_online.paper.heads import SeparateHeads
from supsup_online.paper.methods import Answers, Batches, Scope, Setup, State, Storage


class LowerBound(SeparateHeads):
    """One trunk trained by all tasks, a head for each: `SeparateHeads` whose trunk is never frozen.

    Args:
        setup: what all methods share.
    """

    name = "the lower bound"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)

    def learn(self, task: int, batches: Batches) -> None:  # noqa: ARG002 - tasks come in order
        """Train the trunk on, and a new head."""
        self._learn_all(batches)


class UpperBound:
    """A network for each task.

    Args:
        setup: what all methods share.
        carry_on: a task begins with the network of the task before, as in the authors' code, instead of from scratch.
    """

    def __init__(self, setup: Setup, *, carry_on: bool = False) -> None:
        self.setup, self.carry_on = setup, carry_on
        self.architecture = setup.build()
        self._networks: list[Tensor] = []

    def learn(self, task: int, batches: Batches) -> None:  # noqa: ARG002 - tasks come in order
        """Train a network of its own."""
        before = self._networks[-1:] if self.carry_on else []
        leaf = before[0].clone() if before else plain.start(self.setup, self.architecture)
        leaf.requires_grad_()
        plain.train(self.setup, batches, [leaf], lambda x: self._logits(x, leaf))
        self._networks.append(leaf.detach())

    def _logits(self, x: Tensor, flat: Tensor) -> Tensor:
        return self.architecture.forward(x, self.architecture.split(flat))

    def answer(self, x: NDArray[np.generic], task: int | None, scope: Scope = "row") -> Answers:  # noqa: ARG002
        """Under the network of the task.

        Raises:
            TaskNeededError: no task was told.
        """
        return plain.answer_told("The upper bound", self.setup, x, task, self._under)

    def _under(self, inputs: Tensor, task: int) -> Tensor:
        return self._logits(inputs, self._networks[task])

    def storage(self) -> Storage:
        """A network per task, float32."""
        return Storage(0, self.architecture.weight_count * plain.FLOAT_BYTES)

    def state(self) -> State:
        """`networks` (tasks so far, P)."""
        return {"networks": plain.stacked(self._networks, self.architecture.weight_count)}

    def restore(self, state: State) -> None:
        """The networks of `state`."""
        self._networks = plain.unstacked(state["networks"])
