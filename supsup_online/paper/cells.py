"""Which methods on which tasks make up a figure, at a scale and a seed; what it shows is in `figures`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final, Literal

from supsup_online.optimisers import OptimiserChoice
from supsup_online.paper.batche import FIRST_TASK, BatchE
from supsup_online.paper.bounds import LowerBound, UpperBound
from supsup_online.paper.ewc import OnlineEWC
from supsup_online.paper.harness import Cell, Reading, checkpoints
from supsup_online.paper.heads import SeparateHeads
from supsup_online.paper.hopfield import HopSupSup
from supsup_online.paper.hopfield_recovery import PaperRecovery
from supsup_online.paper.methods import Method, Setup
from supsup_online.paper.own_labels import OwnLabels
from supsup_online.paper.psp import ParameterSuperposition
from supsup_online.paper.readings import (
    GG,
    GNS,
    GNU,
    GNU_BINARY,
    GNU_BINARY_FULL,
    GNU_ENTROPY,
    GNU_EXACT,
    GNU_EXACT_FULL,
    GNU_FULL,
    GNU_G,
    GNU_H,
    GNU_ROW,
    NNS_EXACT,
    NNS_H,
)
from supsup_online.paper.replay import ExperienceReplay
from supsup_online.paper.schedule import Schedule
from supsup_online.paper.supsup import MaskSettings, SupSup
from supsup_online.paper.untold import Untold
from supsup_online.scenarios import Kind
from supsup_online.types import RuleName

Scale = Literal["quick", "laptop", "paper"]
Make = Callable[[Setup], Method]
Asked = tuple[Make, tuple[Reading, ...]]

_BATCHES: Final = {"quick": 100, "laptop": 1000, "paper": 1000}
_FEWER: Final = _BATCHES | {"laptop": 300}  # where many tasks say more than good ones
_ADAM: Final = OptimiserChoice("adam")
_REPLAYED: Final = 2000  # images in the buffer
_TASKS_OWN: Final = ("Separate Heads", "Lower Bound", "Upper Bound")  # what a task stores has no use for idle outputs


def check(scale: Scale, seed: int) -> list[Cell]:
    """Five permutations, one epoch each."""
    setup = Setup("mlp-300-300", outputs=100, tasks=5, seed=seed)
    batches = 100 if scale == "quick" else 469
    readings = (GG, GNU_H, GNU_G, GNU_BINARY, GNU_ROW, GNU_EXACT)
    return [Cell("SupSup", setup, SupSup, readings, batches, (5,))]


def permuted(architecture: str, outputs: int, tasks: Mapping[str, int], scale: Scale, seed: int) -> list[Cell]:
    """Permutations: SupSup, which finds the task, beside methods that are told it; those that take longest first."""
    setup = Setup(architecture, outputs=outputs, tasks=tasks[scale], seed=seed)
    adam, top = replace(setup, optimiser=_ADAM), MaskSettings("top-k")
    # BatchE and the Upper Bound, told the task, let no task touch another: a few are as good as all.
    few = setup if scale == "paper" else replace(setup, tasks=min(20, setup.tasks))
    alone = replace(setup, outputs=setup.classes, tasks=min(5, setup.tasks))
    asked: dict[str, tuple[Setup, Make, tuple[Reading, ...]]] = {
        "PSP": (setup, ParameterSuperposition, (GG,)),
        "SupSup, top-k, Adam": (adam, partial(SupSup, masks=top), (GG, GNU_H, GNU_EXACT)),
        "SupSup": (setup, SupSup, (GG, GNU_H, GNU_EXACT)),
        "BatchE": (few, BatchE, (GG,)),
        "Upper Bound": (alone, UpperBound, (GG,)),
    }
    stops = (1, 10, 50, 100, 150, 200) if scale == "paper" else (1, 10, 50)  # to ask 250 tasks takes its time, too
    return [
        Cell(name, shared, make, readings, _BATCHES[scale], checkpoints(shared.tasks, stops))
        for name, (shared, make, readings) in asked.items()
    ]


def rotated(scale: Scale, seed: int) -> list[Cell]:
    """Rotations by ten degrees more each: the task is hard to find, and a whole batch looks for it."""
    architecture = "fc-1024-1024" if scale == "paper" else "lenet-300-100"
    setup = Setup(architecture, outputs=200, tasks=5 if scale == "quick" else 36, seed=seed)
    methods: dict[str, Asked] = {
        "SupSup": (SupSup, (GG, GNU_BINARY_FULL, GNU_FULL, GNU_EXACT_FULL, GNU_EXACT)),
        "PSP": (ParameterSuperposition, (GG,)),
        "BatchE": (BatchE, (GG,)),
    }
    stops = checkpoints(setup.tasks, (1, 9, 18, 27))
    cells = [Cell(name, setup, *asked, _BATCHES[scale], stops, "rotated") for name, asked in methods.items()]
    if scale == "laptop":  # SupSup alone in the paper's network, asked over ten test batches a task
        wide = replace(setup, architecture="fc-1024-1024")
        readings = tuple(replace(reading, images=1280) for reading in (GG, GNU_BINARY_FULL, GNU_EXACT_FULL))
        cells.append(Cell("SupSup, FC 1024-1024", wide, SupSup, readings, _BATCHES[scale], stops, "rotated"))
    return cells


def one_shot_for_batche(scale: Scale, seed: int) -> list[Cell]:
    """One-Shot over BatchE's rank-one matrices; with a whole batch as well (section C)."""
    architecture = "fc-1024-1024" if scale == "paper" else "lenet-300-100"
    tasks = {"quick": 5, "laptop": 50, "paper": 250}[scale]
    setup = Setup(architecture, outputs=500, tasks=tasks, seed=seed)
    stops = checkpoints(tasks, (1, 10, 25, 50, 100, 150, 200))
    return [
        Cell("SupSup", setup, SupSup, (GNU_H,), _BATCHES[scale], stops),
        Cell("BatchE", setup, BatchE, (GG, GNU_H, GNU_FULL, GNU_ENTROPY), _BATCHES[scale], stops),
    ]


