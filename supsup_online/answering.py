"""Answer requests from a snapshot: which task is this, what is the label, and is it a task at all?

The task of a row is told (`tasks`), or inferred: `exact` runs the row under every mask, `one-shot` and `binary` read it
off the gradient to the alphas of a superposition (`inference`). Whichever mask it is, its own outputs give label,
probabilities and *confidence*, so that one threshold says *novel* for all of them: the bound of `allocation.familiar`,
by which the `exact` rule allocates a new mask.

A stream that had a mask tries that one first (*sticky*): rows it is confident of are answered, and only the others are
inferred anew.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supsup_online import allocation, inference
from supsup_online.errors import BadBatchError, NothingLearntError
from supsup_online.many_masks import exact_logits
from supsup_online.predictor import Scope, Slots, best_fit
from supsup_online.snapshot import Snapshot
from supsup_online.types import Objective

Inference = Literal["exact", "one-shot", "binary"]

MARGIN: Final = 0.25  # `decide.RuleSettings.familiar`


@dataclass(frozen=True, slots=True)
class Inquiry:
    """How the task of a request is to be inferred.

    Attributes:
        inference: exact, one-shot or binary.
        objective: H or G, of one-shot and binary.
        scope: `sample` lets every row have its own task, `batch` gives all rows one task.
        margin: a row is novel when its confidence is below 1 - margin.
    """

    inference: Inference = "exact"
    objective: Objective = "H"
    scope: Scope = "sample"
    margin: float = MARGIN


@dataclass(frozen=True, eq=False, slots=True)
class Answer:
    """Answers for n rows.

    Attributes:
        labels: int64 (n,).
        probabilities: float32 (n, classes), softmax over the real classes.
        mask_ids: int64 (n,), the mask each row was answered under.
        confidences: float32 (n,), 0 to 1, see `allocation.confidence`.
        novel: bool (n,), whether no task is known that this row could be of.
        inferred: how many rows had all masks asked; 0 where the task was told or the stream's last mask was confident.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    mask_ids: NDArray[np.int64]
    confidences: NDArray[np.float32]
    novel: NDArray[np.bool_]
    inferred: int = 0

    def rows(self, first: int, last: int) -> "Answer":
        """The answers for rows first to last - 1."""
        part = slice(first, last)
        return Answer(
            self.labels[part],
            self.probabilities[part],
            self.mask_ids[part],
            self.confidences[part],
            self.novel[part],
            min(self.inferred, last - first),
        )


_PER_ROW: Final = ("labels", "probabilities", "mask_ids", "confidences", "novel")


def answer(snapshot: Snapshot, x: Tensor, inquiry: Inquiry, last: int | None = None) -> Answer:
    """Infer the task of prepared inputs x (n, ...) and answer.

    Args:
        snapshot: the bank.
        x: prepared inputs.
        inquiry: how to infer.
        last: the mask that answered this stream before, tried first; one that is gone is ignored.

    Raises:
        NothingLearntError: the bank holds no mask yet.
        SpecError: objective G without superfluous neurons.
    """
    _require_masks(snapshot)
    place = None if last is None else snapshot.place(last)
    if place is None:
        return _inferred(snapshot, x, inquiry)
    tried = _under(snapshot, np.full(len(x), place), x, inquiry)
    again = np.flatnonzero(tried.novel)
    if not len(again):
        return tried
    return _joined(tried, _inferred(snapshot, x[torch.from_numpy(again)], inquiry), again)


def answer_told(snapshot: Snapshot, x: Tensor, tasks: NDArray[np.int64], inquiry: Inquiry) -> Answer:
    """Answer under masks that are told, one id a row (GG of the paper).

    Raises:
        NothingLearntError: the bank holds no mask yet.
        BadBatchError: this version has no such mask.
    """
    _require_masks(snapshot)
    places = np.searchsorted(snapshot.mask_ids, tasks).clip(max=len(snapshot) - 1)
    if len(wrong := tasks[snapshot.mask_ids[places] != tasks]):
        raise BadBatchError("no-mask", f"version {snapshot.version} of this bank has no mask {wrong[0]}")
    return _under(snapshot, places, x, replace(inquiry, scope="sample"))


def _require_masks(snapshot: Snapshot) -> None:
    if not len(snapshot):
        raise NothingLearntError


def _inferred(snapshot: Snapshot, x: Tensor, inquiry: Inquiry) -> Answer:
    if inquiry.inference == "exact":
        places, logits = best_fit(snapshot.network, snapshot.masks, x, inquiry.scope, snapshot.slots)
        return replace(_answer(snapshot, places, logits, inquiry), inferred=len(x))
    pieces = torch.split(x, 1) if inquiry.scope == "sample" else (x,)
    found = [_superposed(snapshot, piece, inquiry) for piece in pieces]
    places = np.repeat(np.array(found, dtype=np.int64), [len(piece) for piece in pieces])
    return replace(_under(snapshot, places, x, inquiry), inferred=len(x))


def _superposed(snapshot: Snapshot, x: Tensor, inquiry: Inquiry) -> int:
    """The place of the mask that One-Shot or Binary inference names for all of x."""
    network, masks, slots = snapshot.network, snapshot.masks, snapshot.slots
    if inquiry.inference == "binary":
        return inference.binary(network, masks, x, inquiry.objective, slots)
    return inference.one_shot(network, masks, x, inquiry.objective, mean=snapshot.mean, slots=slots).best


def _under(snapshot: Snapshot, places: Slots, x: Tensor, inquiry: Inquiry) -> Answer:
    """Every row under its own mask; one pass for each mask."""
    logits = torch.empty(len(x), snapshot.network.spec.outputs)
    for place in np.unique(places):
        rows = torch.from_numpy(np.flatnonzero(places == place))
        slots = snapshot.slots[place : place + 1]
        logits[rows] = next(exact_logits(snapshot.network, snapshot.masks, x[rows], slots))[0].cpu()
    return _answer(snapshot, places, logits, inquiry)


def _answer(snapshot: Snapshot, places: Slots, logits: Tensor, inquiry: Inquiry) -> Answer:
    spec, real = snapshot.network.spec, logits[:, : snapshot.network.spec.classes]
    entropies = inference.entropy(logits).cpu().numpy()
    if inquiry.scope == "batch":
        entropies = np.full_like(entropies, entropies.mean())
    confidences = allocation.confidence(entropies, snapshot.usual[places], spec.outputs)
    return Answer(
        labels=real.argmax(1).cpu().numpy(),
        probabilities=real.softmax(1).cpu().numpy(),
        mask_ids=snapshot.mask_ids[places],
        confidences=confidences,
        novel=~(confidences >= np.float32(1 - inquiry.margin)),  # NaN is novel
    )


def _joined(answers: Answer, others: Answer, rows: NDArray[np.intp]) -> Answer:
    """The first answers with some rows replaced."""
    for name in _PER_ROW:
        getattr(answers, name)[rows] = getattr(others, name)
    return replace(answers, inferred=others.inferred)
