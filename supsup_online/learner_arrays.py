"""A whole learner as plain arrays, for runs that keep their state in a file of their own; the daemon's is in Redis."""

import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from supsup_online import codec
from supsup_online.learner import OnlineLearner
from supsup_online.learner_state import StreamState
from supsup_online.stats import MaskStats

Arrays = Mapping[str, NDArray[np.generic]]


def as_bytes(blob: bytes) -> NDArray[np.uint8]:
    """Bytes as an array, uint8 (n,)."""
    return np.frombuffer(blob, dtype=np.uint8)


def learner_arrays(learner: OnlineLearner) -> Arrays:
    """Masks, the states of those in training, statistics and streams. Brings the bank up to date."""
    learner.sync()
    ids = list(learner.bank)
    facts = {
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
    hot = {f"hot-{m}": as_bytes(codec.encode_hot(learner.network, optimiser, s)) for m, s in learner.hot.items()}
    words = np.array([learner.bank.words(mask) for mask in ids])
    return {
        "learner": as_bytes(json.dumps(facts).encode()),
        "ids": np.array(ids, dtype=np.int64),
        "words": words,
        **hot,
    }


def restore_learner(learner: OnlineLearner, arrays: Arrays) -> None:
    """The inverse of `learner_arrays`, into a learner that has seen nothing yet.

    Raises:
        CodecError: a mask or a state is not this network's, or they do not belong together.
    """
    facts = json.loads(arrays["learner"].tobytes())
    optimiser = learner.trainer.optimiser
    decoded = {m: codec.decode_hot(learner.network, optimiser, arrays[f"hot-{m}"].tobytes()) for m in facts["hot"]}
    learner.restore(
        dict(zip(arrays["ids"].tolist(), arrays["words"], strict=True)),
        {int(mask): MaskStats.from_text(text) for mask, text in facts["stats"].items()},
        {mask: state for mask, state in decoded.items() if state is not None},
        steps=facts["steps"],
        next_id=facts["next_id"],
    )
    for name, (mask, position, residuals, last_used) in facts["streams"].items():
        learner.streams[name] = StreamState(mask, position, learner.drift_monitor(residuals), last_used)
