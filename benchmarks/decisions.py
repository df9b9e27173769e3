"""Which rule decides best? Masks against tasks, wrong updates and accuracy, for each rule on each kind of stream.

    python benchmarks/decisions.py                          the table in docs/performance.md
    python benchmarks/decisions.py --rules loss --margin 0.05 0.1 0.2 --seeds 10 11

Streams are sequences of batches with switches at any batch; the scoring is strict (`supsup_online.scoring`).
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterable
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
from supsup_online.scenarios import Scenario, iter_stream, schedule
from supsup_online.spec import BankSpec
from supsup_online.types import Batch

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
}


def run(stream: str, settings: LearnerSettings, seed: int, batches: int, dataset: Any) -> dict[str, Any]:
    """One stream through one learner."""
    kind, order, tasks, options, timing = STREAMS[stream]
    noise = timing.get("label_noise", 0.0)
    plan = schedule(order, tasks, batches, seed, **{k: v for k, v in timing.items() if k != "label_noise"})
    scenario = Scenario(dataset, kind, tasks, seed, **options)
    network = Network.build(BankSpec(weight_seed=seed))
    learner = OnlineLearner(network, settings)
    masks = []
    begun = time.perf_counter()
    for place, x, y in iter_stream(scenario, plan):
        labels = noisy(y, noise, seed, place.index)
        masks.append(learner.step(Batch(x, labels, place.stream)).mask_id)
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
        "accuracy": held_out(learner, scenario, tasks),
        "ms_per_batch": 1e3 * seconds / len(plan),
    }


def noisy(y: np.ndarray, share: float, seed: int, index: int) -> np.ndarray:
    """Labels of which a share is replaced by random ones."""
    if not share:
        return y
    draws = np.random.default_rng([seed, index])
    return np.where(draws.random(len(y)) < share, draws.integers(0, 10, len(y)), y)


def held_out(learner: OnlineLearner, scenario: Scenario, tasks: int) -> float:
    """Mean accuracy on test images, the task inferred from each single image."""
    learner.sync()
    ids = list(learner.bank)
    scores = []
    for task in range(tasks):
        x, y = (part[:1000] for part in scenario.test_set(task))
        answer = predict(learner.network, ids, learner.bank.stacked(ids), learner.network.inputs(x))
        scores.append(float((answer.labels == y).mean()))
    return sum(scores) / len(scores)


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Markdown: one line per stream and setting, seeds summed up."""
    lines = [
        "| stream | rule | masks / tasks | wrong updates | held-out accuracy | ms per batch |",
        "|---|---|---|---|---|---|",
    ]
    for (stream, label), group in itertools.groupby(rows, key=lambda r: (r["stream"], r["label"])):
        runs = list(group)
        masks = ", ".join(f"{r['masks']}/{r['tasks']}" for r in runs)
        wrong = f"{sum(r['wrong'] for r in runs)} of {sum(r['batches'] for r in runs)}"
        accuracy = sum(r["accuracy"] for r in runs) / len(runs)
        ms = sum(r["ms_per_batch"] for r in runs) / len(runs)
        lines.append(f"| {stream} | {label} | {masks} | {wrong} | {accuracy:.1%} | {ms:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Run the grid and print the table; raw results go to benchmarks/results/decisions.json."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    arguments.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    arguments.add_argument("--detector", nargs="+", default=["page-hinkley"])
    arguments.add_argument("--tolerance", nargs="+", type=float, default=[Agreement().tolerance])
    arguments.add_argument("--margin", nargs="+", type=float, default=[Agreement().margin])
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments.add_argument("--batches", type=int, default=800)
    given = arguments.parse_args()
    dataset = load_mnist()
    grid = itertools.product(given.rules, given.detector, given.tolerance, given.margin)
    settings = {
        f"{rule} {detector} t={tolerance:g} m={margin:g}": LearnerSettings(
            rule=RuleSettings(rule=rule, agreement=Agreement(tolerance, margin)), detector=detector
        )
        for rule, detector, tolerance, margin in grid
    }
    rows = []
    for stream, (label, setting), seed in itertools.product(given.streams, settings.items(), given.seeds):
        rows.append({**run(stream, setting, seed, given.batches, dataset), "label": label})
        print(json.dumps(rows[-1]), flush=True)
    results = Path(__file__).with_name("results")
    results.mkdir(exist_ok=True)
    (results / "decisions.json").write_text(json.dumps(rows, indent=1))
    print(f"\n{dataset.source}, {given.batches} batches of 128, seeds {given.seeds}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
