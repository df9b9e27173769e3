"""Every method of the paper's comparisons, and tasks small enough for it: what tests of the paper share.

A new method is a row in METHODS; the contract in `test_paper_methods` then holds for it as well.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from supsup_online.optimisers import OptimiserChoice
from supsup_online.paper.batche import BatchE
from supsup_online.paper.bounds import LowerBound, UpperBound
from supsup_online.paper.ewc import OnlineEWC
from supsup_online.paper.heads import SeparateHeads
from supsup_online.paper.methods import Method, Setup
from supsup_online.paper.own_labels import OwnLabels
from supsup_online.paper.psp import ParameterSuperposition
from supsup_online.paper.replay import ExperienceReplay
from supsup_online.paper.supsup import MaskSettings, SupSup
from supsup_online.paper.untold import Untold
from unit import tiny

FAST = OptimiserChoice("adam", 0.01)
SETUP = Setup("mlp-64-32", (4, 4), tiny.CLASSES, outputs=12, tasks=3, seed=7, optimiser=FAST)


@dataclass(frozen=True)
class Case:
    """A method and what is to be expected of it.

    Attributes:
        make: the method.
        told: whether it refuses to answer when it is not told the task.
        keeps: whether what it answers for a task never changes once that is learnt.
        uncounted: arrays of its state that need not be stored.
        seeds: how many seeds have to be stored beside the arrays.
        counted: whether its state is what has to be stored; masks are padded in memory and not when they are stored.
        convolutions: accuracy to be expected of a second task by a convolutional network; chance is 0.25.
    """

    make: Callable[[Setup], Method]
    told: bool = True
    keeps: bool = True
    uncounted: tuple[str, ...] = ()
    seeds: int = 0
    counted: bool = True
    convolutions: float = 0.6


METHODS = {
    "SupSup": Case(SupSup, told=False, counted=False),
    "SupSup, transfer": Case(lambda setup: SupSup(setup, MaskSettings(transfer=True)), told=False, counted=False),
    "SupSup, never told": Case(Untold, told=False, keeps=False, counted=False),
    "BatchE": Case(lambda setup: BatchE(setup, first=FAST), told=False, convolutions=0.35),
    "BatchE, random weights": Case(
        lambda setup: BatchE(setup, random_weights=True), told=False, seeds=1, convolutions=0.35
    ),
    "PSP": Case(ParameterSuperposition, keeps=False, seeds=1),
    "PSP, binary": Case(lambda setup: ParameterSuperposition(setup, "binary"), keeps=False, seeds=1),
    "Separate Heads": Case(SeparateHeads),
    "Separate Heads, random trunk": Case(lambda setup: SeparateHeads(setup, random_trunk=True), seeds=1),
    "Lower Bound": Case(LowerBound, keeps=False),
    "Upper Bound": Case(UpperBound),
    "Upper Bound, carried on": Case(lambda setup: UpperBound(setup, carry_on=True)),
    "Own labels": Case(lambda setup: OwnLabels(setup, OnlineEWC), told=False, keeps=False),
    "Online EWC": Case(OnlineEWC, told=False, keeps=False),
    "Experience Replay": Case(
        lambda setup: ExperienceReplay(setup, capacity=100),
        told=False,
        keeps=False,
        uncounted=("seen", "optimiser.step", "optimiser.exp_avg", "optimiser.exp_avg_sq"),
    ),
}


def batches(make_task: Callable[[int], tiny.Task], task: int, count: int = 60, seed: int = 0) -> Iterator[tuple]:
    """Batches of a task of `tiny`: x float32 (32, 4, 4) and y int64 (32,)."""
    return ((batch.x, batch.y) for batch in make_task(task)(count, seed))


def learn(
    method: Method, *tasks: int, make_task: Callable[[int], tiny.Task] = tiny.permuted, count: int = 60
) -> Method:
    """The method, with the tasks learnt in that order."""
    for task in tasks:
        method.learn(task, batches(make_task, task, count))
    return method


def unseen(task: int, make_task: Callable[[int], tiny.Task] = tiny.permuted) -> tuple[np.ndarray, np.ndarray]:
    """256 rows that no training batch holds."""
    xs, ys = zip(*batches(make_task, task, 8, seed=1), strict=True)
    return np.concatenate(xs), np.concatenate(ys)


def accuracy(
    method: Method, task: int, *, told: bool = True, make_task: Callable[[int], tiny.Task] = tiny.permuted
) -> float:
    """Share of right labels on the task's test set."""
    x, y = unseen(task, make_task)
    return float((method.answer(x, task if told else None).labels == y).mean())


def bytes_of(method: Method) -> dict[str, bytes]:
    """Its whole state, in a form that compares exactly."""
    return {name: array.tobytes() for name, array in method.state().items()}


CONVOLUTIONAL = replace(SETUP, architecture="conv-16-24-batch")  # statistics of the batch, as all methods have them
