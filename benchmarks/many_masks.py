"""Task inference over many masks: packed bits against the dense float32 way and against the floor.

    python benchmarks/many_masks.py                    k = 10 .. 2500, about two minutes and 4 GB
    python benchmarks/many_masks.py --masks 10 100     less

The dense way: masks stacked as float32 (k, P), a weighted sum of them as in the authors' code, autograd to the alphas;
beside it the best dense way we know, the sum as a matrix product; exact inference as one forward pass per mask. The
floor is one read of the packed bits.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _latest import RESULTS, medians, peak_bytes, record

from supsup_online import inference, many_masks
from supsup_online.bitpack import Masks
from supsup_online.inference import entropy
from supsup_online.network import Network
from supsup_online.spec import BankSpec

DENSE_EXACT = 50  # masks that the dense way is run on; its cost is one forward pass per mask


def dense_one_shot(
    network: Network, stacked: torch.Tensor, x: torch.Tensor, *, as_product: bool = False
) -> torch.Tensor:
    """DH/dalpha over masks as float32 (k, P): as the authors' code superposes them, or by a matrix product."""
    alphas = torch.full((len(stacked),), 1 / len(stacked), requires_grad=True)
    superposed = alphas @ stacked if as_product else (alphas[:, None] * stacked).sum(0)
    logits = network.architecture.forward(x, network.architecture.split(network.weights * superposed))
    return torch.autograd.grad(entropy(logits).mean(), alphas)[0]


def dense_exact(network: Network, stacked: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Entropies (k, n), mask by mask."""
    with torch.no_grad():
        split, forward = network.architecture.split, network.architecture.forward
        return torch.stack([entropy(forward(x, split(network.weights * mask))) for mask in stacked])


def measure(network: Network, count: int, rounds: int) -> dict[str, Any]:
    """Milliseconds and bytes of every way over `count` masks, one image."""
    packed = masks_of(network, count)
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(1, *network.spec.input_shape)).astype(np.float32))
    x, masks = x.to(network.device), on(network, packed)
    mean = many_masks.superposed_mean(network, masks)
    stacked = torch.from_numpy(np.stack([network.layout.unpack(words) for words in packed]).astype(np.float32))
    stacked = stacked.to(network.device)
    some = stacked[:DENSE_EXACT]
    ways: dict[str, Callable[[], Any]] = {
        "one-shot": lambda: inference.one_shot(network, masks, x),
        "one-shot, mean known": lambda: inference.one_shot(network, masks, x, mean=mean),
        "exact, one image": lambda: inference.exact_entropies(network, masks, x),
        "exact, 8 images": lambda: inference.exact_entropies(network, masks, x.expand(8, *x.shape[1:])),
        "binary": lambda: inference.binary(network, masks, x),
        "floor: one read of the bits": lambda: read(masks),
        "dense one-shot": lambda: dense_one_shot(network, stacked, x),
        "dense one-shot, by a matrix product": lambda: dense_one_shot(network, stacked, x, as_product=True),
        "dense exact": lambda: dense_exact(network, some, x),
    }
    held = {name: stacked.nbytes if name.startswith("dense") else masks.nbytes for name in ways if "one-shot" in name}
    memory = {name: held[name] + peak_bytes(ways[name]) for name in held}
    ms = medians(ways, rounds)
    ms["dense exact"] *= count / len(some)
    dense = dense_one_shot(network, stacked, x).cpu().numpy()
    agree = np.abs(inference.one_shot(network, masks, x).gradient - dense).max()
    sizes = {"packed": masks.nbytes, "dense": stacked.nbytes, "memory": memory}
    return {"masks": count, "ms": ms, **sizes, "difference": float(agree)}


def on(network: Network, packed: np.ndarray) -> Masks:
    """The masks where a bank of the network has them."""
    if not network.has_gpu_kernels:
        return packed
    return torch.from_numpy(packed.view(np.int64)).to(network.device)


def read(masks: Masks) -> int:
    """All bits, once."""
    return int(masks.sum()) if isinstance(masks, torch.Tensor) else int(np.bitwise_or.reduce(masks.reshape(-1)))


def masks_of(network: Network, count: int) -> np.ndarray:
    """Packed masks (count, word_count): a few random ones, each many times, in random order."""
    rng = np.random.default_rng(0)
    few = [network.layout.pack(rng.random(network.layout.weight_count) < 0.5) for _ in range(min(count, 40))]
    return np.stack(few)[rng.integers(0, len(few), count)]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per way, a column per number of masks."""
    lines = ["| ms | " + " | ".join(f"k = {row['masks']}" for row in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{row['ms'][name]:.2f}" for row in rows) + " |" for name in rows[0]["ms"]]
    lines += [
        f"| MB with what the call needs, {name} | "
        + " | ".join(f"{row['memory'][name] / 1e6:.1f}" for row in rows)
        + " |"
        for name in rows[0]["memory"]
    ]
    lines += [
        f"| MB, {name} | " + " | ".join(f"{row[name] / 1e6:.1f}" for row in rows) + " |" for name in ("packed", "dense")
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--masks", nargs="+", type=int, default=[10, 100, 500, 1000, 2500])
    arguments.add_argument("--architecture", default="lenet-300-100")
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--device", default="cpu")
    given = arguments.parse_args()
    network = Network.build(BankSpec(architecture=given.architecture), given.device)
    rows = [measure(network, count, given.rounds) for count in given.masks]
    print(f"\n{given.architecture}, {network.layout.weight_count} weights, {torch.get_num_threads()} threads\n")
    print(table(rows))
    ms, most = rows[-1]["ms"], rows[-1]
    figures = {
        "one_shot_speedup_over_dense": ms["dense one-shot"] / ms["one-shot"],
        "one_shot_speedup_over_matrix_product": ms["dense one-shot, by a matrix product"] / ms["one-shot"],
        "one_shot_memory_over_dense": most["memory"]["one-shot"] / most["memory"]["dense one-shot"],
        "one_shot_memory_over_matrix_product": most["memory"]["one-shot"]
        / most["memory"]["dense one-shot, by a matrix product"],
        "packed_over_dense": most["packed"] / most["dense"],
        "exact_over_one_shot": ms["exact, one image"] / ms["one-shot"],
        "exact_over_one_shot_mean_known": ms["exact, one image"] / ms["one-shot, mean known"],
        "binary_over_one_shot": ms["binary"] / ms["one-shot"],
        "one_shot_over_read": ms["one-shot"] / ms["floor: one read of the bits"],
    }
    print("\n" + "\n".join(f"{name} {value:.3f}" for name, value in figures.items()))
    print(f"largest difference of a gradient from the dense one: {max(row['difference'] for row in rows):.2g}")
    if given.architecture == "lenet-300-100" and given.device == "cpu":
        record(**figures, masks_measured=most["masks"])
    RESULTS.mkdir(exist_ok=True)
    name = given.architecture if given.device == "cpu" else f"{given.architecture}-{given.device}"
    (RESULTS / f"many_masks-{name}.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
