"""One order over several partitions: a function of the logs, whatever the fetches were."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from daemon.merge import RecordMerge
from daemon.records import Partition, Record

A, B, C = (Partition("t", number) for number in range(3))
Logs = dict[Partition, list[int]]


def record(partition: Partition, offset: int, timestamp_ms: int, value: bytes = b"v") -> Record:
    return Record(partition, offset, None, value, (), timestamp_ms)


def records(partition: Partition, timestamps: Sequence[int]) -> list[Record]:
    return [record(partition, offset, at) for offset, at in enumerate(timestamps)]


def everything_read(_: Partition) -> bool:
    return True


def more_to_come(_: Partition) -> bool:
    return False


def drain(merge: RecordMerge, now: float = 0.0) -> list[tuple[int, int]]:
    found = iter(lambda: merge.pop(now, everything_read), None)
    return [(record.partition.number, record.offset) for record in found]


def test_the_smallest_timestamp_of_all_heads_comes_first() -> None:
    merge = RecordMerge(0.0)
    merge.start([A, B])
    merge.add(A, records(A, [10, 40]), 0.0)
    merge.add(B, records(B, [20, 30]), 0.0)
    assert drain(merge) == [(0, 0), (1, 0), (1, 1), (0, 1)]


def test_equal_timestamps_go_by_partition() -> None:
    merge = RecordMerge(0.0)
    merge.start([B, A])
    merge.add(B, records(B, [5, 5]), 0.0)
    merge.add(A, records(A, [5, 5]), 0.0)
    assert drain(merge) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_offsets_of_a_partition_stay_in_order_whatever_its_clock_says() -> None:
    merge = RecordMerge(0.0)
    merge.start([A, B])
    merge.add(A, records(A, [50, 10, 60]), 0.0)
    merge.add(B, records(B, [20]), 0.0)
    assert drain(merge) == [(1, 0), (0, 0), (0, 1), (0, 2)]


def test_a_partition_with_more_to_come_is_waited_for() -> None:
    merge = RecordMerge(0.0)
    merge.start([A, B])
    merge.add(A, records(A, [10]), 0.0)
    assert merge.pop(100.0, more_to_come) is None
    assert merge.blocked_by(100.0, more_to_come) == [B]
    merge.add(B, records(B, [5]), 100.0)
    assert merge.pop(100.0, more_to_come) == record(B, 0, 5)


def test_a_partition_read_to_its_end_is_waited_for_a_moment_after_its_newest_record() -> None:
    merge = RecordMerge(0.5)
    merge.start([A, B])
    merge.add(B, records(B, [1]), 10.0)
    merge.add(A, records(A, [2]), 10.0)
    assert merge.pop(10.1, everything_read) == record(B, 0, 1)
    assert merge.pop(10.4, everything_read) is None
    assert merge.pop(10.5, everything_read) == record(A, 0, 2)


def test_a_partition_that_never_gave_anything_holds_up_nobody() -> None:
    merge = RecordMerge(60.0)
    merge.start([A, B])
    merge.add(A, records(A, [1, 2]), 0.0)
    assert drain(merge) == [(0, 0), (0, 1)]


def test_one_partition_alone_is_handed_on_at_once() -> None:
    merge = RecordMerge(60.0)
    merge.start([A])
    merge.add(A, records(A, [1]), 0.0)
    assert merge.pop(0.0, more_to_come) == record(A, 0, 1)
    assert merge.empty


def test_what_waits_is_counted_by_records_and_bytes() -> None:
    merge = RecordMerge(0.0)
    merge.start([A])
    merge.add(A, [record(A, 0, 0, b"four"), record(A, 1, 0, b"")], 0.0)
    assert merge.amount(A) == (2, 4)
    merge.pop(0.0, everything_read)
    assert merge.amount(A) == (1, 0)


def test_a_new_start_forgets_what_was_fetched() -> None:
    merge = RecordMerge(0.0)
    merge.start([A])
    merge.add(A, records(A, [1]), 0.0)
    merge.start([A, B])
    assert merge.empty
    assert drain(merge) == []


logs = st.fixed_dictionaries({p: st.lists(st.integers(0, 20), max_size=12) for p in (A, B, C)})


def undisturbed(timestamps: Logs) -> list[tuple[int, int]]:
    merge = RecordMerge(0.0)
    merge.start(timestamps)
    for partition, at in timestamps.items():
        merge.add(partition, records(partition, at), 0.0)
    return drain(merge)


@given(logs, st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(1, 5)), max_size=60))
def test_the_order_does_not_depend_on_how_records_are_fetched(
    timestamps: Logs, fetches: list[tuple[Partition, int]]
) -> None:
    merge, fetched = RecordMerge(0.0), dict.fromkeys(timestamps, 0)
    merge.start(timestamps)
    found: list[tuple[int, int]] = []

    def exhausted(partition: Partition) -> bool:
        return fetched[partition] == len(timestamps[partition])

    for partition, count in [*fetches, *((partition, 12) for partition in timestamps)]:
        begin = fetched[partition]
        merge.add(partition, records(partition, timestamps[partition])[begin : begin + count], 0.0)
        fetched[partition] = min(begin + count, len(timestamps[partition]))
        found += [(r.partition.number, r.offset) for r in iter(lambda: merge.pop(0.0, exhausted), None)]
    assert found == undisturbed(timestamps)


@given(logs, st.integers(0, 36))
def test_whoever_starts_again_anywhere_goes_on_in_the_same_order(timestamps: Logs, applied: int) -> None:
    whole = undisturbed(timestamps)
    positions = {p: max((o + 1 for n, o in whole[:applied] if n == p.number), default=0) for p in timestamps}
    merge = RecordMerge(0.0)
    merge.start(timestamps)
    for partition, at in timestamps.items():
        merge.add(partition, records(partition, at)[positions[partition] :], 0.0)
    assert drain(merge) == whole[applied:]
