"""The ways of asking that figures share, named as the paper names its scenarios."""

from collections.abc import Callable
from typing import Any, Final

from supsup_online.paper import batche
from supsup_online.paper.harness import Answerer, Reading
from supsup_online.paper.supsup import Way
from supsup_online.types import Objective

_EACH: Final = 100  # images per task where each is inferred for itself


def asking(way: Way | batche.Way, objective: Objective = "H") -> Callable[[Any], Answerer]:
    """Ask a method in some way."""
    return lambda method: method.answering(way, objective)


GG: Final = Reading("GG", told=True)
GNS: Final = Reading("GNs")  # of methods that know no tasks
GNU: Final = Reading("GNu")  # of methods whose labels name the task

# One image decides for a test batch of 128, as in the paper.
GNU_H: Final = Reading("GNu, H", scope="first", ask=asking("one-shot"))
GNU_G: Final = Reading("GNu, G", scope="first", ask=asking("one-shot", "G"))
GNU_BINARY: Final = Reading("GNu, binary", scope="first", ask=asking("binary"))
NNS_H: Final = Reading("NNs, H", scope="first", ask=asking("one-shot"))

# All 128 decide together.
GNU_FULL: Final = Reading("GNu, full batch", scope="batch", ask=asking("one-shot"))
GNU_BINARY_FULL: Final = Reading("GNu, binary, full batch", scope="batch", ask=asking("binary"))
GNU_EXACT_FULL: Final = Reading("GNu, exact, full batch", scope="batch", ask=asking("exact"))

# Each image is inferred for itself.
GNU_ROW: Final = Reading("GNu, H, each image", images=_EACH, ask=asking("one-shot"))
GNU_EXACT: Final = Reading("GNu, exact, each image", images=_EACH, ask=asking("exact"))
NNS_EXACT: Final = Reading("NNs, exact, each image", images=_EACH, ask=asking("exact"))

# Of BatchE: the task whose vectors give the least entropy.
GNU_ENTROPY: Final = Reading("GNu, entropy of every task", scope="first", ask=asking("entropy"))
