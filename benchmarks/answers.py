"""Which statistic of all masks' outputs names the task of an image best? What `inference.misfit` was chosen by.

    python benchmarks/answers.py                        LeNet with 500 permutations and FC 1024-1024 with five

The learner is told no task. Then each of some test images is run under every mask, and the mask with the lowest value
answers. *Strict*: task and label right; *told*: label right under the mask that most of the task's batches went into.
"""

import argparse
import json
from collections.abc import Callable

import numpy as np
import torch
from _latest import RESULTS
from torch import Tensor

from supsup_online import inference, scoring
from supsup_online.datasets import load_mnist
from supsup_online.learner import LearnerSettings, OnlineLearner
from supsup_online.many_masks import exact_logits
from supsup_online.network import Network
from supsup_online.scenarios import Scenario
from supsup_online.spec import BankSpec
from supsup_online.types import Batch

ROWS, IMAGES, MOST_TASKS = 128, 50, 60
STATISTICS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "entropy": lambda logits, _: inference.entropy(logits),
    "probability of superfluous neurons": lambda logits, classes: logits.log_softmax(-1)[..., classes:].logsumexp(-1),
    "entropy and probability": inference.misfit,
}


def compare(architecture: str, tasks: int, batches: int, seed: int) -> dict[str, dict[str, float]]:
    """Per statistic: shares of images whose task was found, and strict; and the accuracy of being told."""
    network = Network.build(BankSpec(architecture=architecture, weight_seed=seed, budget=2 * tasks))
    scenario, learner = Scenario(load_mnist(), "permuted", tasks, seed), OnlineLearner(network, LearnerSettings())
    truth = np.repeat(np.arange(tasks), batches).tolist()
    masks = [learner.step(Batch(*scenario.batch(task, i % batches, ROWS))).mask_id for i, task in enumerate(truth)]
    learner.sync()
    ids, stack = list(learner.bank), learner.bank.stacked(list(learner.bank))
    places = {mask: place for place, mask in enumerate(ids)}
    counts = {name: np.zeros(2) for name in STATISTICS}
    told, sampled = 0, range(0, tasks, max(1, tasks // MOST_TASKS))
    for task in sampled:
        images, y = (part[task * IMAGES % len(part) :][:IMAGES] for part in scenario.test_set(task))
        logits = torch.cat(list(exact_logits(network, stack, network.inputs(images))))
        labels = logits[..., : network.spec.classes].argmax(-1).numpy()
        main, rows = places[scoring.main_mask(task, truth, masks)], np.arange(len(y))
        told += (labels[main] == y).sum()
        for name, statistic in STATISTICS.items():
            found = statistic(logits, network.spec.classes).argmin(0).numpy()
            right = labels[found, rows] == y
            counts[name] += [(found == main).sum(), ((found == main) & right).sum()]
    total = len(sampled) * IMAGES  # which divides the number of test images
    return {
        name: {"masks": len(ids), "found": found / total, "strict": strict / total, "told": told / total}
        for name, (found, strict) in counts.items()
    }


def main() -> None:
    """Train, compare, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--lenet", nargs=2, type=int, default=[500, 100], metavar=("TASKS", "BATCHES"))
    arguments.add_argument("--fc", nargs=2, type=int, default=[5, 120], metavar=("TASKS", "BATCHES"))
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    runs = {"lenet-300-100": given.lenet, "fc-1024-1024": given.fc}
    results = {name: compare(name, *sizes, given.seed) for name, sizes in runs.items()}
    print("| network | masks | lowest | task found | strict | told |\n|---|---|---|---|---|---|")
    for network, by_name in results.items():
        for name, r in by_name.items():
            print(f"| {network} | {r['masks']} | {name} | {r['found']:.1%} | {r['strict']:.1%} | {r['told']:.1%} |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "answers.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
