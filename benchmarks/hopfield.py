"""HopSupSup on SplitMNIST: ten seeds of each way to recover a mask, and how many masks a Hopfield network holds.

    SUPSUP_DATA_DIR=... python benchmarks/hopfield.py                       an hour and more on one core
    python benchmarks/hopfield.py --seeds 3 --variant projected authors     less
    python benchmarks/hopfield.py --constant-rate --variant authors         masks trained at a rate that does not fall
    python benchmarks/hopfield.py --capacity permuted pairs --seeds 1       how many tasks it holds
    python benchmarks/hopfield.py --picture hopfield.png --results DIR      both, drawn from what was computed

Five tasks of two digits, 784-2048-2048-10, one epoch each. The variants:

    authors    the authors' way: one recovery per task, each step on the next 64 rows of its test set
    batch      the same descent, 30 steps, from one batch of 128 rows; each batch of the test set for itself
    once       soft and projected (see `hopfield_recovery`), each batch of 128 for itself, one attempt
    projected  the same, three attempts, the most certain kept

*Told* is accuracy under the stored mask: what a recovery can reach. A recovery is right when the masks of every layer
differ from the stored ones of its task in less than 5 % of the bits. Results go to results/hopfield.csv, a line for
each seed and variant (results/hopfield-constant-rate.csv, results/hopfield-capacity.csv), and lines that are there are
not computed again.

The paper's cosine falls over the epochs of a task. In the authors' code it falls after an epoch, so that a task of one
epoch has no fall at all: that is what --constant-rate tries.
"""

import argparse
import csv
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from _latest import RESULTS
from torch import Tensor

from supsup_online.datasets import Dataset, load_mnist
from supsup_online.paper.hopfield import HopSupSup, paper_recovery
from supsup_online.paper.hopfield_memory import RULES
from supsup_online.paper.hopfield_recovery import PaperRecovery, ProjectedRecovery, Recovery
from supsup_online.paper.methods import Setup
from supsup_online.scenarios import RawDraws, Scenario

TASKS, ROWS = 5, 128
FOREVER = 10**9  # so many steps of a cosine that it does not fall
SINGLE: dict[str, Recovery] = {
    "batch": PaperRecovery(),
    "once": ProjectedRecovery(attempts=1),
    "projected": ProjectedRecovery(),
}
VARIANTS = ("authors", *SINGLE)
NAMES = {
    "authors": "the authors' way",
    "batch": "the paper's descent, one batch",
    "once": "projected, one attempt",
    "projected": "projected, three",
}
COLOURS = {"authors": "tab:blue", "batch": "tab:blue", "once": "tab:orange", "projected": "tab:green"}
STYLES = {"at_rest": "o:", "projected": "s--"}  # lines that lie on each other stay visible
QUOTED = 97.43  # for the paper, by others
COUNTS = (2, 5, 10, 20, 30, 45)
ASKED = 10
KINDS = ("permuted", "pairs")
Masks = list[Tensor]
Batch = tuple[np.ndarray, np.ndarray]


def set_up(seed: int, variant: str, steps: int | None = None) -> HopSupSup:
    """An untrained method; `steps` are those of its cosine, and None is one for each batch."""
    setup = Setup("mlp-2048-2048", outputs=10, tasks=TASKS, seed=seed)
    return paper_recovery(setup) if variant == "authors" else HopSupSup(setup, SINGLE[variant], steps=steps)


