"""Masks and hot states as bytes, specified byte by byte. All numbers are little-endian.

A mask (what a replica reads; 39,440 bytes for LeNet 300-100 with 500 outputs):

    offset  size         what
    0       4            magic "SSMK"
    4       1            format: 1, or 2 for a network whose normalisations keep statistics
    5       3            zero
    8       16           `Network.architecture_hash`: first 16 bytes of sha256 over the layer shapes
    24      8            P, number of weights
    32      ceil(P / 8)  bit i of the mask is bit i % 8 (least significant first) of byte i // 8; bits past P are zero
    ...     4 F          format 2: the statistics, float32 (`parts` says which)
    end-8   8            checksum: first 8 bytes of sha256 over all bytes before

A hot state (what a trainer needs to go on with the very same bits):

    offset  size         what
    0       4            magic "SSHS"
    4       1            format, as above
    5       1            number of moments m
    6       2            zero
    8       16           architecture hash
    24      8            P
    32      8            updates made, unsigned
    40      8            optimiser name, ASCII, padded with zero bytes
    48      4 P          scores, float32
    ...     4 P m        moments, float32, one after the other
    ...     4 F          format 2: the statistics, float32
    end-8   8            checksum, as above

Every violation raises CodecError and says which; sizes are checked before anything is copied.
"""

import hashlib
import struct
from typing import Final

import numpy as np
import torch

from supsup_online.bitpack import MaskLayout, Statistics, Words
from supsup_online.errors import CodecError
from supsup_online.network import Network
from supsup_online.optimisers import Optimiser, OptimiserState
from supsup_online.trainer import HotMask

_MASK: Final = struct.Struct("<4sB3x16sQ")
_HOT: Final = struct.Struct("<4sBB2x16sQQ8s")
_MASK_MAGIC: Final = b"SSMK"
_HOT_MAGIC: Final = b"SSHS"
_PLAIN: Final = 1
_WITH_STATISTICS: Final = 2
_CHECKSUM_BYTES: Final = 8


def encode_mask(network: Network, words: Words) -> bytes:
    """A packed mask (word_count,) as bytes."""
    bits = np.packbits(network.layout.unpack(words), bitorder="little").tobytes()
    header = _MASK.pack(_MASK_MAGIC, _format(network), network.architecture_hash, network.architecture.weight_count)
    return _sealed(header, bits, network.layout.statistics(words).astype("<f4", copy=False).tobytes())


