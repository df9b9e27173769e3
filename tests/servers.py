"""Real servers for the tests: the caller's own, named by an environment variable, or embedded ones."""

import time
from collections.abc import Callable

from kafka import KafkaAdminClient
from kafka.admin import NewTopic


def create_topic(bootstrap: str, topic: str, *, partitions: int = 1) -> None:
    """Create `topic` and return once the broker knows it."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        admin.create_topics([NewTopic(topic, partitions, 1)])
        wait_until(lambda: topic in admin.list_topics(), f"the broker never listed {topic}")
    finally:
        admin.close()


def delete_topics(bootstrap: str, prefix: str) -> None:
    """Delete `prefix` and its siblings (`<prefix>.dlq`, ...)."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        topics = [name for name in admin.list_topics() if name == prefix or name.startswith(f"{prefix}.")]
        if topics:
            admin.delete_topics(topics)
    finally:
        admin.close()


def wait_until(condition: Callable[[], bool], complaint: str, *, timeout_s: float = 20.0) -> None:
    """Poll `condition` until it holds.

    Raises:
        AssertionError: It did not hold in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{complaint} (waited {timeout_s:g} s)")
        time.sleep(0.02)
