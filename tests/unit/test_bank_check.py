"""Whether the entries of a bank make sense together: each way in which they do not is named."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.bank_transfer import check, check_entries
from daemon.errors import BankMismatchError
from supsup_online import codec
from supsup_online.bank_file import BankFile, decode_fields, encode_fields, write_bank
from supsup_online.network import Network
from supsup_online.optimisers import SGD, OptimiserState
from supsup_online.spec import LATER, BankSpec
from supsup_online.trainer import HotMask
from unit import tiny

GOLDEN = bytes.fromhex((Path(__file__).parent.parent / "golden" / "bank.hex").read_text())
ENTRIES = dict(BankFile(io.BytesIO(GOLDEN)).payloads())
NETWORK = tiny.network(BankSpec("mlp-2", (3,), classes=2, outputs=2))
relaxed = settings(max_examples=60, deadline=None)


def changed(entry, **values):
    """The golden bank with fields of an entry replaced; None takes one away."""
    texts = {name.decode(): value for name, value in decode_fields(ENTRIES[entry]).items()}
    texts |= {name: value if value is None else value.encode() for name, value in values.items()}
    left = {name.encode(): value for name, value in texts.items() if value is not None}
    return ENTRIES | {entry: encode_fields(left)}


def stream(**values):
    state = {"mask": 2, "position": 3, "last_used": 3, "residuals": [0.5]} | values
    return {"stream:t/0": json.dumps(state)}


def test_the_golden_bank_makes_sense_and_is_told():
    for found in (check(BankFile(io.BytesIO(GOLDEN))), check_entries(ENTRIES)):
        assert (found.bank, found.version, found.epoch) == ("golden", 41, 7)
        assert (found.masks, found.hot, found.streams) == (1, 1, 1)
        assert found.positions == {"t:0": 3}
        assert found.totals == {"records": 3, "next_id": 3, "steps": 3}
        stored = {**NETWORK.spec.to_text(), "fingerprint": NETWORK.fingerprint}
        assert found.spec == {name: text for name, text in stored.items() if name not in LATER}, "made before these"


def test_a_bank_without_any_commit_makes_sense():
    empty = {name: ENTRIES[name] for name in ("bank", "spec")} | {"totals": encode_fields({})}
    assert check_entries(empty).masks == 0


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        (changed("bank", name="no:name"), "bank: 'no:name' is no name"),
        (changed("bank", version="-1"), "bank: version -1 lies outside"),
        (changed("bank", epoch=str(10**12 + 1)), "bank: epoch 1000000000001 lies outside"),
        (changed("bank", epoch=None), "bank: fields name, version instead of"),
        (changed("bank", more="x"), "bank: fields epoch, more, name, version instead of"),
        (changed("spec", weight_seed="1"), "spec: weights regenerated from seed 1 have fingerprint"),
        (changed("spec", fingerprint="0" * 64), "the bank's have 000000000000: its masks mean nothing here"),
        (changed("spec", fingerprint=None), "spec: 'fingerprint'"),
        (changed("spec", classes="one"), "spec: the stored spec is damaged"),
        (changed("spec", keep_fraction="2"), "spec: "),
        (changed("spec", schema="2"), "spec: schema 2"),
        (changed("spec", architecture="resnet"), "spec: unknown architecture"),
        (changed("spec", architecture="mlp-9"), "spec: mask:2 has not the size of a mask of mlp-9"),
        (changed("spec", architecture="mlp" + "-1" * 600), "spec: architecture is longer than"),
        (changed("totals", next_id="2"), "totals: next_id is not above the newest mask's id, 2"),
        (changed("totals", next_id=None), "totals: next_id is not above"),
        (changed("totals", records="many"), "totals: invalid literal"),
        (changed("totals", records=str(2**63)), "totals: records 9223372036854775808 lies outside"),
        (changed("stats:2", loss="x"), "stats:2: stored statistics are damaged"),
        (changed("stats:2", batches=None), "stats:2: stored statistics are damaged"),
        (changed("progress:t:0", offset="-1"), "progress:t:0: offset -1 lies outside"),
        (changed("progress:t:0", offset=None), "progress:t:0: 'offset'"),
        (changed("progress:t:0", mask="1"), "progress:t:0: unknown field 'mask'"),
        (changed("progress:t:0", **{"stream:x": "{"}), "the stored state of a stream is damaged"),
        (changed("progress:t:0", **{"stream:x": "[" * 100_000}), "the stored state of a stream is damaged"),
        (changed("progress:t:0", **{"stream:x": " " * (2**20 + 1)}), "stream:x is longer than"),
        (changed("progress:t:0", **stream(residuals=7)), "the stored state of a stream is damaged"),
        (changed("progress:t:0", **stream(mask=[2])), "the stored state of a stream is damaged"),
        (changed("progress:t:0", **stream(position=float("inf"))), "the stored state of a stream is damaged"),
        (ENTRIES | {"totals": encode_fields({b"records": b"\xff"})}, "totals: 'utf-8' codec can't decode"),
        (ENTRIES | {"totals": b"?"}, "totals: fields: a length points past the end"),
        (ENTRIES | {"mask:2": ENTRIES["mask:2"][:-1] + b"?"}, "mask:2: mask: the checksum does not match"),
        (ENTRIES | {"state:2": ENTRIES["state:2"][:-1] + b"?"}, "state:2: hot state: the checksum does not match"),
        (ENTRIES | {"state:2": b"short"}, "state:2: hot state: 5 bytes are shorter than its header"),
    ],
)
def test_what_makes_no_sense_is_named(entries, complaint):
    with pytest.raises(BankMismatchError) as told:
        check_entries(entries)
    assert complaint in str(told.value)


@pytest.mark.parametrize(
    ("name", "moments", "complaint"),
    [
        ("adam", 1, "its number of moments is not that of adam"),
        ("newton", 1, "left by an unknown optimiser 'newton'"),
    ],
)
def test_a_hot_state_must_be_one_that_an_optimiser_left(name, moments, complaint):
    vector = torch.zeros(NETWORK.architecture.weight_count)
    optimiser = type("Other", (SGD,), {"name": name})()
    state = codec.encode_hot(NETWORK, optimiser, HotMask(vector, OptimiserState(1, [vector] * moments)))
    with pytest.raises(BankMismatchError, match=complaint):
        check_entries(ENTRIES | {"state:2": state})


def test_no_weights_are_drawn_for_masks_of_another_size(monkeypatch):
    monkeypatch.setattr(Network, "build", lambda *_, **__: pytest.fail("weights were drawn"))
    huge = changed("spec", architecture="mlp-40000-40000")
    with pytest.raises(BankMismatchError, match="has not the size"):
        check_entries(huge)
    without = {name: payload for name, payload in huge.items() if not name.endswith(":2")}
    assert check_entries(without).masks == 0


def test_masks_of_another_network_of_the_same_size_are_refused():
    other = tiny.network(replace(NETWORK.spec, architecture="mlp-2-2", input_shape=(1,)))  # 2 + 4 + 4 weights
    mask = codec.encode_mask(other, other.layout.pack(np.ones(10, np.bool_)))
    assert len(mask) == len(ENTRIES["mask:2"])
    with pytest.raises(BankMismatchError, match="mask:2: mask: belongs to another architecture"):
        check_entries(ENTRIES | {"mask:2": mask})


@relaxed
@given(st.sampled_from(sorted(ENTRIES)), st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_whatever_an_entry_holds_it_is_read_or_refused_and_nothing_else(name, at, value):
    payload = bytearray(ENTRIES[name])
    at %= len(payload)
    payload[at : at + len(value)] = value
    target = io.BytesIO()
    write_bank(target, ENTRIES | {name: bytes(payload)})
    with contextlib.suppress(BankMismatchError):
        check(BankFile(target))
