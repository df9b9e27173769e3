"""The picture of a run: the true task of every batch above, the mask it was trained into below."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_MOST_TICKS = 12


def draw(path: Path, tasks: Sequence[int], masks: Sequence[int | None], switches: Sequence[int], title: str) -> None:
    """Write a PNG.

    Args:
        path: where to.
        tasks: true task per batch.
        masks: mask per batch, None where the batch was not trained.
        switches: batches at which the trainer chose another mask.
        title: above the picture.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    figure.suptitle(title)
    _strip(above, tasks, tasks, "true task")
    _strip(below, masks, tasks, "mask chosen\n(colour: true task)")
    for switch in switches:
        below.axvline(switch - 0.5, color="0.75", linewidth=0.6, zorder=0)
    below.set_xlabel("batch")
    figure.savefig(path, dpi=120)


def _strip(axes: Axes, values: Sequence[int | None], tasks: Sequence[int], label: str) -> None:
    x = np.arange(len(values))
    y = np.array([np.nan if v is None else float(v) for v in values])
    axes.scatter(x, y, c=np.array(tasks) % 10, cmap="tab10", vmin=0, vmax=9, s=6, marker="s", linewidths=0)
    axes.set_ylabel(label)
    known = sorted({v for v in values if v is not None})
    axes.set_yticks(known if len(known) <= _MOST_TICKS else known[:: len(known) // _MOST_TICKS])
    axes.margins(x=0.01, y=0.15)
    if None in values:
        gaps = [i for i, v in enumerate(values) if v is None]
        axes.scatter(gaps, [min(known, default=0) - 0.6] * len(gaps), c="0.6", s=4, marker="x", label="not trained")
        axes.legend(loc="upper right", fontsize="small")
