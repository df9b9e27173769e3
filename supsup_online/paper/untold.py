"""SupSup that is never told a task, in training nor in inference (scenario NNs): the daemon's own learner.

What it stores per task: a mask, if it tells tasks apart; one bit a weight. What it must be told: nothing.

It hears only batches. Which task a mask stands for is worked out here, for the score: the task of the first batch that
was trained into it (`supsup_online.scoring`).
"""

import json

import numpy as np
from numpy.typing import NDArray

from supsup_online import codec
from supsup_online.decide import RuleSettings
from supsup_online.learner import LearnerSettings, OnlineLearner
from supsup_online.learner_state import StreamState
from supsup_online.network import Network
from supsup_online.paper.methods import Answers, Batches, Scope, Setup, State, Storage
from supsup_online.paper.supsup import Answering, MaskSettings, Way, bank_spec, mask_storage
from supsup_online.stats import MaskStats
from supsup_online.types import Batch, Objective, RuleName

_STREAM = "tasks"


class Untold:
    """An `OnlineLearner` that reads the batches of all tasks as one stream.

    Args:
        setup: what all methods share; `tasks` is the budget of masks.
        rule: how masks are chosen: `paper` is the paper's NNs rule (section 3.4), `loss` the daemon's default.
        masks: how masks are made.
    """

    def __init__(self, setup: Setup, rule: RuleName = "loss", masks: MaskSettings | None = None) -> None:
        made = masks or MaskSettings()
        settings = LearnerSettings(
            rule=RuleSettings(rule=rule), optimiser=setup.optimiser, transfer=made.transfer, hot_masks=1
        )
        self.learner = OnlineLearner(Network.build(bank_spec(setup, made)), settings)
        self.owners: dict[int, int] = {}
        self.wrong_updates = 0
        self.not_trained = 0

    def learn(self, task: int, batches: Batches) -> None:
        """Read the batches; the task's number is noted for the score and goes no further."""
        for x, y in batches:
            result = self.learner.step(Batch(x, y, _STREAM))
            if result.mask_id is None:
                self.not_trained += 1
            else:
                self.wrong_updates += self.owners.setdefault(result.mask_id, task) != task
        self.learner.sync()
        self.learner.committed()

    def answering(self, way: Way, objective: Objective = "H") -> "Owned":
        """These masks, with the task found in some way."""
        return Owned(self, Answering(self.learner.network, self.learner.bank, way, objective))

    def answer(self, x: NDArray[np.generic], task: int | None, scope: Scope = "row") -> Answers:
        """As the daemon answers: by exact inference."""
        return self.answering("exact").answer(x, task, scope)

    def storage(self) -> Storage:
        """A bit a weight and mask; that it takes one mask per task is what the score shows."""
        return mask_storage(self.learner.network)

    def state(self) -> State:
        """The bank, the masks in training, and where the stream stands."""
        learner = self.learner
        ids = list(learner.bank)
        meta = {
            "owners": self.owners,
            "wrong_updates": self.wrong_updates,
            "not_trained": self.not_trained,
            "steps": learner.steps,
            "next_id": learner.bank.next_id,
            "stats": {mask: stats.to_text() for mask, stats in learner.stats.items()},
            "hot": list(learner.hot),
            "streams": {
                name: [stream.mask_id, stream.position, stream.drift.residuals, stream.last_used]
                for name, stream in learner.streams.items()
            },
        }
        optimiser = learner.trainer.optimiser
        hot = {f"hot-{m}": _bytes(codec.encode_hot(learner.network, optimiser, s)) for m, s in learner.hot.items()}
        words = np.array(learner.bank.stacked(ids))
        return {"meta": _bytes(json.dumps(meta).encode()), "ids": np.array(ids, dtype=np.int64), "words": words, **hot}

    def restore(self, state: State) -> None:
        """Go on where `state` was taken."""
        learner, meta = self.learner, json.loads(state["meta"].tobytes())
        blobs = {mask: state[f"hot-{mask}"].tobytes() for mask in meta["hot"]}
        hot = {m: codec.decode_hot(learner.network, learner.trainer.optimiser, blob) for m, blob in blobs.items()}
        learner.restore(
            dict(zip(state["ids"].tolist(), state["words"], strict=True)),
            {int(mask): MaskStats.from_text(text) for mask, text in meta["stats"].items()},
            {mask: found for mask, found in hot.items() if found is not None},
            steps=meta["steps"],
            next_id=meta["next_id"],
        )
        for name, (mask, position, residuals, last_used) in meta["streams"].items():
            learner.streams[name] = StreamState(mask, position, learner.drift_monitor(residuals), last_used)
        self.owners = {int(mask): task for mask, task in meta["owners"].items()}
        self.wrong_updates, self.not_trained = meta["wrong_updates"], meta["not_trained"]


class Owned:
    """Answers of a learner, with each mask as the task it stands for."""

    def __init__(self, method: Untold, answering: Answering) -> None:
        self.method, self.answering = method, answering

    def answer(self, x: NDArray[np.generic], task: int | None, scope: Scope = "row") -> Answers:
        """Labels of raw inputs, and tasks; -1 for a mask into which nothing was trained."""
        found = self.answering.answer(x, task, scope)
        assert found.tasks is not None  # noqa: S101 - for the type checker; masks have ids
        return Answers(found.labels, np.array([self.method.owners.get(mask, -1) for mask in found.tasks.tolist()]))


def _bytes(blob: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(blob, dtype=np.uint8)
