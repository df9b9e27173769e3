"""How a mask is found again in a Hopfield network, and how many it holds before that fails.

    SUPSUP_DATA_DIR=... python benchmarks/hopfield.py --draw docs/paper/hopfield.png
    python benchmarks/hopfield.py --units 512 --pairs 1 5 10

*Convergence*: SplitMNIST, five tasks stored; at every gradient step the accuracy of the mask so far on the 128 images
that look for it, and its distance to each stored mask. *Capacity*: tasks are pairs of digits, 45 of them; so many masks
are stored, and for up to ten of them 128 test images look for theirs. A mask counts as found when the stored one that
it is nearest to is that of its task, with less than 2 % of its bits elsewhere. Stored masks are looked at here only.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from _latest import record
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from supsup_online.datasets import Dataset, load_mnist
from supsup_online.paper.hopfield import HopSupSup, Step
from supsup_online.paper.hopfield_memory import RULES, HopfieldMemory
from supsup_online.paper.methods import Setup

ROWS, BATCHES, ASKED = 128, 94, 10
FOUND = 0.02
Masks = list[Tensor]


class Pairs:
    """Tasks of two digits each, all 45, those of SplitMNIST first.

    Args:
        data: MNIST.
        seed: of order and batches.
    """

    def __init__(self, data: Dataset, seed: int) -> None:
        self.data, self.seed = data, seed
        split = [(digit, digit + 1) for digit in range(0, 10, 2)]
        others = [pair for pair in itertools.combinations(range(10), 2) if pair not in split]
        order = np.random.default_rng(seed).permutation(len(others))
        self.pairs = [*split, *(others[place] for place in order)]

    def training(self, task: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One epoch's worth of batches, drawn with replacement."""
        rows = np.flatnonzero(np.isin(self.data.train_y, self.pairs[task]))
        draws = np.random.default_rng([self.seed, task])
        for _ in range(BATCHES):
            chosen = draws.choice(rows, ROWS)
            yield self.data.train_x[chosen], self.data.train_y[chosen]

    def test(self, task: int) -> tuple[np.ndarray, np.ndarray]:
        """The first 128 test images."""
        rows = np.flatnonzero(np.isin(self.data.test_y, self.pairs[task]))[:ROWS]
        return self.data.test_x[rows], self.data.test_y[rows]


def distances(step: Step, masks: Sequence[Masks]) -> list[float]:
    """Share of bits, over all layers, in which what was found differs from each stored mask."""
    found = torch.cat(step.patterns)
    return [float((found != torch.cat(mask)).float().mean()) for mask in masks]


def store(method: HopSupSup, masks: Sequence[Masks], rule: str) -> None:
    """These masks and no others."""
    method.memories = tuple(HopfieldMemory(units, rule) for units in method.network.sizes)
    for mask in masks:
        for memory, pattern in zip(method.memories, mask, strict=True):
            memory.store(pattern)


def convergence(method: HopSupSup, tasks: Pairs, masks: Sequence[Masks]) -> list[dict[str, object]]:
    """Step by step, for each of the five tasks of SplitMNIST."""
    store(method, masks[:5], "storkey")
    lines = []
    for task in range(5):
        x, y = tasks.test(task)
        features = method.network.features(method.setup.prepared(x))
        for number, step in enumerate(method.descend(features, method.mean()), 1):
            logits = method.network.logits(features, [(pattern + 1) / 2 for pattern in step.patterns])
            accuracy = float((logits.argmax(1).numpy() == y).mean())
            lines.append(
                {"task": task, "step": number, "accuracy": accuracy, "entropy": step.entropy, "energy": step.energy}
                | {"distances": distances(step, masks[:5])}
            )
    return lines


def capacity(method: HopSupSup, tasks: Pairs, masks: Sequence[Masks], counts: Sequence[int]) -> list[dict[str, object]]:
    """Share of masks found when so many are stored."""
    lines = []
    for rule, count in itertools.product(RULES, counts):
        store(method, masks[:count], rule)
        found, accuracies, began = [], [], time.perf_counter()
        asked = range(0, count, max(1, count // ASKED))
        for task in asked:
            x, y = tasks.test(task)
            features = method.network.features(method.setup.prepared(x))
            end = method.recover(features)
            apart = distances(end, masks[:count])
            found.append(int(np.argmin(apart)) == task and apart[task] < FOUND)
            logits = method.network.logits(features, [(pattern + 1) / 2 for pattern in end.patterns])
            accuracies.append(float((logits.argmax(1).numpy() == y).mean()))
        seconds = (time.perf_counter() - began) / len(asked)
        lines.append({"rule": rule, "stored": count, "found": float(np.mean(found)), "seconds": seconds})
        lines[-1]["accuracy"] = float(np.mean(accuracies))
        print(json.dumps(lines[-1]), flush=True)
    return lines


def draw(steps: Sequence[dict[str, object]], held: Sequence[dict[str, object]], path: Path) -> None:
    """Distance by step to the right mask and to the nearest other; found by masks stored."""
    picture = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(picture)
    left, right = picture.subplots(1, 2)
    for task in range(5):
        lines = [line for line in steps if line["task"] == task]
        own = [line["distances"][task] for line in lines]
        others = [min(d for other, d in enumerate(line["distances"]) if other != task) for line in lines]
        x = [line["step"] for line in lines]
        left.plot(x, own, color=f"C{task}", label=f"task {task}: its own mask")
        left.plot(x, others, color=f"C{task}", linestyle=":", linewidth=1)
    left.set_xlabel("gradient step")
    left.set_ylabel("share of bits that differ\n(dotted: from the nearest other mask)")
    left.legend(fontsize=7)
    for rule in RULES:
        lines = [line for line in held if line["rule"] == rule]
        right.plot([n["stored"] for n in lines], [100 * n["found"] for n in lines], marker="o", label=f"{rule}: found")
        right.plot(
            [n["stored"] for n in lines], [100 * n["accuracy"] for n in lines], linestyle=":", label=f"{rule}: accuracy"
        )
    right.set_xlabel("masks stored")
    right.set_ylabel("%")
    right.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=120)


def main() -> None:
    """Train, store, look for; print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=2048)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 2, 5, 10, 20, 45])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draw", type=Path)
    options = parser.parse_args()
    tasks = Pairs(load_mnist(), options.seed)
    setup = Setup(f"mlp-{options.units}-{options.units}", outputs=10, tasks=45, seed=options.seed)
    method = HopSupSup(setup)
    masks = [method.train(tasks.training(task)) for task in range(max(5, *options.pairs))]
    steps = convergence(method, tasks, masks)
    for task in range(5):
        own = [line["distances"][task] for line in steps if line["task"] == task]
        there = next((number for number, apart in enumerate(own, 1) if apart < FOUND), None)
        print(json.dumps({"task": task, "found_at_step": there, "first": own[0], "last": own[-1]}))
    held = capacity(method, tasks, masks, options.pairs)
    record(hopfield={"units": options.units, "seed": options.seed, "capacity": held})
    if options.draw:
        draw(steps, held, options.draw)


if __name__ == "__main__":
    main()
