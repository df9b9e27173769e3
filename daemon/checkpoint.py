"""The commit: what the learner changed and how far the stream was read, written together.

The order is written once, here: answers of the side topics are acknowledged by the broker, then one Redis script
takes everything, and only then is Kafka told (asynchronously, for lag tools alone). A crash before the script replays
the records; a crash after it does not repeat them.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from daemon.errors import LostGroundError
from daemon.records import AnswerMark, Log, Partition, Position
from daemon.redis_replies import reading
from daemon.redis_store import CommitPlan, RedisStore
from supsup_online import codec
from supsup_online.errors import CodecError
from supsup_online.learner import OnlineLearner
from supsup_online.learner_state import StreamState
from supsup_online.types import Decision

STREAM_FIELD: Final = "stream:"
ANSWERS_FIELD: Final = "answers"
COUNTERS: Final = (
    "records",
    "batches",
    "samples",
    "correct",
    "allocated",
    "evicted",
    "overflowed",
    "dead_lettered",
    "answered",
)


_RETENTION: Final = (
    "{partition} was read up to offset {offset}, but its log now starts at {start}: retention has removed {gone} "
    "records that were never trained. Bring them back, or go on without them: HSET '{key}' offset {start}"
)
_OTHER_LOG: Final = (
    "{partition} is not the log this bank has read: the topic was deleted and made anew, or this is another cluster. "
    "Use the right cluster, or read the new log from its start: DEL '{key}'"
)


@dataclass(slots=True)
class Checkpointer:
    """Collects what has happened since the last commit, and commits.

    Attributes:
        store: where to.
        learner: whose changes.
        before_commit: waits until the broker has acknowledged what was sent to side topics; says how far the answers
            have come.
        every: records after which a commit is due.
        interval_s: seconds after which one is due, if there is anything to commit.
        new_log_is_fine: a log with another id is read from its start; else it is an error. True for the embedded
            broker, which cannot keep its log.
        positions: next offset per assigned partition.
        totals: counters of the bank since it was created.
        pending: records applied since the last commit.
    """

    store: RedisStore
    learner: OnlineLearner
    before_commit: Callable[[], Mapping[Partition, AnswerMark]]
    every: int
    interval_s: float
    new_log_is_fine: bool = False
    positions: dict[Partition, Position] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    _touched: set[Partition] = field(default_factory=set)
    _homes: dict[str, Partition] = field(default_factory=dict)
    _over_budget: set[str] = field(default_factory=set)
    _events: list[dict[str, str | bytes | int | float]] = field(default_factory=list)
    pending: int = 0
    _since: float = field(default_factory=time.monotonic)

    # -- what happens between commits

    def advance(self, partition: Partition, offset: int) -> None:
        """The record at `offset` is applied: trained, answered, or handed to a side topic."""
        self.positions[partition].offset = offset + 1
        self._touched.add(partition)
        self.pending += 1
        self.totals["records"] += 1

    def note_stream(self, stream: str, partition: Partition) -> None:
        """Remember which partition a stream's state is stored with."""
        self._homes[stream] = partition

    def note_decision(self, decision: Decision, stream: str, partition: Partition, offset: int) -> None:
        """Tell the event stream about a decision, with the next commit; of a stretch over budget only the first."""
        repeated = decision.action == "over-budget" and stream in self._over_budget
        (self._over_budget.add if decision.action == "over-budget" else self._over_budget.discard)(stream)
        if repeated:
            return
        best = [[c.mask_id, c.statistic, c.residual, c.agrees] for c in decision.candidates]
        self._events.append(
            {
                "type": decision.action,
                "mask": "" if decision.mask_id is None else decision.mask_id,
                "previous": "" if decision.previous is None else decision.previous,
                "evicted": "" if decision.evicted is None else decision.evicted,
                "why": decision.why,
                "rule": decision.rule,
                "ratio": "" if decision.ratio is None else decision.ratio,
                "candidates": json.dumps(best),
                "stream": stream,
                "topic": partition.topic,
                "partition": partition.number,
                "offset": offset,
            }
        )
        self.totals["allocated"] += decision.action == "allocate"
        self.totals["evicted"] += decision.evicted is not None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not self.pending

    @property
    def due(self) -> bool:
        """Whether enough has gathered, or waited long enough."""
        return self.pending >= self.every or (not self.empty and time.monotonic() - self._since >= self.interval_s)

    # -- the commit

    def commit(self) -> int | None:
        """Write everything since the last commit; returns the bank's new version, None when there was nothing.

        Raises:
            FencedError, UnavailableError: see `RedisStore.commit`; the pending changes are kept.
        """
        if self.empty:
            return None
        for partition, mark in self.before_commit().items():
            self.positions[partition].answers = mark
        # The same records give the same id: a commit that is tried again is recognised, not repeated.
        version = self.store.commit(self._plan(), commit_id=self.store.term.commit_id(self.totals["records"]))
        self.learner.committed()
        self._touched.clear()
        self._events.clear()
        self.pending = 0
        self._since = time.monotonic()
        return version

    def _plan(self) -> CommitPlan:
        plan = CommitPlan()
        self.learner.sync()
        self._add_masks(plan)
        self._add_positions(plan)
        self._add_streams(plan)
        totals = {**self.totals, "steps": self.learner.steps, "next_id": self.learner.bank.next_id}
        plan.hset(self.store.keys.totals, totals)
        offsets = {str(p): self.positions[p].offset for p in sorted(self._touched)}
        plan.events = [
            *self._events,
            {"type": "commit", "masks": json.dumps(plan.changed), "positions": json.dumps(offsets)},
        ]
        return plan

    def _add_masks(self, plan: CommitPlan) -> None:
        learner, keys, changes = self.learner, self.store.keys, self.learner.changes
        for mask_id in sorted(changes.masks):
            density = learner.bank.density(mask_id)
            plan.write("SET", keys.mask(mask_id), codec.encode_mask(learner.network, learner.bank.words(mask_id)))
            plan.hset(keys.stats(mask_id), {**learner.stats[mask_id].to_text(), "density": density})
            if mask_id in learner.hot:
                state = codec.encode_hot(learner.network, learner.trainer.optimiser, learner.hot[mask_id])
                plan.write("SET", keys.state(mask_id), state)
        for mask_id in sorted(changes.cooled):
            plan.write("DEL", keys.state(mask_id))
        for mask_id in sorted(changes.removed):
            for key in (keys.mask(mask_id), keys.stats(mask_id), keys.state(mask_id)):
                plan.write("DEL", key)
        plan.changed, plan.removed = sorted(changes.masks), sorted(changes.removed)

    def _add_positions(self, plan: CommitPlan) -> None:
        for partition in sorted(self._touched):
            position = self.positions[partition]
            key = self.store.keys.progress(partition.topic, partition.number)
            fields: dict[str, str | int] = {"offset": position.offset, "log": position.log}
            if position.answers is not None:
                fields[ANSWERS_FIELD] = position.answers.to_text()
            plan.hset(key, fields)

    def _add_streams(self, plan: CommitPlan) -> None:
        for name in sorted(self.learner.changes.streams & self._homes.keys()):
            home = self._homes[name]
            key = self.store.keys.progress(home.topic, home.number)
            plan.hset(key, {STREAM_FIELD + name: _stream_text(self.learner.streams[name])})
        for name in sorted(self.learner.changes.forgotten_streams & self._homes.keys()):
            home = self._homes.pop(name)
            self._over_budget.discard(name)
            plan.write("HDEL", self.store.keys.progress(home.topic, home.number), STREAM_FIELD + name)

    # -- the way back

    def assign(self, partition: Partition, stored: Mapping[str, str], log: Log) -> int:
        """Take over the stored progress of a newly assigned partition; returns the offset to go on from.

        Args:
            partition: which.
            stored: its progress hash; empty when it was never read.
            log: what the broker has of it now.

        Raises:
            LostGroundError: the records between the stored position and `start` are gone, or the log is another one.
            BankMismatchError: the stored progress is damaged.
        """
        offset, answers = log.start, None
        # A person who sets a position need not know the log's id.
        same = not stored or stored.get("log", log.identity) == log.identity
        with reading(self._progress_key(partition)):
            self._take_over_streams(partition, stored)
            if stored and same:
                offset = int(stored["offset"])
            if ANSWERS_FIELD in stored:
                answers = AnswerMark.from_text(stored[ANSWERS_FIELD])
        if not same and not self.new_log_is_fine:
            raise LostGroundError(_OTHER_LOG.format(partition=partition, key=self._progress_key(partition)))
        if offset < log.start:
            raise LostGroundError(
                _RETENTION.format(
                    partition=partition,
                    offset=offset,
                    start=log.start,
                    gone=log.start - offset,
                    key=self._progress_key(partition),
                )
            )
        self.positions[partition] = Position(offset, log.identity, answers)
        return offset

    def _take_over_streams(self, partition: Partition, stored: Mapping[str, str]) -> None:
        for name, text in stored.items():
            if name.startswith(STREAM_FIELD):
                stream = name.removeprefix(STREAM_FIELD)
                self.learner.streams[stream] = _parse_stream(text, self.learner)
                self._homes[stream] = partition

    def _progress_key(self, partition: Partition) -> str:
        return self.store.keys.progress(partition.topic, partition.number)


