"""What a dead letter says, and which can be sent back; nothing in one makes reading it fail."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.dead_letters import DeadLetter
from daemon.replay import OffsetSet, _ranges, refusal

NOTES = [
    ("source-topic", b"digits"),
    ("source-partition", b"1"),
    ("source-offset", b"302"),
    ("source-timestamp", b"1700000000000"),
    ("reason", b"shape"),
    ("error", b"a row of x has shape [2]"),
]


def letter(headers: list[tuple[str, bytes | None]], value: bytes | None = b"v", key: bytes | None = None) -> DeadLetter:
    return DeadLetter.of(
        SimpleNamespace(
            topic="digits.dlq", partition=0, offset=17, timestamp=1800, key=key, value=value, headers=headers
        )
    )


def test_the_records_own_headers_are_told_from_the_trainers() -> None:
    own = [("content-type", b"application/json"), ("reason", b"mine"), ("trace", None), ("source-topic", b"mine")]
    found = letter([*own, *NOTES])
    assert found.own == (*own[:2], ("trace", b""), own[3])
    assert (found.reason, found.source_partition, found.notes["source-topic"]) == (b"shape", 1, b"digits")


def test_what_an_older_trainer_did_not_note_has_a_stand_in() -> None:
    found = letter(NOTES)
    assert (found.failed_ms, found.truncated_from, found.replayed_from) == (1800, None, None)
    newer = letter([("replayed-from", b"digits.dlq:0:3"), *NOTES, ("failed-at", b"1900"), ("truncated-from", b"70")])
    assert (newer.failed_ms, newer.truncated_from, newer.replayed_from) == (1900, 70, b"digits.dlq:0:3")


def test_a_record_that_no_trainer_put_there_is_a_letter_without_notes() -> None:
    found = letter([("reason", b"mine")])
    assert (found.reason, found.origin, found.source_partition) == (b"", None, None)
    assert found.own == (("reason", b"mine"),)


@given(st.lists(st.tuples(st.sampled_from([name for name, _ in NOTES] + ["failed-at", "x"]), st.binary(max_size=30))))
def test_whatever_the_headers_a_letter_can_be_read(headers: list[tuple[str, bytes]]) -> None:
    found = letter(headers)
    assert len(found.own) + len(found.notes) <= len(headers)
    assert isinstance(found.failed_ms, int)
    refusal(found, frozenset({0}))


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (letter([*NOTES, ("truncated-from", b"70000")]), "only the first 1 of 70000 bytes were kept"),
        (letter([*NOTES, ("truncated-from", b"many")]), "only the first 1 of more bytes were kept"),
        (letter([*NOTES[:4], ("reason", b"too-large")], key=b"k" * 1024), "its key was cut to 1024 bytes"),
        (letter([]), "it does not say which partition"),
        (letter(NOTES), None),
    ],
)
def test_a_letter_that_is_not_the_whole_record_is_refused(found: DeadLetter, why: str | None) -> None:
    said = refusal(found, frozenset({1}))
    assert said is None if why is None else why in said


def test_a_letter_goes_only_into_a_partition_that_exists_unless_another_topic_is_named() -> None:
    assert "no such partition" in refusal(letter(NOTES), frozenset({0}))
    assert refusal(letter(NOTES), None) is None


@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 99)), max_size=20))
def test_a_set_of_offsets_holds_what_was_added_and_no_more(ranges: list[tuple[int, int]]) -> None:
    offsets, plain = OffsetSet(), set()
    for first, length in ranges:
        offsets.add(first, first + length)
        plain |= set(range(first, first + length + 1))
    near = {place + step for place in plain for step in (-1, 0, 1)} | {0, 2**63}
    assert {place for place in near if place in offsets} == plain


@given(st.lists(st.integers(0, 60), max_size=40))
def test_ranges_of_offsets_are_those_offsets(offsets: list[int]) -> None:
    found = _ranges(offsets)
    assert [place for first, last in found for place in range(first, last + 1)] == sorted(set(offsets))
    assert all(a[1] + 1 < b[0] for a, b in pairwise(found)), "as few as can be"