def decode_mask(network: Network, blob: bytes) -> Words:
    """The inverse of `encode_mask`.

    Raises:
        CodecError: not the bytes of a mask of this architecture, or damaged.
    """
    count, layout = network.architecture.weight_count, network.layout
    body = _opened(blob, mask_bytes(layout) - _CHECKSUM_BYTES, "mask")
    magic, version, shape_hash, stored = _MASK.unpack_from(body)
    _check_header(network, (magic, version, shape_hash, stored), _MASK_MAGIC, "mask")
    packed = np.frombuffer(body, dtype=np.uint8, offset=_MASK.size, count=-(-count // 8))
    if any(body[5:8]) or (count % 8 and packed[-1] >> (count % 8)):
        raise CodecError("mask: bits that must be zero are set")
    bits = np.unpackbits(packed, count=count, bitorder="little").view(np.bool_)
    return layout.pack(bits, _statistics(layout, body, _MASK.size + len(packed), "mask"))


def mask_bytes(layout: MaskLayout) -> int:
    """Size of a stored mask of some layout."""
    return _MASK.size + -(-layout.weight_count // 8) + 4 * layout.statistics_count + _CHECKSUM_BYTES


def encode_hot(network: Network, optimiser: Optimiser, hot: HotMask) -> bytes:
    """Scores and optimiser state of a mask in training as bytes."""
    header = _HOT.pack(
        _HOT_MAGIC,
        _format(network),
        len(hot.optimiser.moments),
        network.architecture_hash,
        network.architecture.weight_count,
        hot.optimiser.step,
        optimiser.name.encode("ascii"),
    )
    vectors = [hot.scores, *hot.optimiser.moments, hot.statistics]
    return _sealed(header, *(v.cpu().numpy().astype("<f4", copy=False).view(np.uint8).data for v in vectors))


def decode_hot(network: Network, optimiser: Optimiser, blob: bytes) -> HotMask | None:
    """The inverse of `encode_hot`; None when another optimiser left it (the mask is then rekindled from its bits).

    Raises:
        CodecError: not the bytes of a hot state of this architecture, or damaged.
    """
    if len(blob) < _HOT.size:
        raise CodecError(f"hot state: {len(blob)} bytes are shorter than its header")
    magic, version, moments, shape_hash, count, step, name = _HOT.unpack_from(blob)
    _check_header(network, (magic, version, shape_hash, count), _HOT_MAGIC, "hot state")
    behind = _HOT.size + 4 * count * (1 + moments)
    body = _opened(blob, behind + 4 * network.layout.statistics_count, "hot state")
    if any(body[6:8]):
        raise CodecError("hot state: bits that must be zero are set")
    if name.rstrip(b"\0") != optimiser.name.encode("ascii") or moments != optimiser.moment_count:
        return None
    vectors = np.frombuffer(body, dtype="<f4", offset=_HOT.size, count=count * (1 + moments)).reshape(-1, count)
    if not np.isfinite(vectors).all():
        raise CodecError("hot state: a number is not finite")
    scores, *rest = (torch.from_numpy(v.astype(np.float32)).to(network.device) for v in vectors)
    statistics = torch.from_numpy(_statistics(network.layout, body, behind, "hot state")).to(network.device)
    return HotMask(scores, OptimiserState(step, rest), statistics)


def optimiser_of(blob: bytes) -> str:
    """The name of the optimiser that left a hot state; `decode_hot` says whether the rest is right.

    Raises:
        CodecError: shorter than a hot state's header, or the name is not ASCII.
    """
    if len(blob) < _HOT.size:
        raise CodecError(f"hot state: {len(blob)} bytes are shorter than its header")
    name: bytes = _HOT.unpack_from(blob)[6]
    try:
        return name.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise CodecError(f"hot state: {name!r} is no name of an optimiser") from error


def _statistics(layout: MaskLayout, body: memoryview, offset: int, what: str) -> Statistics:
    """The statistics at the end of a body."""
    found = np.frombuffer(body, dtype="<f4", offset=offset).astype(np.float32)
    if not np.isfinite(found).all():
        raise CodecError(f"{what}: a number is not finite")
    if (found[layout.variances] < 0).any() or (found[:1] < 0).any() or (found[:1] % 1).any():
        raise CodecError(f"{what}: a variance is negative, or the count of batches is no whole number")
    return found


def _format(network: Network) -> int:
    return _WITH_STATISTICS if network.layout.statistics_count else _PLAIN


def _sealed(*parts: bytes | memoryview) -> bytes:
    """The parts and their checksum; megabytes, so they are copied once only."""
    checksum = hashlib.sha256()
    for part in parts:
        checksum.update(part)
    return b"".join([*parts, checksum.digest()[:_CHECKSUM_BYTES]])


def _opened(blob: bytes, size: int, what: str) -> memoryview:
    """The bytes before the checksum, once size and checksum are right."""
    if len(blob) != size + _CHECKSUM_BYTES:
        raise CodecError(f"{what}: {len(blob)} bytes, expected {size + _CHECKSUM_BYTES}")
    body = memoryview(blob)[:size]
    if hashlib.sha256(body).digest()[:_CHECKSUM_BYTES] != blob[size:]:
        raise CodecError(f"{what}: the checksum does not match, the bytes are damaged")
    return body


def _check_header(network: Network, header: tuple[bytes, int, bytes, int], magic: bytes, what: str) -> None:
    found_magic, version, shape_hash, count = header
    if found_magic != magic:
        raise CodecError(f"{what}: starts with {found_magic!r}, not with {magic!r}")
    if version != _format(network):
        raise CodecError(f"{what}: format {version} is not the one this network's have ({_format(network)})")
    if shape_hash != network.architecture_hash or count != network.architecture.weight_count:
        raise CodecError(f"{what}: belongs to another architecture than {network.architecture.name}")
