"""How time grows: with the number of masks, with the weights, with the batch; a picture.

    python benchmarks/growth.py --draw docs/growth.png       after many_masks.py and steps.py, whose results it draws

Only the growth with the weights is measured here, over networks of two hidden layers and a fixed number of masks.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from _latest import RESULTS
from many_masks import measure

from supsup_online.network import Network
from supsup_online.spec import BankSpec

WIDTHS = (64, 256, 512, 1024)
MASKS = 250
INFERENCE = {
    "dense one-shot": "dense, as the authors' code",
    "dense one-shot, by a matrix product": "dense, by a matrix product",
    "one-shot": "One-Shot",
    "binary": "Binary",
    "exact, one image": "exact, one image",
    "floor: one read of the bits": "floor: one read of the bits",
}
STEPS = {
    "sort": "autograd, sorting",
    "autograd, top-k": "autograd, selecting",
    "ours, top-k": "written out, top-k",
    "ours, threshold": "written out, threshold",
    "ours, threshold, bfloat16": "written out, bfloat16",
    "floor": "floor: bare products",
}


def with_weights(rounds: int) -> list[dict[str, Any]]:
    """`many_masks.measure` over networks of growing width."""
    found = []
    for width in WIDTHS:
        network = Network.build(BankSpec(architecture=f"mlp-{width}-{width}"))
        found.append({"weights": network.layout.weight_count, **measure(network, MASKS, rounds)})
        print(json.dumps({"weights": found[-1]["weights"], **found[-1]["ms"]}), flush=True)
    return found


def measured(name: str) -> Any:
    """Results of another benchmark.

    Raises:
        SystemExit: it has not run yet.
    """
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run benchmarks/{name.partition('-')[0]}.py first")
    return json.loads(path.read_text())


def draw(weights: list[dict[str, Any]], path: Path) -> None:
    """Three panels, logarithmic both ways."""
    import matplotlib as mpl  # noqa: PLC0415 - only for the picture

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, panels = plt.subplots(1, 3, figsize=(13.5, 4.6), layout="constrained")
    masks, steps = measured("many_masks-lenet-300-100"), measured("steps")["lenet-300-100"]
    for name, label in INFERENCE.items():
        panels[0].plot([row["masks"] for row in masks], [row["ms"][name] for row in masks], marker="o", label=label)
        panels[1].plot([row["weights"] for row in weights], [row["ms"][name] for row in weights], marker="o")
    for name, label in STEPS.items():
        panels[2].plot([int(rows) for rows in steps], [ms[name] for ms in steps.values()], marker="o", label=label)
    panels[0].set(title="Task of one image, LeNet 300-100", xlabel="masks", ylabel="ms")
    panels[1].set(title=f"Task of one image, {MASKS} masks", xlabel="weights")
    panels[2].set(title="Training step, LeNet 300-100", xlabel="rows of a batch")
    for panel in panels:
        panel.set(xscale="log", yscale="log")
        panel.grid(alpha=0.3)
    panels[2].set_xticks([int(rows) for rows in steps], labels=list(steps))
    panels[2].minorticks_off()
    panels[0].legend(fontsize=8)
    panels[2].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, write, draw."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--draw", type=Path, default=RESULTS / "growth.png", metavar="FILE")
    given = arguments.parse_args()
    for name in ("many_masks-lenet-300-100", "steps"):
        measured(name)
    weights = with_weights(given.rounds)
    (RESULTS / "growth.json").write_text(json.dumps(weights, indent=1))
    draw(weights, given.draw)
    print(f"drawn: {given.draw}")


if __name__ == "__main__":
    main()
