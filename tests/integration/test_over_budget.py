"""Budget spent: the batch goes to the overflow topic unchanged, or the mask unused for longest makes room."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from daemon_process import SMALL, Trainer, here
from stage import Stage
from streams import labelled, publish, read, visits

pytestmark = pytest.mark.integration

VISIT = 25
KEY = b"camera-1"
# Three tasks and room for two: the third visit, offsets 50 to 74, finds no room. Then task 1 comes back, then task 0.
STREAM = visits([0, 1, 2, 1, 0], VISIT, key=KEY)
HOMELESS = range(2 * VISIT, 3 * VISIT)


@dataclass
class Outcome:
    """One run over the stream."""

    stage: Stage
    topic: str
    bank: str
    process: Trainer
    totals: dict[str, int] = field(default_factory=dict)

    def mask_of(self, offset: int) -> int:
        """The mask that a record was trained into."""
        [line] = self.process.said("batch.trained", offset=offset)
        return int(line["mask"])


@pytest.fixture(scope="module")
def outcomes(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    """Both policies over a stream of their own, side by side."""
    found = {}
    for policy in ("overflow", "evict"):
        topic, bank = stage.new_topic(), stage.new_bank()
        publish(stage.kafka, topic, STREAM)
        options = ("--budget=2", f"--over-budget={policy}", "--burst", *SMALL)
        directory = tmp_path_factory.mktemp(policy)
        found[policy] = Outcome(
            stage, topic, bank, Trainer(*stage.arguments(bank, topic), *options, directory=directory)
        )
    try:
        for outcome in found.values():
            outcome.process.wait()
            outcome.totals = stage.totals(outcome.bank)
        yield found
    finally:
        for outcome in found.values():
            outcome.process.kill()


def test_a_batch_without_room_goes_to_the_overflow_topic_unchanged(outcomes: dict[str, Outcome]) -> None:
    overflow = outcomes["overflow"]
    moved = read(overflow.stage.kafka, f"{overflow.topic}.overflow", VISIT + 1, timeout_s=1)
    assert [record.value for record in moved] == [STREAM[offset].value for offset in HOMELESS]
    for record, offset in zip(moved, HOMELESS, strict=True):
        assert record.key == KEY
        assert record.headers[0] == STREAM[offset].headers[0]
        headers = dict(record.headers)
        assert headers["source-topic"] == overflow.topic.encode()
        assert headers["source-offset"] == str(offset).encode()


def test_overflowed_batches_are_counted_and_logged(outcomes: dict[str, Outcome]) -> None:
    overflow = outcomes["overflow"]
    totals = overflow.totals
    assert (totals["overflowed"], totals["batches"], totals["records"]) == (VISIT, 4 * VISIT, 5 * VISIT)
    lines = overflow.process.said("batch.overflowed")
    assert [line["offset"] for line in lines] == list(HOMELESS)
    assert {line["action"] for line in lines} == {"over-budget"}
    assert {line["mask"] for line in lines} == {None}


def test_overflow_leaves_the_trained_masks_in_use(outcomes: dict[str, Outcome]) -> None:
    overflow = outcomes["overflow"]
    assert overflow.mask_of(4 * VISIT - 1) == overflow.mask_of(2 * VISIT - 1), "task 1 goes on with its mask"
    assert overflow.mask_of(5 * VISIT - 1) == overflow.mask_of(VISIT - 1), "task 0 goes on with its mask"
    assert overflow.totals["evicted"] == 0


def test_a_stretch_over_budget_is_one_event(outcomes: dict[str, Outcome]) -> None:
    overflow = outcomes["overflow"]
    events = overflow.stage.redis.xrange(overflow.stage.key(overflow.bank, "events"))
    decisions = [(fields[b"type"], int(fields[b"offset"])) for _, fields in events if fields[b"type"] != b"commit"]
    assert (b"over-budget", 2 * VISIT) in decisions
    assert [kind for kind, _ in decisions].count(b"over-budget") == 1


def test_evict_drops_the_mask_unused_for_longest_and_goes_on(outcomes: dict[str, Outcome]) -> None:
    evict = outcomes["evict"]
    first, second, third = (evict.mask_of(offset) for offset in (VISIT - 1, 2 * VISIT - 1, 3 * VISIT - 1))
    [line] = evict.process.said("batch.trained", offset=2 * VISIT)
    assert (line["action"], line["evicted_mask"], line["mask"]) == ("allocate", first, third)
    assert evict.mask_of(4 * VISIT - 1) == second, "task 1 still has its mask"
    [line] = evict.process.said("batch.trained", offset=4 * VISIT)
    assert (line["action"], line["evicted_mask"]) == ("allocate", third), "task 2 is now the one unused for longest"
    assert len({first, second, third, line["mask"]}) == 4, "an id is never given out twice"
    totals = evict.totals
    assert (totals["evicted"], totals["overflowed"], totals["batches"]) == (2, 0, 5 * VISIT)


def test_an_evicted_mask_leaves_nothing_in_redis(outcomes: dict[str, Outcome]) -> None:
    evict = outcomes["evict"]
    kept = {str(evict.mask_of(offset)) for offset in (4 * VISIT - 1, 5 * VISIT - 1)}
    contents = evict.stage.contents(evict.bank)
    for kind in ("mask", "stats", "state"):
        assert {name.partition(":")[2] for name in contents if name.startswith(f"{kind}:")} == kept
    index = evict.stage.redis.zrange(evict.stage.key(evict.bank, "index"), 0, -1)
    assert {member.decode() for member in index} == kept


def test_a_larger_budget_at_the_next_start_makes_room(outcomes: dict[str, Outcome]) -> None:
    overflow = outcomes["overflow"]
    publish(overflow.stage.kafka, overflow.topic, [labelled(2, seed, key=KEY) for seed in range(10)])
    options = ("--budget=3", "--burst", *SMALL)
    assert here("start", *overflow.stage.arguments(overflow.bank, overflow.topic), *options).code == 0
    assert overflow.stage.hash(overflow.bank, "stats:2")["batches"] == "10"
    assert overflow.stage.hash(overflow.bank, "spec")["budget"] == "3"
