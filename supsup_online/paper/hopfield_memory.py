"""A Hopfield network as a store of masks: its size does not depend on how many it holds (section 3.5, appendix B).

A mask m of d bits is stored as the pattern z = 2m - 1. The store is one symmetric matrix W (d, d), in which stored
patterns are minima of the energy

    E(z) = -1/2 z' W z

Two rules add a pattern, h = W z being the field that the patterns before it exert on it:

    hebb      W += (z z' - I) / d
    storkey   W += (z z' - z h' - h z' - I) / d        the paper's, after Storkey (1997)

The second takes off what W already says about z, so patterns that resemble each other, as masks of one network do,
stay apart.
"""

from typing import Final, Literal

import torch
from torch import Tensor

from supsup_online.errors import SpecError

Rule = Literal["storkey", "hebb"]
RULES: Final[tuple[Rule, ...]] = ("storkey", "hebb")


class HopfieldMemory:
    """Patterns of one masked layer.

    Args:
        units: d, length of a pattern.
        rule: how patterns are added.

    Attributes:
        matrix: W, float32 (d, d).
        total: sum of the stored patterns, float32 (d,): their mean, where the paper's recovery starts, needs no
            pattern kept.
        stored: number of patterns.

    Raises:
        SpecError: an unknown rule.
    """

    def __init__(self, units: int, rule: Rule = "storkey") -> None:
        if rule not in RULES:
            raise SpecError(f"unknown rule {rule!r}: choose {' or '.join(RULES)}")
        self.rule = rule
        self.matrix = torch.zeros(units, units)
        self.total = torch.zeros(units)
        self.stored = 0

    @property
    def mean(self) -> Tensor:
        """Mean of the stored patterns, float32 (d,); zeros before the first."""
        return self.total / max(self.stored, 1)

    def store(self, pattern: Tensor) -> None:
        """Add a pattern of -1 and 1, float32 (d,)."""
        update = torch.outer(pattern, pattern)
        if self.rule == "storkey":
            known = torch.outer(pattern, self.matrix @ pattern)
            update -= known + known.T
        update.diagonal().sub_(1.0)
        self.matrix += update / len(pattern)
        self.total += pattern
        self.stored += 1

    def energy(self, states: Tensor) -> Tensor:
        """E of each state: (..., d) to (...). W is symmetric, so its gradient is -W z."""
        return -0.5 * ((states @ self.matrix) * states).sum(-1)

    def settle(self, states: Tensor, sweeps: int = 50) -> Tensor:
        """Where states (..., d) of -1 and 1 come to rest when every unit follows its field, at most so many times.

        All units move at once. Such states may end in a circle of two, so `sweeps` bounds the wait.
        """
        for _ in range(sweeps):
            fields = states @ self.matrix
            following = torch.where(fields == 0, states, fields.sign())
            if torch.equal(following, states):
                break
            states = following
        return states

    def without(self, pattern: Tensor) -> "HopfieldMemory":
        """A copy that has forgotten a pattern float32 (d,), for a search that has tried it."""
        other = HopfieldMemory(len(pattern), self.rule)
        other.matrix = self.matrix - torch.outer(pattern, pattern) / len(pattern)
        other.total = self.total - pattern
        other.stored = self.stored - 1
        return other
