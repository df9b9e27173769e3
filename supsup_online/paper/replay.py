"""Experience replay: one network that learns every batch together with as many old images from a buffer.

The buffer holds a fixed number of raw images, at any time a uniform sample of all images seen so far (reservoir
sampling). Stores the network and the buffer, once, and per task nothing; the buffer is needed to learn on, not to
answer. It is never told a task: in training a stream of batches is enough (the optimiser goes on from task to task as
well), and it answers without knowing tasks. It has one head, so that tasks share their labels.

Source: Chaudhry et al. (2019), "On tiny episodic memories in continual learning"; Vitter (1985) for the reservoir.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from supsup_online import draws
from supsup_online.paper import plain
from supsup_online.paper.methods import Answers, Batches, Scope, Setup, State, Storage
from supsup_online.scenarios import RawDraws

_OPTIMISER = "optimiser."  # before the name of what it remembers, in the state


class ExperienceReplay:
    """One network and a buffer of old images.

    Args:
        setup: what all methods share.
        capacity: images in the buffer.
    """

    def __init__(self, setup: Setup, *, capacity: int = 1000) -> None:
        self.setup = setup
        self.architecture = setup.build()
        self.buffer = Reservoir(setup, capacity)
        self._leaf = plain.start(setup, self.architecture).requires_grad_()
        self._optimiser = plain.torch_optimiser(setup.optimiser, [self._leaf])

    def learn(self, task: int, batches: Batches) -> None:
        """Train on; the task's number names the random draws and nothing else."""
        numbers = RawDraws(self.setup.seed, int(draws.Purpose.RESERVOIR) * 2**48 + task)
        for x, y in batches:
            old_x, old_y = self.buffer.sample(len(y), numbers)
            inputs = torch.cat([self.setup.prepared(part) for part in (x, old_x)])
            labels = torch.cat([plain.labels_of(part) for part in (y, old_y)])
            plain.step(self._optimiser, functional.cross_entropy(self._logits(inputs), labels))
            self.buffer.add(x, y, numbers)

    def _logits(self, x: Tensor) -> Tensor:
        return self.architecture.forward(x, self.architecture.split(self._leaf))

    def answer(self, x: NDArray[np.generic], task: int | None, scope: Scope = "row") -> Answers:  # noqa: ARG002
        """Under the one network."""
        return plain.answer_at_once(self.setup, x, self._logits)

    def storage(self) -> Storage:
        """Weights, float32, and the whole buffer; what the optimiser remembers is counted for no method."""
        return Storage(self._leaf.numel() * plain.FLOAT_BYTES + self.buffer.nbytes, 0)

    def state(self) -> State:
        """`weights` (P,), the buffer, and what the optimiser remembers."""
        remembered = self._optimiser.state[self._leaf].items()
        kept = {_OPTIMISER + name: value.numpy().copy() for name, value in remembered}
        return {"weights": self._leaf.detach().numpy().copy(), **self.buffer.state(), **kept}

    def restore(self, state: State) -> None:
        """All of `state`."""
        self._leaf = torch.from_numpy(state["weights"].astype(np.float32)).requires_grad_()
        self._optimiser = plain.torch_optimiser(self.setup.optimiser, [self._leaf])
        for name, value in state.items():
            if name.startswith(_OPTIMISER):
                kept = torch.from_numpy(value.copy())
                self._optimiser.state[self._leaf][name.removeprefix(_OPTIMISER)] = kept
        self.buffer.restore(state)


class Reservoir:
    """A uniform sample of all images seen, of fixed size.

    Args:
        setup: shape of an image, and how many labels there are.
        capacity: images it holds when it is full.

    Attributes:
        seen: images that came by.
    """

    def __init__(self, setup: Setup, capacity: int) -> None:
        self.capacity = capacity
        self.seen = 0
        # Of the type of the first images that come.
        self._x: NDArray[np.generic] = np.zeros((capacity, *setup.input_shape), dtype=np.uint8)
        self._y = np.zeros(capacity, dtype=np.min_scalar_type(setup.classes - 1))

    @property
    def nbytes(self) -> int:
        """Bytes of a full buffer."""
        return self._x.nbytes + self._y.nbytes

    def sample(self, count: int, numbers: RawDraws) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
        """Raw images (count, *input_shape) and labels int64 (count,), with replacement; none from an empty buffer."""
        held = min(self.seen, self.capacity)
        chosen = numbers.many_below(held, count) if held else np.zeros(0, dtype=np.int64)
        return self._x[chosen], self._y[chosen].astype(np.int64)

    def add(self, x: NDArray[np.generic], y: NDArray[np.int64], numbers: RawDraws) -> None:
        """Let raw images (n, *input_shape) with labels (n,) come by: the t-th stays with probability capacity / t."""
        if not self.seen:
            self._x = self._x.astype(x.dtype)
        places = self.seen + np.arange(len(y))
        late = places >= self.capacity
        places[late] = numbers.many_below(places[late] + 1, int(late.sum()))
        # One after the other: where two come to the same place, the later one stays.
        for row in np.flatnonzero(places < self.capacity):
            self._x[places[row]] = x[row].reshape(self._x.shape[1:])
            self._y[places[row]] = y[row]
        self.seen += len(y)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """`buffer_x`, `buffer_y` and `seen`."""
        return {"buffer_x": self._x.copy(), "buffer_y": self._y.copy(), "seen": np.array(self.seen, dtype=np.int64)}

    def restore(self, state: State) -> None:
        """What `state` gave."""
        self._x, self._y = state["buffer_x"].copy(), state["buffer_y"].astype(self._y.dtype)
        self.seen = int(state["seen"])
