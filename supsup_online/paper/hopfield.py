"""HopSupSup (section 3.5, appendix B): masks in a Hopfield network of constant size, recovered from unlabelled inputs.

Told the task in training only. Nothing is kept per task: two matrices and two sums for the two hidden layers, and for
each label the task it was learnt with.

What the answers' tasks mean. A recovered mask carries no number, and to compare it with stored masks would mean to
store them. Where every label belongs to one task (SplitMNIST with labels 0 .. 9, scenario GNu on split classes), the
label alone says the task: `tasks` is that of the label, and a strict score, task and label both right, equals the
share of right labels. Where tasks share labels (permuted MNIST, scenario GNs), `tasks` is None and the label counts.

Whoever compares sizes: the matrices take 4 d * d bytes a layer, a bit-packed mask d / 8. With d = 2048 the constant
33.5 MB would hold 65,536 masks.
"""

from collections.abc import Iterable, Iterator, Sized
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supsup_online.errors import NothingLearntError, SpecError
from supsup_online.paper.hopfield_memory import HopfieldMemory, Rule
from supsup_online.paper.hopfield_recovery import PaperRecovery, ProjectedRecovery, Recovered, Recovery
from supsup_online.paper.methods import Answers, Batches, Scope, Setup, State, Storage
from supsup_online.paper.unit_masks import MaskTraining, UnitMaskedNetwork

PROJECTED: Final = ProjectedRecovery()
TRAINING: Final = MaskTraining()

_UNSEEN, _SHARED = -1, -2


class HopSupSup:
    """One mask per task, all in one Hopfield network per hidden layer.

    Args:
        setup: the paper's is `mlp-2048-2048` with as many outputs as classes. Its optimiser is not used: masks are
            trained as `training` says.
        recovery: how a mask is found again; `paper_recovery` for the paper's.
        training: of a task's mask.
        rule: how masks are stored.
        steps: batches of one task, for the cosine; None takes `len` of what `learn` is given, or reads it to the end
            before training where it has none.
        rows: inputs are answered in batches of so many rows, and steps of a recovery look at one after the other.
            None: all rows given at once are one batch.

    Attributes:
        network: frozen weights.
        memories: one for each hidden layer.

    Raises:
        SpecError: an unknown rule or architecture, or an architecture without hidden layer.
    """

    def __init__(
        self,
        setup: Setup,
        recovery: Recovery = PROJECTED,
        *,
        training: MaskTraining = TRAINING,
        rule: Rule = "storkey",
        steps: int | None = None,
        rows: int | None = None,
    ) -> None:
        self.network = UnitMaskedNetwork(setup)
        self.memories = [HopfieldMemory(units, rule) for units in self.network.sizes]
        self._setup, self._steps, self._rows = setup, steps, rows
        self._recovery = recovery
        self._training = training
        self._task_of = np.full(setup.outputs, _UNSEEN, dtype=np.int64)

    def learn(self, task: int, batches: Batches) -> None:
        """Train a mask on all batches, store it, forget it."""
        self.store(self.train(task, batches))

    def train(self, task: int, batches: Batches) -> list[Tensor]:
        """A task's masks, float32 (d,) of 0 and 1 for each hidden layer, not stored yet."""
        if self._steps is None and not isinstance(batches, Sized):
            batches = list(batches)
        steps = self._steps or (len(batches) if isinstance(batches, Sized) else 0)
        scores = self._training.scores(self.network, self._prepared(task, batches), steps)
        return [(layer >= 0).float() for layer in scores]

    def _prepared(self, task: int, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in batches:
            for label in np.unique(y):
                known = self._task_of[label]
                self._task_of[label] = task if known in {_UNSEEN, task} else _SHARED
            yield self._setup.prepared(x), torch.from_numpy(y)

    def store(self, masks: Iterable[Tensor]) -> None:
        """Add masks, one for each hidden layer, to the memories."""
        for memory, mask in zip(self.memories, masks, strict=True):
            memory.store(2 * mask - 1)

    def answer(self, x: NDArray[np.generic], task: int | None, scope: Scope = "row") -> Answers:
        """See `Method`; the task, if told, is of no use, for a mask cannot be asked for by number.

        Raises:
            SpecError: a scope other than `batch`, or fewer than two rows: inputs are normalised with the statistics
                of their batch, so nothing can be found out from one alone.
            NothingLearntError: before the first task.
        """
        del task
        if scope != "batch":
            raise SpecError(f"scope {scope!r}: units are normalised over the batch, so HopSupSup decides by batch only")
        batches = self.features(x)
        masks = self.recover(batches).masks
        with torch.no_grad():
            labels = torch.cat([self.network.logits(batch, masks) for batch in batches])
        found = labels[:, : self._setup.classes].argmax(1).numpy()
        return Answers(found, None if (self._task_of == _SHARED).any() else self._task_of[found])

    def features(self, x: NDArray[np.generic]) -> list[Tensor]:
        """Raw inputs (n, ...) as what a recovery looks at: features (about `rows`, d) of each batch.

        Batches are of one size or one row apart, so that none is left with a single row.
        """
        count = max(1, round(len(x) / self._rows)) if self._rows else 1
        cuts = [len(x) * part // count for part in range(count + 1)]
        parts = [self._setup.prepared(x[a:b]) for a, b in pairwise(cuts)]
        with torch.no_grad():
            return [self.network.features(part) for part in parts]

    def recover(self, batches: list[Tensor]) -> Recovered:
        """The mask of the task that `features` are of, and the way there.

        Raises:
            NothingLearntError: before the first task.
        """
        if not self.memories[0].stored:
            raise NothingLearntError
        return self._recovery.recover(self.network, self.memories, batches)

    def storage(self) -> Storage:
        """Matrices and sums, float32, and the tasks of the labels; nothing for a task."""
        arrays = [array for memory in self.memories for array in (memory.matrix, memory.total)]
        return Storage(sum(array.nbytes for array in arrays) + self._task_of.nbytes, per_task=0)

    def state(self) -> State:
        """Copies of all that was learnt."""
        arrays: dict[str, NDArray[np.generic]] = {
            "stored": np.array(self.memories[0].stored, dtype=np.int64),
            "task_of": self._task_of.copy(),
        }
        for layer, memory in enumerate(self.memories):
            arrays[f"matrix-{layer}"] = memory.matrix.numpy().copy()
            arrays[f"total-{layer}"] = memory.total.numpy().copy()
        return arrays

    def restore(self, state: State) -> None:
        """See `Method`."""
        self._task_of = state["task_of"].astype(np.int64)
        for layer, memory in enumerate(self.memories):
            memory.matrix = torch.from_numpy(state[f"matrix-{layer}"].astype(np.float32))
            memory.total = torch.from_numpy(state[f"total-{layer}"].astype(np.float32))
            memory.stored = int(state["stored"])


def paper_recovery(setup: Setup, rule: Rule = "storkey") -> HopSupSup:
    """HopSupSup as the authors run it: each step of a recovery on another 64 rows of the task's whole test set.

    Hand `answer` the test set at once. About 30 steps, as many as there are batches, and all of the set is looked at
    before the first of it is answered.
    """
    return HopSupSup(setup, PaperRecovery(steps=None), rule=rule, rows=64)
