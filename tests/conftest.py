"""Servers and unique names; SUPSUP_TEST_REDIS (a URL) and SUPSUP_TEST_KAFKA (host:port) put your own in their place.

Nothing is flushed: each test works under names of its own and takes only those away again.
"""

import os
import uuid
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings
from redis import Redis

from daemon.embedded import EmbeddedBroker, EmbeddedRedis
from servers import create_topic, delete_topics

# A machine that is busy, or a loop that is compiled first, is no failure.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _logs_as_they_come() -> Iterator[None]:
    """Commands run in this process set up logs; the next test starts from structlog's own defaults."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Redis server that all tests of the session share."""
    if own := os.environ.get("SUPSUP_TEST_REDIS"):
        yield own
        return
    with EmbeddedRedis(tmp_path_factory.mktemp("shared-redis")) as server:
        yield server.url


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port` of a broker that all tests of the session share."""
    if own := os.environ.get("SUPSUP_TEST_KAFKA"):
        yield own
        return
    with EmbeddedBroker(tmp_path_factory.mktemp("shared-kafka")) as server:
        yield server.address


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[Redis]:
    """A client that gives bytes."""
    with Redis.from_url(redis_url, decode_responses=False) as client:
        yield client


@pytest.fixture
def bank_name(redis_client: Redis) -> Iterator[str]:
    """The name of a bank that no other test uses; its keys are deleted afterwards."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    if keys := list(redis_client.scan_iter(match=f"supsup:{{{name}}}:*", count=1000)):
        redis_client.delete(*keys)


@pytest.fixture
def topic(kafka: str) -> Iterator[str]:
    """The name of a new topic with one partition; it and its siblings are deleted afterwards."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    create_topic(kafka, name)
    yield name
    delete_topics(kafka, name)
