"""Separate Heads: what is learnt from the first task serves all others, which get a last layer of their own.

The trunk, all layers but the last, is trained on task 1 and then frozen; every later task trains only a head. With a
random trunk ("Rand W" in the paper) it is never trained at all. Stores the trunk once (a random one follows from the
seed) and a head per task. Must be told the task, in training and in inference (scenario GG). Nothing is forgotten, but
later tasks can only use features that task 1 needed, or random ones.

Source: a baseline of Wortsman et al. (2020), section 4.1. Heads learn faster than a trunk: theirs of SplitCIFAR100 with
Adam 1e-2, ten times the rate of the trunk, and so do those here.
"""

from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from supsup_online.optimisers import OptimiserChoice
from supsup_online.paper import plain
from supsup_online.paper.methods import Answers, Batches, Scope, Setup, State, Storage

HEADS: Final = OptimiserChoice("adam", 1e-2)


class SeparateHeads:
    """A frozen trunk and a head for each task.

    Args:
        setup: what all methods share.
        random_trunk: whether the trunk stays as it was drawn.
        heads: the optimiser of heads behind a frozen trunk.
    """

    name: ClassVar[str] = "Separate Heads"

    def __init__(self, setup: Setup, *, random_trunk: bool = False, heads: OptimiserChoice = HEADS) -> None:
        self.setup, self.random_trunk, self.head_optimiser = setup, random_trunk, heads
        self.architecture = setup.build()
        self._trunk, self._new_head = plain.cut(self.architecture, plain.start(setup, self.architecture))
        self._heads: list[Tensor] = []

    def learn(self, task: int, batches: Batches) -> None:
        """Train a head; with task 1 the trunk as well, unless it is random."""
        if task == 0 and not self.random_trunk:
            self._learn_all(batches)
            return
        head = self._new_head.clone().requires_grad_()
        logits = lambda x: self._logits(x, self._trunk, head)  # noqa: E731
        plain.train(self.setup, batches, [head], logits, choice=self.head_optimiser)
        self._heads.append(head.detach())

    def _learn_all(self, batches: Batches) -> None:
        """Train the trunk and a new head."""
        leaves = [self._trunk.clone().requires_grad_(), self._new_head.clone().requires_grad_()]
        plain.train(self.setup, batches, leaves, lambda x: self._logits(x, *leaves))
        self._trunk = leaves[0].detach()
        self._heads.append(leaves[1].detach())

    def _logits(self, x: Tensor, trunk: Tensor, head: Tensor) -> Tensor:
        return self.architecture.forward(x, plain.joined(self.architecture, trunk, head))

    def answer(self, x: NDArray[np.generic], task: int | None, scope: Scope = "row") -> Answers:  # noqa: ARG002
        """Under the head of the task.

        Raises:
            TaskNeededError: no task was told.
        """
        return plain.answer_told(self.name, self.setup, x, task, self._under)

    def _under(self, inputs: Tensor, task: int) -> Tensor:
        return self._logits(inputs, self._trunk, self._heads[task])

    def storage(self) -> Storage:
        """The trunk once, or its seed, and a head per task, float32."""
        trunk = plain.SEED_BYTES if self.random_trunk else self._trunk.numel() * plain.FLOAT_BYTES
        return Storage(trunk, self._new_head.numel() * plain.FLOAT_BYTES)

    def state(self) -> State:
        """`heads` (tasks so far, H), and `trunk` (P - H,) unless it is random."""
        heads = {"heads": plain.stacked(self._heads, self._new_head.numel())}
        return heads if self.random_trunk else heads | {"trunk": self._trunk.numpy().copy()}

    def restore(self, state: State) -> None:
        """Trunk and heads of `state`."""
        self._heads = plain.unstacked(state["heads"])
        if not self.random_trunk:
            (self._trunk,) = plain.unstacked(state["trunk"][None])
