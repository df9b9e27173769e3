"""A flood: one record in three can never be used. Each good one is trained, each bad one put aside once, in order."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon_process import SMALL, Trainer, trainer
from poison import KINDS, MAX_BYTES, MAX_ROWS, drawn
from stage import Stage
from streams import Outgoing, labelled, publish, read

pytestmark = [pytest.mark.integration, pytest.mark.slow]

RECORDS, SEED = 3000, 20
PARTITIONS = 2
LIMITS = (f"--max-record-bytes={MAX_BYTES}", f"--max-rows={MAX_ROWS}")


def flood(count: int, seed: int) -> list[tuple[str, Outgoing]]:
    """One in three is bad, in a random place of each three; the name of a good one is empty."""
    order = np.random.default_rng([4, seed])
    bad = drawn(seed)
    stream = []
    for group in range(count // 3):
        three = [("", labelled(0, 2 * group + i)) for i in range(2)]
        three.insert(order.integers(3), next(bad))
        stream += three
    return stream


@dataclass
class Flooded:
    """A trainer that has read everything, and what was published: partition -> kinds, by offset."""

    stage: Stage
    bank: str
    topic: str
    kinds: dict[int, list[str]]
    records: dict[int, list[Outgoing]]
    process: Trainer
    letters: list[Any]


@pytest.fixture(scope="module")
def flooded(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Flooded:
    bank, topic = stage.new_bank(), stage.new_topic(partitions=PARTITIONS)
    stream = flood(RECORDS, SEED)
    kinds: dict[int, list[str]] = {p: [] for p in range(PARTITIONS)}
    records: dict[int, list[Outgoing]] = {p: [] for p in range(PARTITIONS)}
    for i, (kind, record) in enumerate(stream):
        partition = i // 7 % PARTITIONS
        kinds[partition].append(kind)
        records[partition].append(replace(record, partition=partition))
    publish(stage.kafka, topic, [record for partition in records.values() for record in partition])
    directory = tmp_path_factory.mktemp("flood")
    with trainer(
        *stage.arguments(bank, topic), *LIMITS, "--burst", *SMALL, directory=directory, ready=False
    ) as process:
        process.wait(timeout_s=240)
    letters = read(stage.kafka, f"{topic}.dlq", RECORDS // 3 + 1, timeout_s=10)  # one more than there should be
    return Flooded(stage, bank, topic, kinds, records, process, letters)


def bad_offsets(flooded: Flooded, partition: int) -> list[int]:
    return [offset for offset, kind in enumerate(flooded.kinds[partition]) if kind]


def test_the_flood_is_of_every_kind(flooded: Flooded) -> None:
    kinds = Counter(kind for partition in flooded.kinds.values() for kind in partition)
    assert kinds.pop("") == 2 * RECORDS // 3
    assert kinds.keys() == KINDS.keys()
    assert min(kinds.values()) >= 50


@pytest.mark.parametrize("partition", range(PARTITIONS))
def test_every_good_record_is_trained_once_and_in_order(flooded: Flooded, partition: int) -> None:
    trained = flooded.process.said("batch.trained", topic=flooded.topic, partition=partition)
    good = [offset for offset, kind in enumerate(flooded.kinds[partition]) if not kind]
    assert [line["offset"] for line in trained] == good


@pytest.mark.parametrize("partition", range(PARTITIONS))
def test_every_bad_record_is_put_aside_once_and_in_order(flooded: Flooded, partition: int) -> None:
    notes = [dict(letter.headers) for letter in flooded.letters]
    offsets = [int(n["source-offset"]) for n in notes if n["source-partition"] == str(partition).encode()]
    assert offsets == bad_offsets(flooded, partition)
    told = flooded.process.said("record.dead_lettered", topic=flooded.topic, partition=partition)
    assert [line["offset"] for line in told] == offsets


def test_there_are_no_more_letters_than_bad_records(flooded: Flooded) -> None:
    assert len(flooded.letters) == RECORDS // 3


def test_a_letter_holds_its_record(flooded: Flooded) -> None:
    for letter in flooded.letters:
        notes = dict(letter.headers)
        record = flooded.records[int(notes["source-partition"])][int(notes["source-offset"])]
        assert letter.headers[: len(record.headers)] == record.headers
        if "truncated-from" in notes:
            assert int(notes["truncated-from"]) == len(record.value) > MAX_BYTES
            assert record.value.startswith(letter.value)
        else:
            assert letter.value == record.value
        assert letter.key == (None if record.key is None else record.key[:1024])


def test_every_line_tells_a_reason_and_the_order_of_lines_is_that_of_the_offsets(flooded: Flooded) -> None:
    reasons: dict[str, set[str]] = {}
    for partition in range(PARTITIONS):
        lines = [
            line
            for line in flooded.process.lines
            if line["event"] in ("batch.trained", "record.dead_lettered") and line["partition"] == partition
        ]
        assert [line["offset"] for line in lines] == list(range(len(flooded.kinds[partition])))
        for line in lines:
            reasons.setdefault(flooded.kinds[partition][line["offset"]], set()).add(line.get("reason", "trained"))
    assert reasons[""] == {"trained"}
    assert "trained" not in set().union(*(found for kind, found in reasons.items() if kind))
    assert reasons["NaN"] == {"not-finite"}
    assert reasons["too large"] == reasons["long key"] == reasons["large headers"] == {"too-large"}


def test_the_totals_add_up(flooded: Flooded) -> None:
    totals = flooded.stage.totals(flooded.bank)
    assert totals["records"] == RECORDS
    assert totals["batches"] == 2 * RECORDS // 3
    assert totals["samples"] == 32 * totals["batches"]
    assert totals["dead_lettered"] == RECORDS // 3
    assert totals["answered"] == totals["overflowed"] == 0
    for partition in range(PARTITIONS):
        progress = flooded.stage.hash(flooded.bank, f"progress:{flooded.topic}:{partition}")
        assert progress["offset"] == str(len(flooded.kinds[partition]))


def test_bad_records_leave_no_trace_in_the_masks(stage: Stage, tmp_path: Path) -> None:
    stream = flood(300, SEED + 1)
    masks = []
    for name, records in (("with", stream), ("without", [found for found in stream if not found[0]])):
        bank, topic = stage.new_bank(), stage.new_topic()
        publish(stage.kafka, topic, [record for _, record in records])
        with trainer(
            *stage.arguments(bank, topic), *LIMITS, "--burst", *SMALL, directory=tmp_path / name, ready=False
        ) as process:
            process.wait()
        contents = stage.contents(bank)
        masks.append({key: value for key, value in contents.items() if key.startswith(("mask:", "state:"))})
    assert masks[0] == masks[1]
    assert masks[0]
