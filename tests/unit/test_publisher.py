"""What `publish` sends: every record can be read back by the trainer's own decoder."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from daemon import publisher
from daemon.errors import UnavailableError
from daemon.publisher import Outgoing
from supsup_online import wire
from supsup_online.datasets import Dataset
from supsup_online.errors import DataError
from supsup_online.scenarios import Scenario, schedule

LIMITS = wire.RecordLimits((3, 3), 10)
RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 256, (10, 3, 3), dtype=np.uint8), RNG.integers(0, 10, 10)


def decoded(record: Outgoing) -> tuple[np.ndarray, np.ndarray | None]:
    return wire.decode(record.value, record.content_type, LIMITS)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, x=X, y=Y)
    return path


@pytest.mark.parametrize("encoding", ["arrow", "json"])
def test_arrays_become_records_of_so_many_rows(npz: Path, encoding: publisher.Format) -> None:
    records = list(publisher.from_npz(npz, 4, encoding, b"k"))
    assert [record.key for record in records] == [b"k"] * 3
    x, y = zip(*map(decoded, records), strict=True)
    assert [len(part) for part in x] == [4, 4, 2]
    assert (np.concatenate(x) == X).all()
    assert (np.concatenate(y) == Y).all()


def test_other_numbers_become_float32(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=X.astype(np.float64) / 3, y=Y.astype(np.int16))
    x, y = decoded(next(publisher.from_npz(path, 10, "arrow", None)))
    assert x.dtype == np.float32
    assert np.allclose(x, X / 3)
    assert (y == Y).all()


@pytest.mark.parametrize("keyed", [True, False])
def test_a_scenario_names_its_streams_where_they_interleave(keyed: bool) -> None:
    scenario = Scenario(Dataset("tiny", X, Y, X, Y, 10, "here"), "permuted", 2, seed=1)
    plan = schedule("interleaved", 2, 6, 1)
    records = list(publisher.from_scenario(scenario, plan, 5, "arrow", keyed=keyed))
    assert [r.key for r in records] == [place.stream.encode() if keyed else None for place in plan]
    for record, place in zip(records, plan, strict=True):
        x, y = scenario.batch(place.task, place.position, 5)
        assert (decoded(record)[0] == x).all()
        assert (decoded(record)[1] == y).all()


def test_an_arrow_file_is_one_record_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "batch.arrow"
    path.write_bytes(wire.encode_arrow(X, Y))
    [record] = publisher.from_arrow(path, None)
    assert record.value == path.read_bytes()
    assert (decoded(record)[0] == X).all()


def test_json_lines_are_records_and_empty_lines_are_none() -> None:
    lines = f"{json.dumps({'x': X.tolist()})}\n\n  \n{json.dumps({'x': X[:1].tolist(), 'y': [3]})}"
    records = list(publisher.from_json_lines(io.StringIO(lines), b"k"))
    assert [len(decoded(record)[0]) for record in records] == [10, 1]
    assert [record.content_type for record in records] == [wire.JSON_CONTENT_TYPE] * 2


def test_a_json_file_is_closed_again(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"x": 1}\n{"x": 2}\n')
    assert [record.value for record in publisher.from_json_file(path, None)] == [b'{"x": 1}', b'{"x": 2}']
    # a file left open would be a ResourceWarning, which is an error here


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (b'{"x": 1}\n{"x": \n', "line 2 is no JSON"),
        (b"[" * 100_000, "line 1 is no JSON"),
        (b"\xff\xfe\x00", "no UTF-8"),
    ],
)
def test_what_is_no_json_is_told_with_its_line(tmp_path: Path, lines: bytes, told: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(lines)
    with pytest.raises(DataError, match=told):
        list(publisher.from_json_file(path, None))


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = tmp_path / "nothing"
    for records in (
        publisher.from_npz(path, 1, "arrow", None),
        publisher.from_arrow(path, None),
        publisher.from_json_file(path, None),
    ):
        with pytest.raises(DataError, match="nothing"):
            next(records)


class FakeProducer:
    """Takes records until it has enough of them."""

    def __init__(self, most: int = 100, **_: object) -> None:
        self.most = most
        self.sent: list[tuple[str, bytes | None, bytes, list[tuple[str, bytes]]]] = []
        self.closed = False

    def send(self, topic: str, *, value: bytes, key: bytes | None, headers: list[tuple[str, bytes]]) -> "FakeProducer":
        """Take one."""
        if len(self.sent) == self.most:
            raise publisher.KafkaError
        self.sent.append((topic, key, value, headers))
        return self

    def get(self, timeout: float) -> None:
        """Acknowledge."""

    def flush(self, timeout: float) -> None:
        """Nothing waits here."""

    def close(self, timeout: float) -> None:
        """Note it."""
        self.closed = timeout > 0


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> FakeProducer:
    fake = FakeProducer()
    monkeypatch.setattr(publisher, "KafkaProducer", lambda **_: fake)
    return fake


RECORDS = [Outgoing(b"abc", "text/plain", b"k"), Outgoing(b"de", "text/plain", None)]


def test_sending_tells_its_progress_and_the_content_type(producer: FakeProducer) -> None:
    seen: list[tuple[int, int]] = []
    assert publisher.send(("k:1",), "t", RECORDS, progress=lambda *told: seen.append(told)) == (2, 5)
    assert seen == [(1, 3), (2, 5)]
    assert producer.sent[0] == ("t", b"k", b"abc", [("content-type", b"text/plain")])
    assert producer.closed


def test_nothing_to_send_is_no_error(producer: FakeProducer) -> None:
    assert publisher.send(("k:1",), "t", []) == (0, 0)


def test_a_rate_slows_down(producer: FakeProducer, monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 3))
        now[0] += seconds

    monkeypatch.setattr(publisher.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(publisher.time, "sleep", sleep)
    publisher.send(("k:1",), "t", RECORDS * 2, rate=4)
    assert slept == [0.25, 0.25, 0.25]


def test_a_broker_that_gives_up_is_told_with_what_it_took(producer: FakeProducer) -> None:
    producer.most = 1
    with pytest.raises(UnavailableError, match="Kafka took 1 records, then failed"):
        publisher.send(("k:1",), "t", RECORDS)
    assert producer.closed
