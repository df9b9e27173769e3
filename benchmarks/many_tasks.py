"""Thousands of permutations of MNIST in one run: masks, wrong updates, task inference and accuracy as the bank grows.

    SUPSUP_DATA_DIR=... python benchmarks/many_tasks.py --tasks 2500 --report 10 500 1000 1500 2000 2500
    python benchmarks/many_tasks.py --tasks 500 --order revisits --dwell 200 400 --report 10 100 250 500
    python benchmarks/many_tasks.py ... --resume                  go on from the state file of a run that was stopped
    python benchmarks/many_tasks.py ... --draw docs/many-tasks.png

The learner is told no task, in training nor in testing. A report is due when so many tasks have had their last batch.
Everything a run needs to go on lies in one file, replaced in one move, so it may be killed at any time. The same
options on the same machine give the same masks, however often a run was stopped.
"""

import argparse
import io
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from supsup_online.datasets import load_mnist
from supsup_online.decide import RULES, RuleSettings
from supsup_online.learner import LearnerSettings, OnlineLearner
from supsup_online.learner_arrays import as_bytes, learner_arrays, restore_learner
from supsup_online.network import Network
from supsup_online.predictor import predict
from supsup_online.scenarios import Scenario
from supsup_online.spec import BankSpec
from supsup_online.types import Batch

PAPER = "paper, 2500 permutations, 1000 batches a task: NNs like GNu (task known in training) until its masks run out"
NO_MASK = -1
SHORTEST_STRETCH = 20
SAMPLED_TASKS, SAMPLED_IMAGES = 100, 50

Whole = NDArray[np.int64]


def make_plan(order: str, tasks: int, dwell: tuple[int, int], seed: int) -> Whole:
    """The true task of every batch, int64 (batches,).

    Args:
        order: `sequential`: each task once. `revisits`: each task in two to four stretches, all stretches shuffled.
        tasks: how many there are.
        dwell: fewest and most batches of a task in total; drawn evenly.
        seed: of lengths, cuts and order.
    """
    draws = np.random.default_rng([seed, tasks, *dwell])
    lengths = draws.integers(dwell[0], dwell[1] + 1, tasks)
    if order == "sequential":
        return np.repeat(np.arange(tasks), lengths)
    stretches = [(task, part) for task in range(tasks) for part in _cut(int(lengths[task]), draws)]
    shuffled = [stretches[i] for i in draws.permutation(len(stretches))]
    return np.repeat([task for task, _ in shuffled], [part for _, part in shuffled]).astype(np.int64)


