"""What Kafka lets us do with our topics, asked at the start.

The client says nothing of a topic that it may not read, as long as there is another one that it may: the topic would
never be read. And a side topic that must not be written to is better found out before the first dead letter.
"""

from collections.abc import Iterable
from typing import Final

from kafka import KafkaAdminClient

from daemon.errors import DeniedError
from daemon.kafka_client import KafkaSettings, answering, reachable
from daemon.refusals import RIGHTS_PAGE

_AUTHORIZATION_FAILED: Final = 29


def require(settings: KafkaSettings, sides: Iterable[str]) -> None:
    """See that we may read our topics and write to the side topics; those that do not exist are passed over.

    Raises:
        DeniedError: we may not; each topic is named.
        UnavailableError: the broker is away.
    """
    wanted = dict.fromkeys(settings.topics, "READ") | dict.fromkeys(sides, "WRITE")
    with reachable(settings):
        admin = KafkaAdminClient(**settings.client, bootstrap_timeout_ms=int(settings.connect_timeout_s * 1000))
    try:
        with answering():
            topics = admin.describe_topics(sorted(wanted))
    finally:
        admin.close()
    refused = [
        f"{wanted[topic['name']].lower()} {topic['name']}"
        for topic in sorted(topics, key=lambda topic: topic["name"])
        if topic["error_code"] == _AUTHORIZATION_FAILED
        # A broker too old to say leaves this out.
        or (topic["authorized_operations"] is not None and wanted[topic["name"]] not in topic["authorized_operations"])
    ]
    if refused:
        raise DeniedError(f"Kafka forbids us to {', to '.join(refused)}: see {RIGHTS_PAGE} for the rights")
