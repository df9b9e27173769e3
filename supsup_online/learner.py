"""The readable heart: one labelled batch in, tested and then trained, under the mask of its task.

    learner = OnlineLearner(Network.build(BankSpec()), LearnerSettings())
    result = learner.step(Batch(x, y))

A stream goes on with its mask until a window of `decision_every` batches is over or its loss drifts; then the rule
decides (`decide`): reuse, allocate, or over budget. The decision comes before the update, so a batch of a new task is
not trained into the old mask.

Everything is deterministic: the same batches in the same order give, on a CPU, the same bytes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, get_args

import numpy as np
from torch import Tensor

from supsup_online import allocation
from supsup_online.bank import MaskBank
from supsup_online.bitpack import Words
from supsup_online.decide import Decider, RuleSettings, Verdict
from supsup_online.drift import DETECTORS, DriftMonitor
from supsup_online.errors import BadBatchError, CodecError, SpecError
from supsup_online.fused_trainer import trainer_for
from supsup_online.learner_state import Changes, StreamState
from supsup_online.network import Network
from supsup_online.optimisers import OptimiserChoice
from supsup_online.predictor import predict
from supsup_online.stats import MaskStats
from supsup_online.trainer import Evaluation, HotMask
from supsup_online.types import (
    Action,
    Batch,
    Decision,
    DetectorName,
    OverBudgetPolicy,
    Precision,
    StepResult,
    Why,
)

INPUT_LIMIT: Final = 1e6  # keeps logits and squared gradients inside float32


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """Every knob of the learner.

    Attributes:
        rule: how masks are chosen.
        decision_every: batches of one stream between two decisions.
        detector: river's drift detector on the residual loss, or `none`; the `paper` rule uses none.
        optimiser: of the scores.
        precision: of the products of a training step; bfloat16 for fully connected layers with signed-constant
            weights on a CPU. Masks are followed in float32 either way.
        transfer: a new mask starts from the mean of those there are: for tasks that resemble each other.
        over_budget: what to do when a new mask is needed and the budget is spent: leave the batch (`overflow`), or
            evict the mask unused for longest (`evict`).
        hot_masks: masks whose scores are kept; a mask beyond them keeps its bits and is rekindled when it returns.
            Set it to at least the number of streams that are active at the same time.
        max_streams: streams remembered; the one unused for longest is forgotten first and starts with a decision.
    """

    rule: RuleSettings = field(default_factory=RuleSettings)
    decision_every: int = 100
    detector: DetectorName = "page-hinkley"
    optimiser: OptimiserChoice = field(default_factory=OptimiserChoice)
    precision: Precision = "float32"
    transfer: bool = False
    over_budget: OverBudgetPolicy = "overflow"
    hot_masks: int = 8
    max_streams: int = 1000

    def __post_init__(self) -> None:
        if self.decision_every < 1 or self.hot_masks < 1 or self.max_streams < 1:
            raise SpecError("decision_every, hot_masks and max_streams must be at least 1")
        if self.detector not in DETECTORS:
            raise SpecError(f"unknown drift detector {self.detector!r}: choose {', '.join(DETECTORS)}")
        if self.precision not in get_args(Precision):
            raise SpecError(f"unknown precision {self.precision!r}: choose float32 or bfloat16")
        if self.over_budget not in get_args(OverBudgetPolicy):
            raise SpecError(f"unknown policy over budget {self.over_budget!r}: choose overflow or evict")


class OnlineLearner:
    """Test-then-train over a stream of batches of unknown tasks.

    Attributes:
        network: the frozen weights.
        bank: packed masks; those of hot masks may lag behind their scores until `sync`.
        stats: numbers per mask.
        hot: scores and optimiser state of the masks used last.
        streams: state per stream.
        steps: labelled batches seen; orders masks and streams by use.
        changes: what a commit has to write; replaced by an empty one in `committed`.
    """

    def __init__(self, network: Network, settings: LearnerSettings | None = None) -> None:
        self.network = network
        self.settings = settings or LearnerSettings()
        self.bank = MaskBank(network.layout, network.spec.budget, network.device if network.has_gpu_kernels else None)
        self.stats: dict[int, MaskStats] = {}
        self.hot: dict[int, HotMask] = {}
        self.streams: dict[str, StreamState] = {}
        self.steps = 0
        self.changes = Changes()
        self.trainer = trainer_for(network, self.settings.optimiser.build(), self.settings.precision)
        self._decide = Decider(network, self.settings.rule)
        self._watchful = self.settings.detector != "none" and self.settings.rule.rule != "paper"
        self._chance = float(np.log(network.spec.classes))
        self._stale: set[int] = set()

    # -- the main path: one batch ---------------------------------------------------------------------------------

    def step(self, batch: Batch) -> StepResult:
        """Test, then train; an unlabelled batch is only answered.

        Raises:
            BadBatchError: an input is absurdly large, a label out of range, or an unlabelled batch meets an empty
            bank (nothing was changed); or a
                loss is not finite all the same.
        """
        x = self._inputs(batch)
        if batch.y is None:
            return self._answer(batch, x)
        y = self._labels(batch)
        self.steps += 1
        stream = self._stream(batch.stream)
        evaluation = self._test(stream.mask_id, x, y)
        why = self._why_decide(stream, evaluation)
        decision = self._act(batch.stream, why, x, y) if why else self._look_again(batch.stream, x, y)
        if decision and (evaluation is None or decision.mask_id != decision.previous):
            evaluation = self._test(stream.mask_id, x, y)
        if stream.mask_id is None or evaluation is None:
            return StepResult(batch.stream, len(y), None, trained=False, decision=decision)
        result = self._result(batch, stream.mask_id, evaluation, y, decision)
        self._train(stream, evaluation, batch, result)
        return result

    def _inputs(self, batch: Batch) -> Tensor:
        x = self.network.inputs(batch.x)
        extreme = self.network.scaled_bytes if batch.x.dtype == np.uint8 else x  # of bytes all are known beforehand
        if not float(extreme.abs().max()) <= INPUT_LIMIT:
            raise BadBatchError(
                "out-of-range", f"inputs must lie within +-{INPUT_LIMIT:g}: scale them before publishing"
            )
        return x

    def _labels(self, batch: Batch) -> Tensor:
        assert batch.y is not None  # noqa: S101 - for the type checker; step() asked
        classes = self.network.spec.classes
        if not (batch.y.min() >= 0 and batch.y.max() < classes):
            raise BadBatchError("label-range", f"labels must lie in 0..{classes - 1}")
        return self.network.labels(batch.y)

    def _test(self, mask_id: int | None, x: Tensor, y: Tensor) -> Evaluation | None:
        if mask_id is None:
            return None
        evaluation = self.trainer.evaluate(self._heat(mask_id), x, y)
        if not evaluation.is_finite:
            raise BadBatchError("not-finite", "the loss of this batch is not a finite number: are the inputs scaled?")
        return evaluation

    def _why_decide(self, stream: StreamState, evaluation: Evaluation | None) -> Why | None:
        """A batch goes on with its stream's mask only while that mask's running loss explains it."""
        if stream.mask_id is None or evaluation is None:
            return "start"
        agreement = self.settings.rule.agreement
        running = self.stats[stream.mask_id].loss
        residual = running.residual(evaluation.losses.cpu().numpy(), self._chance, agreement)
        drifted = stream.drift.update(residual) or residual > agreement.tolerance
        if stream.position >= self.settings.decision_every:
            if drifted or self._doubtful(residual):
                return "window"
            stream.begin_window()
        return "drift" if drifted and self._watchful else None

    def _doubtful(self, residual: float) -> bool:
        """Whether the end of a window calls for a look at all masks, or the one in use costs what it always does."""
        rule = self.settings.rule
        return rule.rule == "paper" or not self._watchful or not residual <= rule.usual

    def _act(self, name: str, why: Why, x: Tensor, y: Tensor) -> Decision:
        """Decide, and make the choice true: afterwards the stream has its mask, or none for lack of room."""
        self.sync()
        stream = self.streams[name]
        verdict = self._decide(self.bank, self.stats, name, x, y)
        previous, evicted = stream.mask_id, None
        choice = allocation.choose(verdict.known, room=not self.bank.full)
        if isinstance(choice, allocation.OverBudget) and (settled := self._evictable()):
            evicted, choice = self._evict(settled), allocation.Allocate()
        action: Action
        match choice:
            case allocation.Reuse(mask_id):
                action, stream.mask_id = "reuse", mask_id
            case allocation.Allocate():
                action, stream.mask_id = "allocate", self._allocate(verdict)
            case allocation.OverBudget():
                action, stream.mask_id = "over-budget", None
        stream.begin_window()
        return self._decision(action, stream.mask_id, why, verdict, evicted=evicted, previous=previous)

    def _decision(
        self,
        action: Action,
        mask_id: int | None,
        why: Why,
        verdict: Verdict,
        *,
        evicted: int | None,
        previous: int | None,
    ) -> Decision:
        rule = self.settings.rule.rule
        return Decision(action, mask_id, why, rule, verdict.examined, verdict.ratio, evicted, previous)

    def _look_again(self, name: str, x: Tensor, y: Tensor) -> Decision | None:
        """Hold the batches after an allocation against the other masks, and return to one that explains them.

        An odd batch, or an update that went wrong, makes a mask look like one of another task, for a batch or two. The
        new mask is removed: a task has one mask.
        """
        stream, rule = self.streams[name], self.settings.rule
        young = stream.mask_id
        if young is None or not 0 < self.stats[young].batches <= rule.looks or not self._watchful:
            return None
        self.sync()
        verdict = self._decide(self.bank, self.stats, name, x, y, again=True)
        choice = allocation.choose(verdict.known, room=True)
        if not isinstance(choice, allocation.Reuse):
            return None
        self._evict([young])
        stream.mask_id = choice.mask_id
        stream.begin_window()
        return self._decision("reuse", stream.mask_id, "look-again", verdict, evicted=young, previous=young)

    def _result(
        self, batch: Batch, mask_id: int, evaluation: Evaluation, y: Tensor, decision: Decision | None
    ) -> StepResult:
        predictions = evaluation.logits[:, : self.network.spec.classes].argmax(1)
        correct = int((predictions == y).sum())
        return StepResult(
            stream=batch.stream,
            rows=len(y),
            mask_id=mask_id,
            trained=True,
            decision=decision,
            loss=float(evaluation.mean_loss.detach()),
            accuracy=correct / len(y),
            correct=correct,
            entropy=float(evaluation.entropies(y).mean()),
            predictions=predictions.cpu().numpy(),
        )

    def _train(self, stream: StreamState, evaluation: Evaluation, batch: Batch, result: StepResult) -> None:
        mask_id = stream.mask_id
        assert mask_id is not None  # noqa: S101 - for the type checker; step() returned before otherwise
        stats = self.stats[mask_id]
        stats.observe(evaluation.losses.cpu().numpy(), result.correct, result.entropy)
        stats.updated_ms, stats.last_used, stats.stream = batch.timestamp_ms, self.steps, batch.stream
        if stats.batches == 1:
            stats.created_ms = batch.timestamp_ms
        self.trainer.update(self.hot[mask_id], evaluation)
        stream.position += 1
        self._stale.add(mask_id)
        self.changes.masks.add(mask_id)

    def _answer(self, batch: Batch, x: Tensor) -> StepResult:
        """Answer an unlabelled batch, all rows as one task."""
        if not len(self.bank):
            raise BadBatchError("no-mask", "nothing has been learnt yet, so an unlabelled batch cannot be answered")
        self.sync()
        ids = list(self.bank)
        answer = predict(self.network, ids, self.bank.stacked(ids), x, scope="batch")
        return StepResult(
            stream=batch.stream,
            rows=len(x),
            mask_id=int(answer.mask_ids[0]),
            trained=False,
            decision=None,
            entropy=float(answer.entropies.mean()),
            predictions=answer.labels,
        )

    # -- masks come and go ------------------------------------------------------------------------------------------

    def _allocate(self, verdict: Verdict) -> int:
        mean = self.bank.mean if self.settings.transfer and len(self.bank) else None
        hot = self.trainer.start(self.bank.next_id, mean)
        mask_id = self.bank.allocate(self.trainer.pack(hot))
        self.stats[mask_id] = MaskStats(ratio=verdict.ratio or 0.0, last_used=self.steps)
        self._keep_hot(mask_id, hot)
        return mask_id

    def _evictable(self) -> list[int]:
        """Masks that may make room for another; never young ones, or two streams would evict each other's for ever."""
        if self.settings.over_budget != "evict":
            return []
        return [mask_id for mask_id in self.bank if self.stats[mask_id].batches >= self.settings.rule.settled]

    def _evict(self, masks: Iterable[int]) -> int:
        """Remove the one of these masks unused for longest; streams that had it start over with a decision."""
        mask_id = min(masks, key=lambda known: self.stats[known].last_used)
        self.bank.remove(mask_id)
        del self.stats[mask_id]
        self.hot.pop(mask_id, None)
        self._stale.discard(mask_id)
        self.changes.masks.discard(mask_id)
        self.changes.cooled.discard(mask_id)
        self.changes.removed.add(mask_id)
        for name, stream in self.streams.items():
            if stream.mask_id == mask_id:
                stream.mask_id = None
                self.changes.streams.add(name)
        return mask_id

    def _heat(self, mask_id: int) -> HotMask:
        if mask_id not in self.hot:
            self._keep_hot(mask_id, self.trainer.rekindle(mask_id, self.bank.words(mask_id)))
        return self.hot[mask_id]

    def _keep_hot(self, mask_id: int, hot: HotMask) -> None:
        """Add to the hot masks; beyond their number those unused for longest keep only their bits."""
        while len(self.hot) >= self.settings.hot_masks:
            self.sync()
            coldest = min(self.hot, key=lambda known: self.stats[known].last_used)
            del self.hot[coldest]
            self.changes.cooled.add(coldest)
        self.hot[mask_id] = hot
        self.changes.cooled.discard(mask_id)
        self.changes.masks.add(mask_id)

    def sync(self) -> None:
        """Bring the bank's bits up to the scores of the hot masks."""
        for mask_id in sorted(self._stale):
            self.bank.put(mask_id, self.trainer.pack(self.hot[mask_id]))
        self._stale.clear()

    def _stream(self, name: str) -> StreamState:
        if name not in self.streams:
            while len(self.streams) >= self.settings.max_streams:
                oldest = min(self.streams, key=lambda known: self.streams[known].last_used)
                del self.streams[oldest]
                self.changes.streams.discard(oldest)
                self.changes.forgotten_streams.add(oldest)
            self.streams[name] = StreamState(None, 0, self.drift_monitor())
        stream = self.streams[name]
        stream.last_used = self.steps
        self.changes.streams.add(name)
        self.changes.forgotten_streams.discard(name)
        return stream

    # -- what a checkpoint needs ------------------------------------------------------------------------------------

    def drift_monitor(self, residuals: Sequence[float] = ()) -> DriftMonitor:
        """A detector as configured, fed with the residuals of a stored stream."""
        detector = self.settings.detector if self._watchful else "none"
        return DriftMonitor(detector, self.settings.rule.agreement.tolerance, residuals)

    def committed(self) -> None:
        """All changes up to now are stored."""
        self.changes = Changes()

    def restore(
        self,
        masks: Mapping[int, Words],
        stats: Mapping[int, MaskStats],
        hot: Mapping[int, HotMask],
        *,
        steps: int,
        next_id: int,
    ) -> None:
        """Take over a stored bank, into a learner that has seen nothing yet. Streams are set one by one in `streams`.

        Raises:
            CodecError: a mask does not fit the network, or masks and statistics are not of the same ids.
        """
        if masks.keys() != stats.keys() or not hot.keys() <= masks.keys():
            raise CodecError("stored masks, statistics and hot states do not belong together")
        for mask_id in sorted(masks):
            self.bank.put(mask_id, masks[mask_id])
        self.bank.next_id = max(self.bank.next_id, next_id)  # the newest mask may have been evicted since
        self.stats = dict(stats)
        self.hot = dict(hot)
        self.steps = steps
        self.committed()
        while self.settings.over_budget == "evict" and len(self.bank) > self.bank.budget:
            self._evict(self.bank)  # the budget was lowered since
