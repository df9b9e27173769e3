"""Which rule decides best? Masks against tasks, wrong updates and accuracy, for each rule on each kind of stream.

    python benchmarks/decisions.py                          the table in docs/performance.md
    python benchmarks/decisions.py --rules loss --margin 0.05 0.1 0.2 --seeds 10 11

    python benchmarks/decisions.py --rules loss --architectures mlp-100 fc-1024-1024 --outputs 10 500 --name networks
    python benchmarks/decisions.py --resume                 keep the rows that benchmarks/results/decisions.json has

Streams are sequences of batches with switches at any batch; the scoring is strict (`supsup_online.scoring`). Told
nothing, a test image counts only when its label is right and the mask that answered belongs to its task; told the
task, the mask answers that most of the task's batches went into. Defaults are to be chosen on seeds from 10 on.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from supsup_online import scoring
from supsup_online.datasets import load_mnist
from supsup_online.decide import RULES, RuleSettings
from supsup_online.learner import LearnerSettings, OnlineLearner
from supsup_online.network import Network
from supsup_online.predictor import predict
from supsup_online.running_loss import Agreement
from supsup_online.scenarios import Scenario, ScheduledBatch, iter_stream, schedule
from supsup_online.spec import BankSpec
from supsup_online.types import Batch

BLEND = 20  # batches over which a gradual switch goes from the old task to the new one
SHORTEST, LONGEST = 20, 1000  # batches of a task among tasks of unequal length
USUAL_TASKS = 5  # `--batches` is for so many tasks; a stream of more is longer in proportion

# name -> kind, order, number of tasks, options of the scenario, options of the schedule
STREAMS: dict[str, tuple[str, str, int, dict[str, Any], dict[str, Any]]] = {
    "permuted": ("permuted", "random", 5, {}, {}),
    "permuted, short visits": ("permuted", "random", 5, {}, {"min_dwell": 5, "max_dwell": 20}),
    "permuted, interleaved keys": ("permuted", "interleaved", 5, {}, {}),
    "rotated by 40": ("rotated", "random", 5, {"step_degrees": 40.0}, {}),
    "rotated by 10": ("rotated", "random", 5, {"step_degrees": 10.0}, {}),
    "split": ("split", "random", 5, {}, {}),
    "labels permuted": ("label-permuted", "random", 5, {}, {}),
    "permuted, 20 % label noise": ("permuted", "random", 5, {}, {"label_noise": 0.2}),
    "rotated by 10, full circle": ("rotated", "random", 36, {"step_degrees": 10.0}, {}),
    "permuted, gradual switches": ("permuted", "gradual", 5, {}, {}),
    "permuted, unequal lengths": ("permuted", "unequal", 10, {}, {}),
    "permuted, recurring": ("permuted", "recurring", 20, {}, {"dwell": 40}),
}


def run(stream: str, what: tuple[LearnerSettings, BankSpec], seed: int, batches: int, dataset: Any) -> dict[str, Any]:
    """One stream through one learner, of these settings and on this network."""
    settings, spec = what
    kind, order, tasks, options, timing = STREAMS[stream]
    noise = timing.get("label_noise", 0.0)
    timing = {k: v for k, v in timing.items() if k != "label_noise"}
    plan, switches = planned(order, tasks, batches, seed, timing)
    scenario = Scenario(dataset, kind, tasks, seed, **options)
    network = Network.build(replace(spec, weight_seed=seed))
    learner = OnlineLearner(network, settings)
    masks, decided = [], []
    begun = time.perf_counter()
    for place, x, y in iter_stream(scenario, plan):
        labels = noisy(y, noise, seed, place.index)
        result = learner.step(Batch(x, labels, place.stream))
        masks.append(result.mask_id)
        decided.append(result.decision is not None)
    seconds = time.perf_counter() - begun
    truth = [place.task for place in plan]
    return {
        "stream": stream,
        "rule": settings.rule.rule,
        "seed": seed,
        "tasks": tasks,
        "masks": len(learner.bank),
        "wrong": scoring.wrong_updates(truth, masks),
        "batches": len(plan),
        "switches": len(switches),
        "delays": delays(switches, decided),
        **held_out(learner, scenario, truth, masks),
        "ms_per_batch": 1e3 * seconds / len(plan),
    }


def noisy(y: np.ndarray, share: float, seed: int, index: int) -> np.ndarray:
    """Labels of which a share is replaced by random ones."""
    if not share:
        return y
    draws = np.random.default_rng([seed, index])
    return np.where(draws.random(len(y)) < share, draws.integers(0, 10, len(y)), y)


def planned(
    order: str, tasks: int, batches: int, seed: int, timing: dict[str, Any]
) -> tuple[list[ScheduledBatch], list[int]]:
    """The stream, and the places where a stream of one key begins to switch to another task.

    Beside the orders of `schedule`: `gradual`: random visits whose switches are blended. `unequal`: one task after the
    other, for lengths drawn evenly on a logarithmic scale, whatever `batches` says.
    """
    draws = np.random.default_rng([seed, tasks])
    if order == "unequal":
        lengths = np.exp(draws.uniform(np.log(SHORTEST), np.log(LONGEST), tasks)).round().astype(int)
        visited = np.repeat(np.arange(tasks), lengths).tolist()
        return placed(visited), switch_places(visited)
    length = batches * max(tasks, USUAL_TASKS) // USUAL_TASKS
    plan = schedule("random" if order == "gradual" else order, tasks, length, seed, **timing)  # type: ignore[arg-type]
    if order == "interleaved":
        return plan, []
    visited = [place.task for place in plan]
    switches = switch_places(visited)
    return (placed(blended(visited, switches, draws)) if order == "gradual" else plan), switches


def switch_places(visited: Sequence[int]) -> list[int]:
    """Where a task differs from the one before."""
    return [index for index in range(1, len(visited)) if visited[index] != visited[index - 1]]


def blended(visited: Sequence[int], switches: Sequence[int], draws: np.random.Generator) -> list[int]:
    """From each switch on, the new task's probability rises evenly over `BLEND` batches; else the old one shows."""
    mixed = list(visited)
    for start in switches:
        for step, index in enumerate(range(start, min(start + BLEND, len(visited)))):
            if draws.random() >= (step + 1) / BLEND:
                mixed[index] = visited[start - 1]
    return mixed


