"""Frozen weights: the same bytes for ever, the scale the paper asks for, a fingerprint that notices any change."""

import math
from dataclasses import replace

import numpy as np
import pytest

from supsup_online import models, weights
from supsup_online.errors import SpecError
from unit import tiny

LENET = models.build("lenet-300-100", (28, 28), 500)
GOLDEN = {
    "signed-constant": "f2b5a74b2aaf7b6638adac9a4fefa4359c23d5c594cb35b004e52afb9854f9c4",
    "kaiming-normal": "f0e5b9b448a14d511653f16db998ac0e10e6e75acfb89f1252d651f8dd6a07b7",
}


def layers_of(architecture, init="signed-constant", seed=0):
    flat = weights.generate(architecture, seed, init)
    return np.split(flat, np.cumsum(architecture.sizes)[:-1])


@pytest.mark.parametrize("init", weights.WEIGHT_INITS)
def test_the_weights_of_lenet_under_seed_0_never_change(init):
    assert weights.fingerprint(weights.generate(LENET, 0, init)) == GOLDEN[init]


def test_every_signed_constant_weight_is_plus_or_minus_the_root_of_two_over_fan_in():
    for layer, drawn in zip(LENET.layers, layers_of(LENET), strict=True):
        scale = np.float32(math.sqrt(2 / layer.fan_in))
        assert drawn.dtype == np.float32
        assert set(np.unique(drawn)) == {-scale, scale}
        assert abs((drawn > 0).mean() - 0.5) < 4 * 0.5 / drawn.size**0.5


def test_kaiming_normal_weights_have_mean_zero_and_variance_two_over_fan_in():
    for layer, drawn in zip(LENET.layers, layers_of(LENET, "kaiming-normal"), strict=True):
        deviation = math.sqrt(2 / layer.fan_in)
        assert abs(drawn.mean()) < 4 * deviation / drawn.size**0.5
        assert abs(drawn.std() / deviation - 1) < 4 / (2 * drawn.size) ** 0.5


@pytest.mark.parametrize("init", weights.WEIGHT_INITS)
def test_layers_of_one_shape_do_not_share_their_draws(init):
    first, second, third, last = layers_of(models.build("mlp-32-32-32", (32,), 32), init)
    patterns = [np.sign(layer).tobytes() for layer in (first, second, third, last)]
    assert len(set(patterns)) == 4
    assert abs((np.sign(first) == np.sign(second)).mean() - 0.5) < 4 * 0.5 / first.size**0.5


def test_a_layer_keeps_its_draws_whatever_follows_it():
    short, long = (layers_of(models.build(name, (16,), 8)) for name in ("mlp-32", "mlp-32-24"))
    np.testing.assert_array_equal(short[0], long[0])


@pytest.mark.parametrize("init", weights.WEIGHT_INITS)
def test_another_seed_gives_other_weights(init):
    a, b = (weights.generate(LENET, seed, init) for seed in (0, 1))
    assert 0.4 < (np.sign(a) == np.sign(b)).mean() < 0.6


def test_an_unknown_initialisation_is_refused():
    with pytest.raises(SpecError, match="signed-constant or kaiming-normal"):
        weights.generate(LENET, 0, "xavier")


def test_the_fingerprint_notices_a_single_sign():
    drawn = weights.generate(LENET, 0)
    changed = drawn.copy()
    changed[-1] *= -1
    assert weights.fingerprint(drawn) != weights.fingerprint(changed)


def test_the_fingerprint_does_not_depend_on_the_byte_order_in_memory():
    drawn = weights.generate(LENET, 0)
    assert weights.fingerprint(drawn.astype(">f4")) == GOLDEN["signed-constant"]


def test_a_network_carries_the_fingerprint_of_its_weights():
    net = tiny.network(replace(tiny.SPEC, weight_init="kaiming-normal"))
    assert net.fingerprint == weights.fingerprint(net.weights.numpy())
