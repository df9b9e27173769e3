"""The rules that pick a mask for a batch: they run the network, `allocation` judges, the learner acts.

loss      exact: loss of the labelled batch under every mask; believed when it agrees with the mask's running loss.
The default: fewest wrong decisions in benchmarks/decisions.py.
exact     output entropy under every mask; known when near the mask's usual entropy; believed as above.
one-shot  the paper's NNs statistic; believed as above.
paper     NNs as published: no look at the loss, no drift detection, a decision every window.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from supsup_online import allocation, inference, many_masks
from supsup_online.bank import MaskBank
from supsup_online.bitpack import Masks, Words
from supsup_online.errors import SpecError
from supsup_online.network import Network
from supsup_online.running_loss import Agreement
from supsup_online.stats import MaskStats
from supsup_online.types import Examined, Objective, RuleName

Floats = NDArray[np.float32]

RULES: Final[tuple[RuleName, ...]] = ("loss", "exact", "one-shot", "paper")

_EXAMINED: Final = 5
_QUARTER: Final = 4
_MOST_UNSETTLED: Final = 8  # else a key per record would spend the whole budget on masks of one batch each


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """How masks are chosen.

    Attributes:
        rule: one of `RULES`.
        epsilon: allocate when k * max(nu) < 1 + epsilon (one-shot rules; the paper's 1/8).
        objective: H or G (one-shot rules).
        rows: samples of the batch that masks are ranked on; the best few then see the whole batch.
        first_rows, shortlist: among more masks than `shortlist`, all are ranked on the first few samples, the better
            quarter of them (at least `shortlist`) on twice as many, and so on.
        usual: largest residual with which the mask a stream has is kept at the end of a window without a look at the
            others.
        looks: how many batches after an allocation are held against the other masks once more (not by `paper`).
        settled: batches before a mask may be reused by a stream other than the one that trains it: in its first
            batches a mask learns what all tasks have in common, so its loss cannot tell them apart.
        superposed: fewest masks in a superposition; untrained pads fill up (one-shot rules).
        familiar: margin of `allocation.familiar` (exact rule).
        agreement: when a batch agrees with a mask's running loss.
    """

    rule: RuleName = "loss"
    epsilon: float = 0.125
    objective: Objective = "H"
    rows: int = 32
    first_rows: int = 4
    shortlist: int = 32
    usual: float = 2.0
    looks: int = 2
    settled: int = 5
    superposed: int = 5
    familiar: float = 0.25
    agreement: Agreement = field(default_factory=Agreement)

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise SpecError(f"unknown rule {self.rule!r}: choose {', '.join(RULES)}")
        if min(self.rows, self.first_rows) < 1 or self.superposed < 2 or not self.epsilon >= 0:
            raise SpecError("decision rows must be at least 1, superposed at least 2, epsilon at least 0")
        if self.shortlist < _EXAMINED or not self.usual >= 0 or self.looks < 0:
            raise SpecError(f"the shortlist must be at least {_EXAMINED}, the usual residual and looks at least 0")
        if self.objective not in ("H", "G"):
            raise SpecError(f"unknown objective {self.objective!r}: choose H or G")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule found: candidates it considers known (best first), all it examined, and k * max(nu) if taken."""

    known: tuple[Examined, ...]
    examined: tuple[Examined, ...]
    ratio: float | None = None


class Decider:
    """Runs the configured rule over a bank.

    Raises:
        SpecError: a one-shot rule with objective G over a network without superfluous neurons.
    """

    def __init__(self, network: Network, settings: RuleSettings) -> None:
        if settings.rule in ("one-shot", "paper"):
            inference.check_objective(network, settings.objective)
        self.network = network
        self.settings = settings
        self._chance = float(np.log(network.spec.classes))
        self._pads: dict[int, Words] = {}

    def __call__(
        self,
        bank: MaskBank,
        stats: dict[int, MaskStats],
        stream: str,
        x: Tensor,
        y: Tensor,
        *,
        again: bool = False,
    ) -> Verdict:
        """Examine the masks of a bank for prepared inputs x (n, ...) and labels y (n,) of a stream.

        With `again` only those that may be reused by any stream, and only a mask that recognises the batch agrees.
        """
        ids = self._settled(bank, stats) if again else self._open_to(stream, bank, stats)
        if not ids:
            return Verdict((), ())
        rank: Callable[..., Verdict] = {"loss": self._by_loss, "exact": self._by_entropy}.get(
            self.settings.rule, self._by_superposition
        )
        verdict = rank(bank, ids, stats, x[: self.settings.rows], y[: self.settings.rows])
        if self.settings.rule == "paper":
            return verdict
        return self._checked(bank, stats, verdict, x, y, again=again)

    def _settled(self, bank: MaskBank, stats: dict[int, MaskStats]) -> list[int]:
        return [mask_id for mask_id in bank if stats[mask_id].batches >= self.settings.settled]

    def _open_to(self, stream: str, bank: MaskBank, stats: dict[int, MaskStats]) -> list[int]:
        settled = set(self._settled(bank, stats))
        if len(bank) - len(settled) >= _MOST_UNSETTLED or self.settings.rule == "paper":
            return list(bank)
        return [mask_id for mask_id in bank if mask_id in settled or stats[mask_id].stream == stream]

    def _by_loss(self, bank: MaskBank, ids: list[int], stats: dict[int, MaskStats], x: Tensor, y: Tensor) -> Verdict:
        del stats
        best = self._ranked(bank, ids, len(x), lambda masks, n: inference.exact_losses(self.network, masks, x[n], y[n]))
        return Verdict(best, best)

    def _by_entropy(self, bank: MaskBank, ids: list[int], stats: dict[int, MaskStats], x: Tensor, y: Tensor) -> Verdict:
        del y
        best = self._ranked(bank, ids, len(x), lambda masks, n: inference.exact_entropies(self.network, masks, x[n]))
        outputs, margin = self.network.spec.outputs, self.settings.familiar
        known = tuple(c for c in best if allocation.familiar(c.statistic, stats[c.mask_id].entropy, outputs, margin))
        return Verdict(known, best)

    def _ranked(
        self, bank: MaskBank, ids: list[int], rows: int, measure: Callable[[Masks, slice], Floats]
    ) -> tuple[Examined, ...]:
        """The best few of some masks by a mean over `rows` samples, by successive halving (here: quartering).

        A few samples are enough to drop most of many masks, and far too few to name the best: one that fits has to be
        among the best quarter only.
        """
        chosen, totals, seen = np.array(ids), np.zeros(len(ids)), 0
        while seen < rows:
            many = len(chosen) > self.settings.shortlist
            upto = min(max(self.settings.first_rows, 2 * seen), rows) if many else rows
            totals = totals + measure(bank.stacked(chosen.tolist()), slice(seen, upto)).sum(axis=1)
            seen = upto
            if many and seen < rows:
                left = max(self.settings.shortlist, len(chosen) // _QUARTER)
                better = np.sort(np.argsort(totals, kind="stable")[:left])
                chosen, totals = chosen[better], totals[better]
        return _best(chosen.tolist(), (totals / rows).astype(np.float32))

    def _by_superposition(
        self, bank: MaskBank, ids: list[int], stats: dict[int, MaskStats], x: Tensor, y: Tensor
    ) -> Verdict:
        del stats, y
        pads = [self._pad(bank.next_id + i, bank.next_id) for i in range(max(0, self.settings.superposed - len(ids)))]
        masks = bank.stacked(ids)
        if pads:
            masks = many_masks.joined(masks, np.stack(pads))
        mean = bank.mean if len(masks) == len(bank) == len(ids) else None
        outcome = inference.one_shot(self.network, masks, x, self.settings.objective, mean=mean)
        best = _best(ids, -len(masks) * outcome.nu[: len(ids)])
        examined = tuple(replace(c, statistic=-c.statistic) for c in best)
        known = examined if allocation.nns(outcome, len(ids), self.settings.epsilon) else ()
        return Verdict(known, examined, outcome.ratio)

    def _pad(self, mask_id: int, next_id: int) -> Words:
        """The untrained mask that would be allocated as `mask_id`."""
        self._pads = {known: words for known, words in self._pads.items() if known >= next_id}
        if mask_id not in self._pads:
            self._pads[mask_id] = self.network.untrained_mask(mask_id)
        return self._pads[mask_id]

    def _checked(
        self, bank: MaskBank, stats: dict[int, MaskStats], verdict: Verdict, x: Tensor, y: Tensor, *, again: bool
    ) -> Verdict:
        """The verdict with the whole batch held against the running loss of each known candidate."""
        losses = inference.exact_losses(self.network, bank.stacked([c.mask_id for c in verdict.known]), x, y)
        checked = []
        for candidate, row in zip(verdict.known, losses, strict=True):
            usual = stats[candidate.mask_id].loss
            residual = usual.residual(row, self._chance, self.settings.agreement)
            agrees = residual <= self.settings.agreement.tolerance
            agrees = agrees and (not again or usual.recognises(row, self._chance))
            checked.append((float(row.mean()), replace(candidate, residual=residual, agrees=agrees)))
        known = tuple(candidate for _, candidate in sorted(checked, key=lambda pair: pair[0]))
        seen = {candidate.mask_id for candidate in known}
        return replace(
            verdict, known=known, examined=known + tuple(c for c in verdict.examined if c.mask_id not in seen)
        )


def _best(ids: list[int], statistics: Floats) -> tuple[Examined, ...]:
    """The few masks with the smallest statistic, in order; equal ones by id."""
    order = np.argsort(statistics, kind="stable")[:_EXAMINED]
    return tuple(Examined(ids[i], float(statistics[i])) for i in order)
