"""The learner as a river estimator: rows of named features in, one supermask per concept underneath.

How rows become batches. Masks are judged and trained on batches, so rows wait until `batch_size` of them are there;
then the learner makes one step. Nothing is padded, and it does not matter how rows were handed over: `learn_many` is
`learn_one` on each row of the frame, so a frame of `batch_size` rows is one step. Until the first step every label
seen is equally likely.

How features become inputs. A name takes the next free of the `features` slots when it is first learnt from; new names
of one call do so in the order of their `repr`, hence the order of a dict means nothing. A missing feature, None or NaN
is 0; in a prediction, names never learnt from are ignored. One further input is always 1, for want of biases. Values
are taken as they are: compose with river's `preprocessing.StandardScaler` where their scales differ.

How labels become classes. In order of appearance; labels that are equal to Python (True, 1) are one label.

Pickle writes masks, scores and positions; the weights come back from the seed.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from river import base

from supsup_online.decide import RuleSettings
from supsup_online.errors import BadBatchError, SpecError
from supsup_online.learner import INPUT_LIMIT, LearnerSettings, OnlineLearner
from supsup_online.learner_state import StreamState
from supsup_online.network import Network
from supsup_online.optimisers import OptimiserChoice
from supsup_online.predictor import predict
from supsup_online.running_loss import Agreement
from supsup_online.spec import BankSpec
from supsup_online.types import Batch, DetectorName, Objective, OverBudgetPolicy, RuleName, VariantName, WeightInit

if TYPE_CHECKING:
    import pandas as pd

AnswerWith = Literal["inferred", "current"]

_STREAM: Final = ""  # a river model learns one stream
_TINY: Final = float(np.finfo(np.float32).tiny)


@dataclass(eq=False, repr=False)
class SupsupClassifier(base.MiniBatchClassifier):  # type: ignore[misc]  # river ships no types
    """A classifier that gives each concept of its stream a supermask of its own, and takes it up when it returns.

    Args:
        features: input slots, at least as many as there will be names; far more than that slow learning down.
        classes: most labels there will be, at least 2.
        batch_size: rows per step, at least 2: a mask's running loss is judged by its scatter within a batch.
        answer_with: which mask predicts. `inferred`: for every row the one that fits its features best, which asks
            nothing of the order of rows, but needs concepts that differ in their features. `current`: the one the
            stream is at, which also tells concepts apart that differ only in their labels; it follows a change with
            the first batch that shows it.
        seed: of the frozen weights and of the scores every mask starts from; nothing else is random.
        architecture, outputs, weight_init, variant, keep_fraction, edges_per_channel, budget: see `BankSpec`.
        optimiser, learning_rate: of the scores.
        rule, epsilon, objective, decision_rows, superposed, familiar: see `RuleSettings`.
        tolerance, margin: see `Agreement`.
        decision_every, detector, hot_masks: see `LearnerSettings`.
        over_budget: `evict` the mask unused for longest, or (`overflow`) keep all and count the batch as left out.
        device: where to compute, as torch names it. A row is little work: on a busy CPU `torch.set_num_threads(1)`
            made it four times as fast.

    Attributes:
        learner: the learner underneath, to be read: masks, statistics, where the stream stands.
        rows_left_out: rows not learnt from because the budget was spent.

    Raises:
        SpecError: an argument is out of range.

    Example:
        >>> from itertools import chain
        >>> from river import evaluate, metrics, preprocessing
        >>> from river.datasets import synth
        >>> from supsup_online.river_estimator import SupsupClassifier
        >>> concepts = (synth.STAGGER(classification_function=f, seed=1).take(640) for f in (0, 1, 0, 1))
        >>> learner = SupsupClassifier(features=9, classes=2, answer_with="current")
        >>> model = preprocessing.OneHotEncoder() | learner
        >>> accuracy = evaluate.progressive_val_score(chain(*concepts), model, metrics.Accuracy())
        >>> accuracy.get() > 0.9
        True
        >>> learner.masks_allocated
        2
    """

    features: int = 32
    classes: int = 10
    batch_size: int = 32
    answer_with: AnswerWith = "inferred"
    seed: int = 0
    architecture: str = "mlp-128-64"
    outputs: int = 64
    weight_init: WeightInit = "signed-constant"
    variant: VariantName = "top-k"
    keep_fraction: float = 0.5
    edges_per_channel: int = 8
    budget: int = 64
    optimiser: str = "adam"
    learning_rate: float = 0.01
    rule: RuleName = "loss"
    epsilon: float = 0.125
    objective: Objective = "H"
    decision_rows: int = 32
    superposed: int = 5
    familiar: float = 0.25
    tolerance: float = 6.0
    margin: float = 0.2
    decision_every: int = 100
    detector: DetectorName = "page-hinkley"
    hot_masks: int = 8
    over_budget: OverBudgetPolicy = "evict"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.features < 1 or self.batch_size < 2 or self.answer_with not in ("inferred", "current"):
            raise SpecError("features must be at least 1, batch_size at least 2, answer_with inferred or current")
        self.learner = self._new_learner()
        self.rows_left_out = 0
        self._slots: dict[Hashable, int] = {}
        self._labels: dict[Hashable, int] = {}
        self._rows: list[NDArray[np.float32]] = []
        self._targets: list[int] = []

    def _new_learner(self) -> OnlineLearner:
        spec = BankSpec(
            architecture=self.architecture,
            input_shape=(self.features + 1,),
            classes=self.classes,
            outputs=self.outputs,
            weight_seed=self.seed,
            weight_init=self.weight_init,
            variant=self.variant,
            keep_fraction=self.keep_fraction,
            edges_per_channel=self.edges_per_channel,
            budget=self.budget,
        )
        settings = LearnerSettings(
            rule=RuleSettings(
                rule=self.rule,
                epsilon=self.epsilon,
                objective=self.objective,
                rows=self.decision_rows,
                superposed=self.superposed,
                familiar=self.familiar,
                agreement=Agreement(self.tolerance, self.margin),
            ),
            decision_every=self.decision_every,
            detector=self.detector,
            optimiser=OptimiserChoice(self.optimiser, self.learning_rate),
            over_budget=self.over_budget,
            hot_masks=self.hot_masks,
        )
        return OnlineLearner(Network.build(spec, self.device), settings)

    @property
    def _multiclass(self) -> bool:
        return True

    @property
    def masks_allocated(self) -> int:
        """Masks allocated so far, evicted ones included; the learner's bank has those that are left."""
        return self.learner.bank.next_id

    # -- learning ---------------------------------------------------------------------------------------------------

    def learn_one(self, x: dict[Hashable, Any], y: Hashable) -> None:
        """Take in one row; with the `batch_size`-th one the learner makes a step.

        Raises:
            BadBatchError: a value is no number or beyond +-1e6, y is None or NaN, or the row brings more names or
                labels than there is room for. Nothing was changed.
        """
        self._learn(list(x), [list(x.values())], [y])

    def learn_many(self, X: "pd.DataFrame", y: "pd.Series") -> None:  # noqa: N803 - river's name
        """Take in the rows of X (n, columns) with labels y (n,), matched by position; as `learn_one` on each.

        Raises:
            BadBatchError: as in `learn_one`, or X and y differ in length. Nothing was changed.
        """
        self._learn(X.columns, X.to_numpy(object, na_value=np.nan), y.to_numpy(object, na_value=np.nan))

    def _learn(self, names: Sequence[Hashable], cells: Any, labels: Sequence[Hashable]) -> None:
        """Everything is checked before anything is changed, so that a refused row leaves no trace."""
        if len(cells) != len(labels):
            raise BadBatchError("shape", f"found {len(cells)} rows and {len(labels)} labels")
        if not len(labels):
            return
        if any(label is None or label != label for label in labels):  # noqa: PLR0124 - only NaN differs from itself
            raise BadBatchError("label", "found None or NaN where a label was expected")
        slots = _admit(self._slots, sorted(names, key=repr), self.features, "features")
        classes = _admit(self._labels, labels, self.classes, "classes")
        rows = self._inputs(names, cells, slots)
        self._slots, self._labels = slots, classes
        for row, label in zip(rows, labels, strict=True):
            self._rows.append(row.copy())
            self._targets.append(classes[label])
            if len(self._rows) == self.batch_size:
                self._step()

    def _step(self) -> None:
        batch = Batch(np.stack(self._rows), np.array(self._targets, dtype=np.int64), stream=_STREAM)
        self._rows, self._targets = [], []
        if not self.learner.step(batch).trained:
            self.rows_left_out += self.batch_size
        self.learner.sync()  # here, so that predictions only read
        self.learner.committed()  # there is no store to write the changes to

    # -- predicting -------------------------------------------------------------------------------------------------

    def predict_proba_one(self, x: dict[Hashable, Any], **_: Any) -> dict[Hashable, float]:
        """Probability of every label seen so far; {} before the first. Values are checked as in `learn_one`."""
        (row,) = self._probabilities(list(x), [list(x.values())])
        return dict(zip(self._labels, row.tolist(), strict=True))

    def predict_proba_many(self, X: "pd.DataFrame") -> "pd.DataFrame":  # noqa: N803 - river's name
        """`predict_proba_one` for rows (n, columns), as a frame (n, labels seen)."""
        import pandas as pd  # noqa: PLC0415 - river does not require it either

        probabilities = self._probabilities(X.columns, X.to_numpy(object, na_value=np.nan))
        columns = pd.Index(list(self._labels), dtype=object, tupleize_cols=False)
        return pd.DataFrame(probabilities, index=X.index, columns=columns)

    def predict_many(self, X: "pd.DataFrame") -> "pd.Series":  # noqa: N803 - river's name
        """The likeliest label of each row (n, columns), as a series (n,); None before the first label."""
        import pandas as pd  # noqa: PLC0415 - river does not require it either

        if not self._labels:
            return pd.Series([None] * len(X), index=X.index, dtype=object)
        labels = list(self._labels)
        best = self._probabilities(X.columns, X.to_numpy(object, na_value=np.nan)).argmax(axis=1)
        return pd.Series([labels[index] for index in best], index=X.index)

    def _probabilities(self, names: Sequence[Hashable], cells: Any) -> NDArray[np.float64]:
        """Probabilities (n, labels seen); rows sum to one."""
        x = self._inputs(names, cells, self._slots)
        bank, network, seen = self.learner.bank, self.learner.network, len(self._labels)
        if not len(bank):
            return np.full((len(x), seen), 1 / max(seen, 1))
        current = self.learner.streams[_STREAM].mask_id
        ids = list(bank) if current is None or self.answer_with == "inferred" else [current]
        answer = predict(network, ids, bank.stacked(ids), network.inputs(x), scope="sample")
        likely: NDArray[np.float64] = np.maximum(answer.probabilities[:, :seen].astype(np.float64), _TINY)
        likely /= likely.sum(axis=1, keepdims=True)
        return likely

    def _inputs(self, names: Sequence[Hashable], cells: Any, slots: dict[Hashable, int]) -> NDArray[np.float32]:
        """Cells (n, names) as inputs (n, features + 1): every known name in its slot, and the constant 1."""
        try:
            values = np.asarray(cells, dtype=np.float64).reshape(len(cells), len(names))
        except (TypeError, ValueError) as error:
            raise BadBatchError("dtype", f"features must be numbers, encode others first: {error}") from error
        values = np.where(np.isnan(values), 0.0, values)
        if (np.abs(values) > INPUT_LIMIT).any():
            raise BadBatchError("out-of-range", f"features must lie within +-{INPUT_LIMIT:g}: scale them first")
        x = np.zeros((len(cells), self.features + 1), dtype=np.float32)
        x[:, -1] = 1.0
        for column, name in enumerate(names):
            if name in slots:
                x[:, slots[name]] = values[:, column]
        return x

    # -- copies and pickles -----------------------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        learner = self.learner
        learnt = {
            "masks": {mask_id: learner.bank.words(mask_id) for mask_id in learner.bank},
            "stats": learner.stats,
            "hot": learner.hot,
            "steps": learner.steps,
            "next_id": learner.bank.next_id,
        }
        streams = [(k, s.mask_id, s.position, s.drift.residuals, s.last_used) for k, s in learner.streams.items()]
        own = {name: value for name, value in self.__dict__.items() if name not in {"learner", *self._get_params()}}
        return partial(type(self), **self._get_params()), (), (own, learnt, streams)

    def __setstate__(self, state: tuple[dict[str, Any], dict[str, Any], list[Any]]) -> None:
        own, learnt, streams = state
        self.__dict__.update(own)
        self.learner.restore(**learnt)
        for name, mask_id, position, residuals, last_used in streams:
            monitor = self.learner.drift_monitor(residuals)
            self.learner.streams[name] = StreamState(mask_id, position, monitor, last_used)


def _admit(known: dict[Hashable, int], names: Iterable[Hashable], room: int, argument: str) -> dict[Hashable, int]:
    """The known names and the new ones behind them, numbered in order."""
    new = [name for name in dict.fromkeys(names) if name not in known]
    if len(known) + len(new) > room:
        shown = ", ".join(map(repr, new))[:200]
        raise BadBatchError(f"too-many-{argument}", f"{argument}={room} leaves no room for {shown}")
    return known | {name: len(known) + index for index, name in enumerate(new)} if new else known