def placed(visited: Sequence[int]) -> list[ScheduledBatch]:
    """A stream of one key through these tasks."""
    seen: dict[int, int] = {}
    plan = []
    for index, task in enumerate(visited):
        plan.append(ScheduledBatch(index, task, "stream-0", seen.get(task, 0)))
        seen[task] = seen.get(task, 0) + 1
    return plan


def delays(switches: Sequence[int], decided: Sequence[bool]) -> list[int]:
    """Batches from each switch to the first decision after it; a switch without one before the next is left out."""
    found = []
    for start, end in itertools.pairwise([*switches, len(decided)]):
        first = next((index for index in range(start, end) if decided[index]), None)
        if first is not None:
            found.append(first - start)
    return found


def held_out(
    learner: OnlineLearner, scenario: Scenario, truth: Sequence[int], masks: Sequence[int | None]
) -> dict[str, float]:
    """Mean over tasks of the accuracy on test images, each image alone: `accuracy` of labels, `strict`, `told`."""
    learner.sync()
    network, ids = learner.network, list(learner.bank)
    owner = scoring.owners(truth, masks)
    scores = []
    for task in range(scenario.tasks):
        images, y = (part[:1000] for part in scenario.test_set(task))
        x = network.inputs(images)
        answer = predict(network, ids, learner.bank.stacked(ids), x)
        right = answer.labels == y
        found = np.array([owner.get(int(mask)) == task for mask in answer.mask_ids])
        main = scoring.main_mask(task, truth, masks)
        told = 0.0
        if main is not None and main in ids:
            logits = network.logits(x, learner.bank.words(main))[:, : network.spec.classes]
            told = float((logits.argmax(1).cpu().numpy() == y).mean())
        scores.append((float(right.mean()), float((right & found).mean()), told))
    means = np.mean(scores, axis=0).tolist()
    return dict(zip(("accuracy", "strict", "told"), means, strict=True))


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Markdown: one line per stream and setting, seeds summed up."""
    lines = [
        "| stream | rule | masks / tasks | wrong updates | delay (decided) | strict | told | labels | ms per batch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (stream, label), group in itertools.groupby(rows, key=lambda r: (r["stream"], r["label"])):
        runs = list(group)
        masks = ", ".join(f"{r['masks']}/{r['tasks']}" for r in runs)
        wrong = f"{sum(r['wrong'] for r in runs)} of {sum(r['batches'] for r in runs)}"
        late = [delay for r in runs for delay in r["delays"]]
        delay = f"{np.mean(late):.1f} ({len(late)} of {sum(r['switches'] for r in runs)})" if late else "-"
        strict, told, labels, ms = (
            sum(r[name] for r in runs) / len(runs) for name in ("strict", "told", "accuracy", "ms_per_batch")
        )
        accuracies = f"{strict:.1%} | {told:.1%} | {labels:.1%}"
        lines.append(f"| {stream} | {label} | {masks} | {wrong} | {delay} | {accuracies} | {ms:.1f} |")
    return "\n".join(lines)


def row_key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row is known by; rows of an older form match nothing."""
    return (row["stream"], row["label"], row["seed"], row.get("asked"))


