"""What a method of continual learning is, here: it learns tasks one after another, and answers.

SupSup and everything it is compared with fill the same interface, so one harness (`harness`) runs and scores them all.

The scenarios (section 2 of the paper) say who knows which task data is of:

    GG    told in training and in inference
    GNs   told in training; in inference the label is asked for, and labels are shared between tasks
    GNu   told in training; in inference task and label are asked for
    NNs   never told

A method is told the task in training by `learn` and in inference by `answer`. One that needs no telling ignores it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supsup_online import models
from supsup_online.models import Architecture
from supsup_online.optimisers import OptimiserChoice
from supsup_online.paper.schedule import Schedule

Batches = Iterable[tuple[NDArray[np.generic], NDArray[np.int64]]]
State = Mapping[str, NDArray[np.generic]]
Scope = Literal["row", "first", "batch"]


@dataclass(frozen=True, slots=True)
class Setup:
    """What all methods of one comparison share.

    Attributes:
        architecture: a name `models.build` knows.
        input_shape: of one input.
        classes: labels are 0 .. classes - 1 in every task.
        outputs: network outputs, at least `classes`.
        tasks: how many there will be at most.
        seed: of all random draws.
        optimiser: of whatever is trained.
        mean, std: a uint8 input becomes (x / 255 - mean) / std.
        schedule: of rate and weight decay over the batches of a task; None: a constant rate, no decay.
    """

    architecture: str = "lenet-300-100"
    input_shape: tuple[int, ...] = (28, 28)
    classes: int = 10
    outputs: int = 100
    tasks: int = 10
    seed: int = 0
    optimiser: OptimiserChoice = field(default_factory=lambda: OptimiserChoice("rmsprop", 1e-4))
    mean: float = 0.1307
    std: float = 0.3081
    schedule: Schedule | None = None

    def build(self) -> Architecture:
        """The architecture.

        Raises:
            SpecError: an unknown name, or a network too large.
        """
        return models.build(self.architecture, self.input_shape, self.outputs)

    def prepared(self, x: NDArray[np.generic]) -> Tensor:
        """Raw inputs, uint8 (n, ...), as float32 (n, *input_shape) around zero; float32 is taken as it is."""
        tensor = torch.from_numpy(np.ascontiguousarray(x)).reshape(-1, *self.input_shape)
        return tensor.float() if tensor.is_floating_point() else (tensor.float() / 255 - self.mean) / self.std


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes that have to be kept to answer for all tasks.

    Attributes:
        shared: once, whatever the number of tasks; what follows from a seed costs nothing.
        per_task: for each task.
    """

    shared: int
    per_task: int

    def total(self, tasks: int) -> int:
        """For so many tasks."""
        return self.shared + tasks * self.per_task


@dataclass(frozen=True, eq=False, slots=True)
class Answers:
    """Answers for n rows.

    Attributes:
        labels: int64 (n,).
        tasks: int64 (n,), the task each row was taken for; None from a method that knows no tasks.
    """

    labels: NDArray[np.int64]
    tasks: NDArray[np.int64] | None


class Method(Protocol):
    """A way to learn one task after another."""

    def learn(self, task: int, batches: Batches) -> None:
        """Learn a task from raw batches: x uint8 or float32 (n, *input_shape), y int64 (n,). Tasks come in order."""

    def answer(self, x: NDArray[np.generic], task: int | None, scope: Scope = "row") -> Answers:
        """Labels of raw inputs (n, *input_shape).

        Args:
            x: raw inputs, all of one task.
            task: which one, where the method is told; else None.
            scope: what a method that infers the task looks at: each row for itself, the first row for all rows (the
                paper's "single image"), or all rows together (its "full batch").

        Raises:
            TaskNeededError: the method cannot answer without being told the task.
        """

    def storage(self) -> Storage:
        """Bytes that have to be kept."""

    def state(self) -> State:
        """All that was learnt, as plain arrays: a run that was killed goes on from these."""

    def restore(self, state: State) -> None:
        """The inverse of `state`, for a new object of the same set-up: what follows is the same to the last byte."""


class TaskNeededError(ValueError):
    """A method that works in scenario GG only was asked without a task."""

    def __init__(self, method: str) -> None:
        super().__init__(f"{method} has to be told the task (scenario GG)")
