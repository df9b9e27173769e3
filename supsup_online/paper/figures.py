"""The figures: which methods on which tasks, how large at each scale, and what the paper says about them.

Numbers of figures are those of the NeurIPS version (arXiv 2006.14769v3). A figure's cells at a scale and a seed are
made anew each time; equal scale and seed give equal cells.

    quick     a minute or two: whether it works, not what comes out
    laptop    two cores, at most 40 minutes a seed (the whole of `permuted-fc` aside)
    paper     the paper's numbers of tasks and batches
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

from supsup_online.errors import SpecError
from supsup_online.optimisers import OptimiserChoice
from supsup_online.paper.harness import Answerer, Cell, Reading, checkpoints
from supsup_online.paper.methods import Method, Setup
from supsup_online.paper.supsup import MaskSettings, SupSup, Way
from supsup_online.paper.untold import Untold
from supsup_online.scenarios import Kind
from supsup_online.types import Objective, RuleName

Scale = Literal["quick", "laptop", "paper"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure or table of the paper, as something to run.

    Attributes:
        name: what it is called on the command line.
        source: where it stands in the paper.
        title: what it shows.
        claim: what the paper says it shows.
        cells: made from a scale and a seed.
        numbers: accuracies in percent that the paper gives, by `cell, reading`.
        data: the data set it needs.
    """

    name: str
    source: str
    title: str
    claim: str
    cells: Callable[[Scale, int], list[Cell]]
    numbers: Mapping[str, float] = field(default_factory=dict)
    data: Literal["mnist", "cifar10"] = "mnist"


def asking(way: Way, objective: Objective = "H") -> Callable[[Any], Answerer]:
    """Ask a method's masks in some way."""
    return lambda method: method.answering(way, objective)


GG: Final = Reading("GG", told=True)
GNU_H: Final = Reading("GNu, H", scope="first", ask=asking("one-shot"))
GNU_G: Final = Reading("GNu, G", scope="first", ask=asking("one-shot", "G"))
GNU_BINARY: Final = Reading("GNu, binary", scope="first", ask=asking("binary"))
GNU_FULL: Final = Reading("GNu, full batch", scope="batch", ask=asking("one-shot"))
GNU_ROW: Final = Reading("GNu, H, each image", images=100, ask=asking("one-shot"))
GNU_EXACT: Final = Reading("GNu, exact, each image", images=100, ask=asking("exact"))

_BATCHES: Final = {"quick": 100, "laptop": 1000, "paper": 1000}


def _check(scale: Scale, seed: int) -> list[Cell]:
    setup = Setup("mlp-300-300", outputs=100, tasks=5, seed=seed)
    batches = 100 if scale == "quick" else 469
    readings = (GG, GNU_H, GNU_G, GNU_BINARY, GNU_ROW, GNU_EXACT)
    return [Cell("SupSup", setup, SupSup, readings, batches, (5,))]


def _permuted(architecture: str, outputs: int, tasks: Mapping[str, int], scale: Scale, seed: int) -> list[Cell]:
    setup = Setup(architecture, outputs=outputs, tasks=tasks[scale], seed=seed)
    stops = checkpoints(setup.tasks)
    readings = (GG, GNU_H, GNU_G, GNU_ROW, GNU_EXACT)
    return [Cell("SupSup", setup, SupSup, readings, _BATCHES[scale], stops)]


def _output_size(scale: Scale, seed: int) -> list[Cell]:
    tasks = {"quick": 5, "laptop": 50, "paper": 250}[scale]
    cells = []
    for architecture in ("lenet-300-100",) if scale != "paper" else ("lenet-300-100", "fc-1024-1024"):
        for outputs in (25, 100, 200):
            setup = Setup(architecture, outputs=outputs, tasks=tasks, seed=seed)
            name = f"{architecture}, s = {outputs}"
            cells.append(Cell(name, setup, SupSup, (GNU_H, GNU_G, GNU_EXACT), _BATCHES[scale], checkpoints(tasks)))
    return cells


def _thousands(scale: Scale, seed: int) -> list[Cell]:
    tasks = {"quick": 5, "laptop": 100, "paper": 2500}[scale]
    setup = Setup(outputs=500, tasks=tasks, seed=seed)
    stops = checkpoints(tasks, (10, 50, 100, 250, 500, 1000, 1500, 2000))
    told = Cell("SupSup", setup, SupSup, (GNU_H, GNU_EXACT), _BATCHES[scale], stops)
    readings = (
        Reading("NNs, H", scope="first", ask=asking("one-shot")),
        Reading("NNs, exact, each image", images=100, ask=asking("exact")),
    )
    rules: dict[RuleName, str] = {"paper": "SupSup, the paper's rule", "loss": "SupSup, the daemon's rule"}
    return [told] + [
        Cell(name, setup, partial(Untold, rule=rule), readings, _BATCHES[scale], stops) for rule, name in rules.items()
    ]


