"""SupSup that is never told a task, in training nor in inference (scenario NNs): the daemon's own learner.

What it stores per task: a mask, if it tells tasks apart; one bit a weight. What it must be told: nothing.

It hears only batches. Which task a mask stands for is worked out here, for the score: the task of the first batch that
was trained into it (`supsup_online.scoring`).
"""

import json

import numpy as np
from numpy.typing import NDArray

from supsup_online.decide import RuleSettings
from supsup_online.learner import LearnerSettings, OnlineLearner
from supsup_online.learner_arrays import as_bytes, learner_arrays, restore_learner
from supsup_online.network import Network
from supsup_online.paper.methods import Answers, Batches, Scope, Setup, State, Storage
from supsup_online.paper.supsup import THE_PAPERS, Answering, MaskSettings, Way, bank_spec, mask_storage
from supsup_online.types import Batch, Objective, RuleName

_STREAM = "tasks"


class Untold:
    """An `OnlineLearner` that reads the batches of all tasks as one stream.

    Args:
        setup: what all methods share; `tasks` is the budget of masks.
        rule: how masks are chosen: `paper` is the paper's NNs rule (section 3.4), `loss` the daemon's default.
        masks: how masks are made.
    """

    def __init__(self, setup: Setup, rule: RuleName = "loss", masks: MaskSettings = THE_PAPERS) -> None:
        settings = LearnerSettings(
            rule=RuleSettings(rule=rule), optimiser=setup.optimiser, transfer=masks.transfer, hot_masks=1
        )
        self.learner = OnlineLearner(Network.build(bank_spec(setup, masks)), settings)
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
        """The learner, and which task each mask stands for."""
        facts = {"owners": self.owners, "wrong_updates": self.wrong_updates, "not_trained": self.not_trained}
        return {"facts": as_bytes(json.dumps(facts).encode()), **learner_arrays(self.learner)}

    def restore(self, state: State) -> None:
        """Go on where `state` was taken."""
        restore_learner(self.learner, state)
        facts = json.loads(state["facts"].tobytes())
        self.owners = {int(mask): task for mask, task in facts["owners"].items()}
        self.wrong_updates, self.not_trained = facts["wrong_updates"], facts["not_trained"]


class Owned:
    """Answers of a learner, with each mask as the task it stands for."""

    def __init__(self, method: Untold, answering: Answering) -> None:
        self.method, self.answering = method, answering

    def answer(self, x: NDArray[np.generic], task: int | None, scope: Scope = "row") -> Answers:
        """Labels of raw inputs, and tasks; -1 for a mask into which nothing was trained."""
        found = self.answering.answer(x, task, scope)
        assert found.tasks is not None  # noqa: S101 - for the type checker; masks have ids
        return Answers(found.labels, np.array([self.method.owners.get(mask, -1) for mask in found.tasks.tolist()]))
