"""The main loop: follow one record from Kafka to Redis here.

    poll -> decode -> test, then train (supsup_online.learner) -> side topics -> log line -> commit when due

A record that can never be used goes to `<topic>.dlq`; one that no mask has room for goes to `<topic>.overflow`; an
unlabelled one is answered on `<topic>.predictions`. In each case the position moves on only with a commit that waits
for the broker to have it.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import stamina
import structlog

from daemon.checkpoint import Checkpointer, Partition
from daemon.errors import UnavailableError, UnreadableError
from daemon.kafka_source import KafkaSource, Record
from daemon.side_topics import KEPT_OF_OVERSIZED, Headers, SideTopics
from daemon.telemetry import Telemetry
from supsup_online import wire
from supsup_online.errors import BadBatchError
from supsup_online.learner import OnlineLearner
from supsup_online.types import Batch, StepResult

log = structlog.get_logger()

DEAD_LETTER, OVERFLOW, PREDICTIONS = ".dlq", ".overflow", ".predictions"
_AWAY_PAUSE_S = 0.5
_KEY_BYTES = 1024
_HEADER_BYTES = 65_536


@dataclass(slots=True)
class StopRequest:
    """Set by a signal handler, read by the loop.

    A plain attribute on purpose: the handler runs in the middle of whatever the main thread does, so a lock (of an
    event, of a logger) that is held there would never be given back.
    """

    signal: str = ""

    def requested(self) -> bool:
        """Whether to stop."""
        return bool(self.signal)


@dataclass(slots=True)
class TrainerLoop:
    """Reads, trains and commits until told to stop.

    Attributes:
        source: records in.
        side: records out.
        learner: what they train.
        checkpoint: what makes it last.
        limits: what a record may look like.
        stop: set from a signal handler; heard after the batch in hand.
        burst: stop by itself when everything is read.
        patience_s: how long the broker or Redis may be away before the loop gives up.
        telemetry: who is told what happens.
    """

    source: KafkaSource
    side: SideTopics
    learner: OnlineLearner
    checkpoint: Checkpointer
    limits: wire.RecordLimits
    stop: StopRequest
    burst: bool
    patience_s: float
    telemetry: Telemetry = field(default_factory=Telemetry)
    _unreachable_since: float | None = None

    def run(self) -> None:
        """Until stopped, or caught up in a burst; what is applied by then is committed.

        Raises:
            StopError: see `daemon.errors`; what was not committed is read again at the next start.
        """
        while not self.stop.requested():
            records = self._poll()
            self.telemetry.lags(self.source.lags())
            for record in records:
                self.telemetry.beat()
                self.apply(record)
                if self.checkpoint.due:
                    self.commit()
                if self.stop.requested():
                    break
            if self.checkpoint.due:
                self.commit()
            if self.burst and not records and self._unreachable_since is None and self.source.caught_up:
                break
        if self.stop.requested():
            log.info("trainer.stopping", signal=self.stop.signal)
        self.telemetry.become("stopping")
        self.commit()

    def apply(self, record: Record) -> None:
        """One record: trained, answered, overflowed or dead-lettered; then its position moves on."""
        begun = time.perf_counter()
        try:
            batch = self._decode(record)
            decoded = time.perf_counter()
            result = self.learner.step(batch)
            stepped = time.perf_counter()
        except BadBatchError as error:
            self._dead_letter(record, error)
        else:
            self._deliver(record, result)
            self._count(result)
            self.telemetry.batch(record, result, decode_s=decoded - begun, step_s=stepped - decoded)
        self.checkpoint.advance(record.partition, record.offset)

    def commit(self) -> None:
        """Make everything applied so far last, then tell the group."""
        begun = time.perf_counter()
        records = self.checkpoint.pending
        attempts, patience_s = (None, self.patience_s) if self.patience_s else (1, None)
        for attempt in stamina.retry_context(
            on=self._worth_retrying, attempts=attempts, timeout=patience_s, wait_max=5.0
        ):
            with attempt:
                version = self.checkpoint.commit()
        if version is not None:
            self.source.tell_group(self.checkpoint.positions)
            seconds = time.perf_counter() - begun
            bank = self.learner.bank
            self.telemetry.committed(
                seconds, version=version, masks=len(bank), budget=bank.budget, totals=self.checkpoint.totals
            )
            log.debug("bank.committed", version=version, records=records, seconds=round(seconds, 6))

    def _worth_retrying(self, error: Exception) -> bool:
        if not isinstance(error, UnavailableError):
            return False
        self.telemetry.beat()
        self.telemetry.retried(error)
        return not self.stop.requested()

    def assigned(self, partition: Partition, log_identity: str, start: int) -> int:
        """A partition was given to this trainer: where to go on.

        It may have been this trainer's before, and lost without a word (a session that timed out): what it gave is
        applied, so it has to be stored before the stored position is believed.
        """
        self.commit()
        stored = self.checkpoint.store.progress(partition.topic, partition.number)
        return self.checkpoint.assign(partition, stored, log_identity, start)

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Partitions were taken away: commit what they gave, so that their next reader starts right behind it."""
        self.commit()
        for partition in partitions:
            self.checkpoint.positions.pop(partition, None)

    def _poll(self) -> list[Record]:
        """Poll, and bear with a broker that is away for a while."""
        self.telemetry.beat()
        try:
            records = self.source.poll(self)
        except UnreadableError:
            self.commit()  # whoever moves the position over that record must not lose those before it
            raise
        except UnavailableError as error:
            self.telemetry.retried(error)
            now = time.monotonic()
            self._unreachable_since = self._unreachable_since or now
            if now - self._unreachable_since > self.patience_s:
                raise
            log.warning("kafka.unreachable", error=str(error), seconds=round(now - self._unreachable_since, 1))
            time.sleep(_AWAY_PAUSE_S)
            return []
        self._unreachable_since = None
        self.telemetry.answered("kafka")
        return records

    def _decode(self, record: Record) -> Batch:
        self._check_size(record)
        content_type = dict(record.headers).get("content-type", b"").decode("latin-1") or None
        x, y = wire.decode(record.value, content_type, self.limits)
        return Batch(x, y, record.partition.stream(record.key), record.timestamp_ms)

    def _check_size(self, record: Record) -> None:
        """Key and headers are stored, logged and handed on, so they have limits too; `wire` checks the value."""
        if len(record.key or b"") > _KEY_BYTES:
            raise BadBatchError(
                "too-large", f"the key has {len(record.key or b'')} bytes, at most {_KEY_BYTES} are allowed"
            )
        size = sum(len(name) + len(value) for name, value in record.headers)
        if size > _HEADER_BYTES:
            raise BadBatchError("too-large", f"the headers have {size} bytes, at most {_HEADER_BYTES} are allowed")

    def _deliver(self, record: Record, result: StepResult) -> None:
        if result.stream in self.learner.streams:
            self.checkpoint.note_stream(result.stream, record.partition)
        if result.decision is not None:
            self.checkpoint.note_decision(result.decision, result.stream, record.partition, record.offset)
        if result.mask_id is None:
            self.side.send(record.partition.topic + OVERFLOW, record.key, record.value, _origin(record, keep=True))
        elif not result.trained:
            answer = {"task": result.mask_id, "labels": result.predictions.tolist(), "entropy": result.entropy}
            body = json.dumps(answer).encode()
            self.side.send(record.partition.topic + PREDICTIONS, record.key, body, _origin(record))

    def _dead_letter(self, record: Record, error: BadBatchError) -> None:
        size = len(record.value or b"")
        oversized = size > self.limits.max_bytes
        value = (record.value or b"")[:KEPT_OF_OVERSIZED] if oversized else record.value
        headers = [*_origin(record, keep=True), ("reason", error.reason.encode()), ("error", str(error).encode())]
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


def _origin(record: Record, *, keep: bool = False) -> Headers:
    """Headers that say where a record came from; with `keep` behind its own."""
    return [
        *(record.headers if keep else ()),
        ("source-topic", record.partition.topic.encode()),
        ("source-partition", str(record.partition.number).encode()),
        ("source-offset", str(record.offset).encode()),
        ("source-timestamp", str(record.timestamp_ms).encode()),
    ]