def hopfield(scale: Scale, seed: int) -> list[Cell]:
    """SplitMNIST, its masks in a Hopfield network: one epoch a task; a test batch of 128 finds its mask."""
    setup = Setup("mlp-2048-2048", outputs=10, tasks=5, seed=seed)
    batches = 30 if scale == "quick" else 94
    ways: dict[str, Make] = {
        "HopSupSup, the paper's descent": partial(HopSupSup, recovery=PaperRecovery(), steps=batches),
        "HopSupSup, projected": partial(HopSupSup, steps=batches),
    }
    reading = Reading("GNu, full batch", scope="batch", images=1280 if scale == "quick" else None)
    return [Cell(name, setup, make, (reading,), batches, (5,), "split") for name, make in ways.items()]


def thousands(scale: Scale, seed: int) -> list[Cell]:
    """Told in training (GNu) beside never told (NNs)."""
    tasks = {"quick": 5, "laptop": 250, "paper": 2500}[scale]
    setup = Setup(outputs=500, tasks=tasks, seed=seed)
    stops = checkpoints(tasks, (10, 50, 100, 250, 500, 1000, 1500, 2000))
    rules: dict[RuleName, str] = {"paper": "SupSup, the paper's rule", "loss": "SupSup, the daemon's rule"}
    told = Cell("SupSup", setup, SupSup, (GNU_H, GNU_EXACT), _FEWER[scale], stops)
    return [told] + [
        Cell(name, setup, partial(Untold, rule=rule), (NNS_H, NNS_EXACT), _FEWER[scale], stops)
        for rule, name in rules.items()
    ]


