"""Architectures: names, shapes, the flat weight layout, and a forward pass equal to torch's own modules."""

import pytest
import torch
from torch import nn

from supsup_online import models
from supsup_online.errors import SpecError
from supsup_online.layers import MaskedLinear


@pytest.mark.parametrize(
    ("name", "shape", "outputs", "shapes"),
    [
        ("lenet-300-100", (28, 28), 500, [(300, 784), (100, 300), (500, 100)]),
        ("fc-1024-1024", (28, 28), 10, [(1024, 784), (1024, 1024), (10, 1024)]),
        ("mlp-7", (3, 5, 2), 4, [(7, 30), (4, 7)]),
        ("mlp-16-8", (4, 4), 12, [(16, 16), (8, 16), (12, 8)]),
    ],
)
def test_a_name_gives_the_layers_it_says(name, shape, outputs, shapes):
    architecture = models.build(name, shape, outputs)
    assert [layer.weight_shape for layer in architecture.layers] == shapes
    assert [layer.fan_in for layer in architecture.layers] == [fan_in for _, fan_in in shapes]
    assert architecture.weight_count == sum(a * b for a, b in shapes)
    assert [layer.relu for layer in architecture.layers] == [True] * (len(shapes) - 1) + [False]


def test_lenet_with_500_outputs_has_the_315200_weights_of_the_design():
    assert models.build("lenet-300-100", (28, 28), 500).weight_count == 315_200


@pytest.mark.parametrize(
    "name", ["", "lenet", "mlp", "mlp-", "mlp-0-4", "mlp-4-", "mlp-04", "mlp--4", "MLP-4", "mlp-4 "]
)
def test_an_unknown_name_is_refused_with_the_ones_that_are_known(name):
    with pytest.raises(SpecError, match=r"lenet-300-100, fc-1024-1024, mlp-A-B"):
        models.build(name, (4, 4), 12)


@pytest.mark.parametrize(("shape", "outputs"), [((), 2), ((0,), 2), ((4, -1), 2), ((4,), 0)])
def test_sizes_must_be_positive(shape, outputs):
    with pytest.raises(SpecError, match="must be positive"):
        models.build("mlp-4", shape, outputs)


def test_a_network_beyond_the_largest_layout_is_refused():
    with pytest.raises(SpecError, match="more than 2147483647 weights"):
        models.build("mlp-1000000", (2147,), 1)
    assert models.build("mlp-1000000", (2146,), 1).weight_count == 2_147_000_000


def test_split_gives_views_of_the_flat_vector_in_order():
    architecture = models.build("mlp-3", (2,), 2)
    flat = torch.arange(12.0)
    first, second = architecture.split(flat)
    assert first.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert second.tolist() == [[6, 7, 8], [9, 10, 11]]
    second[1, 2] = -1
    assert flat[11] == -1


def test_the_forward_pass_equals_a_torch_network_with_the_same_weights():
    architecture = models.build("mlp-16-8", (4, 4), 12)
    flat = torch.randn(architecture.weight_count, generator=torch.Generator().manual_seed(0))
    x = torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(1))
    linears = [nn.Linear(layer.fan_in, layer.weight_shape[0], bias=False) for layer in architecture.layers]
    for linear, weight in zip(linears, architecture.split(flat), strict=True):
        linear.weight.data = weight
    dense = nn.Sequential(nn.Flatten(), linears[0], nn.ReLU(), linears[1], nn.ReLU(), linears[2])
    torch.testing.assert_close(architecture.forward(x, architecture.split(flat)), dense(x))


def test_a_layer_without_relu_lets_negative_values_through():
    x, weight = torch.ones(1, 2), torch.tensor([[-1.0, -2.0]])
    assert MaskedLinear(2, 1, relu=False).forward(x, weight).item() == -3
    assert MaskedLinear(2, 1).forward(x, weight).item() == 0
