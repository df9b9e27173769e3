"""Ten permutations of MNIST, nobody told which is which, in training nor in testing (the paper's NNs).

    SUPSUP_DATA_DIR=... python benchmarks/permuted_mnist.py            about two minutes on two cores

LeNet 300-100 with 500 outputs, 1000 batches of 128 per task, the daemon's default settings. Accuracy is over all test
images of each task, the task inferred from every single image.
"""

import argparse
import json
import time
from pathlib import Path

from supsup_online import scoring
from supsup_online.datasets import load_mnist
from supsup_online.decide import RULES, RuleSettings
from supsup_online.learner import LearnerSettings, OnlineLearner
from supsup_online.network import Network
from supsup_online.predictor import predict
from supsup_online.scenarios import Scenario, iter_stream, schedule
from supsup_online.spec import BankSpec
from supsup_online.types import Batch

PAPER = "PermutedMNIST, 250 tasks, GNu (task known in training): 94.91 %"


def main() -> None:
    """Train, test, print a table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tasks", type=int, default=10)
    arguments.add_argument("--batches-per-task", type=int, default=1000)
    arguments.add_argument(
        "--order", default="sequential", choices=["sequential", "recurring", "random", "interleaved"]
    )
    arguments.add_argument("--rule", default="loss", choices=RULES)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    dataset = load_mnist()
    scenario = Scenario(dataset, "permuted", given.tasks, given.seed)
    plan = schedule(given.order, given.tasks, given.tasks * given.batches_per_task, given.seed)
    learner = OnlineLearner(
        Network.build(BankSpec(weight_seed=given.seed)), LearnerSettings(rule=RuleSettings(rule=given.rule))
    )
    begun = time.perf_counter()
    masks = []
    for place, x, y in iter_stream(scenario, plan):
        masks.append(learner.step(Batch(x, y, place.stream)).mask_id)
        if (place.index + 1) % 500 == 0:
            print(f"  {place.index + 1} of {len(plan)} batches, {len(learner.bank)} masks", flush=True)
    seconds = time.perf_counter() - begun
    report(learner, scenario, [place.task for place in plan], masks, seconds)


def report(
    learner: OnlineLearner, scenario: Scenario, truth: list[int], masks: list[int | None], seconds: float
) -> None:
    """Print the table and write benchmarks/results/permuted_mnist.json."""
    learner.sync()
    ids = list(learner.bank)
    owner = scoring.owners(truth, masks)
    print("\n| task | mask | accuracy, task inferred | task found from one image |\n|---|---|---|---|")
    accuracies, found = [], []
    for task in range(scenario.tasks):
        x, y = scenario.test_set(task)
        answer = predict(learner.network, ids, learner.bank.stacked(ids), learner.network.inputs(x))
        accuracies.append(float((answer.labels == y).mean()))
        found.append(sum(owner.get(int(m)) == task for m in answer.mask_ids) / len(y))
        print(f"| {task} | {scoring.main_mask(task, truth, masks)} | {accuracies[-1]:.2%} | {found[-1]:.2%} |")
    result = {
        "tasks": scenario.tasks,
        "masks": len(ids),
        "wrong_updates": scoring.wrong_updates(truth, masks),
        "batches": len(truth),
        "accuracy": sum(accuracies) / len(accuracies),
        "task_inference_accuracy": sum(found) / len(found),
        "seconds": seconds,
        "dataset": scenario.dataset.source,
    }
    print(f"| mean | {len(ids)} masks | {result['accuracy']:.2%} | {result['task_inference_accuracy']:.2%} |")
    print(f"| paper | | {PAPER} | |")
    print(
        f"\n{result['wrong_updates']} wrong updates in {len(truth)} batches, "
        f"{1e3 * seconds / len(truth):.2f} ms per batch"
    )
    results = Path(__file__).with_name("results")
    results.mkdir(exist_ok=True)
    (results / "permuted_mnist.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
