"""What has to be kept of a mask that goes cold? Test accuracy after it returns, for several answers.

    SUPSUP_DATA_DIR=... python benchmarks/cold_masks.py          about two minutes on two cores

A task is trained for some hundred batches, its mask goes cold, the task returns and goes on learning. Columns:
batches after the return. Rows: what was kept, and what it costs beside the 39 KB of bits. `bits, gap` is what the
library does.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from supsup_online.bitpack import Words
from supsup_online.datasets import load_mnist
from supsup_online.edge_popup import initial_scores, score_bounds
from supsup_online.network import Network
from supsup_online.optimisers import Adam, OptimiserState, new_state
from supsup_online.scenarios import Scenario
from supsup_online.spec import BankSpec
from supsup_online.trainer import EdgePopupTrainer, HotMask

CHECKPOINTS = (0, 1, 2, 5, 10, 20, 50, 100, 200)


def cooled(trainer: EdgePopupTrainer, hot: HotMask, words: Words) -> dict[str, tuple[str, HotMask]]:
    """Name of what is kept -> (its size, the mask as it comes back)."""
    network = trainer.network
    count = network.architecture.weight_count

    def fresh(scores: Tensor) -> HotMask:
        return HotMask(scores, new_state(trainer.optimiser, scores))

    moments = [moment.clone() for moment in hot.optimiser.moments]
    everything = HotMask(hot.scores.clone(), OptimiserState(hot.optimiser.step, moments))
    return {
        "everything": (f"{12 * count / 1e6:.1f} MB", everything),
        "scores, float32": (f"{4 * count / 1e6:.1f} MB", fresh(hot.scores.clone())),
        "scores, 8 bits": (f"{count / 1e6:.1f} MB", fresh(quantised(network, hot.scores, words))),
        "bits, no gap": ("0", fresh(without_gap(network, words))),
        "bits, gap": ("0", trainer.rekindle(0, words)),
    }


def quantised(network: Network, scores: Tensor, words: Words) -> Tensor:
    """Magnitudes rounded to 128 levels on either side of the layer's threshold, so that the mask stays the same."""
    mask = torch.from_numpy(network.layout.unpack(words))
    out = torch.empty_like(scores)
    parts = (network.architecture.split(flat) for flat in (scores, mask, out))
    for layer, kept, target in zip(*parts, strict=True):
        size = layer.abs()
        low, high = size[kept].min(), size.max()
        inside = low + (((size - low) / (high - low) * 128).floor().clamp(0, 127) + 0.5) / 128 * (high - low)
        outside = ((size / low * 128).floor().clamp(0, 127) + 0.5) / 128 * low
        target.copy_(torch.where(kept, inside, outside) * torch.sign(layer))
    return out


def without_gap(network: Network, words: Words) -> Tensor:
    """Scores drawn anew: the larger half of the usual range for kept edges, the smaller half for the others."""
    mask = torch.from_numpy(network.layout.unpack(words))
    scores = initial_scores(network.architecture, 1, 0)
    bounds = score_bounds(network.architecture)
    size = torch.where(mask, bounds / 2 + scores.abs() / 2, scores.abs() / 2)
    return size * torch.where(scores < 0, -1.0, 1.0)


def accuracy(trainer: EdgePopupTrainer, hot: HotMask, x: Tensor, y: np.ndarray) -> float:
    """Share of test images that are right under the mask as it is."""
    logits = trainer.network.logits(x, trainer.pack(hot))
    return float((logits[:, : trainer.network.spec.classes].argmax(1).numpy() == y).mean())


def trained(
    trainer: EdgePopupTrainer, hot: HotMask, scenario: Scenario, batches: range, look: Callable[[int], None]
) -> None:
    """Train on some batches, calling `look` with the number done before each."""
    for done, position in enumerate(batches):
        look(done)
        x, y = scenario.batch(0, position)
        evaluation = trainer.evaluate(hot, trainer.network.inputs(x), trainer.network.labels(y))
        trainer.update(hot, evaluation)
    look(len(batches))


def main() -> None:
    """Print a table per length of the first training."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--before", nargs="+", type=int, default=[300, 1000])
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    scenario = Scenario(load_mnist(), "permuted", 1, given.seed)
    network = Network.build(BankSpec(weight_seed=given.seed))
    trainer = EdgePopupTrainer(network, Adam())
    x, y = scenario.test_set(0)
    prepared = network.inputs(x)
    rows = []
    for before in given.before:
        hot = trainer.start(0)
        trained(trainer, hot, scenario, range(before), lambda _: None)
        print(
            f"\nreturning after {before} batches\n\n| kept | beside the bits |", " | ".join(map(str, CHECKPOINTS)), "|"
        )
        print("|---" * (2 + len(CHECKPOINTS)) + "|")
        for name, (size, back) in cooled(trainer, hot, trainer.pack(hot)).items():
            curve: list[float] = []

            def look(done: int, back: HotMask = back, curve: list[float] = curve) -> None:
                if done in CHECKPOINTS:
                    curve.append(accuracy(trainer, back, prepared, y))

            trained(trainer, back, scenario, range(before, before + CHECKPOINTS[-1]), look)
            print(f"| {name} | {size} |", " | ".join(f"{100 * a:.1f}" for a in curve), "|", flush=True)
            rows.append({"before": before, "kept": name, "beside_bits": size, "accuracy": curve})
    results = Path(__file__).with_name("results")
    results.mkdir(exist_ok=True)
    (results / "cold_masks.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
