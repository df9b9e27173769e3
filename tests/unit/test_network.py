"""A network from a spec: deterministic, prepared inputs, and an architecture hash that tells shapes apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from supsup_online.errors import SpecError
from supsup_online.network import Network
from unit import tiny

NET = tiny.network()


def test_one_spec_gives_one_network():
    again = Network.build(tiny.SPEC)
    assert torch.equal(again.weights, NET.weights)
    assert again.fingerprint == NET.fingerprint
    assert again.architecture_hash == NET.architecture_hash
    np.testing.assert_array_equal(again.untrained_mask(3), NET.untrained_mask(3))


def test_another_seed_gives_another_network_of_the_same_architecture():
    other = tiny.network(replace(tiny.SPEC, weight_seed=8))
    assert other.fingerprint != NET.fingerprint
    assert other.architecture_hash == NET.architecture_hash


@pytest.mark.parametrize("changed", [{"architecture": "mlp-8-16"}, {"outputs": 13}, {"input_shape": (4, 5)}])
def test_another_shape_has_another_architecture_hash(changed):
    assert tiny.network(replace(tiny.SPEC, **changed)).architecture_hash != NET.architecture_hash
    assert len(NET.architecture_hash) == 16


def test_an_unknown_architecture_is_refused():
    with pytest.raises(SpecError, match="unknown architecture"):
        Network.build(replace(tiny.SPEC, architecture="resnet"))


def test_bytes_are_scaled_by_the_spec_and_reals_are_taken_as_they_are():
    net = tiny.network(replace(tiny.SPEC, mean=0.25, std=0.5))
    x = np.arange(0, 256, 16, dtype=np.uint8).reshape(1, 4, 4)
    expected = (x.astype(np.float64) / 255 - 0.25) / 0.5
    np.testing.assert_allclose(net.inputs(x).numpy(), expected, rtol=1e-5, atol=1e-6)
    reals = x.astype(np.float32) + 0.5
    np.testing.assert_array_equal(net.inputs(reals).numpy(), reals)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_preparing_inputs_leaves_the_callers_array_as_it_is_read_only_or_not(dtype):
    x = np.arange(16, dtype=dtype).reshape(1, 4, 4)
    before = x.copy()
    NET.inputs(x)
    x.flags.writeable = False
    prepared = NET.inputs(x)
    np.testing.assert_array_equal(x, before)
    assert prepared.dtype == torch.float32


def test_inputs_that_are_not_contiguous_keep_their_values():
    x = np.arange(32, dtype=np.float32).reshape(1, 4, 8)[:, :, ::2]
    np.testing.assert_array_equal(NET.inputs(x).numpy(), x)
    labels = np.arange(6)[::-2]
    assert NET.labels(labels).tolist() == [5, 3, 1]


def test_logits_are_those_of_the_weights_the_mask_keeps():
    words, x = NET.untrained_mask(0), tiny.random_inputs(NET, 3)
    mask = torch.from_numpy(NET.layout.unpack(words)).float()
    for ours, frozen, kept in zip(
        NET.masked_weights(words), NET.architecture.split(NET.weights), NET.architecture.split(mask), strict=True
    ):
        assert torch.equal(ours, frozen * kept)
    logits = NET.logits(x, words)
    torch.testing.assert_close(logits, NET.architecture.forward(x, NET.masked_weights(words)))
    assert logits.shape == (3, 12)
    assert not logits.requires_grad
