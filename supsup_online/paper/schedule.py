"""A learning rate that falls along a half cosine, and weight decay, as the paper trains on CIFAR and ImageNet.

It has to know when a task begins and how long it is. Methods that never do (experience replay, SupSup that is not told)
keep the rate they have; HopSupSup brings a schedule of its own.

Source: Loshchilov and Hutter (2017), without restarts; weight decay is added to the gradient, as torch.optim does. The
paper lowers the rate after every epoch; here it falls after every batch.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from supsup_online.optimisers import SGD, Adam, OptimiserState, RMSprop


@dataclass(frozen=True, slots=True)
class Schedule:
    """What changes over the batches of one task.

    Attributes:
        batches: of a task, at least 1.
        weight_decay: times what is learnt, added to its gradient.
    """

    batches: int
    weight_decay: float = 0.0

    def share(self, batch: int) -> float:
        """What is left of the learning rate at a batch, counted from 0: 1 at the first, 0 from the last on."""
        return (1 + math.cos(math.pi * min(batch / self.batches, 1.0))) / 2

    def follow(self, optimiser: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        """Set the decay of an optimiser of torch, and its rate: a step of what is returned goes one batch on."""
        for group in optimiser.param_groups:
            group["weight_decay"] = self.weight_decay
        return torch.optim.lr_scheduler.LambdaLR(optimiser, self.share)


class Scheduled:
    """One of the project's own optimisers under a schedule; like those it has no state of its own."""

    def __init__(self, optimiser: Adam | RMSprop | SGD, schedule: Schedule) -> None:
        self.optimiser, self.schedule = optimiser, schedule
        self.name, self.moment_count = optimiser.name, optimiser.moment_count

    def update(self, scores: Tensor, gradient: Tensor, state: OptimiserState) -> None:
        """One step at the rate of the batch that comes next by `state`."""
        rate = self.optimiser.learning_rate * self.schedule.share(state.step)
        decayed = gradient.add(scores, alpha=self.schedule.weight_decay)
        replace(self.optimiser, learning_rate=rate).update(scores, decayed, state)
