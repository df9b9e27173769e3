"""Records for the small network of `daemon_process`: tasks of four Gaussian clusters in 8 x 8 inputs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from supsup_online import wire

CLASSES = 4
ARROW = [("content-type", wire.ARROW_CONTENT_TYPE.encode())]
JSON = [("content-type", wire.JSON_CONTENT_TYPE.encode())]

Headers = list[tuple[str, bytes]]


@dataclass(frozen=True)
class Outgoing:
    """A record to be published."""

    value: bytes | None
    headers: Headers = field(default_factory=lambda: list(ARROW))
    key: bytes | None = None
    partition: int = 0
    timestamp_ms: int | None = None


def batch(task: int, seed: int, rows: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Inputs float32 (rows, 8, 8) and labels int64 (rows,); a task is a permutation of the features."""
    centres = np.random.default_rng(0).normal(size=(CLASSES, 64))
    rng = np.random.default_rng([1, task, seed])
    y = rng.integers(0, CLASSES, rows)
    x = (centres[y] + 0.3 * rng.normal(size=(rows, 64))).astype(np.float32)
    order = np.random.default_rng(100 + task).permutation(64)
    return x[:, order].reshape(rows, 8, 8), y


def labelled(task: int, seed: int = 0, *, key: bytes | None = None, partition: int = 0, rows: int = 32) -> Outgoing:
    """A labelled batch of a task."""
    return Outgoing(wire.encode_arrow(*batch(task, seed, rows)), key=key, partition=partition)


def unlabelled(task: int, seed: int = 0, rows: int = 32) -> Outgoing:
    """A batch of a task that is only to be answered."""
    return Outgoing(wire.encode_arrow(batch(task, seed, rows)[0]))


def visits(tasks: Iterable[int], length: int, *, key: bytes | None = None) -> list[Outgoing]:
    """Visits of `length` batches to one task after the other; no batch is ever the same."""
    return [labelled(task, 1000 * visit + i, key=key) for visit, task in enumerate(tasks) for i in range(length)]


def publish(kafka: str, topic: str, records: Sequence[Outgoing], *, max_request_size: int = 2**24) -> None:
    """Publish in order, and wait until the broker has everything."""
    producer = KafkaProducer(bootstrap_servers=kafka, max_request_size=max_request_size, linger_ms=5)
    try:
        sent = [
            producer.send(
                topic, value=r.value, key=r.key, headers=r.headers, partition=r.partition, timestamp_ms=r.timestamp_ms
            )
            for r in records
        ]
        for future in sent:
            future.get(60)
    finally:
        producer.close()


def read(kafka: str, topic: str, count: int, *, partition: int = 0, timeout_s: float = 20.0) -> list["object"]:
    """The first `count` records of a partition, or fewer after `timeout_s` seconds."""
    consumer = KafkaConsumer(bootstrap_servers=kafka, group_id=None, receive_message_max_bytes=2**31 - 1)
    try:
        where = TopicPartition(topic, partition)
        consumer.assign([where])
        consumer.seek(where, 0)
        found: list[object] = []
        for _ in range(int(timeout_s / 0.25)):
            found += consumer.poll(timeout_ms=250).get(where, [])
            if len(found) >= count:
                break
        return found
    finally:
        consumer.close()
