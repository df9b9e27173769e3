"""Hold a run against the truth: which mask each batch was trained into, beside the task it came from.

A mask belongs to the task of the first batch trained into it. Scoring is strict: a batch trained into another task's
mask is a wrong update, whatever accuracy came of it.
"""

from collections.abc import Sequence

Tasks = Sequence[int]
Masks = Sequence[int | None]


def owners(tasks: Tasks, masks: Masks) -> dict[int, int]:
    """Mask -> the task it belongs to; `masks` holds None for batches that were not trained."""
    first: dict[int, int] = {}
    for task, mask in zip(tasks, masks, strict=True):
        if mask is not None:
            first.setdefault(mask, task)
    return first


def wrong_updates(tasks: Tasks, masks: Masks) -> int:
    """Batches trained into another task's mask."""
    owner = owners(tasks, masks)
    return sum(mask is not None and owner[mask] != task for task, mask in zip(tasks, masks, strict=True))


def main_mask(task: int, tasks: Tasks, masks: Masks) -> int | None:
    """The mask that most batches of a task were trained into; None when none was."""
    used = [mask for t, mask in zip(tasks, masks, strict=True) if t == task and mask is not None]
    return max(sorted(set(used)), key=used.count) if used else None


def purity(mask: int | None, tasks: Tasks, masks: Masks) -> float:
    """Share of a mask's batches that come from the task it belongs to; 0 for no mask."""
    if mask is None:
        return 0.0
    owner = owners(tasks, masks)[mask]
    inside = [task for task, m in zip(tasks, masks, strict=True) if m == mask]
    return inside.count(owner) / len(inside)