def learnt(seed: int, scenario: Scenario, steps: int | None) -> tuple[dict[str, HopSupSup], list[Masks]]:
    """A method of each variant with five tasks learnt, and their masks, which the methods themselves do not keep."""
    methods = {variant: set_up(seed, variant) for variant in VARIANTS}
    trained = set_up(seed, "projected", steps)
    masks = []
    for task in range(TASKS):
        rows = int(np.isin(scenario.dataset.train_y, scenario.classes(task)).sum())
        masks.append(trained.train(task, [scenario.batch(task, at, ROWS) for at in range(-(-rows // ROWS))]))
        trained.store(masks[-1])
    for method in methods.values():
        method.restore(trained.state())
    return methods, masks


def parts(scenario: Scenario, task: int, rows: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The test set of a task in batches of about so many rows, or whole."""
    x, y = scenario.test_set(task)
    count = max(1, round(len(x) / rows)) if rows else 1
    yield from zip(np.array_split(x, count), np.array_split(y, count), strict=True)


def is_right(found: Masks, stored: Masks) -> bool:
    """Less than 5 % of the bits of every layer are wrong."""
    return all(float((a != b).float().mean()) < 0.05 for a, b in zip(found, stored, strict=True))


def scored(method: HopSupSup, masks: Masks, scenario: Scenario, task: int, rows: int | None) -> list[float]:
    """Accuracy, accuracy when told, recoveries and how many of them were right, for one task."""
    hits, told, recoveries, right, total = 0, 0, 0, 0, 0
    for x, y in parts(scenario, task, rows):
        batches = method.features(x)
        found = method.recover(batches).masks
        for part, logits, known in zip(
            np.split(y, np.cumsum([len(b) for b in batches])[:-1]),
            [method.network.logits(b, found) for b in batches],
            [method.network.logits(b, masks) for b in batches],
            strict=True,
        ):
            hits += int((logits.argmax(1).numpy() == part).sum())
            told += int((known.argmax(1).numpy() == part).sum())
        recoveries, right, total = recoveries + 1, right + is_right(found, masks), total + len(y)
    return [hits / total, told / total, recoveries, right]


def measure(seed: int, variants: Sequence[str], dataset: Dataset, steps: int | None) -> Iterator[dict[str, object]]:
    """A line for each variant."""
    scenario = Scenario(dataset, "split", TASKS, seed)
    methods, masks = learnt(seed, scenario, steps)
    for variant in variants:
        begun = time.perf_counter()
        rows = None if variant == "authors" else ROWS
        table = np.array([scored(methods[variant], masks[t], scenario, t, rows) for t in range(TASKS)])
        spent = (time.perf_counter() - begun) / table[:, 2].sum()
        line: dict[str, object] = {"variant": variant, "seed": seed, "accuracy": round(float(table[:, 0].mean()), 4)}
        line |= {"told": round(float(table[:, 1].mean()), 4)}
        line |= {"recoveries": int(table[:, 2].sum()), "right": int(table[:, 3].sum()), "seconds_each": round(spent, 3)}
        yield line | {f"task{task}": round(float(value), 4) for task, value in enumerate(table[:, 0])}


def tasks_of(kind: str, dataset: Dataset, seed: int) -> Iterator[tuple[list[Batch], np.ndarray]]:
    """Training batches and 128 test images of one task after the other; the tasks share their labels.

    `permuted`: permutations of the pixels, 100 batches each. `pairs`: one epoch of two digits, all 45 pairs in an order
    drawn from the seed, so that tasks share digits as well.
    """
    if kind == "permuted":
        scenario = Scenario(dataset, "permuted", max(COUNTS), seed)
        for task in range(max(COUNTS)):
            yield [scenario.batch(task, at, ROWS) for at in range(100)], scenario.test_set(task)[0][:ROWS]
        return
    every = [(a, b) for a in range(dataset.classes) for b in range(a)]
    for pair in (every[i] for i in RawDraws(seed, 5).permutation(len(every))):
        rows = np.flatnonzero(np.isin(dataset.train_y, pair))
        order = rows[RawDraws(seed, 6, *pair).permutation(len(rows))]
        batches = [(dataset.train_x[at], dataset.train_y[at]) for at in np.array_split(order, len(order) // ROWS)]
        yield batches, dataset.test_x[np.isin(dataset.test_y, pair)][:ROWS]


def capacity(seed: int, kind: str, dataset: Dataset, most: int) -> Iterator[dict[str, object]]:
    """Stored masks against recovery rate, for both rules."""
    methods = {rule: HopSupSup(Setup("mlp-2048-2048", outputs=10, seed=seed), rule=rule) for rule in RULES}
    known: list[tuple[np.ndarray, Masks]] = []
    for batches, tested in tasks_of(kind, dataset, seed):
        known.append((tested, methods["storkey"].train(len(known), batches)))
        for method in methods.values():
            method.store(known[-1][1])
        if len(known) in COUNTS:
            for rule, method in methods.items():
                yield {"kind": kind, "rule": rule, "seed": seed, "stored": len(known)} | found_of(method, known)
        if len(known) >= most:
            return


def found_of(method: HopSupSup, known: list[tuple[np.ndarray, Masks]]) -> dict[str, object]:
    """Share of the stored masks that are at rest, and of some of them that each recovery finds from 128 images."""
    at_rest = [
        is_right([(memory.settle(2 * m - 1) + 1) / 2 for memory, m in zip(method.memories, masks, strict=True)], masks)
        for _, masks in known
    ]
    asked = [known[at * len(known) // ASKED] for at in range(ASKED)] if len(known) > ASKED else known
    line: dict[str, object] = {"at_rest": round(float(np.mean(at_rest)), 3), "asked": len(asked)}
    for name, recovery in SINGLE.items():
        ends = (recovery.recover(method.network, method.memories, method.features(x)).masks for x, _ in asked)
        right = [is_right(end, masks) for end, (_, masks) in zip(ends, asked, strict=True)]
        line[name] = round(float(np.mean(right)), 3)
    return line


def lines_of(path: Path) -> list[dict[str, str]]:
    """What was computed before."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, line: dict[str, object]) -> None:
    """One more line, with a header where it is the first."""
    RESULTS.mkdir(exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(line))
        if is_new:
            writer.writeheader()
        writer.writerow(line)


def table(lines: list[dict[str, str]], variants: Sequence[str]) -> None:
    """Mean, seeds and failures of each variant."""
    print("| variant | seeds | mean % | told % | right recoveries | seeds with a lost task | per seed % | s each |")
    print("|---" * 8 + "|")
    for variant in variants:
        own = sorted((line for line in lines if line["variant"] == variant), key=lambda line: int(line["seed"]))
        if not own:
            continue
        accuracy = [100 * float(line["accuracy"]) for line in own]
        told = np.mean([100 * float(line["told"]) for line in own])
        lost = [int(line["seed"]) for line in own if min(float(line[f"task{t}"]) for t in range(TASKS)) < 0.5]
        right, every = (sum(int(line[key]) for line in own) for key in ("right", "recoveries"))
        each = np.mean([float(line["seconds_each"]) for line in own])
        seeds = ", ".join(f"{value:.1f}" for value in accuracy)
        print(f"| {variant} | {len(own)} | {np.mean(accuracy):.2f} | {told:.2f} | {right} of {every} | {lost} ", end="")
        print(f"| {seeds} | {each:.2f} |")


def draw(results: Path, path: Path) -> None:
    """Accuracy of every seed, and what is found among so many masks (permutations, Storkey's rule)."""
    import matplotlib as mpl  # noqa: PLC0415 - only for the picture

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, (seeds, capacity) = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    lines = lines_of(results / "hopfield.csv")
    for place, variant in enumerate(variant for variant in NAMES if variant in {line["variant"] for line in lines}):
        own = {int(line["seed"]): 100 * float(line["accuracy"]) for line in lines if line["variant"] == variant}
        label = f"{NAMES[variant]}: {np.mean(list(own.values())):.1f} on average"
        at = [seed + 0.27 * (place - 1) for seed in own]
        seeds.bar(at, list(own.values()), width=0.25, label=label, color=COLOURS[variant])
    seeds.axhline(QUOTED, color="black", linewidth=1, linestyle="--", label=f"quoted for the paper: {QUOTED}")
    seeds.set(xlabel="seed", ylabel="accuracy, %", ylim=(50, 118), xticks=sorted({int(line["seed"]) for line in lines}))
    seeds.legend(fontsize=8, loc="upper left")
    held = [line for line in lines_of(results / "hopfield-capacity.csv") if line["kind"] == "permuted"]
    held = [line for line in held if line["rule"] == "storkey"]
    for column, label in {"at_rest": "at rest where it was stored", **NAMES}.items():
        if held and column in held[0]:
            points = [(int(line["stored"]), 100 * float(line[column])) for line in held]
            style, colour = STYLES.get(column, "o-"), COLOURS.get(column, "grey")
            capacity.plot(*zip(*points, strict=True), style, label=label, color=colour)
    capacity.set(xlabel="masks stored", ylabel="found again, %", ylim=(-3, 103))
    capacity.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Compute what is missing, print all."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--seeds", type=int, default=10)
    given.add_argument("--first-seed", type=int, default=0)
    given.add_argument("--variant", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    given.add_argument("--constant-rate", action="store_true", help="train masks at a rate that does not fall")
    given.add_argument("--capacity", nargs="+", default=[], choices=KINDS)
    given.add_argument("--most", type=int, default=45)
    given.add_argument("--picture", type=Path, help="draw what was computed, and compute nothing")
    given.add_argument("--results", type=Path, default=RESULTS, help="where --picture finds it")
    arguments = given.parse_args()
    if arguments.picture:
        draw(arguments.results, arguments.picture)
        return
    torch.set_num_threads(1)
    dataset = load_mnist()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    if arguments.capacity:
        path = RESULTS / "hopfield-capacity.csv"
        for seed, kind in product(seeds, arguments.capacity):
            there = [line for line in lines_of(path) if (line["kind"], int(line["seed"])) == (kind, seed)]
            if not there:
                for line in capacity(seed, kind, dataset, arguments.most):
                    append(path, line)
        print(path.read_text())
        return
    path = RESULTS / ("hopfield-constant-rate.csv" if arguments.constant_rate else "hopfield.csv")
    steps = FOREVER if arguments.constant_rate else None
    for seed in seeds:
        there = {line["variant"] for line in lines_of(path) if int(line["seed"]) == seed}
        if missing := [variant for variant in arguments.variant if variant not in there]:
            for line in measure(seed, missing, dataset, steps):
                append(path, line)
    table(lines_of(path), arguments.variant)


if __name__ == "__main__":
    main()
