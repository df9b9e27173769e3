"""Answer without being told the task: infer it, then predict under its mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supsup_online.bitpack import Masks
from supsup_online.errors import NothingLearntError
from supsup_online.inference import entropy, misfit
from supsup_online.many_masks import exact_logits
from supsup_online.network import Network

Scope = Literal["sample", "batch"]
Slots = NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class Prediction:
    """Answers for n rows.

    Attributes:
        labels: int64 (n,).
        probabilities: float32 (n, classes), softmax over the real classes.
        mask_ids: int64 (n,), the mask each row was answered under.
        entropies: float32 (n,), output entropy under that mask, nats.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    mask_ids: NDArray[np.int64]
    entropies: NDArray[np.float32]


def predict(network: Network, mask_ids: Sequence[int], masks: Masks, x: Tensor, scope: Scope = "sample") -> Prediction:
    """Exact inference: the mask that fits best (`inference.misfit`) answers.

    Args:
        network: the frozen weights.
        mask_ids: k ids, in the order of `masks`.
        masks: packed masks (k, word_count).
        x: prepared inputs (n, ...).
        scope: `sample` lets every row have its own task, `batch` gives all rows one task.

    Raises:
        NothingLearntError: there is no mask to answer with.
    """
    if not len(mask_ids):
        raise NothingLearntError
    places, logits = best_fit(network, masks, x, scope)
    classes = network.spec.classes
    return Prediction(
        labels=logits[:, :classes].argmax(1).cpu().numpy(),
        probabilities=logits[:, :classes].softmax(1).cpu().numpy(),
        mask_ids=np.asarray(mask_ids, dtype=np.int64)[places],
        entropies=entropy(logits).cpu().numpy(),
    )


def best_fit(
    network: Network, masks: Masks, x: Tensor, scope: Scope = "sample", slots: Slots | None = None
) -> tuple[Slots, Tensor]:
    """The best of k masks, k at least 1, for each row, and its outputs.

    Args:
        network: the frozen weights.
        masks: packed masks (all, word_count).
        x: prepared inputs (n, ...).
        scope: as in `predict`.
        slots: int64 (k,), those that are asked; None: all.

    Returns:
        Places int64 (n,), counted in `slots`, and logits float32 (n, outputs), on the network's device.
    """
    rows, classes = len(x), network.spec.classes
    everyone = torch.arange(rows, device=network.device)
    best = torch.full((rows,), torch.inf, device=network.device)
    places = torch.zeros(rows, dtype=torch.int64, device=network.device)
    answer = torch.zeros(rows, network.spec.outputs, device=network.device)
    first = 0
    for logits in exact_logits(network, masks, x, slots):
        fit = misfit(logits, classes)
        deciding = fit if scope == "sample" else fit.mean(1, keepdim=True).expand(-1, rows)
        lowest, place = deciding.nan_to_num(nan=torch.inf).min(0)
        better = lowest < best
        best = torch.where(better, lowest, best)
        places = torch.where(better, first + place, places)
        answer = torch.where(better[:, None], logits[place, everyone], answer)
        first += len(logits)
    return places.cpu().numpy(), answer