def store(file: Path, rows: list[dict[str, Any]]) -> None:
    """All rows, in place of the older file in a single move."""
    unfinished = file.with_name(file.name + ".new")
    unfinished.write_text(json.dumps(rows, indent=1))
    unfinished.replace(file)


def main() -> None:
    """Run the grid and print the table; raw results go to benchmarks/results/decisions.json, row by row."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    arguments.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    arguments.add_argument("--detector", nargs="+", default=["page-hinkley"])
    arguments.add_argument("--tolerance", nargs="+", type=float, default=[Agreement().tolerance])
    arguments.add_argument("--margin", nargs="+", type=float, default=[Agreement().margin])
    arguments.add_argument("--architectures", nargs="+", default=[BankSpec().architecture])
    arguments.add_argument("--outputs", nargs="+", type=int, default=[BankSpec().outputs])
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments.add_argument("--batches", type=int, default=800, help="at least 500")
    arguments.add_argument("--name", default="decisions", help="results go to benchmarks/results/NAME.json")
    arguments.add_argument("--resume", action="store_true", help="leave out the rows that the results have already")
    given = arguments.parse_args()
    dataset = load_mnist()
    rules = itertools.product(given.rules, given.detector, given.tolerance, given.margin)
    networks = itertools.product(given.architectures, given.outputs)
    grid = {}
    for (rule, detector, tolerance, margin), (architecture, outputs) in itertools.product(rules, list(networks)):
        setting = LearnerSettings(
            rule=RuleSettings(rule=rule, agreement=Agreement(tolerance, margin)), detector=detector
        )
        spec = BankSpec(architecture=architecture, outputs=outputs)
        other = "" if spec == BankSpec() else f" {architecture} s={outputs}"
        grid[f"{rule} {detector} t={tolerance:g} m={margin:g}{other}"] = setting, spec
    file = Path(__file__).with_name("results") / f"{given.name}.json"
    file.parent.mkdir(exist_ok=True)
    known = {row_key(r): r for r in json.loads(file.read_text())} if given.resume and file.exists() else {}
    rows = []
    for stream, (label, what), seed in itertools.product(given.streams, grid.items(), given.seeds):
        key = (stream, label, seed, given.batches)
        if key not in known:
            row = run(stream, what, seed, given.batches, dataset)
            known[key] = {**row, "label": label, "asked": given.batches}
            store(file, list(known.values()))
        rows.append(known[key])
        print(json.dumps({k: v for k, v in rows[-1].items() if k != "delays"}), flush=True)
    print(f"\n{dataset.source}, {given.batches} batches of 128, seeds {given.seeds}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
