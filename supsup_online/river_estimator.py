"""The learner as a river estimator: rows of named features in, one supermask per concept underneath.

    model = preprocessing.StandardScaler() | SupsupClassifier(features=9, classes=2)
    evaluate.progressive_val_score(datasets.Phishing(), model, metrics.Accuracy())

How rows become batches. Masks are trained and judged on batches, so rows wait until `batch_size` of them are there;
then the learner makes one step. Nothing is padded and nothing depends on how rows were handed over: `learn_many` is
`learn_one` on each row of the frame, and a frame of `batch_size` rows is exactly one step.

How features become inputs. A new name takes the next free of `features` slots when it is first learnt from (new names
of one call in the order of their `repr`, so the order of a dict means nothing); a missing feature, None or NaN is 0;
a name that was never learnt from is ignored in predictions. One more input is always 1, as the network has no biases.
Values are taken as they are: put river's `preprocessing.StandardScaler` before the estimator.

pandas is imported only where a frame is returned.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from river import base

from supsup_online.decide import RuleName, RuleSettings
from supsup_online.drift import DetectorName
from supsup_online.errors import BadBatchError, SpecError
from supsup_online.inference import Objective
from supsup_online.learner import INPUT_LIMIT, LearnerSettings, OnlineLearner, OverBudgetPolicy, StreamState
from supsup_online.network import Network
from supsup_online.optimisers import OptimiserChoice, OptimiserState
from supsup_online.predictor import predict
from supsup_online.running_loss import Agreement
from supsup_online.spec import BankSpec, VariantName
from supsup_online.trainer import HotMask
from supsup_online.types import Batch
from supsup_online.weights import WeightInit

if TYPE_CHECKING:
    import pandas as pd

AnswerWith = Literal["inferred", "current"]
_STREAM: Final = ""  # a river model learns one stream


class SupsupClassifier(base.MiniBatchClassifier):
    def __init__(
        self,
        features: int = 32,
        classes: int = 10,
        batch_size: int = 32,
        architecture: str = "mlp-128-64",
        outputs: int = 64,
        weight_init: WeightInit = "signed-constant",
        variant: VariantName = "top-k",
        keep_fraction: float = 0.5,
        optimiser: str = "adam",
        learning_rate: float = 0.01,
        rule: RuleName = "loss",
        epsilon: float = 0.125,
        objective: Objective = "H",
        decision_rows: int = 32,
        superposed: int = 5,
        familiar: float = 0.25,
        tolerance: float = 6.0,
        margin: float = 0.1,
        decision_every: int = 100,
        detector: DetectorName = "page-hinkley",
        budget: int = 64,
        over_budget: OverBudgetPolicy = "evict",
        hot_masks: int = 8,
        answer_with: AnswerWith = "inferred",
        seed: int = 0,
    ) -> None:
        self.features = features
        self.classes = classes
        self.batch_size = batch_size
        self.architecture = architecture
        self.outputs = outputs
        self.weight_init = weight_init
        self.variant = variant
        self.keep_fraction = keep_fraction
        self.optimiser = optimiser
        self.learning_rate = learning_rate
        self.rule = rule
        self.epsilon = epsilon
        self.objective = objective
        self.decision_rows = decision_rows
        self.superposed = superposed
        self.familiar = familiar
        self.tolerance = tolerance
        self.margin = margin
        self.decision_every = decision_every
        self.detector = detector
        self.budget = budget
        self.over_budget = over_budget
        self.hot_masks = hot_masks
        self.answer_with = answer_with
        self.seed = seed
        self.learner = self._fresh_learner()
        self._slots: dict[Hashable, int] = {}
        self._labels: dict[Hashable, int] = {}
        self._rows: list[NDArray[np.float32]] = []
        self._targets: list[int] = []

    def _fresh_learner(self) -> OnlineLearner:
        spec = BankSpec(
            architecture=self.architecture,
            input_shape=(self.features + 1,),
            classes=self.classes,
            outputs=self.outputs,
            weight_seed=self.seed,
            weight_init=self.weight_init,
            variant=self.variant,
            keep_fraction=self.keep_fraction,
            budget=self.budget,
        )
        rule = RuleSettings(
            self.rule,
            self.epsilon,
            self.objective,
            self.decision_rows,
            self.superposed,
            self.familiar,
            Agreement(self.tolerance, self.margin),
        )
        settings = LearnerSettings(
            rule=rule,
            decision_every=self.decision_every,
            detector=self.detector,
            optimiser=OptimiserChoice(self.optimiser, self.learning_rate),
            over_budget=self.over_budget,
            hot_masks=self.hot_masks,
        )
        return OnlineLearner(Network.build(spec), settings)

    @property
    def _multiclass(self):
        return True

    def learn_one(self, x, y):
        self._learn(list(x), [list(x.values())], [y])

    def learn_many(self, X, y):
        self._learn(list(X.columns), X.to_numpy(dtype=np.float64, na_value=np.nan), list(y))

    def predict_proba_one(self, x, **kw):
        (p,) = self._probabilities(list(x), [list(x.values())])
        return dict(zip(self._labels, p.tolist()))

    def _learn(self, names, values, labels):
        new = sorted({n for n in names if n not in self._slots}, key=repr)
        for n in new:
            self._slots[n] = len(self._slots)
        for l in labels:
            self._labels.setdefault(l, len(self._labels))
        rows = self._inputs(names, values)
        for row, l in zip(rows, labels):
            self._rows.append(row)
            self._targets.append(self._labels[l])
            if len(self._rows) == self.batch_size:
                b = Batch(np.stack(self._rows), np.array(self._targets))
                self._rows, self._targets = [], []
                self.last = self.learner.step(b)
                self.learner.sync()
                self.learner.committed()

    def _inputs(self, names, values):
        values = np.asarray(values, dtype=np.float64)
        rows = np.zeros((len(values), self.features + 1), np.float32)
        rows[:, -1] = 1
        for i, n in enumerate(names):
            if n in self._slots:
                rows[:, self._slots[n]] = values[:, i]
        return rows

    def _probabilities(self, names, values):
        rows = self._inputs(names, values)
        seen = len(self._labels)
        ids = list(self.learner.bank)
        if not ids:
            return np.full((len(rows), seen), 1 / max(seen, 1))
        if self.answer_with == "current":
            ids = [self.learner.streams[""].mask_id]
        a = predict(self.learner.network, ids, self.learner.bank.stacked(ids), torch.from_numpy(rows))
        p = np.maximum(a.probabilities[:, :seen].astype(np.float64), 1e-30)
        return p / p.sum(1, keepdims=True)
