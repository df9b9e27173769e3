"""Networks, streams and strategies small enough that a test of the learner takes a fraction of a second.

A *task* is four Gaussian clusters in 16 dimensions. `permuted(t)` shuffles the features, `relabelled(t)` keeps the
inputs and shuffles the labels, so only the loss can tell such tasks apart.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from supsup_online.decide import RuleSettings
from supsup_online.learner import LearnerSettings, OnlineLearner
from supsup_online.network import Network
from supsup_online.optimisers import OptimiserChoice
from supsup_online.spec import BankSpec
from supsup_online.types import Batch, StepResult

CLASSES = 4
SPEC = BankSpec("mlp-16-8", (4, 4), CLASSES, outputs=12, weight_seed=7, budget=10)
LEARNING = replace(SPEC, architecture="mlp-32-16")
CONVOLUTIONAL = replace(SPEC, architecture="conv-3-4")
LEARNING_IMAGES = replace(SPEC, architecture="conv-32")
SETTINGS = LearnerSettings(optimiser=OptimiserChoice("adam", 0.01), decision_every=20)

Task = Callable[[int, int], Iterator[Batch]]


@lru_cache(maxsize=64)
def network(spec: BankSpec = SPEC) -> Network:
    """The network of a spec; nothing ever changes one, so tests share them."""
    return Network.build(spec)


def learner(settings: LearnerSettings = SETTINGS, spec: BankSpec = LEARNING, **changed: object) -> OnlineLearner:
    """A learner that has seen nothing yet; keywords replace single settings."""
    return OnlineLearner(network(spec), replace(settings, **changed))


def with_rule(rule: str, **options: object) -> LearnerSettings:
    """The tests' settings under another rule."""
    return replace(SETTINGS, rule=RuleSettings(rule, **options))


def permuted(task: int, stream: str = "") -> Task:
    """Clusters with the features shuffled; task 0 is one of the permutations."""
    order = np.random.default_rng(100 + task).permutation(16)
    return lambda count, seed=0: (Batch(x[:, order].reshape(-1, 4, 4), y, stream) for x, y in _clusters(count, seed))


def relabelled(task: int, stream: str = "") -> Task:
    """Clusters with the classes renamed: the inputs tell nothing about the task. No class keeps its name."""
    return lambda count, seed=0: (
        Batch(x.reshape(-1, 4, 4), (y + task) % CLASSES, stream) for x, y in _clusters(count, seed)
    )


def _clusters(count: int, seed: int, rows: int = 32) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    centres = np.random.default_rng(0).normal(size=(CLASSES, 16))
    rng = np.random.default_rng([1, seed])
    for _ in range(count):
        y = rng.integers(0, CLASSES, rows)
        yield (centres[y] + 0.3 * rng.normal(size=(rows, 16))).astype(np.float32), y


def run(subject: OnlineLearner, *stretches: Iterator[Batch]) -> list[StepResult]:
    """Step through all batches of all stretches, in order."""
    return [subject.step(batch) for stretch in stretches for batch in stretch]


def masks_of(results: list[StepResult]) -> list[int | None]:
    """The masks a stream went through, repetitions left out."""
    masks = [result.mask_id for result in results]
    return [mask for i, mask in enumerate(masks) if i == 0 or mask != masks[i - 1]]


def bank_bytes(subject: OnlineLearner) -> dict[int, bytes]:
    """Every mask's packed bytes."""
    subject.sync()
    return {mask_id: subject.bank.words(mask_id).tobytes() for mask_id in subject.bank}


def whole_state(subject: OnlineLearner) -> dict[str, object]:
    """Everything a learner knows, in a form that compares exactly."""
    return {
        "masks": bank_bytes(subject),
        "next_id": subject.bank.next_id,
        "stats": {mask_id: stats.to_text() for mask_id, stats in subject.stats.items()},
        "hot": {mask_id: _hot_bytes(subject, mask_id) for mask_id in subject.hot},
        "streams": {
            name: (s.mask_id, s.position, list(s.drift.residuals), s.last_used) for name, s in subject.streams.items()
        },
        "steps": subject.steps,
    }


def _hot_bytes(subject: OnlineLearner, mask_id: int) -> tuple[object, ...]:
    hot = subject.hot[mask_id]
    vectors = (hot.scores, *hot.optimiser.moments, hot.statistics)
    return (hot.optimiser.step, *(bytes(v.numpy().tobytes()) for v in vectors))


def random_masks(net: Network, count: int, seed: int = 0) -> np.ndarray:
    """Packed random masks (count, word_count), with random statistics where the network keeps some."""
    rng = np.random.default_rng(seed)
    bits = rng.random((count, net.layout.weight_count)) < 0.5
    kept = [random_statistics(net, rng) for _ in bits]
    return np.stack([net.layout.pack(row, statistics) for row, statistics in zip(bits, kept, strict=True)])


def random_statistics(net: Network, rng: np.random.Generator) -> np.ndarray:
    """A count, means around zero and variances above it: float32 (F,)."""
    found = rng.normal(size=net.layout.statistics_count).astype(np.float32)
    found[net.layout.variances] = np.abs(found[net.layout.variances]) + np.float32(0.1)
    found[:1] = 17
    return found


def random_inputs(net: Network, rows: int, seed: int = 0) -> torch.Tensor:
    """Standard normal inputs (rows, *input_shape)."""
    x = np.random.default_rng(seed).normal(size=(rows, *net.spec.input_shape))
    return torch.from_numpy(x.astype(np.float32))


def masks(weight_count: int) -> st.SearchStrategy[np.ndarray]:
    """Flat boolean masks; any fill, so that all-ones, all-zeros and lone bits turn up."""
    return hnp.arrays(np.bool_, weight_count)
