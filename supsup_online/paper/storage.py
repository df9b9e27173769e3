"""What the masks of SplitImageNet would cost: a hundred tasks of ten classes under ResNet-50 (Figure 2 left).

Nothing is trained here, for lack of the data; the network and its masks are the ones that would be.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from supsup_online import models
from supsup_online.edge_popup import TopM
from supsup_online.models import Architecture

TASKS: Final = 100
SIZES: Final = (1, 2, 4, 8, 16, 32)
# Accuracy in percent and megabytes for all tasks, as the paper gives them.
PAPER: Final = {
    "Upper Bound": (92.55, 10222.81),
    "SupSup": (89.58, 195.18),
    "SupSup, smaller": (88.68, 100.98),
    "SupSup, smallest": (86.37, 65.50),
    "BatchE": (81.50, 124.99),
    "Single Model": (None, 102.23),
}


@dataclass(frozen=True, slots=True)
class MaskBytes:
    """One mask of a network.

    Attributes:
        m: edges per channel.
        kept: edges kept.
        density: their share.
        packed: bytes at a bit a weight.
        columns: bytes as a sparse matrix with 16-bit indices, two a kept edge, and where each row begins, four: as the
            paper counts.
    """

    m: int
    kept: int
    density: float
    packed: int
    columns: int


def mask_bytes(architecture: Architecture, m: int) -> MaskBytes:
    """What a mask with the paper's density per layer costs."""
    shapes = [layer.weight_shape for layer in architecture.layers]
    kept = sum(TopM(m).kept(shape) for shape in shapes)
    starts = sum(shape[0] + 1 for shape in shapes)
    return MaskBytes(
        m, kept, kept / architecture.weight_count, -(-architecture.weight_count // 8), 2 * kept + 4 * starts
    )


def split_imagenet() -> str:
    """The table, in Markdown: megabytes for a hundred tasks by m, and the paper's numbers."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    architecture = models.build("resnet50", (3, 224, 224), 10)
    weights, statistics = architecture.weight_count, 2 * sum(architecture.body.channels)
    yield f"ResNet-50 with ten outputs: {weights:,} weights, {statistics:,} statistics of normalisations per mask."
    yield ""
    yield "| m | kept % | indices, MB | bits, MB | statistics, MB |"
    yield "|---|---|---|---|---|"
    for m in SIZES:
        found = mask_bytes(architecture, m)
        sizes = (found.columns, found.packed, 4 * statistics)
        cells = " | ".join(f"{TASKS * size / 1e6:.1f}" for size in sizes)
        yield f"| {m} | {100 * found.density:.2f} | {cells} |"
    yield f"\nOne model per task: {TASKS * 4 * weights / 1e6:.1f} MB.\n"
    yield "| the paper | accuracy % | MB |"
    yield "|---|---|---|"
    for name, (accuracy, megabytes) in PAPER.items():
        yield f"| {name} | {'-' if accuracy is None else f'{accuracy:.2f}'} | {megabytes:.2f} |"
