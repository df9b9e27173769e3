"""Publish labelled batches from a scenario or from files. The trainer needs none of this: any producer will do."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np
from kafka import KafkaProducer
from kafka.errors import KafkaError
from numpy.typing import NDArray

from daemon.errors import UnavailableError
from daemon.probe import first_contact
from daemon.refusals import kafka_refusal
from supsup_online import datasets, wire
from supsup_online.errors import DataError
from supsup_online.scenarios import Scenario, ScheduledBatch, iter_stream

Format = Literal["arrow", "json"]
CONTENT_TYPES: Final[dict[Format, str]] = {"arrow": wire.ARROW_CONTENT_TYPE, "json": wire.JSON_CONTENT_TYPE}
_ENCODERS: Final[dict[Format, Callable[..., bytes]]] = {"arrow": wire.encode_arrow, "json": wire.encode_json}
_MAX_REQUEST: Final = 2**30
_UNDERWAY: Final = 1000  # records sent and not yet acknowledged
_PATIENCE_S: Final = 60
_CONNECT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One record to be published."""

    value: bytes
    content_type: str
    key: bytes | None


def from_scenario(
    scenario: Scenario, plan: Iterable[ScheduledBatch], rows: int, encoding: Format, *, keyed: bool
) -> Iterator[Outgoing]:
    """Records of a scheduled scenario; with `keyed` each stream gets its name as record key."""
    for place, x, y in iter_stream(scenario, plan, rows):
        key = place.stream.encode() if keyed else None
        yield Outgoing(_ENCODERS[encoding](x, y), CONTENT_TYPES[encoding], key)


def from_npz(path: Path, rows: int, encoding: Format, key: bytes | None) -> Iterator[Outgoing]:
    """Records of `rows` rows each from arrays `x` and `y` of an .npz file.

    Raises:
        DataError: the file is unreadable, or its arrays are none a batch can be made of.
    """
    x, y = datasets.load_npz(path)
    for start in range(0, len(x), rows):
        yield Outgoing(
            _encoded(encoding, x[start : start + rows], y[start : start + rows]), CONTENT_TYPES[encoding], key
        )


def from_arrow(path: Path, key: bytes | None) -> Iterator[Outgoing]:
    """One record: an Arrow IPC stream as it is.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if content.startswith(b"ARROW1"):
        raise DataError(f"{path} is an Arrow IPC *file*; a record is an Arrow IPC *stream* (pyarrow.ipc.new_stream)")
    yield Outgoing(content, wire.ARROW_CONTENT_TYPE, key)


def from_json_file(path: Path, key: bytes | None) -> Iterator[Outgoing]:
    """Records of a file of JSON lines.

    Raises:
        DataError: the file cannot be read, or as in `from_json_lines`.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            yield from from_json_lines(lines, key)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error


def from_json_lines(lines: IO[str], key: bytes | None) -> Iterator[Outgoing]:
    """One record a line, each `{"x": [[...]], "y": [...]}`; empty lines are passed over.

    Raises:
        DataError: a line is no JSON; the trainer checks the rest.
    """
    number = 0
    try:
        for line in lines:
            number += 1
            if line.strip():
                json.loads(line)
                yield Outgoing(line.strip().encode(), wire.JSON_CONTENT_TYPE, key)
    except UnicodeDecodeError as error:
        raise DataError(f"line {number + 1} or one soon after is no UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"line {number} is no JSON: {error}") from error


def _encoded(encoding: Format, x: NDArray[Any], y: NDArray[np.int64]) -> bytes:
    return _ENCODERS[encoding](x if x.dtype == np.uint8 else x.astype(np.float32), y)


def send(
    servers: tuple[str, ...],
    topic: str,
    records: Iterable[Outgoing],
    *,
    rate: float | None = None,
    security: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda _count, _size: None,
) -> tuple[int, int]:
    """Publish records in order; returns (records, bytes) acknowledged by the broker.

    Args:
        servers: HOST:PORT of the broker.
        topic: where to.
        records: what; made as they are sent.
        rate: records per second at most.
        security: what the client takes beside the servers (`connections.kafka_client`).
        progress: told after every record how many records and bytes were sent so far.

    Raises:
        DeniedError: the broker does not let us in, or not write to this topic.
        UnavailableError: the broker is away, or refuses a record.
    """
    with first_contact(servers, security or {}, _CONNECT_S):
        producer = KafkaProducer(
            bootstrap_servers=list(servers),
            **(security or {}),
            bootstrap_timeout_ms=int(_CONNECT_S * 1000),
            max_request_size=_MAX_REQUEST,
            linger_ms=5,
        )
    count = size = 0
    begun = time.monotonic()
    sent: deque[Any] = deque()
    try:
        for record in records:
            if rate is not None and (early := begun + count / rate - time.monotonic()) > 0:
                time.sleep(early)
            headers = [("content-type", record.content_type.encode())]
            sent.append(producer.send(topic, value=record.value, key=record.key, headers=headers))
            if len(sent) > _UNDERWAY:
                sent.popleft().get(timeout=_PATIENCE_S)
            count, size = count + 1, size + len(record.value)
            progress(count, size)
        producer.flush(timeout=_PATIENCE_S)
        for future in sent:
            future.get(timeout=_PATIENCE_S)
    except KafkaError as error:
        failure = UnavailableError(f"Kafka took {count} records, then failed: {error!r}")
        raise kafka_refusal(error) or failure from error
    finally:
        with suppress(KafkaError):
            producer.close(timeout=5)
    return count, size