def output_size(scale: Scale, seed: int) -> list[Cell]:
    """How many outputs it takes to find the task."""
    tasks = {"quick": 5, "laptop": 50, "paper": 250}[scale]
    architectures = ("lenet-300-100", "fc-1024-1024") if scale == "paper" else ("lenet-300-100",)
    stops = checkpoints(tasks, (1, 10, 25, 50, 100, 150, 200))
    return [
        Cell(f"{architecture}, s = {outputs}", setup, SupSup, (GNU_H, GNU_G, GNU_EXACT), _FEWER[scale], stops)
        for architecture in architectures
        for outputs in (25, 100, 200)
        for setup in [Setup(architecture, outputs=outputs, tasks=tasks, seed=seed)]
    ]


def limits(scale: Scale, seed: int) -> list[Cell]:
    """Where finding the task gets hard: tasks that differ little, or only in their labels."""
    batches = {"quick": 60, "laptop": 1000, "paper": 1000}[scale]
    kinds: dict[Kind, str] = {
        "permuted": "other permutations",
        "rotated": "10 degrees apart",
        "split": "two digits each",
        "label-permuted": "same images, other labels",
    }
    top = MaskSettings("top-k")
    methods: dict[str, Asked] = {
        "told": (partial(SupSup, masks=top), (GG, GNU_H, GNU_FULL, GNU_ROW, GNU_EXACT)),
        "paper's rule": (partial(Untold, rule="paper", masks=top), (NNS_EXACT,)),
        "daemon's rule": (partial(Untold, rule="loss", masks=top), (NNS_EXACT,)),
    }
    setup = Setup(outputs=500, tasks=5, seed=seed, optimiser=_ADAM)
    return [
        Cell(f"{name}, {who}", setup, *asked, batches, (5,), kind)
        for kind, name in kinds.items()
        for who, asked in methods.items()
    ]


def hundred(scale: Scale, seed: int) -> list[Cell]:
    """A hundred permutations: SupSup in every scenario, and every baseline."""
    tasks = 5 if scale == "quick" else 100
    batches = 60 if scale == "quick" else _FEWER[scale]
    setup = Setup(outputs=500, tasks=tasks, seed=seed)
    narrow = replace(setup, outputs=setup.classes)
    return [
        Cell(name, narrow if name.startswith(_TASKS_OWN) else setup, *asked, batches, checkpoints(tasks, (1, 10, 50)))
        for name, asked in _every_method(MaskSettings(), FIRST_TASK).items()
    ]


def five_cifar10(scale: Scale, seed: int) -> list[Cell]:
    """Five tasks of two classes of CIFAR-10, by a convolutional network: every method."""
    batches = {"quick": 10, "laptop": 150, "paper": 600}[scale]
    setup = _cifar(10, {"quick": "conv-8-16", "laptop": "conv-32-64-128", "paper": "resnet18-20"}[scale], 5, seed)
    wide = replace(setup, outputs=50)
    methods = _every_method(MaskSettings("top-k"), _ADAM)
    cells = [
        Cell(name, wide if "SupSup" in name else setup, *asked, batches, (1, 5), "split")
        for name, asked in methods.items()
    ]
    # The other methods normalise a test batch by itself, and it is all of one task; masks keep statistics of their own.
    by_batch = replace(wide, architecture=f"{wide.architecture}-batch")
    beside = {f"{name}, normalised by the batch": methods[name] for name in ("SupSup", "SupSup, transfer")}
    return cells + [Cell(name, by_batch, *asked, batches, (1, 5), "split") for name, asked in beside.items()]


