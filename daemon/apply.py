"""One record at a time: trained, answered or put aside; and the commit that makes it last.

    decode -> test, then train (supsup_online.learner) -> side topics -> log line -> commit when due

A record that can never be used goes to `<topic>.dlq`; one that no mask has room for goes to `<topic>.overflow`; an
unlabelled one is answered on `<topic>.predictions`. In each case the position moves on only with a commit that waits
for the broker to have it. Everything but `decode` runs in the training thread.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import stamina
import structlog

from daemon.answers import Answers
from daemon.checkpoint import Checkpointer
from daemon.errors import PoisonedError, UnavailableError
from daemon.records import Log, Partition, Position, Record
from daemon.side_topics import DEAD_LETTER, KEPT_OF_OVERSIZED, OVERFLOW, Headers, SideTopics
from daemon.telemetry import Telemetry
from supsup_online import wire
from supsup_online.errors import BadBatchError
from supsup_online.learner import OnlineLearner
from supsup_online.types import Batch, StepResult

log = structlog.get_logger()

T = TypeVar("T")

_KEY_BYTES: Final = 1024
_HEADER_BYTES: Final = 65_536
_LONGEST_PAUSE_S: Final = 5.0


@dataclass(frozen=True, eq=False, slots=True)
class Decoded:
    """A record and the batch in it, or why there is none; and how many seconds it took to find out."""

    record: Record
    batch: Batch | BadBatchError
    seconds: float


def decode(record: Record, limits: wire.RecordLimits) -> Decoded:
    """Check a record and take its batch out."""
    begun = time.perf_counter()
    batch: Batch | BadBatchError
    try:
        _check_size(record)
        content_type = dict(record.headers).get("content-type", b"").decode("latin-1") or None
        x, y = wire.decode(record.value, content_type, limits)
        batch = Batch(x, y, record.partition.stream(record.key), record.timestamp_ms)
    except BadBatchError as error:
        batch = error
    return Decoded(record, batch, time.perf_counter() - begun)


def _check_size(record: Record) -> None:
    """Key and headers are stored, logged and handed on, so they have limits too; `wire` checks the value."""
    if len(record.key or b"") > _KEY_BYTES:
        raise BadBatchError(
            "too-large", f"the key has {len(record.key or b'')} bytes, at most {_KEY_BYTES} are allowed"
        )
    size = sum(len(name) + len(value) for name, value in record.headers)
    if size > _HEADER_BYTES:
        raise BadBatchError("too-large", f"the headers have {size} bytes, at most {_HEADER_BYTES} are allowed")


@dataclass(slots=True)
class Applier:
    """What happens to a record, and when it is committed.

    Attributes:
        learner: what is trained.
        side: dead letters and overflow out.
        answers: answers out.
        checkpoint: what makes it last.
        patience_s: for how long Kafka or Redis may be away before a commit is given up.
        max_bytes: longest record value that is kept whole as a dead letter.
        dead_letters_in_a_row: stop after as many; 0: never.
        telemetry: who is told what happens.
        hurry: the process is to stop, so what fails is not tried again.
        committed: positions of the newest commit, replaced by each; for the poll loop, which tells the group.
    """

    learner: OnlineLearner
    side: SideTopics
    answers: Answers
    checkpoint: Checkpointer
    patience_s: float
    max_bytes: int
    dead_letters_in_a_row: int = 0
    telemetry: Telemetry = field(default_factory=Telemetry)
    hurry: bool = False
    committed: Mapping[Partition, Position] | None = None
    _poisoned: int = 0
    _stepping_since: float | None = None

    def apply(self, decoded: Decoded) -> None:
        """One record: trained, answered, overflowed or dead-lettered; then its position moves on.

        Raises:
            PoisonedError: it was the last of too many bad ones in a row; all of them are committed.
        """
        record = decoded.record
        begun = time.perf_counter()
        try:
            result = self._step(decoded.batch)
        except BadBatchError as error:
            self._dead_letter(record, error)
            self._poisoned += 1
        else:
            step_s = time.perf_counter() - begun
            self._poisoned = 0
            self._deliver(record, result)
            self._count(result)
            self.telemetry.batch(record, result, decode_s=decoded.seconds, step_s=step_s)
        self.checkpoint.advance(record.partition, record.offset)
        self._stop_if_poisoned(record)

    def _step(self, batch: Batch | BadBatchError) -> StepResult:
        if isinstance(batch, BadBatchError):
            raise batch
        self._stepping_since = time.monotonic()
        try:
            return self.learner.step(batch)
        finally:
            self._stepping_since = None

    @property
    def step_age_s(self) -> float:
        """For how long the step in hand has gone on, in seconds; 0 between two. A step that hangs is told by it."""
        since = self._stepping_since
        return 0.0 if since is None else time.monotonic() - since

    # -- the commit

    def commit_if_due(self) -> None:
        """Commit when enough has gathered, or waited long enough."""
        if self.checkpoint.due:
            self.commit()

    def commit(self) -> None:
        """Make everything applied so far last.

        Raises:
            UnavailableError: Kafka or Redis was away for too long.
            FencedError, RewoundError: see `RedisStore.commit`.
        """
        begun = time.perf_counter()
        records = self.checkpoint.pending
        version = self._patiently(self.checkpoint.commit)
        if version is not None:
            self.committed = {p: replace(position) for p, position in self.checkpoint.positions.items()}
            self._tell_of_commit(version, records, time.perf_counter() - begun)

    def _tell_of_commit(self, version: int, records: int, seconds: float) -> None:
        bank, totals = self.learner.bank, self.checkpoint.totals
        self.telemetry.committed(seconds, version=version, masks=len(bank), budget=bank.budget, totals=totals)
        log.debug("bank.committed", version=version, records=records, seconds=round(seconds, 6))

    def _patiently(self, action: Callable[[], T]) -> T:
        """Do what needs Kafka or Redis, again and again while they are away; visibly, and not for ever."""
        attempts, patience_s = (None, self.patience_s) if self.patience_s else (1, None)
        for attempt in stamina.retry_context(
            on=self._worth_retrying, attempts=attempts, timeout=patience_s, wait_max=_LONGEST_PAUSE_S
        ):
            with attempt:
                return action()
        raise AssertionError  # the last attempt has raised

    def _worth_retrying(self, error: Exception) -> bool:
        if not isinstance(error, UnavailableError) or self.hurry:
            return False
        self.telemetry.retried(error)
        return True

    # -- the group has changed

    def settle(self, logs: Mapping[Partition, Log]) -> dict[Partition, int]:
        """Commit what was applied, then take up these partitions: the offset to go on from for each.

        A partition may have been this trainer's before: what it gave has to be stored before the stored position is
        believed.

        Raises:
            LostGroundError: a stored position does not fit the log.
        """
        self.commit()
        self.checkpoint.positions.clear()
        return {partition: self._take_up(partition, found) for partition, found in logs.items()}

    def _take_up(self, partition: Partition, found: Log) -> int:
        stored = self._patiently(lambda: self.checkpoint.store.progress(partition.topic, partition.number))
        return self.checkpoint.assign(partition, stored, found)

    # -- records out

    def _deliver(self, record: Record, result: StepResult) -> None:
        if result.stream in self.learner.streams:
            self.checkpoint.note_stream(result.stream, record.partition)
        if result.decision is not None:
            self.checkpoint.note_decision(result.decision, result.stream, record.partition, record.offset)
        if result.mask_id is None:
            self.side.send(record.partition.topic + OVERFLOW, record.key, record.value, self._origin(record, keep=True))
        elif not result.trained:
            answer = {"task": result.mask_id, "labels": result.predictions.tolist(), "entropy": result.entropy}
            body, mark = json.dumps(answer).encode(), self.checkpoint.positions[record.partition].answers
            self._patiently(lambda: self.answers.send(record, body, self._origin(record), mark))

    def _dead_letter(self, record: Record, error: BadBatchError) -> None:
        size = len(record.value or b"")
        oversized = size > self.max_bytes
        value = (record.value or b"")[:KEPT_OF_OVERSIZED] if oversized else record.value
        headers = self._origin(record, keep=True)
        headers += [("reason", error.reason.encode()), ("error", str(error).encode())]
        headers.append(("failed-at", str(time.time_ns() // 1_000_000).encode()))
        if oversized:
            headers.append(("truncated-from", str(size).encode()))
        key = record.key[:_KEY_BYTES] if record.key is not None else None
        self.side.send(record.partition.topic + DEAD_LETTER, key, value, headers, may_be_cut=True)
        self.checkpoint.totals["dead_lettered"] += 1
        self.telemetry.dead_lettered(record, error.reason)
        log.warning(
            "record.dead_lettered",
            topic=record.partition.topic,
            partition=record.partition.number,
            offset=record.offset,
            reason=error.reason,
            error=str(error),
        )

    def _stop_if_poisoned(self, record: Record) -> None:
        if self.dead_letters_in_a_row and self._poisoned >= self.dead_letters_in_a_row:
            self.commit()
            raise PoisonedError(
                f"{self._poisoned} records in a row were of no use, the newest at {record.partition} offset "
                f"{record.offset}; all of them are in {record.partition.topic}{DEAD_LETTER}. Look at them "
                "(supsup-daemon dlq list), mend what sends them, and start again: it goes on behind them."
            )

    def _count(self, result: StepResult) -> None:
        totals = self.checkpoint.totals
        if result.trained:
            totals["batches"] += 1
            totals["samples"] += result.rows
            totals["correct"] += result.correct
        elif result.mask_id is None:
            totals["overflowed"] += 1
        else:
            totals["answered"] += 1

    def _origin(self, record: Record, *, keep: bool = False) -> Headers:
        """Headers that say where a record came from and which bank had it; with `keep` behind its own."""
        return [
            *(record.headers if keep else ()),
            ("source-topic", record.partition.topic.encode()),
            ("source-partition", str(record.partition.number).encode()),
            ("source-offset", str(record.offset).encode()),
            ("source-timestamp", str(record.timestamp_ms).encode()),
            ("bank", self.checkpoint.store.keys.bank.encode()),
        ]