def _variants(scale: Scale, seed: int) -> list[Cell]:
    tasks = {"quick": 2, "laptop": 5, "paper": 10}[scale]
    optimisers = {
        "RMSprop": OptimiserChoice("rmsprop", 1e-4),
        "Adam": OptimiserChoice("adam"),
        "SGD": OptimiserChoice("sgd"),
    }
    cells = []
    for init in ("signed-constant", "kaiming-normal"):
        for optimiser, choice in optimisers.items():
            masks = [MaskSettings("threshold", weight_init=init)]
            masks += [MaskSettings("top-k", keep, init) for keep in (0.05, 0.1, 0.3, 0.5, 0.7)]
            for mask in masks:
                setup = Setup(outputs=500, tasks=tasks, seed=seed, optimiser=choice)
                kept = "threshold" if mask.variant == "threshold" else f"top {mask.keep_fraction:.0%}"
                name = f"{kept}, {optimiser}, {init}"
                readings = (GG, GNU_EXACT)
                cells.append(Cell(name, setup, partial(SupSup, masks=mask), readings, _BATCHES[scale] // 2, (tasks,)))
    return cells


def _limits(scale: Scale, seed: int) -> list[Cell]:
    """Where finding the task gets hard: tasks that differ little, or only in their labels."""
    batches = {"quick": 60, "laptop": 500, "paper": 1000}[scale]
    kinds: dict[Kind, str] = {
        "permuted": "other permutations",
        "rotated": "10 degrees apart",
        "split": "two digits each",
        "label-permuted": "same images, other labels",
    }
    told = (GG, GNU_H, GNU_FULL, GNU_ROW, GNU_EXACT)
    never = (Reading("NNs, exact, each image", images=100, ask=asking("exact")),)
    top = MaskSettings("top-k")
    methods: dict[str, tuple[Callable[[Setup], Method], tuple[Reading, ...]]] = {
        "told": (partial(SupSup, masks=top), told),
        "paper's rule": (partial(Untold, rule="paper", masks=top), never),
        "daemon's rule": (partial(Untold, rule="loss", masks=top), never),
    }
    setup = Setup(outputs=500, tasks=5, seed=seed, optimiser=OptimiserChoice("adam"))
    return [
        Cell(f"{name}, {who}", setup, make, readings, batches, (5,), kind)
        for kind, name in kinds.items()
        for who, (make, readings) in methods.items()
    ]


FIGURES: Final[dict[str, Figure]] = {
    figure.name: figure
    for figure in (
        Figure(
            "check",
            "the authors' notebook",
            "Five permutations, one epoch each, 784-300-300-100",
            "92.37 % on average; one image is enough to find the task every time",
            _check,
            {"SupSup, GG": 92.37, "SupSup, GNu, H": 92.37},
        ),
        Figure(
            "permuted-lenet",
            "Figure 3 left",
            "PermutedMNIST, LeNet 300-100, 100 outputs",
            "Finding the task by One-Shot, SupSup outperforms methods that are told it",
            partial(_permuted, "lenet-300-100", 100, {"quick": 5, "laptop": 250, "paper": 250}),
        ),
        Figure(
            "permuted-fc",
            "Figure 3 right",
            "PermutedMNIST, FC 1024-1024, 500 outputs",
            "As with LeNet, with a larger network; 94.91 % after 250 tasks",
            partial(_permuted, "fc-1024-1024", 500, {"quick": 3, "laptop": 25, "paper": 250}),
            {"SupSup, GNu, H": 94.91},
        ),
        Figure(
            "thousands",
            "Figure 4",
            "2500 permutations, LeNet 300-100, 500 outputs",
            "Never told a task (NNs), SupSup does as well as when told in training (GNu), until its masks run out",
            _thousands,
        ),
        Figure(
            "output-size",
            "Figure 6",
            "Output size s and the objectives H and G",
            "Superfluous outputs help to find the task, by either objective",
            _output_size,
        ),
        Figure(
            "limits",
            "section 5",
            "Tasks that are hard to tell apart",
            "Task inference fails where models are overly confident for the wrong task",
            _limits,
        ),
        Figure(
            "variants",
            "not in the paper",
            "Kind of mask, density, optimiser and initialisation",
            "-",
            _variants,
        ),
    )
}


def figure(name: str) -> Figure:
    """The figure of that name.

    Raises:
        SpecError: there is none.
    """
    if name not in FIGURES:
        raise SpecError(f"there is no figure {name!r}: choose {', '.join(FIGURES)}")
    return FIGURES[name]
