"""Bank files: golden bytes that never change, exact round trips, CodecError for every violation and nothing else.

tests/golden/bank.hex was written with struct and hashlib alone, from the layout table of the module's docstring.
"""

import contextlib
import hashlib
import io
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supsup_online import bank_file
from supsup_online.bank_file import BankFile, decode_fields, encode_fields, place, write_bank
from supsup_online.errors import CodecError

GOLDEN = bytes.fromhex((Path(__file__).parent.parent / "golden" / "bank.hex").read_text())
HEADER, SUM = 24, 32
relaxed = settings(max_examples=60, deadline=None)


def read(blob):
    """All entries, as a reader gets them."""
    return dict(BankFile(io.BytesIO(blob)).payloads())


def written(entries):
    target = io.BytesIO()
    size = write_bank(target, entries)
    assert size == len(target.getvalue())
    return target.getvalue()


def built(entries, **changed):
    """A file of any entries, right or wrong, with a right checksum; keywords replace numbers of the header."""
    directory = b"".join(struct.pack("<HQ", len(name), len(payload)) + name for name, payload in entries)
    body = b"".join(payload for _, payload in entries)
    size = HEADER + len(directory) + len(body) + SUM
    numbers = {"magic": b"SSBF", "format": 1, "zero": bytes(3), "size": size, "count": len(entries)}
    numbers |= {"directory": len(directory)} | changed
    blob = struct.pack("<4sB3sQII", *numbers.values()) + directory + body
    return blob + hashlib.sha256(blob).digest()


EMPTY = encode_fields({})
FIXED = [(b"bank", EMPTY), (b"spec", EMPTY), (b"totals", EMPTY)]
ONE = [*FIXED, (b"mask:3", b"m"), (b"stats:3", EMPTY), (b"state:3", b"s")]
GOOD = built(ONE)


# -- golden bytes


def test_the_bytes_of_a_bank_file_never_change():
    entries = read(GOLDEN)
    assert written(entries) == GOLDEN
    assert list(entries) == ["bank", "spec", "totals", "progress:t:0", "mask:2", "stats:2", "state:2"]
    assert decode_fields(entries["bank"]) == {b"name": b"golden", b"version": b"41", b"epoch": b"7"}


def test_the_file_of_the_docstring_is_the_one_that_is_read():
    assert list(read(GOOD)) == ["bank", "spec", "totals", "mask:3", "stats:3", "state:3"]
    assert written(read(GOOD)) == GOOD


# -- round trips

fields = st.dictionaries(st.binary(max_size=20), st.binary(max_size=40), max_size=8)


@relaxed
@given(fields)
def test_fields_come_back_as_they_were(values):
    assert decode_fields(encode_fields(values)) == values


@st.composite
def banks(draw):
    entries = {name: encode_fields(draw(fields)) for name in ("bank", "spec", "totals")}
    for topic, partition in draw(
        st.sets(st.tuples(st.sampled_from(["a", "a.b", "b-1"]), st.integers(0, 99)), max_size=4)
    ):
        entries[f"progress:{topic}:{partition}"] = encode_fields(draw(fields))
    for mask_id in draw(st.sets(st.integers(0, 2**31 - 1), max_size=6)):
        entries[f"mask:{mask_id}"] = draw(st.binary(max_size=30))
        entries[f"stats:{mask_id}"] = encode_fields(draw(fields))
        if draw(st.booleans()):
            entries[f"state:{mask_id}"] = draw(st.binary(max_size=60))
    return entries


@relaxed
@given(banks(), st.randoms())
def test_a_bank_comes_back_as_it_was_whatever_order_it_was_given_in(entries, random):
    names = list(entries)
    random.shuffle(names)
    blob = written({name: entries[name] for name in names})
    file = BankFile(io.BytesIO(blob))
    file.verify_checksum()
    found = dict(file.payloads())
    assert found == entries
    assert list(found) == sorted(entries, key=place)
    assert file.entries == {name: len(payload) for name, payload in found.items()}


# -- hostile bytes


@relaxed
@given(st.integers(0, len(GOLDEN) - 1), st.integers(1, 255))
def test_no_changed_byte_goes_unnoticed(at, difference):
    blob = bytearray(GOLDEN)
    blob[at] ^= difference
    with pytest.raises(CodecError):
        read(bytes(blob))


@relaxed
@given(st.integers(0, len(GOLDEN) - 1))
def test_no_missing_end_goes_unnoticed(length):
    with pytest.raises(CodecError):
        read(GOLDEN[:length])


@relaxed
@given(st.lists(st.tuples(st.integers(0, len(GOLDEN) - SUM - 1), st.binary(min_size=1, max_size=8)), max_size=4))
def test_with_the_checksum_made_right_it_is_read_or_refused_and_nothing_else(changes):
    body = bytearray(GOLDEN[:-SUM])
    for at, value in changes:
        body[at : at + len(value)] = value
    body = bytes(body[: len(GOLDEN) - SUM])
    try:
        entries = read(body + hashlib.sha256(body).digest())
        for name, payload in entries.items():
            if not name.startswith(("mask", "state")):
                decode_fields(payload)
    except CodecError:
        pass


