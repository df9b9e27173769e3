"""SupSup with the task told in training (scenarios GG, GNs and GNu): one mask a task, and every way to find it.

What it stores per task: a mask, one bit a weight; the frozen weights follow from the seed. What it must be told: the
task of a batch in training; in inference nothing, unless the answering is `told` (GG).

One training serves all scenarios: `answering` gives the same masks another knowledge in inference.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supsup_online import inference
from supsup_online.bank import MaskBank
from supsup_online.bitpack import Masks
from supsup_online.fused_trainer import trainer_for
from supsup_online.many_masks import exact_logits
from supsup_online.network import Network
from supsup_online.paper.methods import Answers, Batches, Scope, Setup, State, Storage, TaskNeededError
from supsup_online.paper.schedule import Scheduled
from supsup_online.predictor import best_fit
from supsup_online.spec import BankSpec
from supsup_online.trainer import EdgePopupTrainer
from supsup_online.types import Objective, VariantName, WeightInit

Way = Literal["told", "one-shot", "binary", "exact"]


@dataclass(frozen=True, slots=True)
class MaskSettings:
    """How masks are made.

    Attributes:
        variant: `threshold` (the paper's MNIST experiments), `top-k`, or `top-m` (its scenario GG).
        keep_fraction: of `top-k`.
        edges_per_channel: of `top-m`.
        weight_init: of the frozen weights.
        transfer: a new mask starts from the mean of those before (section 3.2).
    """

    variant: VariantName = "threshold"
    keep_fraction: float = 0.5
    edges_per_channel: int = 8
    weight_init: WeightInit = "signed-constant"
    transfer: bool = False


THE_PAPERS: Final = MaskSettings()


class SupSup:
    """One mask per task over one frozen network; the mask's id is the task's number.

    Args:
        setup: what all methods share.
        masks: how masks are made.
    """

    def __init__(self, setup: Setup, masks: MaskSettings = THE_PAPERS) -> None:
        self.settings = masks
        self.network = Network.build(bank_spec(setup, self.settings))
        self.trainer = trainer_under(setup, self.network)
        self.bank = MaskBank(self.network.layout, setup.tasks)

    def learn(self, task: int, batches: Batches) -> None:
        """Train the task's mask."""
        mean = self.bank.mean if self.settings.transfer and len(self.bank) else None
        hot = self.trainer.start(task, mean)
        for x, y in batches:
            evaluation = self.trainer.evaluate(hot, self.network.inputs(x), self.network.labels(y))
            self.trainer.update(hot, evaluation)
        self.bank.put(task, self.trainer.pack(hot))

    def answering(self, way: Way, objective: Objective = "H") -> "Answering":
        """These masks, with the task told or found in some way."""
        return Answering(self.network, self.bank, way, objective)

    def answer(self, x: NDArray[np.generic], task: int | None, scope: Scope = "row") -> Answers:
        """Under the mask that is told, else under the one that One-Shot inference names."""
        return self.answering("one-shot" if task is None else "told").answer(x, task, scope)

    def storage(self) -> Storage:
        """A bit a weight in whole bytes, and kept statistics; the seed is all that is kept of the weights."""
        return mask_storage(self.network)

    def state(self) -> State:
        """The packed masks, (tasks so far, word_count)."""
        tasks = list(self.bank)
        return {"tasks": np.array(tasks, dtype=np.int64), "words": np.array(self.bank.stacked(tasks))}

    def restore(self, state: State) -> None:
        """The masks of `state`."""
        for task, words in zip(state["tasks"].tolist(), state["words"], strict=True):
            self.bank.put(task, words)


def trainer_under(setup: Setup, network: Network) -> EdgePopupTrainer:
    """The fastest trainer for the set-up; the written-out steps have a constant rate, so a schedule is for autograd."""
    optimiser = setup.optimiser.build()
    if setup.schedule is None:
        return trainer_for(network, optimiser)
    return EdgePopupTrainer(network, Scheduled(optimiser, setup.schedule))


class Answering:
    """The masks of a bank with some knowledge in inference.

    Args:
        network: the frozen weights.
        bank: the masks; the id of a mask is taken for the number of its task.
        way: `told` (GG); `one-shot` or `binary` (section 3.3); `exact`: every mask is tried, and the one whose outputs
            fit best answers (`inference.misfit`).
        objective: H or G, of one-shot and binary.
    """

    def __init__(self, network: Network, bank: MaskBank, way: Way, objective: Objective = "H") -> None:
        self.network, self.bank, self.way, self.objective = network, bank, way, objective

    def answer(self, x: NDArray[np.generic], task: int | None, scope: Scope = "row") -> Answers:
        """Labels of raw inputs; `task` is looked at only where it is told.

        Raises:
            TaskNeededError: the way is `told`, and nothing was.
        """
        inputs = self.network.inputs(x)
        if self.way == "told":
            if task is None:
                raise TaskNeededError("SupSup in scenario GG")
            return self._under(inputs, np.full(len(x), task))
        ids = list(self.bank)
        masks, mean = self.bank.stacked(ids), self.bank.mean
        if self.way == "exact" and scope == "row":
            places, logits = best_fit(self.network, masks, inputs)
            return self._answers(logits, np.array(ids)[places])
        if scope == "row":
            found = [self._place(masks, mean, inputs[row : row + 1]) for row in range(len(x))]
        else:
            found = [self._place(masks, mean, inputs[:1] if scope == "first" else inputs)] * len(x)
        return self._under(inputs, np.array(ids)[found])

    def _place(self, masks: Masks, mean: NDArray[np.float32], inputs: Tensor) -> int:
        """Which of the masks, with their mean, these inputs belong to, all together."""
        match self.way:
            case "one-shot":
                return inference.one_shot(self.network, masks, inputs, self.objective, mean=mean).best
            case "binary":
                return inference.binary(self.network, masks, inputs, self.objective)
            case _:
                return int(best_fit(self.network, masks, inputs, "batch")[0][0])

    def _under(self, inputs: Tensor, ids: NDArray[np.int64]) -> Answers:
        """Each row under the mask of its id."""
        logits = torch.empty(len(inputs), self.network.spec.outputs)
        for mask_id in np.unique(ids).tolist():
            rows = torch.from_numpy(np.flatnonzero(ids == mask_id))
            logits[rows] = next(exact_logits(self.network, self.bank.stacked([mask_id]), inputs[rows]))[0].cpu()
        return self._answers(logits, ids)

    def _answers(self, logits: Tensor, ids: NDArray[np.int64]) -> Answers:
        labels = logits[:, : self.network.spec.classes].argmax(1)
        return Answers(labels.cpu().numpy(), ids)


def mask_storage(network: Network) -> Storage:
    """Bytes of a seed, and of a mask with the statistics of its normalisations."""
    bits, statistics = network.architecture.weight_count, network.layout.statistics_count
    return Storage(shared=8, per_task=-(-bits // 8) + 4 * statistics)


def bank_spec(setup: Setup, masks: MaskSettings) -> BankSpec:
    """The bank that a set-up describes.

    Raises:
        SpecError: a value is out of range.
    """
    return BankSpec(
        architecture=setup.architecture,
        input_shape=setup.input_shape,
        classes=setup.classes,
        outputs=setup.outputs,
        weight_seed=setup.seed,
        weight_init=masks.weight_init,
        variant=masks.variant,
        keep_fraction=masks.keep_fraction,
        edges_per_channel=masks.edges_per_channel,
        budget=setup.tasks,
        mean=setup.mean,
        std=setup.std,
    )
