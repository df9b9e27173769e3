"""A whole bank as one file, specified byte by byte. All numbers are little-endian.

    offset  size  what
    0       4     magic "SSBF"
    4       1     format, 1
    5       3     zero
    8       8     F, size of the whole file
    16      4     n, number of entries
    20      4     D, size of the directory
    24      D     directory: per entry the length of its name (2), the size of its bytes (8), its name (ASCII)
    24 + D        the entries' bytes, one after the other, in the order of the directory
    F - 32  32    sha256 of all bytes before

Entries are named after what they hold, and stand in this order, each name once:

    bank                          fields: name of the bank, version, epoch (the fence of its trainers)
    spec                          fields: what gives the bits their meaning, and the weights' fingerprint
    totals                        fields: counters
    progress:<topic>:<partition>  fields: how far a partition was read, and its streams; by topic, then partition
    mask:<id>                     a mask, and next to it, by rising id,
    stats:<id>                    fields: its numbers,
    state:<id>                    its hot state, where it has one (`supsup_online.codec` has the bytes of both)

Fields are names with values, both plain bytes: their number (4), then for each the length of the name (4), the name,
the length of the value (4), the value; names rise, so each stands there once.

A file has no time in it: the same bank gives the same bytes. Every violation raises CodecError and says which; no size
is believed before it was held against the size of the file. This module knows what goes where, not whether it makes
sense: that takes the codec and the network.
"""

import hashlib
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import BinaryIO, Final

from supsup_online.errors import CodecError

MAX_ENTRIES: Final = 300_000  # 100,000 masks, every one of them hot
MAX_ENTRY_BYTES: Final = 2**29  # the longest string that Redis takes
MAX_FIELDS: Final = 1_000_000
MAX_NUMBER: Final = 10**12  # versions and epochs: Lua spells larger numbers with an exponent

_HEADER: Final = struct.Struct("<4sB3sQII")
_ENTRY: Final = struct.Struct("<HQ")
_LENGTH: Final = struct.Struct("<I")
_MAGIC: Final = b"SSBF"
_FORMAT: Final = 1
_CHECKSUM_BYTES: Final = 32
_MOST_NAME_BYTES: Final = 300
_PIECE_BYTES: Final = 2**20

_FIXED: Final = ("bank", "spec", "totals")
_OF_A_MASK: Final = ("mask", "stats", "state")
_MASK_NAME: Final = re.compile(r"(mask|stats|state):(0|[1-9][0-9]{0,9})")
_PROGRESS_NAME: Final = re.compile(r"progress:([A-Za-z0-9._-]{1,249}):(0|[1-9][0-9]{0,8})")

Order = tuple[int, str, int, int]


def place(name: str) -> Order:
    """Where an entry stands among the others.

    Raises:
        CodecError: no entry is called that.
    """
    if name in _FIXED:
        return (_FIXED.index(name), "", 0, 0)
    if match := _PROGRESS_NAME.fullmatch(name):
        return (len(_FIXED), match[1], int(match[2]), 0)
    if (match := _MASK_NAME.fullmatch(name)) and int(match[2]) < 2**31:
        return (len(_FIXED) + 1, "", int(match[2]), _OF_A_MASK.index(match[1]))
    raise CodecError(f"bank file: there is no entry {name[:_MOST_NAME_BYTES]!r}")


def mask_ids(names: Iterable[str]) -> list[int]:
    """The ids of all masks among the entries, in their order."""
    return [int(name.removeprefix("mask:")) for name in names if name.startswith("mask:")]


# -- fields


def encode_fields(fields: Mapping[bytes, bytes]) -> bytes:
    """Names and values as bytes."""
    parts = [_LENGTH.pack(len(fields))]
    for name, value in sorted(fields.items()):
        parts += [_LENGTH.pack(len(name)), name, _LENGTH.pack(len(value)), value]
    return b"".join(parts)


def decode_fields(blob: bytes, what: str = "fields") -> dict[bytes, bytes]:
    """The inverse of `encode_fields`.

    Raises:
        CodecError: lengths that do not fit, names that do not rise, or bytes left over.
    """
    (count,), at = _LENGTH.unpack(_slice(blob, 0, _LENGTH.size, what)), _LENGTH.size
    if count > MAX_FIELDS:
        raise CodecError(f"{what}: {count} fields are more than {MAX_FIELDS}")
    found: dict[bytes, bytes] = {}
    before: bytes | None = None
    for _ in range(count):
        name, at = _string(blob, at, what)
        found[name], at = _string(blob, at, what)
        if before is not None and name <= before:
            raise CodecError(f"{what}: names of fields do not rise")
        before = name
    if at != len(blob):
        raise CodecError(f"{what}: {len(blob) - at} bytes left over")
    return found


def _string(blob: bytes, at: int, what: str) -> tuple[bytes, int]:
    (length,) = _LENGTH.unpack(_slice(blob, at, _LENGTH.size, what))
    start = at + _LENGTH.size
    return _slice(blob, start, length, what), start + length


def _slice(blob: bytes, at: int, length: int, what: str) -> bytes:
    if length > len(blob) - at:
        raise CodecError(f"{what}: a length points past the end")
    return blob[at : at + length]


# -- writing


