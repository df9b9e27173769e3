"""What Kafka lets us do with our topics, asked at the start.

The client says nothing of a topic that it may not read, as long as there is another one that it may: the topic would
never be read. And a side topic that must not be written to is better found out before the first dead letter.
"""

from collections.abc import Iterable
from typing import Any, Final

from kafka import KafkaAdminClient

from daemon.errors import DeniedError
from daemon.kafka_client import KafkaSettings, answering, reachable
from daemon.refusals import RIGHTS_PAGE

_AUTHORIZATION_FAILED: Final = 29


def require(settings: KafkaSettings, sides: Iterable[str], read_again: Iterable[str]) -> None:
    """See that we may do what we have to with our topics; those that do not exist are passed over.

    Args:
        settings: whose topics are read.
        sides: topics that are written to.
        read_again: those of them that are read, too, to see what is there.

    Raises:
        DeniedError: we may not; each topic is named.
        UnavailableError: the broker is away.
    """
    wanted = {topic: {"READ"} for topic in settings.topics} | {topic: {"WRITE"} for topic in sides}
    wanted |= {topic: {"READ", "WRITE"} for topic in read_again}
    with reachable(settings):
        admin = KafkaAdminClient(**settings.client, bootstrap_timeout_ms=int(settings.connect_timeout_s * 1000))
    try:
        with answering():
            topics = admin.describe_topics(sorted(wanted))
    finally:
        admin.close()
    refused = [
        f"{right.lower()} {topic['name']}"
        for topic in sorted(topics, key=lambda topic: topic["name"])
        for right in sorted(wanted[topic["name"]] - _granted(topic, wanted[topic["name"]]))
    ]
    if refused:
        raise DeniedError(f"Kafka forbids us to {', to '.join(refused)}: see {RIGHTS_PAGE} for the rights")


def _granted(topic: dict[str, Any], asked: set[str]) -> set[str]:
    if topic["error_code"] == _AUTHORIZATION_FAILED:
        return set()
    told = topic["authorized_operations"]
    return asked if told is None else set(told)  # a broker too old to say leaves it out
