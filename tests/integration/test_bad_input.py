"""Bad input gets an answer a person understands, and the good records around it are trained.

One trainer reads a topic in which every second record is bad in a way of its own. A second topic, in two partitions
and with keys, comes along: several of both are the rule in real life.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from kafka.errors import MessageSizeTooLargeError
from pyarrow import ipc

from daemon_process import SMALL, Trainer, trainer
from stage import Stage
from streams import ARROW, JSON, Outgoing, batch, labelled, publish, read, unlabelled
from supsup_online import wire

pytestmark = pytest.mark.integration

LIMIT = 100_000
MOST_ROWS = 64


def arrow(x: np.ndarray, y: np.ndarray | None = None, *, check: bool = True) -> Outgoing:
    """An Arrow record; `encode_arrow` itself refuses some of what is wanted here."""
    if check:
        return Outgoing(wire.encode_arrow(x, y))
    storage = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), int(np.prod(x.shape[1:])))
    tensor = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.from_numpy_dtype(x.dtype), x.shape[1:]), storage)
    columns = {"x": tensor} if y is None else {"x": tensor, "y": pa.array(y)}
    table = pa.record_batch(columns)
    sink = io.BytesIO()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_batch(table)
    return Outgoing(sink.getvalue())


def json_text(text: str) -> Outgoing:
    return Outgoing(text.encode(), list(JSON))


def with_label(label: int) -> Outgoing:
    x, y = batch(0, 900)
    y[5] = label
    return arrow(x, y)


def with_value(value: float) -> Outgoing:
    x, y = batch(0, 901)
    x[3, 4, 5] = value
    return arrow(x, y, check=False)


X, Y = batch(0, 902)
# name -> (the record, the reason it is put aside for, a piece of the explanation)
BAD: dict[str, tuple[Outgoing, str, str]] = {
    "wrong shape": (arrow(np.ascontiguousarray(X[:, :7]), Y), "shape", "[7, 8], expected [8, 8] or [64]"),
    "wrong dtype": (arrow(X.astype(np.float64), Y, check=False), "dtype", "double, expected uint8 or float32"),
    "NaN": (with_value(np.nan), "not-finite", "NaN"),
    "infinity": (with_value(np.inf), "not-finite", "infinity"),
    "unscaled": (with_value(1e30), "out-of-range", "scale them before publishing"),
    "label too large": (with_label(4), "label-range", "a label is 4, expected 0 to 3"),
    "label below zero": (with_label(-1), "label-range", "a label is -1, expected 0 to 3"),
    "labels that are no whole numbers": (arrow(X, Y.astype(np.float32), check=False), "dtype", "column y is float"),
    "random bytes": (Outgoing(np.random.default_rng(5).bytes(3000)), "malformed", "Arrow"),
    "random bytes without a header": (Outgoing(np.random.default_rng(6).bytes(999), []), "malformed", "Arrow"),
    "cut short": (Outgoing(labelled(0).value[:-200]), "malformed", "Arrow"),
    "empty value": (Outgoing(b""), "empty", "the record has no value"),
    "tombstone": (Outgoing(None, key=b"gone"), "empty", "the record has no value"),
    "empty batch": (arrow(X[:0], Y[:0], check=False), "empty", "no rows, expected at least one"),
    "empty JSON batch": (json_text('{"x": [], "y": []}'), "empty", "at least one row"),
    "JSON NaN": (json_text(json.dumps({"x": [[float("nan")] * 64], "y": [0]})), "not-finite", "NaN"),
    "ragged JSON": (json_text(json.dumps({"x": [[0.0] * 64, [0.0] * 63], "y": [0, 1]})), "shape", "ragged"),
    "JSON of another kind": (json_text('{"image": [1, 2]}'), "columns", "'image'"),
    "JSON cut short": (json_text('{"x": [[1, 2'), "malformed", "not readable JSON"),
    "too few labels": (json_text(json.dumps({"x": [[0.0] * 64] * 2, "y": [0]})), "shape", "a list of 2 labels"),
    "another content type": (Outgoing(b"a,b\n1,2\n", [("content-type", b"text/csv")]), "content-type", "'text/csv'"),
    "too many rows": (arrow(*batch(0, 903, rows=MOST_ROWS + 1)), "rows", f"expected at most {MOST_ROWS}"),
    "too large": (Outgoing(b"x" * (2 * LIMIT)), "too-large", f"found {2 * LIMIT} bytes, expected at most {LIMIT}"),
    "own headers": (
        Outgoing(b"?", [*ARROW, ("trace", b"one"), ("trace", b"two"), ("odd", b"\xff\x00")], key=b"k"),
        "malformed",
        "Arrow",
    ),
}
LEAD_IN = 12


@dataclass
class Fed:
    """A trainer that has read everything, and where each bad record lay."""

    stage: Stage
    bank: str
    topic: str
    keyed: str
    process: Trainer
    offsets: dict[str, int]
    dead_letters: dict[int, Any]
    answers: list[Any]
    end: int


@pytest.fixture(scope="module")
def fed(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Fed:
    bank, topic, keyed = stage.new_bank(), stage.new_topic(), stage.new_topic(partitions=2)
    stream = [labelled(0, i) for i in range(LEAD_IN)]
    offsets = {}
    for i, (name, (record, _, _)) in enumerate(BAD.items()):
        offsets[name] = len(stream)
        stream += [record, labelled(0, 100 + i)]
    stream += [unlabelled(0, 77), labelled(0, 777)]
    publish(stage.kafka, topic, stream)
    for partition, key in ((0, b"a"), (1, b"b"), (0, b"c"), (1, None)):
        publish(stage.kafka, keyed, [labelled(1, i, key=key, partition=partition) for i in range(10)])
    limits = (f"--max-record-bytes={LIMIT}", f"--max-rows={MOST_ROWS}")
    with trainer(
        *stage.arguments(bank, topic, keyed),
        *limits,
        *("--log-level=debug", "--burst"),
        *SMALL,
        directory=tmp_path_factory.mktemp("bad-input"),
        ready=False,
    ) as process:
        process.wait()
    letters = read(stage.kafka, f"{topic}.dlq", len(BAD))
    by_offset = {int(dict(letter.headers)["source-offset"]): letter for letter in letters}
    answers = read(stage.kafka, f"{topic}.predictions", 1)
    return Fed(stage, bank, topic, keyed, process, offsets, by_offset, answers, len(stream))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_dead_lettered_with_its_reason(fed: Fed, name: str) -> None:
    record, reason, explanation = BAD[name]
    offset = fed.offsets[name]
    letter = fed.dead_letters[offset]
    headers = dict(letter.headers)
    assert headers["source-topic"] == fed.topic.encode()
    assert headers["source-partition"] == b"0"
    assert headers["source-offset"] == str(offset).encode()
    assert int(headers["source-timestamp"]) > 0
    assert headers["reason"].decode() == reason
    assert explanation in headers["error"].decode()
    assert letter.key == record.key
    assert letter.headers[: len(record.headers)] == record.headers, "its own headers stay, doubled ones included"
    if name == "too large":
        assert letter.value == record.value[:1024]
        assert headers["truncated-from"] == str(len(record.value)).encode()
    else:
        assert letter.value == record.value
    [line] = fed.process.said("record.dead_lettered", topic=fed.topic, offset=offset)
    assert line["reason"] == reason
    assert explanation in line["error"]
    assert line["level"] == "warning"


def test_nothing_but_the_bad_records_is_dead_lettered(fed: Fed) -> None:
    assert set(fed.dead_letters) == set(fed.offsets.values())
    letters = read(fed.stage.kafka, f"{fed.topic}.dlq", len(BAD) + 1, timeout_s=1)
    assert len(letters) == len(BAD)


def test_the_good_records_around_bad_ones_are_trained(fed: Fed) -> None:
    good = set(range(fed.end - 2)) - set(fed.dead_letters) | {fed.end - 1}
    assert {line["offset"] for line in fed.process.said("batch.trained", topic=fed.topic)} == good
    masks = {line["mask"] for line in fed.process.said("batch.trained", topic=fed.topic)}
    assert len(masks) == 1, "what is bad must not look like a new task"


def test_totals_count_good_and_bad(fed: Fed) -> None:
    totals = fed.stage.totals(fed.bank)
    trained = LEAD_IN + len(BAD) + 1 + 40
    assert totals["records"] == fed.end + 40
    assert totals["batches"] == trained
    assert totals["samples"] == 32 * trained
    assert totals["dead_lettered"] == len(BAD)
    assert totals["answered"] == 1
    assert fed.stage.hash(fed.bank, f"progress:{fed.topic}:0")["offset"] == str(fed.end)


def test_an_unlabelled_record_is_answered_on_the_predictions_topic(fed: Fed) -> None:
    [answer] = fed.answers
    headers = dict(answer.headers)
    assert (headers["source-topic"], headers["source-offset"]) == (fed.topic.encode(), str(fed.end - 2).encode())
    body = json.loads(answer.value)
    [trained] = {line["mask"] for line in fed.process.said("batch.trained", topic=fed.topic)}
    assert body["task"] == trained
    assert np.mean(np.array(body["labels"]) == batch(0, 77)[1]) > 0.9
    assert 0 <= body["entropy"] < 1
    [line] = fed.process.said("batch.answered")
    assert (line["offset"], line["mask"], line["rows"]) == (fed.end - 2, body["task"], 32)


def test_every_partition_of_every_topic_is_read_to_its_end(fed: Fed) -> None:
    for partition in (0, 1):
        progress = fed.stage.hash(fed.bank, f"progress:{fed.keyed}:{partition}")
        assert progress["offset"] == "20"
        offsets = [line["offset"] for line in fed.process.said("batch.trained", topic=fed.keyed, partition=partition)]
        assert offsets == list(range(20)), "in order within a partition"


def test_a_record_key_names_a_stream_within_its_partition(fed: Fed) -> None:
    names: Callable[[int], set[str]] = lambda partition: {  # noqa: E731
        field.removeprefix("stream:")
        for field in fed.stage.hash(fed.bank, f"progress:{fed.keyed}:{partition}")
        if field.startswith("stream:")
    }
    assert names(0) == {f"{fed.keyed}/0/a", f"{fed.keyed}/0/c"}
    assert names(1) == {f"{fed.keyed}/1/b", f"{fed.keyed}/1"}
    starts = {line["stream"] for line in fed.process.said("batch.trained", topic=fed.keyed, why="start")}
    assert starts == names(0) | names(1), "each stream begins with a decision of its own"


def test_every_log_line_is_json_with_event_level_and_time(fed: Fed) -> None:
    assert fed.process.other_lines == []
    for line in fed.process.lines:
        assert {"event", "level", "timestamp"} <= line.keys()


def test_a_batch_is_one_line_with_the_documented_fields(fed: Fed) -> None:
    every = {
        *("topic", "partition", "offset", "stream", "mask", "rows", "decode_ms", "step_ms"),
        *("loss", "accuracy", "rolling_accuracy", "event", "level", "timestamp"),
    }
    deciding = {
        *("action", "why", "rule", "previous_mask", "evicted_mask", "ratio"),
        *("best_candidate", "best_statistic", "best_residual"),
    }
    lines = fed.process.said("batch.trained", topic=fed.topic)
    assert len({line["offset"] for line in lines}) == len(lines)
    first, *others = lines
    assert first.keys() == every | deciding
    assert (first["action"], first["why"], first["previous_mask"]) == ("allocate", "start", None)
    assert any(line.keys() == every for line in others)
    for line in lines:
        assert 0 <= line["accuracy"] <= 1
        assert 0 <= line["rolling_accuracy"] <= 1
        assert line["step_ms"] > 0
        assert line["rows"] == 32


def test_commits_are_told_at_debug_level(fed: Fed) -> None:
    commits = fed.process.said("bank.committed")
    assert sum(line["records"] for line in commits) == fed.stage.totals(fed.bank)["records"]
    assert commits[-1]["version"] == int(fed.stage.redis.get(fed.stage.key(fed.bank, "version")))


@pytest.mark.slow
def test_a_record_of_100_mb_is_dead_lettered_and_the_stream_goes_on(stage: Stage, tmp_path: Path) -> None:
    bank, topic = stage.new_bank(), stage.new_topic()
    size = 100_000_000
    before, after = [labelled(0, i) for i in range(3)], [labelled(0, i) for i in range(3, 6)]
    try:
        publish(stage.kafka, topic, [*before, Outgoing(b"\x07" * size), *after], max_request_size=2 * size)
    except MessageSizeTooLargeError as refusal:
        pytest.skip(f"this broker itself refuses it: {refusal}")
    with trainer(*stage.arguments(bank, topic), "--burst", *SMALL, directory=tmp_path, ready=False) as process:
        process.wait(timeout_s=120)
    [letter] = read(stage.kafka, f"{topic}.dlq", 1)
    headers = dict(letter.headers)
    assert letter.value == b"\x07" * 1024
    assert (headers["reason"], headers["source-offset"]) == (b"too-large", b"3")
    assert headers["truncated-from"] == str(size).encode()
    totals = stage.totals(bank)
    assert (totals["batches"], totals["dead_lettered"]) == (6, 1)
