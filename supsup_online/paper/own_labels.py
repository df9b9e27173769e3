"""Labels that tasks do not share, for methods that know no tasks: every task's labels are outputs of their own.

A method with one head answers with labels only, which is what scenario GNs asks for. Scenario GNu asks for the task as
well. Here a one-head method learns tasks * classes labels instead, label + task * classes, and what it answers names
both. This is the setting ("class-incremental") of the numbers that the paper quotes from van de Ven and Tolias (2019),
33.88 % for online EWC after 10 permutations; their network is larger and trained longer on each task, which forgets
more. Stores what the method inside stores. Must be told the task in training, in inference nothing.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from supsup_online.paper.methods import Answers, Batches, Method, Scope, Setup, State, Storage


class OwnLabels:
    """A method that knows no tasks, over the labels of all tasks.

    Args:
        setup: what all methods share; the network gets more outputs where there are too few for all labels.
        make: the method inside.
    """

    def __init__(self, setup: Setup, make: Callable[[Setup], Method]) -> None:
        labels = setup.tasks * setup.classes
        self.classes = setup.classes
        self.inside = make(replace(setup, classes=labels, outputs=max(setup.outputs, labels)))

    def learn(self, task: int, batches: Batches) -> None:
        """Learn the batches under labels of the task's own."""
        self.inside.learn(task, ((x, y + task * self.classes) for x, y in batches))

    def answer(self, x: NDArray[np.generic], task: int | None, scope: Scope = "row") -> Answers:
        """Labels, and the tasks they belong to, each row for itself."""
        tasks, labels = np.divmod(self.inside.answer(x, task, scope).labels, self.classes)
        return Answers(labels, tasks)

    def storage(self) -> Storage:
        """As the method inside."""
        return self.inside.storage()

    def state(self) -> State:
        """As the method inside."""
        return self.inside.state()

    def restore(self, state: State) -> None:
        """As the method inside."""
        self.inside.restore(state)
