"""Logs: one JSON object a line on standard error, text where a person asks for it."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from daemon import logs


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    kafka, before = logging.getLogger("kafka"), logging.getLogger("kafka").level
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    yield stream
    structlog.reset_defaults()
    kafka.setLevel(before)


def test_an_event_is_one_json_object_with_level_and_utc_time(stderr: io.StringIO) -> None:
    logs.configure("json")
    structlog.get_logger().info("batch.trained", offset=3, stream="topic/0/\xff")
    line = json.loads(stderr.getvalue())
    assert (line["event"], line["level"], line["offset"], line["stream"]) == (
        "batch.trained",
        "info",
        3,
        "topic/0/\xff",
    )
    assert line["timestamp"].endswith("Z")
    assert stderr.getvalue().count("\n") == 1


def test_auto_is_json_where_nobody_watches_and_text_on_a_terminal(
    stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.configure("auto")
    structlog.get_logger().info("one")
    monkeypatch.setattr(stderr, "isatty", lambda: True)
    logs.configure("auto")
    structlog.get_logger().info("two")
    first, second = stderr.getvalue().splitlines()
    assert json.loads(first)["event"] == "one"
    assert not second.startswith("{")
    assert "two" in second


def test_an_exception_stays_on_its_line(stderr: io.StringIO) -> None:
    logs.configure("json")
    try:
        raise ValueError("what happened")
    except ValueError:
        structlog.get_logger().exception("failed")
    line = json.loads(stderr.getvalue())
    assert "ValueError: what happened" in line["exception"]


@pytest.mark.parametrize(("level", "told"), [("debug", "diwe"), ("info", "iwe"), ("warning", "we"), ("error", "e")])
def test_lesser_levels_are_left_out(stderr: io.StringIO, level: str, told: str) -> None:
    logs.configure("json", level)
    log = structlog.get_logger()
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)(name[0])
    assert "".join(json.loads(line)["event"] for line in stderr.getvalue().splitlines()) == told


def test_the_kafka_client_does_not_write_into_our_log(stderr: io.StringIO) -> None:
    logs.configure("json")
    logging.getLogger("kafka.consumer.fetcher").error("reconnecting")
    assert stderr.getvalue() == ""
