"""`supsup-daemon predict`: files answered from a bank in a real Redis."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from redis import Redis

from daemon.checkpoint import Checkpointer
from daemon.lease import Lease, Term
from daemon.records import Partition, Position
from daemon.redis_store import RedisStore
from daemon_process import here
from supsup_online import wire
from supsup_online.predictor import predict
from unit import tiny

pytestmark = pytest.mark.integration


@pytest.fixture
def bank(redis_url: str, bank_name: str) -> tuple[str, str]:
    """The options that name the bank."""
    return f"--redis={redis_url}", f"--bank={bank_name}"


@pytest.fixture
def learnt(redis_client: Redis, bank_name: str) -> Checkpointer:
    """Two tasks, learnt and committed."""
    learner = tiny.learner()
    store = RedisStore(redis_client, bank_name)
    store.open(learner.network)
    term = Lease(redis_client, store.keys, "tests", 10.0).acquire(by_force=True)
    assert isinstance(term, Term)
    store.begin(term, learner.network)
    checkpoint = Checkpointer(store, learner, dict, every=1, interval_s=60.0)
    checkpoint.positions[Partition("t", 0)] = Position(0, "log")
    for offset, batch in enumerate([*tiny.permuted(0)(60), *tiny.permuted(1)(60)]):
        learner.step(batch)
        checkpoint.advance(Partition("t", 0), offset)
    checkpoint.commit()
    return checkpoint


def images(task: int) -> tuple[np.ndarray, np.ndarray]:
    batch = next(tiny.permuted(task)(1, seed=99))
    assert batch.y is not None
    return np.asarray(batch.x, dtype=np.float32), batch.y


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_row_of_a_file_is_answered_as_in_process(
    learnt: Checkpointer, bank: tuple[str, str], tmp_path: Path
) -> None:
    x = np.concatenate([images(0)[0], images(1)[0]])
    np.save(tmp_path / "x.npy", x)
    ended = here("predict", tmp_path / "x.npy", *bank, "--rows", 7)
    learner = learnt.learner
    ids = list(learner.bank)
    expected = predict(learner.network, ids, learner.bank.stacked(ids), learner.network.inputs(x))
    found = rows_of(ended.stdout)
    assert ended.code == 0
    assert [int(row["row"]) for row in found] == list(range(len(x)))
    assert [int(row["label"]) for row in found] == expected.labels.tolist()
    assert [int(row["task"]) for row in found] == expected.mask_ids.tolist()
    assert "64 rows under 2 masks" in ended.stderr


def test_labels_in_a_file_give_its_accuracy(learnt: Checkpointer, bank: tuple[str, str], tmp_path: Path) -> None:
    x, y = images(1)
    np.savez(tmp_path / "x.npz", x=x, y=y)
    (tmp_path / "x.arrow").write_bytes(wire.encode_arrow(x, y))
    told = [here("predict", tmp_path / name, *bank) for name in ("x.npz", "x.arrow")]
    right = np.mean([int(row["label"]) == label for row, label in zip(rows_of(told[0].stdout), y, strict=True)])
    for ended in told:
        assert f"accuracy {right:.1%}" in ended.stderr


def test_json_lines_have_the_probabilities(learnt: Checkpointer, bank: tuple[str, str], tmp_path: Path) -> None:
    x, _ = images(0)
    (tmp_path / "x.jsonl").write_bytes(wire.encode_json(x[:2]) + b"\n" + wire.encode_json(x[2:5]) + b"\n")
    ended = here("predict", tmp_path / "x.jsonl", "--format=json", *bank)
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line["row"] for line in found] == list(range(5))
    for line in found:
        assert sum(line["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert int(np.argmax(line["probabilities"])) == line["label"]


@pytest.mark.usefixtures("learnt")
@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.npy", b"no array", "not a readable .npy file"),
        ("x.arrow", b"no arrow", "not a readable Arrow IPC stream"),
        ("x.jsonl", b"{", "no JSON"),
        ("x.txt", b"1 2 3", "unknown kind of file"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_reason(
    bank: tuple[str, str], tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    ended = here("predict", tmp_path / name, *bank)
    assert ended.code == 1
    assert told in ended.stderr


def test_an_array_of_another_shape_is_refused(learnt: Checkpointer, bank: tuple[str, str], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 5), np.float32))
    ended = here("predict", tmp_path / "x.npy", *bank)
    assert ended.code == 1
    assert "shape" in ended.stderr


def test_a_bank_that_is_not_there_ends_with_65(bank: tuple[str, str], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 4, 4), np.float32))
    ended = here("predict", tmp_path / "x.npy", *bank)
    assert ended.code == 65
