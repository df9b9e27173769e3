"""Logs: one JSON object a line on standard error, text where a person asks for it."""

import json
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog

from daemon import logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    kafka = logging.getLogger("kafka")
    before = kafka.level
    yield
    structlog.reset_defaults()
    kafka.setLevel(before)


def test_an_event_is_one_json_object_with_level_and_utc_time(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    structlog.get_logger().info("batch.trained", offset=3, stream="topic/0/\xff")
    text, out = capsys.readouterr().err, capsys.readouterr().out
    line = json.loads(text)
    assert (line["event"], line["level"], line["offset"], line["stream"]) == (
        "batch.trained",
        "info",
        3,
        "topic/0/\xff",
    )
    assert line["timestamp"].endswith("Z")
    assert text.count("\n") == 1
    assert out == ""


def test_auto_is_json_where_nobody_watches_and_text_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.configure("auto")
    structlog.get_logger().info("one")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    logs.configure("auto")
    structlog.get_logger().info("two")
    first, second = capsys.readouterr().err.splitlines()
    assert json.loads(first)["event"] == "one"
    assert not second.startswith("{")
    assert "two" in second


def test_an_exception_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    try:
        json.loads("{")
    except ValueError:
        structlog.get_logger().exception("failed")
    line = json.loads(capsys.readouterr().err)
    assert "JSONDecodeError: Expecting property name" in line["exception"]


@pytest.mark.parametrize(("level", "told"), [("debug", "diwe"), ("info", "iwe"), ("warning", "we"), ("error", "e")])
def test_lesser_levels_are_left_out(capsys: pytest.CaptureFixture[str], level: str, told: str) -> None:
    logs.configure("json", level)
    log = structlog.get_logger()
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)(name[0])
    assert "".join(json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()) == told


def test_the_kafka_client_does_not_write_into_our_log(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    logging.getLogger("kafka.consumer.fetcher").error("reconnecting")
    assert capsys.readouterr().err == ""