def _cut(length: int, draws: np.random.Generator) -> list[int]:
    """A length in two to four parts, none shorter than `SHORTEST_STRETCH` unless the whole is too short to be cut."""
    parts = max(1, min(int(draws.integers(2, 5)), length // SHORTEST_STRETCH))
    spare = length - parts * min(SHORTEST_STRETCH, length // parts)
    cuts = np.sort(draws.integers(0, spare + 1, parts - 1))
    gaps = np.diff(np.concatenate([[0], cuts, [spare]]))
    return [int(gap) + (length - spare) // parts for gap in gaps]


@dataclass
class Tally:
    """Which mask each task went into, counted as it happens; agrees with `supsup_online.scoring`."""

    owner: dict[int, int] = field(default_factory=dict)
    used: dict[int, Counter[int]] = field(default_factory=dict)
    wrong: int = 0
    untrained: int = 0

    def add(self, task: int, mask: int) -> None:
        """One batch of a task was trained into a mask (or `NO_MASK`)."""
        if mask == NO_MASK:
            self.untrained += 1
            return
        self.wrong += self.owner.setdefault(mask, task) != task
        self.used.setdefault(task, Counter())[mask] += 1

    def main_mask(self, task: int) -> int | None:
        """The mask most of the task's batches went into; of equals the lowest id."""
        used = self.used.get(task)
        return min(used, key=lambda mask: (-used[mask], mask)) if used else None


class Run:
    """A plan on its way through a learner.

    Attributes:
        masks: the mask of each batch done so far, int32 (batches,).
        done: batches done.
        seconds: spent in training since the very beginning, across interruptions; the making of batches included.
        decisions: how many there were; `decision_ms` holds the durations of those steps since the last report.
        reports: what was measured so far.
    """

    def __init__(self, learner: OnlineLearner, scenario: Scenario, plan: Whole, seed: int, rows: int = 128) -> None:
        self.learner, self.scenario, self.plan, self.seed, self.rows = learner, scenario, plan, seed, rows
        self.masks = np.full(len(plan), NO_MASK, dtype=np.int32)
        self.done, self.seconds, self.decisions = 0, 0.0, 0
        self.decision_ms: list[float] = []
        self.reports: list[dict[str, Any]] = []
        self.tally = Tally()
        self._seen: Counter[int] = Counter()
        self._last = {int(task): index for index, task in enumerate(plan)}

    def step(self) -> None:
        """The next batch, into the learner."""
        task = int(self.plan[self.done])
        begun = time.perf_counter()
        x, y = self.scenario.batch(task, self._seen[task], self.rows)
        made = time.perf_counter()
        result = self.learner.step(Batch(x, y, "stream-0"))
        ended = time.perf_counter()
        if result.decision is not None:
            self.decisions += 1
            self.decision_ms.append(1e3 * (ended - made))
        self.seconds += ended - begun
        self._record(task, NO_MASK if result.mask_id is None else result.mask_id)

    def _record(self, task: int, mask: int) -> None:
        self.masks[self.done] = mask
        self.tally.add(task, mask)
        self._seen[task] += 1
        self.done += 1

    def finished(self) -> list[int]:
        """Tasks that have had their last batch, in that order."""
        return [task for task, index in sorted(self._last.items(), key=lambda pair: pair[1]) if index < self.done]

    def due(self, points: Sequence[int]) -> dict[int, int]:
        """Batches done -> the report then due."""
        ends = sorted(self._last.values())
        return {ends[k - 1] + 1: k for k in points if k <= len(ends)}

    # -- measuring ------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Measure, on a seeded sample of the finished tasks, and keep it."""
        finished = self.finished()
        bank = self.learner.bank
        measured = {
            "tasks": len(finished),
            "begun": len(self._seen),
            "batches": self.done,
            "masks": len(bank),
            "wrong_updates": self.tally.wrong,
            "untrained": self.tally.untrained,
            "decisions": self.decisions,
            "decision_ms": statistics.median(self.decision_ms) if self.decision_ms else 0.0,
            **self._accuracy(finished),
            "seconds": self.seconds,
            "rss_bytes": psutil.Process().memory_info().rss,
            "bank_bytes": len(bank) * 8 * self.learner.network.layout.word_count,
        }
        self.decision_ms = []
        self.reports.append(measured)
        return measured

    def _accuracy(self, finished: Sequence[int]) -> dict[str, float]:
        """Single images: was the task found, and is the label right with and without being told the task?"""
        self.learner.sync()
        network, bank = self.learner.network, self.learner.bank
        draws = np.random.default_rng([self.seed, len(finished)])
        tasks = sorted(draws.choice(finished, min(len(finished), SAMPLED_TASKS), replace=False).tolist())
        sets = [self._images(task, draws) for task in tasks]
        y = np.concatenate([labels for _, labels in sets])
        main = np.concatenate([np.full(len(labels), self._main(t)) for t, (_, labels) in zip(tasks, sets, strict=True)])
        ids = list(bank)
        begun = time.perf_counter()
        inputs = network.inputs(np.concatenate([images for images, _ in sets]))
        answer = predict(network, ids, bank.stacked(ids), inputs, scope="sample")
        seconds = time.perf_counter() - begun
        told = np.full(len(y), -1)
        for mask in set(main.tolist()) - {NO_MASK}:
            logits = network.logits(inputs[torch.from_numpy(main == mask)], bank.words(mask))
            told[main == mask] = logits[:, : network.spec.classes].argmax(1).cpu().numpy()
        found, right = answer.mask_ids == main, answer.labels == y
        return {
            "sampled_tasks": len(tasks),
            "images": len(y),
            "found": float(found.mean()),
            "strict": float((found & right).mean()),
            "lenient": float(right.mean()),
            "told": float((told == y).mean()),
            "test_ms_per_image": 1e3 * seconds / len(y),
        }

    def _main(self, task: int) -> int:
        mask = self.tally.main_mask(task)
        return mask if mask is not None and mask in self.learner.stats else NO_MASK

    def _images(self, task: int, draws: np.random.Generator) -> tuple[NDArray[np.uint8], Whole]:
        test = self.scenario.dataset
        chosen = draws.choice(len(test.test_y), min(SAMPLED_IMAGES, len(test.test_y)), replace=False)
        return self.scenario.task(task).apply(test.test_x[chosen], test.test_y[chosen])

    # -- stopping and going on ------------------------------------------------------------------------------------

    def save(self, path: Path, options: Mapping[str, Any]) -> None:
        """Everything into one file, in place of the older one in a single move."""
        meta = {
            "options": dict(options),
            "seconds": self.seconds,
            "decisions": self.decisions,
            "decision_ms": self.decision_ms,
            "reports": self.reports,
        }
        arrays: dict[str, Any] = {**learner_arrays(self.learner), "history": self.masks[: self.done]}
        unfinished = path.with_name(path.name + ".new")
        with unfinished.open("wb") as file:
            np.savez(file, meta=as_bytes(json.dumps(meta).encode()), **arrays)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        self.learner.committed()

    def load(self, path: Path, options: Mapping[str, Any]) -> None:
        """Go on where a run with the same options was saved, with a learner that has seen nothing yet."""
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            meta = json.loads(stored["meta"].tobytes())
            if meta["options"] != dict(options):
                raise SystemExit(f"{path} was made with other options: {meta['options']}")
            restore_learner(self.learner, stored)
            history = stored["history"].tolist()
        self.seconds, self.decisions, self.decision_ms = meta["seconds"], meta["decisions"], meta["decision_ms"]
        self.reports = meta["reports"]
        for task, mask in zip(self.plan.tolist(), history, strict=False):
            self._record(task, mask)


@dataclass
class Pace:
    """When to say something and when to save, in seconds; asked after every batch."""

    every: float
    due: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.due += self.every

    def now(self) -> bool:
        """Whether it is time again."""
        if time.monotonic() < self.due:
            return False
        self.due = time.monotonic() + self.every
        return True


def drive(run: Run, points: Sequence[int], state: Path, options: Mapping[str, Any], save_every: float) -> None:
    """To the end of the plan, with progress, reports and saves."""
    due, talk, save = run.due(points), Pace(10.0), Pace(save_every)
    begun, at_begin = time.monotonic(), run.done
    while run.done < len(run.plan):
        run.step()
        if run.done in due:
            print(json.dumps(run.report()), flush=True)
        if run.done in due or save.now():
            run.save(state, options)
        if talk.now():
            rate = (run.done - at_begin) / (time.monotonic() - begun)
            print(
                f"  {len(run.finished())} tasks, {run.done} of {len(run.plan)} batches, {rate:.0f} batches/s, "
                f"{(len(run.plan) - run.done) / rate / 60:.0f} min left, {len(run.learner.bank)} masks, "
                f"{run.tally.wrong} wrong updates",
                flush=True,
            )
    run.save(state, options)


def table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, one line per reporting point."""
    head = ["tasks", "masks / begun", "wrong updates", "decisions, median", "task found"]
    head += ["strict", "lenient", "told", "training", "RSS", "bank"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *map(_line, reports)]
    return "\n".join([*lines, "", PAPER])


def _line(r: Mapping[str, Any]) -> str:
    return (
        f"| {r['tasks']} | {r['masks']}/{r['begun']} | {r['wrong_updates']} of {r['batches']} | "
        f"{r['decisions']}, {r['decision_ms']:.1f} ms | {r['found']:.1%} | {r['strict']:.1%} | "
        f"{r['lenient']:.1%} | {r['told']:.1%} | {r['seconds'] / 60:.1f} min | "
        f"{r['rss_bytes'] / 2**20:.0f} MiB | {r['bank_bytes'] / 2**20:.1f} MiB |"
    )


def draw(reports: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracies, and masks beside tasks, over the number of tasks."""
    import matplotlib as mpl  # noqa: PLC0415 - only for the picture

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(8, 5.5), layout="constrained")
    tasks = [r["tasks"] for r in reports]
    for name, label in (("found", "task found from one image"), ("strict", "strict"), ("told", "told the task")):
        above.plot(tasks, [100 * r[name] for r in reports], marker="o", label=label)
    above.set(ylabel="%", title="Permutations of MNIST, nobody told which is which")
    above.legend()
    below.plot(tasks, [r["begun"] for r in reports], "k:", label="true tasks begun")
    below.plot(tasks, [r["masks"] for r in reports], marker="o", label="masks allocated")
    below.set(ylabel="masks", xlabel="tasks finished")
    below.legend()
    figure.savefig(path, dpi=120)


def parse() -> argparse.Namespace:
    """The command line; `--dwell` defaults to `--batches-per-task` for every task."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--name", help="results go to benchmarks/results/many_tasks-NAME.json")
    arguments.add_argument("--tasks", type=int, default=2500)
    arguments.add_argument("--batches-per-task", type=int, default=300)
    arguments.add_argument("--dwell", nargs=2, type=int, metavar=("MIN", "MAX"), help="batches of a task in total")
    arguments.add_argument("--order", default="sequential", choices=["sequential", "revisits"])
    arguments.add_argument("--rule", default="loss", choices=RULES)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--report", nargs="+", type=int, default=[10, 500, 1000, 1500, 2000, 2500])
    arguments.add_argument("--state", type=Path, help="default: benchmarks/results/many_tasks-NAME.npz")
    arguments.add_argument("--save-every", type=float, default=180.0, help="seconds")
    arguments.add_argument("--resume", action="store_true")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--draw", type=Path, metavar="FILE")
    given = arguments.parse_args()
    given.dwell = tuple(given.dwell or [given.batches_per_task] * 2)
    given.name = given.name or f"{given.order}-{given.tasks}-{given.rule}-{given.seed}"
    return given


def main() -> None:
    """Run, or go on; print the table and write the results."""
    given = parse()
    torch.set_num_threads(given.threads)
    dataset = load_mnist()
    spec = BankSpec(weight_seed=given.seed, budget=2 * given.tasks)  # room for masks too many, so that they show
    settings = LearnerSettings(rule=RuleSettings(rule=given.rule))
    plan = make_plan(given.order, given.tasks, given.dwell, given.seed)
    scenario = Scenario(dataset, "permuted", given.tasks, given.seed)
    run = Run(OnlineLearner(Network.build(spec, given.device), settings), scenario, plan, given.seed)
    options = {name: getattr(given, name) for name in ("tasks", "order", "rule", "seed")}
    options |= {"dwell": list(given.dwell), "dataset": dataset.source, "settings": json.dumps(asdict(settings))}
    (results := Path(__file__).with_name("results")).mkdir(exist_ok=True)
    state = given.state or results / f"many_tasks-{given.name}.npz"
    if given.resume and state.exists():
        run.load(state, options)
        print(f"going on after {run.done} of {len(plan)} batches", flush=True)
    drive(run, given.report, state, options, given.save_every)
    content = {**options, "batches": len(plan), "threads": given.threads, "reports": run.reports}
    (results / f"many_tasks-{given.name}.json").write_text(json.dumps(content, indent=1))
    print(f"\n{table(run.reports)}")
    if given.draw:
        draw(run.reports, given.draw)


if __name__ == "__main__":
    main()
