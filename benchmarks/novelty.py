"""Is this image of a task that the bank knows? What `novel` says of known and of unknown tasks, by margin.

    python benchmarks/novelty.py                       LeNet, five permutations of 200 batches, 500 outputs and 10

Single images, `exact` inference, as a replica answers them. *Known called novel*: test images of the tasks that were
learnt, with a confidence below 1 - margin. *Unknown taken for known*: those of five permutations that were not.
"""

import argparse
import json

import numpy as np
import torch
from _latest import RESULTS, machine

from supsup_online.answering import Inquiry, answer
from supsup_online.datasets import load_mnist
from supsup_online.learner import OnlineLearner
from supsup_online.network import Network
from supsup_online.scenarios import Scenario
from supsup_online.snapshot import Shelf
from supsup_online.spec import BankSpec
from supsup_online.types import Batch

MARGINS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
ROWS, IMAGES, UNKNOWN = 128, 300, 5


def confidences(outputs: int, tasks: int, batches: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of test images of the tasks that are learnt, and of others."""
    learner = OnlineLearner(Network.build(BankSpec(outputs=outputs, weight_seed=seed)))
    scenario = Scenario(load_mnist(), "permuted", tasks + UNKNOWN, seed)
    for task in range(tasks):
        for place in range(batches):
            learner.step(Batch(*scenario.batch(task, place, ROWS)))
    learner.sync()
    shelf = Shelf(learner.network)
    words = {mask_id: learner.bank.words(mask_id) for mask_id in learner.bank}
    usual = {mask_id: stats.entropy for mask_id, stats in learner.stats.items()}
    snapshot = shelf.next(shelf.empty(), 1, words, usual, set())
    found = [
        answer(snapshot, learner.network.inputs(scenario.test_set(task)[0][:IMAGES]), Inquiry()).confidences
        for task in range(tasks + UNKNOWN)
    ]
    return np.concatenate(found[:tasks]), np.concatenate(found[tasks:])


def main() -> None:
    """Learn, ask, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--outputs", nargs="+", type=int, default=[500, 10])
    arguments.add_argument("--tasks", type=int, default=5)
    arguments.add_argument("--batches", type=int, default=200)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    rows = []
    print("| outputs | margin | known called novel | unknown taken for known |\n|---|---|---|---|")
    for outputs in given.outputs:
        known, unknown = confidences(outputs, given.tasks, given.batches, given.seed)
        for margin in MARGINS:
            false_alarm, missed = float((known < 1 - margin).mean()), float((unknown >= 1 - margin).mean())
            rows.append({"outputs": outputs, "margin": margin, "false_alarm": false_alarm, "missed": missed})
            print(f"| {outputs} | {margin} | {false_alarm:.2%} | {missed:.2%} |", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "novelty.json").write_text(json.dumps({"rows": rows, "machine": machine()}, indent=1))


if __name__ == "__main__":
    main()
