"""The figures: what each shows, what the paper says about it, and its cells.

Numbers of figures are those of the NeurIPS version (arXiv 2006.14769v3). A figure's cells at a scale and a seed are
made anew each time; equal scale and seed give equal cells.

    quick     a minute or two: whether it works, not what comes out
    laptop    meant for two cores, with fewer tasks or a smaller network where that would take hours
    paper     the paper's networks, numbers of tasks and batches
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Literal

from supsup_online.errors import SpecError
from supsup_online.paper import cells, storage
from supsup_online.paper.cells import Scale
from supsup_online.paper.harness import Cell


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
        table: one that needs no run, in Markdown.
    """

    name: str
    source: str
    title: str
    claim: str
    cells: Callable[[Scale, int], list[Cell]]
    numbers: Mapping[str, float] = field(default_factory=dict)
    data: Literal["mnist", "cifar10", "cifar100"] = "mnist"
    table: Callable[[], str] | None = None

    def at(self, scale: Scale) -> "Figure":
        """The same, the paper's numbers only beside runs of the paper's size."""
        ours, theirs = ([cell.record() for cell in self.cells(size, 0)] for size in (scale, "paper"))
        return self if ours == theirs else replace(self, numbers={})


_ALL: Final = (
    Figure(
        "check",
        "the authors' notebook",
        "Five permutations, one epoch each, 784-300-300-100",
        "92.37 % on average; one image is enough to find the task every time",
        cells.check,
        {"SupSup, GG": 92.37, "SupSup, GNu, H": 92.37},
    ),
    Figure(
        "permuted-lenet",
        "Figure 3 left",
        "PermutedMNIST, LeNet 300-100, 100 outputs",
        "Finding the task by One-Shot, SupSup outperforms methods that are told it",
        partial(cells.permuted, "lenet-300-100", 100, {"quick": 5, "laptop": 250, "paper": 250}),
    ),
    Figure(
        "permuted-fc",
        "Figure 3 right",
        "PermutedMNIST, FC 1024-1024, 500 outputs",
        "As with LeNet, with a larger network; 94.91 % after 250 tasks (section 4.2, which names no network)",
        partial(cells.permuted, "fc-1024-1024", 500, {"quick": 3, "laptop": 5, "paper": 250}),
        {"SupSup, GNu, H": 94.91},
    ),
    Figure(
        "thousands",
        "Figure 4",
        "Permutations told and never told, LeNet 300-100, 500 outputs",
        "Never told a task (NNs), SupSup does as well as when told in training (GNu), until its masks run out",
        cells.thousands,
    ),
    Figure(
        "rotated",
        "Figure 5 left",
        "RotatedMNIST, 36 tasks ten degrees apart",
        "With a full batch and Binary inference SupSup tells them apart, and outperforms PSP and BatchE that are told",
        cells.rotated,
    ),
    Figure(
        "batche-one-shot",
        "Figure 5 right, section C",
        "BatchE with One-Shot inference, 500 outputs",
        "One-Shot can find the task for BatchE as well; SupSup does it better",
        cells.one_shot_for_batche,
    ),
    Figure(
        "output-size",
        "Figure 6",
        "Output size s and the objectives H and G",
        "Superfluous outputs help to find the task, by either objective",
        cells.output_size,
    ),
    Figure(
        "hopfield",
        "section 3.5, Figure 7 (appendix)",
        "HopSupSup on SplitMNIST",
        "masks are found again within 30 gradient steps; 97.43 % on average, as quoted by others, with seeds that fail",
        cells.hopfield,
        {"HopSupSup, the paper's descent, GNu, full batch": 97.43},
    ),
    Figure(
        "hundred",
        "section 4, all baselines in one table",
        "A hundred permutations, LeNet 300-100, 500 outputs",
        "SupSup outperforms methods that are told the task; after ten permutations online EWC is at 33.88 % (GNu)",
        cells.hundred,
    ),
    Figure(
        "split-imagenet",
        "Figure 2 left",
        "SplitImageNet, 100 tasks of 10 classes, GG: what masks cost",
        "Near the Upper Bound (92.55 %) with 89.58 % in 195 MB instead of 10,223",
        lambda *_: [],
        table=storage.split_imagenet,
    ),
    Figure(
        "split-cifar100",
        "Figure 2 right",
        "SplitCIFAR100, 20 tasks of 5 classes, GG",
        "SupSup outperforms baselines of its size, and benefits from transfer; Lower Bound 24.5 %",
        partial(cells.split_cifar, 100),
        {"Lower Bound, GG": 24.5},
        data="cifar100",
    ),
    Figure(
        "split-cifar10",
        "Figure 2 right, on a stand-in",
        "Five tasks of two classes of CIFAR-10, GG",
        "as SplitCIFAR100",
        partial(cells.split_cifar, 10),
        data="cifar10",
    ),
    Figure(
        "five-cifar10",
        "not in the paper",
        "Five tasks of two classes of CIFAR-10, every method",
        "off MNIST task inference is limited by calibration (section 5)",
        cells.five_cifar10,
        data="cifar10",
    ),
    Figure(
        "limits",
        "section 5",
        "Tasks that are hard to tell apart",
        "Task inference fails where models are overly confident for the wrong task",
        cells.limits,
    ),
    Figure(
        "variants",
        "not in the paper",
        "Kind of mask, density, optimiser and initialisation",
        "training the mask is not its focus",
        cells.variants,
    ),
)
FIGURES: Final[dict[str, Figure]] = {figure.name: figure for figure in _ALL}


def figure(name: str) -> Figure:
    """The figure of that name.

    Raises:
        SpecError: there is none.
    """
    if name not in FIGURES:
        raise SpecError(f"there is no figure {name!r}: choose {', '.join(FIGURES)}")
    return FIGURES[name]