@relaxed
@given(st.binary(max_size=200))
def test_any_bytes_are_fields_or_refused_and_nothing_else(blob):
    with contextlib.suppress(CodecError):
        assert encode_fields(decode_fields(blob)) == blob


@relaxed
@given(st.binary(max_size=200), st.integers(0, 20))
def test_any_directory_is_read_or_refused_and_nothing_else(directory, count):
    size = HEADER + len(directory) + SUM
    blob = struct.pack("<4sB3xQII", b"SSBF", 1, size, count, len(directory)) + directory
    with contextlib.suppress(CodecError):
        read(blob + hashlib.sha256(blob).digest())


@pytest.mark.parametrize(
    ("blob", "complaint"),
    [
        (b"", "shorter than its header"),
        (built(ONE, magic=b"SSMK"), "no bank file"),
        (built(ONE, format=2), "format 2"),
        (built(ONE, zero=b"\0\1\0"), "must be zero"),
        (built(ONE, size=2**63), "its header says 9223372036854775808"),
        (built(ONE, count=2**32 - 1), "more than 300000"),
        (built(ONE, count=5), "left over"),
        (built(ONE, count=7), "past the end"),
        (built(ONE, directory=2**32 - 1), "a directory of 4294967295 bytes"),
        (GOOD + b"\0", "its header says"),
        (built([*FIXED, (b"extra", b"")]), "no entry 'extra'"),
        (built([*FIXED, (b"mask:03", b""), (b"stats:03", EMPTY)]), "no entry 'mask:03'"),
        (built([*FIXED, (b"mask:-1", b"")]), "no entry 'mask:-1'"),
        (built([*FIXED, (b"mask:2147483648", b"")]), "no entry 'mask:2147483648'"),
        (built([*FIXED, (b"progress:a:b:0", EMPTY)]), "no entry"),
        (built([*FIXED, (b"progress:" + b"a" * 250 + b":0", EMPTY)]), "no entry"),
        (built([*FIXED, (b"mask:\xff", b"")]), "no entry"),
        (built([*FIXED, FIXED[2]]), "there twice"),
        (built([*FIXED[:2], *ONE[3:], FIXED[2]]), "not in order"),
        (built([*FIXED, ONE[4], ONE[3]]), "not in order"),
        (built(FIXED[1:]), "bank missing"),
        (built([]), "bank and spec and totals missing"),
        (built([*FIXED, ONE[3]]), "do not belong together"),
        (built([*FIXED, ONE[4]]), "do not belong together"),
        (built([*FIXED, ONE[5]]), "do not belong together"),
    ],
)
def test_each_violation_is_named(blob, complaint):
    with pytest.raises(CodecError, match=complaint):
        read(blob)


def sized(*sizes):
    """A file whose directory claims these sizes for its entries."""
    directory = b"".join(struct.pack("<HQ", len(n), s) + n for (n, _), s in zip(FIXED, sizes, strict=True))
    size = HEADER + len(directory) + SUM
    blob = struct.pack("<4sB3xQII", b"SSBF", 1, size, 3, len(directory)) + directory
    return blob + hashlib.sha256(blob).digest()


@pytest.mark.parametrize("sizes", [(2**29, 2**29, 2**29), (2**64 - 1, 1, 1), (1, 0, 0)])
def test_no_size_is_believed_before_it_was_held_against_the_file(sizes):
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            read(sized(*sizes))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("blob", "complaint"),
    [
        (b"\0\0\0", "past the end"),
        (struct.pack("<I", 2**32 - 1), "more than 1000000"),
        (struct.pack("<I", 1_000_000), "past the end"),
        (struct.pack("<II", 1, 2**32 - 1), "past the end"),
        (EMPTY + b"\0", "1 bytes left over"),
        (struct.pack("<II", 2, 0) + bytes(12), "do not rise"),
    ],
)
def test_each_violation_of_fields_is_named(blob, complaint):
    with pytest.raises(CodecError, match=complaint):
        decode_fields(blob, "spec")


def test_a_damaged_file_is_refused_before_its_entries_are_looked_at():
    damaged = bytearray(GOLDEN)
    damaged[-40] ^= 1
    with pytest.raises(CodecError, match="checksum does not match"):
        BankFile(io.BytesIO(damaged)).verify_checksum()


def test_a_file_that_shrinks_while_it_is_read_is_noticed():
    source = io.BytesIO(GOLDEN)
    file = BankFile(source)
    source.truncate(len(GOLDEN) - 100)
    with pytest.raises(CodecError, match="was it changed while it was read"):
        file.verify_checksum()


def test_what_makes_no_bank_is_not_written():
    target = io.BytesIO()
    with pytest.raises(CodecError, match="do not belong together"):
        write_bank(target, {"bank": b"", "spec": b"", "totals": b"", "mask:0": b""})
    assert target.getvalue() == b""


def test_too_many_entries_are_refused(monkeypatch):
    monkeypatch.setattr(bank_file, "MAX_ENTRIES", 5)
    with pytest.raises(CodecError, match="more than 5"):
        write_bank(io.BytesIO(), read(GOOD))


def test_progress_is_told_by_the_byte():
    told, target = [], io.BytesIO()
    size = write_bank(target, read(GOLDEN), told.append)
    assert sum(told) == size
    told.clear()
    BankFile(target).verify_checksum(told.append)
    assert sum(told) == size - SUM
