"""The training step over the bare matrix products of the same shapes, and against a step that sorts.

    python benchmarks/steps.py                         LeNet and FC 1024-1024, batch 32, 128 and 512, about two minutes

floor       the bare float32 products of one step: forward, to the inputs (not of the first layer), to the weights
sort        autograd, and a mask by sorting each layer's scores, as the authors' code has it
autograd    `trainer.EdgePopupTrainer`, which selects instead
ours        what `fused_trainer.trainer_for` gives: `FusedTrainer`, or with `--device cuda` `DeviceTrainer`
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _latest import RESULTS, medians, record

from supsup_online.fused_trainer import trainer_for
from supsup_online.network import Network
from supsup_online.optimisers import Adam
from supsup_online.spec import BankSpec
from supsup_online.trainer import EdgePopupTrainer
from supsup_online.types import Precision

BATCH = 128
BURST = 7  # steps one after the other, as in training, so with the caches as a step leaves them


class Sorting(EdgePopupTrainer):
    """Top-k by a full sort, and the gradient through abs, by autograd from end to end."""

    def step(self, hot: Any, x: torch.Tensor, y: torch.Tensor) -> None:
        """One step."""
        net = self.network
        leaves = [part.clone().requires_grad_() for part in net.architecture.split(hot.scores)]
        weights = [
            _Sorted.apply(s.abs(), net.spec.keep_fraction) * w for s, w in zip(leaves, self._weights, strict=True)
        ]
        loss = torch.nn.functional.cross_entropy(net.architecture.forward(x, weights), y)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves)])
        self.optimiser.update(hot.scores, gradient, hot.optimiser)


class _Sorted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, keep: float) -> torch.Tensor:
        del ctx
        mask = scores.clone()
        order, flat = scores.flatten().sort().indices, mask.view(-1)
        dropped = int((1 - keep) * len(order))
        flat[order[:dropped]] = 0
        flat[order[dropped:]] = 1
        return mask

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        del ctx
        return gradients[0], None


def products(network: Network, rows: int, dtype: torch.dtype) -> Callable[[], None]:
    """The bare products of one step."""
    weights = [part.to(dtype) for part in network.architecture.split(network.weights)]
    inputs = [torch.randn(rows, w.shape[1]).to(w) for w in weights]
    outputs = [torch.randn(rows, w.shape[0]).to(w) for w in weights]

    def all_of_them() -> None:
        for i, (w, x, y) in enumerate(zip(weights, inputs, outputs, strict=True)):
            x @ w.T
            y.T @ x
            if i:
                y @ w

    return all_of_them


def stepper(trainer: EdgePopupTrainer, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """One step on one batch, again and again."""
    hot = trainer.start(0)

    def once() -> None:
        trainer.update(hot, trainer.evaluate(hot, x, y))

    return once


def measure(architecture: str, rows: int, rounds: int, device: str) -> dict[str, float]:
    """Median milliseconds of each way."""
    top_k = Network.build(BankSpec(architecture=architecture), device)
    threshold = Network.build(BankSpec(architecture=architecture, variant="threshold"), device)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(rows, 28, 28)).astype(np.float32)).to(device)
    y = torch.from_numpy(rng.integers(0, 10, rows)).to(device)
    sorting = Sorting(top_k, Adam())
    hot = sorting.start(0)

    def ours(network: Network, precision: Precision = "float32") -> Callable[[], None]:
        return stepper(trainer_for(network, Adam(), precision), x, y)

    ways: dict[str, Callable[[], None]] = {
        "floor": products(top_k, rows, torch.float32),
        "floor, bfloat16": products(top_k, rows, torch.bfloat16),
        "ours, threshold": ours(threshold),
        "ours, top-k": ours(top_k),
        "autograd, threshold": stepper(EdgePopupTrainer(threshold, Adam()), x, y),
        "autograd, top-k": stepper(EdgePopupTrainer(top_k, Adam()), x, y),
        "sort": lambda: sorting.step(hot, x, y),
    }
    if device == "cpu":
        ways |= {
            "ours, threshold, bfloat16": ours(threshold, "bfloat16"),
            "ours, top-k, bfloat16": ours(top_k, "bfloat16"),
        }
    quick = {name: way for name, way in ways.items() if name != "sort"}
    return medians(quick, max(3, rounds // BURST), BURST) | medians({"sort": ways["sort"]}, max(3, rounds // 8))


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--architectures", nargs="+", default=["lenet-300-100", "fc-1024-1024"])
    arguments.add_argument("--batches", nargs="+", type=int, default=[32, BATCH, 512])
    arguments.add_argument("--rounds", type=int, default=60)
    arguments.add_argument("--threads", type=int, default=1, help="0: torch's default")
    arguments.add_argument("--device", default="cpu")
    given = arguments.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    found = {a: {n: measure(a, n, given.rounds, given.device) for n in given.batches} for a in given.architectures}
    for architecture, by_batch in found.items():
        print(f"\n{architecture}, {torch.get_num_threads()} threads: ms (over the floor)\n")
        print(
            "| step | " + " | ".join(f"batch {rows}" for rows in by_batch) + " |\n" + "|---" * (len(by_batch) + 1) + "|"
        )
        for name in next(iter(by_batch.values())):
            cells = (f"{ms[name]:.2f} ({ms[name] / ms['floor']:.2f})" for ms in by_batch.values())
            print(f"| {name} | " + " | ".join(cells) + " |")
    if given.device == "cpu" and all(BATCH in by_batch for by_batch in found.values()):
        record(**ratios({architecture: by_batch[BATCH] for architecture, by_batch in found.items()}))
    RESULTS.mkdir(exist_ok=True)
    name = "steps" if given.device == "cpu" else f"steps-{given.device}"
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1))


def ratios(found: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The figures of latest.json, per architecture; over the sort: by the precision that is fastest here, and both."""
    found = {a: ms | {"fastest": min(ms["ours, top-k"], ms["ours, top-k, bfloat16"])} for a, ms in found.items()}
    pairs = {
        "step_threshold_over_floor": ("ours, threshold", "floor"),
        "step_topk_over_floor": ("ours, top-k", "floor"),
        "step_bf16_over_floor": ("ours, threshold, bfloat16", "floor"),
        "step_speedup_over_sort": ("sort", "fastest"),
        "step_speedup_over_sort_float32": ("sort", "ours, top-k"),
        "step_speedup_over_sort_bf16": ("sort", "ours, top-k, bfloat16"),
    }
    return {name: {a: ms[up] / ms[down] for a, ms in found.items()} for name, (up, down) in pairs.items()}


if __name__ == "__main__":
    main()
