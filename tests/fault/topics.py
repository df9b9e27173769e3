"""The streams that trainers are disturbed over: what is published, once per broker, and read anew in every round."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from daemon_process import SMALL
from fault.servers import Servers
from servers import create_topic
from streams import Outgoing, labelled, publish, unlabelled, visits

OPTIONS: Final = (
    *SMALL,
    "--hot-masks=3",
    "--budget=5",
    "--over-budget=evict",
    "--decision-every=20",
    "--commit-every=12",
    "--commit-interval-s=0.3",
    "--lease-ttl-s=0.6",
    "--session-timeout-s=1",
    "--max-poll-interval-s=10",
    "--connect-timeout-s=10",
    "--patience-s=60",
    "--merge-wait-s=1",
    "--log-format=json",
)

Sort = Literal["lesson", "poison", "question"]

_FIRST_MS: Final = 1_700_000_000_000
_KEYS: Final = (b"left", b"right \xff", None)


def _with_oddities(stream: list[Outgoing]) -> list[tuple[Sort, Outgoing]]:
    """Every 37th record is followed by one of no use, every 53rd by one to be answered."""
    found: list[tuple[Sort, Outgoing]] = []
    for i, record in enumerate(stream):
        found.append(("lesson", record))
        if i % 37 == 36:
            found.append(("poison", Outgoing(b"neither Arrow nor JSON", partition=record.partition)))
        if i % 53 == 52:
            found.append(("question", replace(unlabelled(i % 4, i), partition=record.partition)))
    return found


def one_partition() -> list[tuple[Sort, Outgoing]]:
    """Tasks that come back, masks that cool and are evicted; then three keyed streams take turns."""
    stream = visits([0, 1, 2, 3, 0, 2, 1, 3, 4, 0], 40)
    for i in range(80):
        stream += [labelled(10 + 3 * (i // 40) + which, i, key=key) for which, key in enumerate(_KEYS)]
    return _with_oddities(stream)


def three_partitions() -> list[tuple[Sort, Outgoing]]:
    """Three partitions, in each of which two keys take turns, all of them interleaved; one partition is slow."""
    stream = []
    for i in range(640):
        partition = (0, 1, 0, 1, 2, 0, 1)[i % 7]
        key = (b"even", b"odd")[i // 7 % 2]
        stream.append(labelled(3 * (i // 160 % 2) + partition, i, key=key, partition=partition))
    return _with_oddities(stream)


STREAMS: Final[dict[str, Callable[[], list[tuple[Sort, Outgoing]]]]] = {
    "one-partition": one_partition,
    "three-partitions": three_partitions,
}


@dataclass(frozen=True)
class Published:
    """A stream as it lies in a topic.

    Attributes:
        topic: which.
        length: its records.
        poison: (partition, offset) of those of no use.
        questions: (partition, offset) of those to be answered.
    """

    topic: str
    length: int
    poison: frozenset[tuple[int, int]]
    questions: frozenset[tuple[int, int]]


def put(servers: Servers, name: str) -> Published:
    """Publish a stream under timestamps that rise from record to record, whatever their partitions."""
    stream = [(sort, replace(r, timestamp_ms=_FIRST_MS + 10 * i)) for i, (sort, r) in enumerate(STREAMS[name]())]
    partitions = 1 + max(record.partition for _, record in stream)
    create_topic(servers.kafka, name, partitions=partitions)
    for side in (".dlq", ".overflow", ".predictions"):
        create_topic(servers.kafka, name + side)
    publish(servers.kafka, name, [record for _, record in stream])
    ends = [0] * partitions
    places: dict[Sort, set[tuple[int, int]]] = {"lesson": set(), "poison": set(), "question": set()}
    for sort, record in stream:
        places[sort].add((record.partition, ends[record.partition]))
        ends[record.partition] += 1
    return Published(name, len(stream), frozenset(places["poison"]), frozenset(places["question"]))
