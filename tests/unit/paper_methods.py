"""Every method of the paper's comparisons, and tasks small enough for it: what tests of the paper share.

A new method is a row in METHODS; the contract in `test_paper_methods` then holds for it as well.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from supsup_online.models import Architecture
from supsup_online.optimisers import OptimiserChoice
from supsup_online.paper.batche import BatchE
from supsup_online.paper.bounds import LowerBound, UpperBound
from supsup_online.paper.ewc import OnlineEWC
from supsup_online.paper.heads import SeparateHeads
from supsup_online.paper.methods import Method, Setup
from supsup_online.paper.own_labels import OwnLabels
from supsup_online.paper.psp import ParameterSuperposition
from supsup_online.paper.replay import ExperienceReplay
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
    """

    make: Callable[[Setup], Method]
    told: bool = True
    keeps: bool = True
    uncounted: tuple[str, ...] = ()
    seeds: int = 0


METHODS = {
    "BatchE": Case(lambda setup: BatchE(setup, first=FAST), told=False),
    "BatchE, random weights": Case(lambda setup: BatchE(setup, random_weights=True), told=False, seeds=1),
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


@dataclass(frozen=True)
class _Conv:
    """A 3x3 convolution over (n, inputs, 4, 4), ReLU behind it."""

    inputs: int
    outputs: int

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.outputs, self.inputs, 3, 3)

    @property
    def fan_in(self) -> int:
        return 9 * self.inputs

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.conv2d(x, weight, padding=1).relu()


class _Images(Architecture):
    """Convolutions over images, and one connected layer."""

    def forward(self, x, weights):
        *convolutions, head = zip(self.layers, weights, strict=True)
        x = x[:, None]
        for layer, weight in convolutions:
            x = layer.forward(x, weight)
        return head[0].forward(x.flatten(1), head[1])


class ConvolutionalSetup(Setup):
    """The same set-up, with a network of two convolutions."""

    def build(self) -> Architecture:
        """Two convolutions and a connected layer."""
        head = replace(super().build().layers[-1], in_features=16 * 8)
        return _Images("convolutional", self.input_shape, (_Conv(1, 6), _Conv(6, 8), head))


CONVOLUTIONAL = ConvolutionalSetup("mlp-8", (4, 4), tiny.CLASSES, outputs=12, tasks=3, seed=7, optimiser=FAST)
