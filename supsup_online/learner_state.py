"""What a learner remembers of its streams, and what of it has changed since the last commit."""

from dataclasses import dataclass, field

from supsup_online.drift import DriftMonitor


@dataclass(slots=True)
class StreamState:
    """Where a stream stands.

    Attributes:
        mask_id: its mask, or None before the first decision and while over budget.
        position: batches trained since the last decision, or since the mask was last found to be usual at the end
            of a window.
        drift: the detector over those batches.
        last_used: the learner's step count at its newest batch.
    """

    mask_id: int | None
    position: int
    drift: DriftMonitor
    last_used: int = 0

    def begin_window(self) -> None:
        """The mask was chosen or found right again."""
        self.position = 0
        self.drift.reset()


@dataclass(slots=True)
class Changes:
    """What differs from the last commit: ids of masks and names of streams.

    Attributes:
        masks: new or trained, or heated without training: bits, statistics and hot state have to be written.
        removed: evicted from the bank.
        cooled: no longer hot; their scores are to be forgotten.
        streams, forgotten_streams: states to be written or removed.
    """

    masks: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)
    cooled: set[int] = field(default_factory=set)
    streams: set[str] = field(default_factory=set)
    forgotten_streams: set[str] = field(default_factory=set)
