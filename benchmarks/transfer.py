"""What a new mask gains by starting from the mean of those before it: accuracy after so many batches of its task.

    SUPSUP_DATA_DIR=... python benchmarks/transfer.py             some minutes on one core
    python benchmarks/transfer.py --kinds rotated --tasks 4       less

Eight tasks one after the other, each told, LeNet 300-100 with 500 outputs, Adam. *Share* is how much of a score's start
is the mean: 0 is a fresh draw, 0.99 the mean with a hint of a draw to break ties; the daemon's `transfer` takes a half.
Accuracy is over 2000 test images of the task, told, without the first task, which has nothing to start from.
"""

import argparse

import torch
from _latest import record

from supsup_online.bank import MaskBank
from supsup_online.datasets import load_mnist
from supsup_online.edge_popup import initial_scores, transferred_scores
from supsup_online.fused_trainer import trainer_for
from supsup_online.network import Network
from supsup_online.optimisers import Adam, new_state
from supsup_online.scenarios import Kind, Scenario
from supsup_online.spec import BankSpec
from supsup_online.trainer import HotMask
from supsup_online.types import VariantName

SHARES = (0.0, 0.5, 0.99)
BATCHES = (20, 50, 100, 300)
TESTED = 2000


def start(network: Network, bank: MaskBank, task: int, share: float) -> HotMask:
    """A new mask; with a share of 0.5 what the daemon's `transfer` begins with."""
    scores = initial_scores(network.architecture, network.spec.weight_seed, task)
    if share and len(bank):
        mean = torch.from_numpy(bank.mean)
        scores = transferred_scores(network.architecture, network.variant, scores, mean, share)
    return HotMask(scores, new_state(Adam(), scores))


def curve(kind: Kind, variant: VariantName, share: float, tasks: int) -> list[float]:
    """Mean accuracy of tasks 1, 2, ... after each of `BATCHES`."""
    scenario = Scenario(load_mnist(), kind, tasks, seed=0, step_degrees=20.0)
    network = Network.build(BankSpec(variant=variant))
    trainer, bank = trainer_for(network, Adam(), "float32"), MaskBank(network.layout, tasks)
    totals = dict.fromkeys(BATCHES, 0.0)
    for task in range(tasks):
        hot = start(network, bank, task, share)
        test_x, test_y = scenario.test_set(task)
        inputs, labels = network.inputs(test_x[:TESTED]), torch.from_numpy(test_y[:TESTED])
        for place in range(max(BATCHES)):
            x, y = scenario.batch(task, place, 128)
            trainer.update(hot, trainer.evaluate(hot, network.inputs(x), network.labels(y)))
            if task and place + 1 in totals:
                found = network.logits(inputs, trainer.pack(hot))[:, : network.spec.classes].argmax(1)
                totals[place + 1] += float((found == labels).float().mean()) / (tasks - 1)
        bank.allocate(trainer.pack(hot))
    return list(totals.values())


def main() -> None:
    """Measure, print a table, keep the figures."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--kinds", nargs="+", default=["rotated", "permuted"], choices=["rotated", "permuted"])
    given.add_argument("--variants", nargs="+", default=["top-k", "threshold"], choices=["top-k", "threshold"])
    given.add_argument("--tasks", type=int, default=8)
    arguments = given.parse_args()
    torch.set_num_threads(1)
    print("| tasks | masks | share | " + " | ".join(f"after {n}" for n in BATCHES) + " |\n" + "|---" * 7 + "|")
    rows = []
    for kind in arguments.kinds:
        for variant in arguments.variants:
            for share in SHARES:
                found = curve(kind, variant, share, arguments.tasks)
                rows.append({"kind": kind, "variant": variant, "share": share, "accuracy": found})
                print(f"| {kind} | {variant} | {share:g} | {' | '.join(f'{a:.1%}' for a in found)} |", flush=True)
    record(transfer=rows)


if __name__ == "__main__":
    main()