def split_cifar(classes: int, scale: Scale, seed: int) -> list[Cell]:
    """Sizes of masks, with and without transfer, in scenario GG: twenty tasks of five classes, or five of two."""
    tasks, each = (20, 5) if classes == 100 else (5, 2)
    batches = {"quick": 10, "laptop": 100, "paper": 4900}[scale]
    # As in the paper, every method normalises a test batch by itself.
    architecture = {"quick": "resnet18-4-batch", "laptop": "resnet18-8-batch", "paper": "resnet18-20-batch"}[scale]
    setup = _cifar(classes, architecture, tasks, seed)
    if scale == "paper":
        setup = replace(setup, schedule=Schedule(batches, weight_decay=1e-4))
    sizes = (1, 2, 4, 8, 16, 32) if scale == "paper" else (1, 16)
    methods: dict[str, Make] = {
        f"SupSup, m = {m}{', transfer' if transfer else ''}": partial(
            SupSup, masks=MaskSettings("top-m", edges_per_channel=m, transfer=transfer)
        )
        for m in sizes
        for transfer in (False, True)
    }
    methods |= {
        "BatchE": partial(BatchE, first=_ADAM),
        "BatchE, random weights": partial(BatchE, random_weights=True),
        "Separate Heads": SeparateHeads,
        "Separate Heads, random trunk": partial(SeparateHeads, random_trunk=True),
        "Lower Bound": LowerBound,
        "Upper Bound": UpperBound,
        "Upper Bound, carried on": partial(UpperBound, carry_on=True),
    }
    return [
        Cell(name, setup, make, (GG,), batches, (1, tasks), "split", classes_per_task=each)
        for name, make in methods.items()
    ]


def _cifar(classes: int, architecture: str, tasks: int, seed: int) -> Setup:
    # Mean and standard deviation of CIFAR's training images, all channels together.
    shape, mean, std = (3, 32, 32), 0.473, 0.251
    return Setup(architecture, shape, classes, classes, tasks, seed, _ADAM, mean, std)


def _every_method(masks: MaskSettings, batche: OptimiserChoice) -> dict[str, Asked]:
    told = (GG,)
    replay = partial(ExperienceReplay, capacity=_REPLAYED)
    return {
        "SupSup": (partial(SupSup, masks=masks), (GG, GNU_H, GNU_ROW, GNU_EXACT)),
        "SupSup, transfer": (partial(SupSup, masks=replace(masks, transfer=True)), (GG, GNU_H, GNU_EXACT)),
        "SupSup, never told": (partial(Untold, masks=masks), (NNS_H, NNS_EXACT)),
        "BatchE": (partial(BatchE, first=batche), (GG, GNU_H)),
        "BatchE, random weights": (partial(BatchE, random_weights=True), told),
        "PSP": (ParameterSuperposition, told),
        "PSP, binary contexts": (partial(ParameterSuperposition, contexts="binary"), told),
        "Separate Heads": (SeparateHeads, told),
        "Separate Heads, random trunk": (partial(SeparateHeads, random_trunk=True), told),
        "Online EWC": (OnlineEWC, (GNS,)),
        "Online EWC, labels of each task's own": (partial(OwnLabels, make=OnlineEWC), (GNU,)),
        "Replay of 2000 images": (replay, (GNS,)),
        "Replay, labels of each task's own": (partial(OwnLabels, make=replay), (GNU,)),
        "Lower Bound": (LowerBound, told),
        "Upper Bound": (UpperBound, told),
    }


def variants(scale: Scale, seed: int) -> list[Cell]:
    """Kind of mask, density, optimiser, initialisation."""
    tasks = {"quick": 2, "laptop": 5, "paper": 10}[scale]
    optimisers = {"RMSprop": OptimiserChoice("rmsprop", 1e-4), "Adam": _ADAM, "SGD": OptimiserChoice("sgd")}
    masks = {
        "threshold": MaskSettings("threshold"),
        **{f"top {keep:.0%}": MaskSettings("top-k", keep_fraction=keep) for keep in (0.05, 0.1, 0.3, 0.5, 0.7)},
    }
    return [
        Cell(f"{kept}, {optimiser}, {init}", setup, partial(SupSup, masks=made), (GG, GNU_EXACT), batches, (tasks,))
        for init in ("signed-constant", "kaiming-normal")
        for optimiser, choice in optimisers.items()
        for kept, mask in masks.items()
        for setup in [Setup(outputs=500, tasks=tasks, seed=seed, optimiser=choice)]
        for made in [replace(mask, weight_init=init)]
        for batches in [_BATCHES[scale] // 2]
    ]
