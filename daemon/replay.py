"""Dead letters back to where they came from, each once as far as that can be known.

    <topic>.dlq -> letters, less what the ledger holds -> source topic, acknowledged -> ledger

The ledger is a topic, `<topic>.dlq.replayed`: whoever may replay can keep it, no bank and no group is needed, and it
outlives this process. A crash between the acknowledgement and the ledger's sends up to `CHUNK` letters again, and two
replays at the same time do not see each other: at least once. Its records are JSON objects:

    | key      | value                                                                                              |
    |----------|----------------------------------------------------------------------------------------------------|
    | `log`    | id of the dead-letter topic: after that was deleted and made anew, its offsets mean other letters  |
    | `to`     | the topic they were sent to                                                                        |
    | `partition` | the partition of the dead-letter topic                                                          |
    | `ranges` | `[[first, last], ...]`, offsets in it, both ends included                                          |
    | `at_ms`  | when, milliseconds since the epoch                                                                 |
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import MessageSizeTooLargeError, RecordListTooLargeError, TopicAlreadyExistsError

from daemon.dead_letters import REPLAYED_FROM, DeadLetter
from daemon.errors import StopError
from daemon.kafka_client import KafkaSettings, answering, log_id, reachable
from daemon.topic_reader import TopicReader

LEDGER_SUFFIX: Final = ".replayed"
CHUNK: Final = 100  # letters between two entries of the ledger
CHUNK_BYTES: Final = 32 * 2**20
_WAIT_S: Final = 60.0
_PAGE: Final = 2**15
_CUT_KEY_BYTES: Final = 1024  # the trainer keeps this much of a key that is too long, and does not mark it
_KEPT: Final = {"retention.ms": "-1", "cleanup.policy": "delete"}
_TOO_LARGE: Final = (MessageSizeTooLargeError, RecordListTooLargeError)


class OffsetSet:
    """Offsets of a partition, a bit each: ten million of them take 1.3 MB."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add(self, first: int, last: int) -> None:
        """The offsets from `first` to `last`, both included."""
        for offset in range(first, last + 1):
            page, bit = divmod(offset, _PAGE)
            self._pages.setdefault(page, bytearray(_PAGE // 8))[bit // 8] |= 1 << bit % 8

    def __contains__(self, offset: int) -> bool:
        page, bit = divmod(offset, _PAGE)
        return page in self._pages and bool(self._pages[page][bit // 8] >> bit % 8 & 1)


class Ledger:
    """What was replayed from a dead-letter topic.

    Args:
        settings: how to reach Kafka.
        letters: the dead-letter topic.
        to: only what was sent to this topic; None: to any.

    Raises:
        StopError: an entry is damaged.
        UnavailableError: the broker is away or does not answer.
    """

    def __init__(self, settings: KafkaSettings, letters: str, to: str | None = None) -> None:
        self.topic = letters + LEDGER_SUFFIX
        self._log = log_id(settings, letters)
        self._sent: dict[int, OffsetSet] = {}
        with TopicReader(settings, self.topic) as reader:
            self.exists = bool(reader.partitions())
            for raw in reader.records() if self.exists else ():
                self._take(raw, to)

    def _take(self, raw: Any, to: str | None) -> None:
        try:
            entry = json.loads(raw.value)
            if entry["log"] != self._log or to not in (None, entry["to"]):
                return
            sent = self._sent.setdefault(entry["partition"], OffsetSet())
            for first, last in entry["ranges"]:
                _require(0 <= first <= last < min(first + CHUNK, 2**63))
                sent.add(first, last)
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise StopError(
                f"{self.topic} {raw.partition}:{raw.offset} is no entry of the ledger of replays ({error!r}); somebody "
                "else wrote there. Without the ledger letters would be sent twice: look at it, and delete the topic if "
                "nothing in it matters"
            ) from error

    def __contains__(self, letter: DeadLetter) -> bool:
        return letter.partition in self._sent and letter.offset in self._sent[letter.partition]

    def entries(self, letters: Iterable[DeadLetter], to: str) -> Iterator[bytes]:
        """The entries that say that these were sent."""
        places: dict[int, list[int]] = {}
        for letter in letters:
            places.setdefault(letter.partition, []).append(letter.offset)
        for partition, offsets in sorted(places.items()):
            entry = {
                "log": self._log,
                "to": to,
                "partition": partition,
                "ranges": _ranges(offsets),
                "at_ms": time.time_ns() // 1_000_000,
            }
            yield json.dumps(entry).encode()


def _require(holds: bool) -> None:  # noqa: FBT001 - a condition
    if not holds:
        raise ValueError("offsets out of order")


def _ranges(offsets: Iterable[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for offset in sorted(set(offsets)):
        if found and found[-1][1] == offset - 1:
            found[-1][1] = offset
        else:
            found.append([offset, offset])
    return found


def refusal(letter: DeadLetter, partitions: frozenset[int] | None) -> str | None:
    """Why a letter cannot be sent back; None where it can.

    Args:
        letter: which.
        partitions: of its source topic; None where it goes to another one, by its key.
    """
    if (size := letter.truncated_from) is not None:
        kept = len(letter.value or b"")
        return f"only the first {kept} of {size or 'more'} bytes were kept: publish the original again"
    if letter.reason == b"too-large" and len(letter.key or b"") == _CUT_KEY_BYTES:
        return f"its key was cut to {_CUT_KEY_BYTES} bytes: publish the original again"
    if partitions is not None and letter.source_partition not in partitions:
        return "it does not say which partition it came from, or there is no such partition: name a topic with --to"
    return None


@dataclass(slots=True)
class Outcome:
    """What a replay did.

    Attributes:
        sent: letters sent, or in a dry run those that would be.
        bytes: of their values.
        skipped: letters that the ledger has.
        copies: letters of a record that was sent from another letter.
        refused: place -> why it cannot be sent back.
    """

    sent: int = 0
    bytes: int = 0
    skipped: int = 0
    copies: int = 0
    refused: dict[str, str] = field(default_factory=dict)


class Replay:
    """Sends dead letters to a topic and notes it; a context manager.

    Args:
        settings: how to reach Kafka.
        letters: the dead-letter topic.
        to: the topic to send to.
        partitions: of the source topic, which letters go back into; None: Kafka chooses one by the key.
        dry_run: send nothing, only tell what would be sent.
        again: send also what was sent before.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        letters: str,
        to: str,
        partitions: Iterable[int] | None,
        *,
        dry_run: bool = False,
        again: bool = False,
    ) -> None:
        self._to, self._partitions = to, None if partitions is None else frozenset(partitions)
        self._dry_run, self._again = dry_run, again
        self._ledger = Ledger(settings, letters, to)
        self._producer: Any = None
        if not dry_run:
            if not self._ledger.exists:
                _create_ledger(settings, self._ledger.topic)
            self._producer = _producer(settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._producer is not None:
            self._producer.close(timeout=1)

    def send(
        self,
        letters: Iterable[DeadLetter],
        *,
        reason: bytes | None = None,
        progress: Callable[[Outcome], None] = lambda _: None,
    ) -> Outcome:
        """Send letters in the order given, and note each chunk once the broker has it.

        Args:
            letters: which; of several letters of one record (after a crash of a trainer, or from two banks) only the
                first is sent.
            reason: only those put aside for this one.
            progress: told after every letter.

        Raises:
            StopError: the broker refuses a letter as too large.
            UnavailableError: it did not acknowledge; what it has is noted, except for the last chunk.
        """
        outcome = Outcome()
        done: set[int] = set()  # hashes: a million records take 60 MB less than their names
        chunk = _Chunk()
        for letter in letters:
            noted = letter in self._ledger and not self._again
            wanted = reason is None or letter.reason == reason
            if noted:
                done.add(hash(letter.origin))
                outcome.skipped += wanted
            elif wanted:
                self._take(letter, done, chunk, outcome)
            if chunk.full:
                self._send_chunk(chunk)
                chunk = _Chunk()
            progress(outcome)
        self._send_chunk(chunk)
        return outcome

    def _take(self, letter: DeadLetter, done: set[int], chunk: "_Chunk", outcome: Outcome) -> None:
        if letter.origin is not None and hash(letter.origin) in done:
            outcome.copies += 1
            chunk.copies.append(letter)
        elif (why := refusal(letter, self._partitions)) is not None:
            outcome.refused[letter.place] = why
        else:
            done.add(hash(letter.origin))
            chunk.letters.append(letter)
            outcome.sent += 1
            outcome.bytes += len(letter.value or b"")

    def _send_chunk(self, chunk: "_Chunk") -> None:
        if self._dry_run or not (chunk.letters or chunk.copies):
            return
        with answering():
            sent = [(letter, self._producer.send(self._to, **self._outgoing(letter))) for letter in chunk.letters]
            self._producer.flush(timeout=_WAIT_S)
            taken, too_large = list(chunk.copies), None
            for letter, future in sent:
                try:
                    future.get(timeout=_WAIT_S)
                    taken.append(letter)
                except _TOO_LARGE:
                    too_large = too_large or letter
            for entry in self._ledger.entries(taken, self._to):
                self._producer.send(self._ledger.topic, value=entry, partition=0).get(timeout=_WAIT_S)
        if too_large is not None:
            raise StopError(
                f"the broker refuses {too_large.topic} {too_large.place} for {self._to} as too large: raise "
                "max.message.bytes of that topic (kafka-configs --alter), or send others by their offsets"
            )

    def _outgoing(self, letter: DeadLetter) -> dict[str, Any]:
        own = [(name, value) for name, value in letter.own if name != REPLAYED_FROM]
        place = f"{letter.topic}:{letter.place}".encode()
        value = b"" if letter.key is None and letter.value is None else letter.value  # kafka-python takes no such one
        partition = None if self._partitions is None else letter.source_partition
        return {"key": letter.key, "value": value, "headers": [*own, (REPLAYED_FROM, place)], "partition": partition}


@dataclass(slots=True)
class _Chunk:
    """Letters that are sent and noted together, and copies of sent ones that are only noted."""

    letters: list[DeadLetter] = field(default_factory=list)
    copies: list[DeadLetter] = field(default_factory=list)

    @property
    def full(self) -> bool:
        size = sum(len(letter.value or b"") for letter in self.letters)
        return len(self.letters) + len(self.copies) >= CHUNK or size > CHUNK_BYTES


def _producer(settings: KafkaSettings) -> Any:
    with reachable(settings):
        return KafkaProducer(
            **settings.client,
            bootstrap_timeout_ms=int(settings.connect_timeout_s * 1000),
            max_block_ms=int(settings.connect_timeout_s * 1000),
            acks="all",
            compression_type="gzip",  # a letter may have come in compressed, and be too large without
            enable_idempotence=False,  # as in `side_topics`: one record that is too large must not be the end
            max_in_flight_requests_per_connection=1,  # keeps the order when one is tried again
            max_request_size=2**31 - 1,
        )


def _create_ledger(settings: KafkaSettings, topic: str) -> None:
    """One partition, kept for ever: an entry that is gone is a letter sent twice; a hundred letters are one entry."""
    with reachable(settings):
        admin = KafkaAdminClient(**settings.client, bootstrap_timeout_ms=int(settings.connect_timeout_s * 1000))
    try:
        with answering(), contextlib.suppress(TopicAlreadyExistsError):
            admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=-1, topic_configs=_KEPT)])
    finally:
        admin.close()
