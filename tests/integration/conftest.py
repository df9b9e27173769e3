"""The stage that the tests of whole processes share."""

from collections.abc import Iterator

import pytest
from redis import Redis

from stage import Stage


@pytest.fixture(scope="session")
def stage(kafka: str, redis_url: str) -> Iterator[Stage]:
    """The shared servers, with names for topics and banks that no other test has."""
    with Redis.from_url(redis_url, decode_responses=False) as client:
        found = Stage(kafka, redis_url, client)
        yield found
        found.clear()