def write_bank(file: BinaryIO, entries: Mapping[str, bytes], wrote: Callable[[int], object] = lambda _: None) -> int:
    """Write a bank file from where `file` stands; returns its size in bytes.

    Args:
        file: need not be seekable.
        entries: name -> bytes, in any order.
        wrote: told the number of bytes after each piece.

    Raises:
        CodecError: the entries make no bank.
    """
    names = sorted(entries, key=place)
    sizes = {name: len(entries[name]) for name in names}
    _check_directory(sizes)
    directory = b"".join(_ENTRY.pack(len(name), size) + name.encode("ascii") for name, size in sizes.items())
    total = _HEADER.size + len(directory) + sum(sizes.values()) + _CHECKSUM_BYTES
    digest = hashlib.sha256()
    header = _HEADER.pack(_MAGIC, _FORMAT, bytes(3), total, len(names), len(directory))
    for piece in (header, directory, *(entries[name] for name in names)):
        digest.update(piece)
        file.write(piece)
        wrote(len(piece))
    file.write(digest.digest())
    wrote(_CHECKSUM_BYTES)
    return total


# -- reading


class BankFile:
    """A bank file, opened: header and directory are read and checked, the entries come one by one.

    Args:
        file: seekable; closed by whoever opened it.

    Attributes:
        size: of the file, in bytes.
        entries: name -> size in bytes, in their order.

    Raises:
        CodecError: this is no bank file, or its directory does not fit it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if self.size < _HEADER.size + _CHECKSUM_BYTES:
            raise CodecError(f"bank file: {self.size} bytes are shorter than its header")
        header = self._read(_HEADER.size)
        count, directory_size = self._check_header(header)
        directory = self._read(directory_size)
        self.entries = _parse_directory(directory, count)
        _check_directory(self.entries)
        expected = _HEADER.size + directory_size + sum(self.entries.values()) + _CHECKSUM_BYTES
        if expected != self.size:
            raise CodecError(f"bank file: {self.size} bytes, its directory asks for {expected}")
        self._front = header + directory

    def verify_checksum(self, read: Callable[[int], object] = lambda _: None) -> None:
        """Read the file once, a piece at a time, and compare its sha256; `read` is told the bytes of each piece.

        Raises:
            CodecError: it does not match.
        """
        self._file.seek(0)
        digest, left = hashlib.sha256(), self.size - _CHECKSUM_BYTES
        while left:
            piece = self._read(min(left, _PIECE_BYTES))
            digest.update(piece)
            read(len(piece))
            left -= len(piece)
        self._compare(digest.digest())

    def payloads(self) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of each entry, in order; believe none before the last has come.

        Raises:
            CodecError: at the end, when these were not the bytes of the checksum.
        """
        self._file.seek(len(self._front))
        digest = hashlib.sha256(self._front)
        for name, size in self.entries.items():
            payload = self._read(size)
            digest.update(payload)
            yield name, payload
        self._compare(digest.digest())

    def _read(self, size: int) -> bytes:
        found = self._file.read(size)
        if len(found) != size:
            raise CodecError("bank file: it ends before its size says; was it changed while it was read?")
        return found

    def _compare(self, digest: bytes) -> None:
        if self._read(_CHECKSUM_BYTES) != digest:
            raise CodecError("bank file: the checksum does not match, the bytes are damaged; take another copy")

    def _check_header(self, header: bytes) -> tuple[int, int]:
        magic, version, zero, size, count, directory_size = _HEADER.unpack(header)
        if magic != _MAGIC:
            raise CodecError(f"bank file: starts with {magic!r}, not with {_MAGIC!r}: this is no bank file")
        if version != _FORMAT:
            raise CodecError(f"bank file: format {version} is not the one this version reads ({_FORMAT})")
        if any(zero):
            raise CodecError("bank file: bits that must be zero are set")
        if size != self.size:
            raise CodecError(f"bank file: {self.size} bytes, its header says {size}; was it copied to its end?")
        if count > MAX_ENTRIES:
            raise CodecError(f"bank file: {count} entries are more than {MAX_ENTRIES}")
        most = min(self.size - _HEADER.size - _CHECKSUM_BYTES, count * (_ENTRY.size + _MOST_NAME_BYTES))
        if directory_size > most:
            raise CodecError(f"bank file: a directory of {directory_size} bytes is more than {most}")
        return count, directory_size


def _parse_directory(directory: bytes, count: int) -> dict[str, int]:
    found: dict[str, int] = {}
    at = 0
    for _ in range(count):
        length, size = _ENTRY.unpack(_slice(directory, at, _ENTRY.size, "bank file: directory"))
        raw = _slice(directory, at + _ENTRY.size, length, "bank file: directory")
        at += _ENTRY.size + length
        name = raw.decode("ascii", errors="replace")
        if name in found:
            raise CodecError(f"bank file: the entry {name!r} is there twice")
        found[name] = size
    if at != len(directory):
        raise CodecError(f"bank file: {len(directory) - at} bytes of the directory are left over")
    return found


def _check_directory(sizes: Mapping[str, int]) -> None:
    if len(sizes) > MAX_ENTRIES:
        raise CodecError(f"bank file: {len(sizes)} entries are more than {MAX_ENTRIES}")
    places = [place(name) for name in sizes]
    if any(a >= b for a, b in pairwise(places)):
        raise CodecError("bank file: its entries are not in order")
    if missing := [name for name in _FIXED if name not in sizes]:
        raise CodecError(f"bank file: {' and '.join(missing)} missing")
    for name, size in sizes.items():
        if size > MAX_ENTRY_BYTES:
            raise CodecError(f"bank file: {name} has {size} bytes, more than {MAX_ENTRY_BYTES}")
    ids = {kind: {at[2] for at in places if at[0] > len(_FIXED) and at[3] == i} for i, kind in enumerate(_OF_A_MASK)}
    if ids["mask"] != ids["stats"] or not ids["state"] <= ids["mask"]:
        raise CodecError("bank file: masks, statistics and hot states do not belong together")
