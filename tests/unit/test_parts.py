"""Parts of networks, alone and composed: shapes, order of weights and statistics, forward passes equal to torch's."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from supsup_online import models
from supsup_online.errors import SpecError
from supsup_online.layers import MaskedConv, MaskedLinear
from supsup_online.parts import (
    AsImage,
    Chain,
    Flow,
    GlobalAveragePool,
    Masked,
    MaxPool,
    Normalisation,
    Part,
    Relu,
    Residual,
    fold,
    statistics_count,
)
from unit import tiny


def random_weights(architecture, seed=0):
    flat = torch.randn(architecture.weight_count, generator=torch.Generator().manual_seed(seed))
    return architecture.split(flat)


def random_images(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- names, shapes, counts


@pytest.mark.parametrize(
    ("name", "shape", "outputs", "names", "shapes"),
    [
        ("conv-4-8", (28, 28), 10, ["conv1", "conv2", "fc"], [(4, 1, 3, 3), (8, 4, 3, 3), (10, 392)]),
        ("conv-5", (3, 9, 6), 4, ["conv1", "fc"], [(5, 3, 3, 3), (4, 60)]),
        ("conv-5-batch", (1, 9, 6), 4, ["conv1", "fc"], [(5, 1, 3, 3), (4, 60)]),
    ],
)
def test_a_plain_network_has_a_convolution_per_number_and_a_head(name, shape, outputs, names, shapes):
    architecture = models.build(name, shape, outputs)
    assert [layer.name for layer in architecture.layers] == names
    assert [layer.weight_shape for layer in architecture.layers] == shapes
    assert [layer.fan_in for layer in architecture.layers] == [math.prod(shape[1:]) for shape in shapes]
    assert not architecture.is_connected
    assert architecture.forward(torch.zeros(2, *shape), random_weights(architecture)).shape == (2, outputs)


def test_the_papers_resnet_has_the_papers_number_of_weights_with_the_five_outputs_of_a_task():
    architecture = models.build("resnet18-20", (3, 32, 32), 5)
    assert architecture.weight_count == 1_090_940
    assert sum(isinstance(layer, MaskedConv) for layer in architecture.layers) == 20
    assert architecture.layers[-1] == MaskedLinear(160, 5, relu=False, name="fc")


def test_resnet_50_has_the_weights_of_torchvisions_without_biases_and_affine_weights():
    architecture = models.build("resnet50", (3, 224, 224), 1000)
    assert architecture.weight_count == 25_557_032 - 53_120 - 1_000
    names = [layer.name for layer in architecture.layers]
    assert len(names) == len(set(names)) == 54
    assert names[:5] == ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.0.conv3", "layer1.0.downsample.0"]
    assert names[-2:] == ["layer4.2.conv3", "fc"]
    assert statistics_count(architecture.body.channels) == 53_120 + 1


def test_a_small_pass_through_resnet_50_gives_its_outputs():
    architecture = models.build("resnet50", (3, 33, 33), 7)
    x = random_images(1, 3, 33, 33)
    with torch.no_grad():
        logits = architecture.forward(x, architecture.split(torch.full((architecture.weight_count,), 0.01)))
    assert logits.shape == (1, 7)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("conv-4", (784,), "HxW or CxHxW"),
        ("conv-4", (1, 1, 28, 28), "HxW or CxHxW"),
        ("conv-4-8", (3, 2), "too small"),
        ("conv-4", (28, 1), "too small"),
        ("conv-4-8-8-8-8", (28, 28), "too small"),
        ("resnet18-4", (3, 8, 8), "too small"),
        ("resnet50", (3, 32, 32), "too small"),
    ],
)
def test_inputs_that_are_no_images_or_too_small_ones_are_refused(name, shape, message):
    with pytest.raises(SpecError, match=message):
        models.build(name, shape, 10)


@pytest.mark.parametrize(
    "name", ["conv", "conv-", "conv-0", "conv-04", "conv-4-", "conv-4-batch-batch", "resnet18", "resnet18-0", "resnet5"]
)
def test_an_unknown_convolutional_name_is_refused_with_the_ones_that_are_known(name):
    with pytest.raises(SpecError, match=r"conv-A-B-... \(channels\), resnet18-W \(width\) or resnet50"):
        models.build(name, (28, 28), 10)


@pytest.mark.parametrize("name", ["conv-9999999-9999999", "resnet18-9999999"])
def test_a_convolutional_network_beyond_the_largest_layout_is_refused(name):
    with pytest.raises(SpecError, match="more than 2147483647 weights"):
        models.build(name, (28, 28), 10)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["conv-2-3", "conv-3-batch", "resnet18-2", "resnet18-1-batch"]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)),
    outputs=st.integers(1, 5),
)
def test_images_of_any_size_are_refused_or_pass_with_the_shape_that_was_promised(name, shape, outputs):
    try:
        architecture = models.build(name, shape, outputs)
    except SpecError:
        return
    assert architecture.body.after(shape) == (outputs,)
    logits = architecture.forward(random_images(1, *shape), random_weights(architecture))
    assert logits.shape == (1, outputs)
    assert logits.isfinite().all(), "one image is enough"


def test_images_of_two_axes_have_one_channel():
    flat, deep = (models.build("conv-3", shape, 4) for shape in ((6, 6), (1, 6, 6)))
    x, weights = random_images(5, 6, 6), random_weights(flat)
    assert torch.equal(flat.forward(x, weights), deep.forward(x[:, None], weights))


# ---- forward passes


def plain_twin(architecture):
    """`conv-A-B` of torch's own modules."""
    first, second, head = architecture.layers
    block = lambda conv: [  # noqa: E731
        nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(conv.out_channels, affine=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    linear = nn.Linear(head.in_features, head.out_features, bias=False)
    return nn.Sequential(*block(first), *block(second), nn.Flatten(), linear)


def with_weights(twin, weights):
    masked = [module for module in twin.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for module, weight in zip(masked, weights, strict=True):
        module.weight.data = weight
    return twin


def test_a_plain_network_equals_one_of_torchs_modules_in_training_and_by_kept_statistics():
    architecture = models.build("conv-4-8", (3, 13, 10), 6)
    weights, x = random_weights(architecture), random_images(7, 3, 13, 10)
    twin = with_weights(plain_twin(architecture), weights).train()
    norms = [module for module in twin if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    noted = torch.zeros(statistics_count(architecture.body.channels))
    torch.testing.assert_close(architecture.forward(x, weights, noted=noted), twin(x))
    torch.testing.assert_close(noted[1:], torch.cat([v for n in norms for v in (n.running_mean, n.running_var)]))
    other = random_images(3, 3, 13, 10, seed=2)
    torch.testing.assert_close(architecture.forward(other, weights, noted), twin.eval()(other))
    torch.testing.assert_close(architecture.forward(other, weights), twin.train()(other), msg="None: by the batch")


def resnet18_reference(x, w, outputs):
    """The paper's ResNet-18, written down once more, in training; `w` are weights by torchvision's names."""
    normalised = lambda y: functional.batch_norm(y, None, None, training=True)  # noqa: E731
    x = normalised(functional.conv2d(x, w["conv1"], padding=1)).relu()
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = normalised(functional.conv2d(x, w[f"{name}.conv1"], stride=stride, padding=1)).relu()
            y = normalised(functional.conv2d(y, w[f"{name}.conv2"], padding=1))
            if stride == 2:
                x = normalised(functional.conv2d(x, w[f"{name}.downsample.0"], stride=2))
            x = (x + y).relu()
    return x.mean((2, 3)) @ w["fc"].T


@pytest.mark.parametrize("name", ["resnet18-3", "resnet18-3-batch"])
def test_a_residual_network_equals_itself_written_down_once_more(name):
    architecture = models.build(name, (3, 19, 16), 5)
    weights, x = random_weights(architecture), random_images(4, 3, 19, 16)
    named = {layer.name: weight for layer, weight in zip(architecture.layers, weights, strict=True)}
    expected = resnet18_reference(x, named, 5)
    torch.testing.assert_close(architecture.forward(x, weights), expected, rtol=1e-4, atol=1e-4)
    noted = torch.zeros(statistics_count(architecture.body.channels))
    torch.testing.assert_close(architecture.forward(x, weights, noted=noted), expected, rtol=1e-4, atol=1e-4)
    assert noted[1:].all() if name == "resnet18-3" else noted.numel() == 0


def test_a_residual_block_adds_its_input_where_no_shortcut_is_given():
    block = Residual(Masked(MaskedConv(1, 1, 1, name="c")))
    x = torch.tensor([[[[1.0, -2.0]]]])
    assert block.forward(x, Flow(iter([torch.full((1, 1, 1, 1), 3.0)]))).tolist() == [[[[4.0, 0.0]]]]


def test_a_shortcut_takes_its_weights_and_statistics_behind_those_of_the_body():
    layers = [MaskedConv(1, 2, 3, 2, "body"), MaskedConv(1, 2, 1, 2, "shortcut")]
    inner, beside = (Chain((Masked(layer), Normalisation(2))) for layer in layers)
    block = Residual(inner, beside)
    assert [layer.name for layer in block.layers] == ["body", "shortcut"]
    assert block.channels == (2, 2)
    assert block.after((1, 5, 7)) == (2, 3, 4)


def test_parts_that_do_not_fit_together_are_refused():
    with pytest.raises(SpecError, match="cannot add"):
        Residual(Masked(MaskedConv(1, 2, 3))).after((1, 4, 4))
    with pytest.raises(SpecError, match=r"layer head takes inputs of shape \(3,\)"):
        Masked(MaskedLinear(3, 2, name="head")).after((4,))
    with pytest.raises(SpecError, match=r"layer c takes inputs of shape \(2, h, w\)"):
        Masked(MaskedConv(2, 2, 3, name="c")).after((1, 4, 4))


def test_simple_parts_do_what_they_say():
    flow, x = Flow(iter(())), random_images(2, 3, 5, 6)
    assert Part().forward(x, flow) is x
    assert torch.equal(Relu().forward(x, flow), x.clamp(min=0))
    assert torch.equal(MaxPool().forward(x, flow), functional.max_pool2d(x, 2))
    assert MaxPool(3, 2, 1).forward(x, flow).shape[1:] == MaxPool(3, 2, 1).after((3, 5, 6))
    assert torch.equal(GlobalAveragePool().forward(x, flow), x.mean((2, 3)))
    assert AsImage().after((5, 6)) == (1, 5, 6)


# ---- statistics


def test_folding_takes_the_mean_of_the_first_ten_batches_and_then_a_running_one():
    batches = random_images(25, 7, seed=3)
    kept, expected = torch.zeros(7), batches[0, 1:].clone()
    for count, noted in enumerate(batches):
        fold(kept, noted)
        assert kept[0] == count + 1
        if count:
            weight = 1 / (count + 1) if count < 10 else 0.1
            expected += weight * (noted[1:] - expected)
        torch.testing.assert_close(kept[1:], expected)
        if count < 10:
            torch.testing.assert_close(kept[1:], batches[: count + 1, 1:].mean(0))


def test_a_count_beyond_what_float32_counts_stands_still():
    kept = torch.tensor([2.0**24, 1.0, 1.0])
    fold(kept, torch.tensor([0.0, 2.0, 1.0]))
    torch.testing.assert_close(kept, torch.tensor([2.0**24, 1.1, 1.0]))


def test_the_hash_of_connected_networks_is_that_of_their_shapes_and_convolutional_ones_differ_by_name():
    assert tiny.network().architecture_hash.hex() == "e9306b4f2a699b42a5712957a992905b"
    names = ["conv-3-4", "conv-3-4-batch"]
    assert len({tiny.network(replace(tiny.SPEC, architecture=name)).architecture_hash for name in names}) == 2
