"""What every Kafka client of ours needs: how to reach the broker, and its errors turned into ours."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import (
    FencedInstanceIdError,
    InvalidSessionTimeoutError,
    InvalidTopicError,
    KafkaError,
    TopicAlreadyExistsError,
    UnsupportedVersionError,
)

from daemon import connections
from daemon.errors import ConfigError, FencedError, UnavailableError
from daemon.probe import first_contact
from daemon.refusals import kafka_refusal
from daemon.settings import Settings

log = structlog.get_logger()

POLL_LIMIT_S: Final = 0.5  # a signal must be heard within this time; kafka-python has no wakeup()

# Errors that no waiting mends.
_REFUSALS: Final = (InvalidSessionTimeoutError, InvalidTopicError, UnsupportedVersionError)


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """How to reach the broker and how to behave in the group; sizes in bytes, times in seconds.

    Attributes:
        instance: the static member of the group that a consumer is; empty: none. A new trainer under the same name
            takes the place of the one before at once, where another would have to wait for its session to run out.
        merge_wait_s: see `merge.RecordMerge`.
        security: what every client takes beside the servers (`connections.kafka_client`); holds secrets.
    """

    servers: tuple[str, ...]
    topics: tuple[str, ...]
    group: str
    max_record_bytes: int
    session_timeout_s: float
    max_poll_interval_s: float
    connect_timeout_s: float
    instance: str = ""
    merge_wait_s: float = 0.1
    security: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def client(self) -> dict[str, Any]:
        """What every client needs to connect."""
        return {"bootstrap_servers": list(self.servers), **self.security}


def kafka_settings(settings: Settings) -> KafkaSettings:
    """The part of the settings that concerns Kafka."""
    return KafkaSettings(
        servers=settings.kafka,
        topics=settings.topic,
        group=settings.group or f"supsup-{settings.bank}",
        max_record_bytes=settings.max_record_bytes,
        session_timeout_s=settings.session_timeout_s,
        max_poll_interval_s=settings.max_poll_interval_s,
        connect_timeout_s=settings.connect_timeout_s,
        instance=f"supsup-{settings.bank}" if settings.static_member else "",
        merge_wait_s=settings.merge_wait_s,
        security=connections.kafka_client(settings),
    )


def create_topics(settings: KafkaSettings, topics: Iterable[str], partitions: int = 1) -> None:
    """Create topics that do not exist, in the order given.

    Raises:
        UnavailableError: the broker is away or does not allow it.
    """
    with reachable(settings):
        admin = KafkaAdminClient(**settings.client, bootstrap_timeout_ms=int(settings.connect_timeout_s * 1000))
    try:
        with answering():
            for topic in sorted(set(topics) - set(admin.list_topics())):
                with contextlib.suppress(TopicAlreadyExistsError):
                    admin.create_topics([NewTopic(topic, num_partitions=partitions, replication_factor=1)])
                    log.info("topic.created", topic=topic, partitions=partitions)
    finally:
        admin.close()


def log_id(settings: KafkaSettings, topic: str) -> str:
    """The id Kafka gave this topic when it was created: another id means another log. Empty where brokers have none."""
    timeout_ms = int(settings.connect_timeout_s * 1000)  # the poll loop waits for this
    admin = KafkaAdminClient(**settings.client, bootstrap_timeout_ms=timeout_ms, request_timeout_ms=timeout_ms)
    try:
        (description,) = admin.describe_topics([topic])
        return str(description.get("topic_id") or "")
    finally:
        admin.close()


def reachable(settings: KafkaSettings) -> contextlib.AbstractContextManager[None]:
    """Turn the errors of a first contact into ours; see `probe.first_contact`."""
    return first_contact(settings.servers, settings.security, settings.connect_timeout_s)


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Turn the errors of later requests into ours.

    Raises:
        DeniedError: the broker forbids it.
        FencedError: another client is this static member of the group now.
        ConfigError: it refuses what the settings ask for.
        UnavailableError: anything else; it may pass.
    """
    try:
        yield
    except FencedInstanceIdError as error:
        raise FencedError("another trainer has taken this one's place in the consumer group") from error
    except _REFUSALS as error:
        raise ConfigError(f"Kafka refuses what these settings ask for: {error!r}") from error
    except KafkaError as error:
        raise kafka_refusal(error) or UnavailableError(f"Kafka does not answer: {error!r}") from error