def _stream_text(stream: StreamState) -> str:
    """A stream's state as JSON; Python writes floats so that they read back to the same bits."""
    state: dict[str, Any] = {
        "mask": stream.mask_id,
        "position": stream.position,
        "last_used": stream.last_used,
        "residuals": stream.drift.residuals,
    }
    return json.dumps(state)


def stream_fields(text: str) -> tuple[int | None, int, list[float], int]:
    """A stored stream: its mask, place in the window, residuals, and when it was last used.

    Raises:
        CodecError: the text is damaged.
    """
    try:
        state = json.loads(text)
        mask_id = None if state["mask"] is None else _whole(state["mask"])
        residuals = [float(r) for r in state["residuals"]]
        return mask_id, _whole(state["position"]), residuals, _whole(state["last_used"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CodecError(f"the stored state of a stream is damaged: {error!r:.200}") from error


def _whole(value: Any) -> int:
    """Exactly what `_stream_text` writes: no booleans, no floats, nothing negative."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{str(value)[:40]!r} is no whole number")
    return value


def _parse_stream(text: str, learner: OnlineLearner) -> StreamState:
    mask_id, position, residuals, last_used = stream_fields(text)
    known = mask_id if mask_id in learner.bank else None
    return StreamState(known, position, learner.drift_monitor(residuals), last_used)
