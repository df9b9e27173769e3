"""The spec of a bank: plain text there and back, damage found, differences named, contradictions refused together."""

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supsup_online.edge_popup import Threshold, TopK, TopM
from supsup_online.errors import SpecError
from supsup_online.spec import LATER, BankSpec, parse_shape

finite = st.floats(allow_nan=False, allow_infinity=False)
specs = st.builds(
    BankSpec,
    architecture=st.sampled_from(["lenet-300-100", "fc-1024-1024", "mlp-16-8"]),
    input_shape=st.lists(st.integers(1, 9999), min_size=1, max_size=4).map(tuple),
    classes=st.integers(2, 100),
    outputs=st.integers(100, 1000),
    weight_seed=st.integers(0, 2**63 - 1),
    weight_init=st.sampled_from(["signed-constant", "kaiming-normal", f"trained:{'0f' * 32}"]),
    variant=st.sampled_from(["top-k", "top-m", "threshold"]),
    keep_fraction=st.floats(0, 1, exclude_min=True),
    edges_per_channel=st.integers(1, 10**6),
    budget=st.integers(1, 10**9),
    mean=finite,
    std=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
)
OTHER_VALUES = {
    "architecture": "mlp-16-8",
    "input_shape": (4, 4),
    "classes": 9,
    "outputs": 501,
    "weight_seed": 1,
    "weight_init": "kaiming-normal",
    "variant": "threshold",
    "keep_fraction": 0.25,
    "edges_per_channel": 3,
    "mean": 0.0,
    "std": 1.0,
}


@settings(max_examples=50, deadline=None)
@given(specs)
def test_a_spec_comes_back_from_its_text_exactly(spec):
    text = spec.to_text()
    assert all(isinstance(value, str) for value in text.values())
    assert text.keys() == {f.name for f in fields(BankSpec)}
    assert BankSpec.from_text(text) == spec


def test_the_text_of_a_spec_is_what_a_person_would_write():
    assert BankSpec().to_text() == {
        "architecture": "lenet-300-100",
        "input_shape": "28x28",
        "classes": "10",
        "outputs": "500",
        "weight_seed": "0",
        "weight_init": "signed-constant",
        "variant": "top-k",
        "keep_fraction": "0.5",
        "edges_per_channel": "8",
        "budget": "2500",
        "mean": "0.1307",
        "std": "0.3081",
        "schema": "1",
    }


def test_fields_that_are_not_known_are_ignored():
    assert BankSpec.from_text({**BankSpec().to_text(), "colour": "blue"}) == BankSpec()


@pytest.mark.parametrize("name", [f.name for f in fields(BankSpec) if f.name not in LATER])
def test_text_that_lacks_a_field_is_damaged(name):
    text = BankSpec().to_text()
    del text[name]
    with pytest.raises(SpecError, match=name):
        BankSpec.from_text(text)


@pytest.mark.parametrize("name", sorted(LATER))
def test_a_field_that_came_later_has_its_default_in_older_banks(name):
    text = BankSpec().to_text()
    del text[name]
    assert BankSpec.from_text(text) == BankSpec()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes", "ten"),
        ("classes", "10.0"),
        ("outputs", ""),
        ("mean", "a little"),
        ("keep_fraction", "half"),
        ("input_shape", "28x"),
        ("input_shape", "0x28"),
        ("weight_seed", "-1"),
        ("std", "0"),
        ("std", "nan"),
        ("mean", "inf"),
        ("variant", "random"),
        ("edges_per_channel", "0"),
        ("weight_init", "trained:"),
        ("weight_init", f"trained:{'0F' * 32}"),
        ("schema", "2"),
    ],
)
def test_text_with_a_value_that_does_not_parse_or_is_out_of_range_is_refused(name, value):
    with pytest.raises(SpecError):
        BankSpec.from_text({**BankSpec().to_text(), name: value})


@pytest.mark.parametrize(("name", "value"), OTHER_VALUES.items())
def test_a_difference_is_reported_by_name_with_both_values(name, value):
    one, other = BankSpec(), replace(BankSpec(), **{name: value})
    assert one.differences(other) == [f"{name}: {getattr(one, name)}, {value}"]


def test_every_field_but_schema_and_budget_is_covered_by_the_test_above():
    assert OTHER_VALUES.keys() | {"schema", "budget"} == {f.name for f in fields(BankSpec)}


def test_all_differences_are_reported_together():
    assert len(BankSpec().differences(replace(BankSpec(), **OTHER_VALUES))) == len(OTHER_VALUES)


def test_the_budget_may_change():
    assert BankSpec().differences(replace(BankSpec(), budget=1)) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": 1}, "classes must be at least 2"),
        ({"outputs": 9}, r"outputs \(9\) must not be fewer than classes \(10\)"),
        ({"weight_seed": -1}, "weight_seed"),
        ({"weight_seed": 2**63}, "weight_seed"),
        ({"budget": 0}, "budget must be at least 1"),
        ({"std": 0.0}, "std positive"),
        ({"std": float("inf")}, "must be finite"),
        ({"mean": float("nan")}, "must be finite"),
        ({"variant": "random"}, "choose top-k, top-m, threshold"),
        ({"edges_per_channel": 0}, "edges_per_channel must be at least 1"),
        ({"weight_init": "xavier"}, "choose signed-constant or kaiming-normal"),
        ({"schema": 0}, "schema 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(changed, message):
    with pytest.raises(SpecError, match=message):
        BankSpec(**changed)


def test_all_problems_are_reported_together():
    with pytest.raises(SpecError, match=r"classes.*budget.*std"):
        BankSpec(classes=1, budget=0, std=-1.0)


def test_the_variant_is_built_with_the_keep_fraction():
    assert BankSpec(keep_fraction=0.25).mask_variant() == TopK(0.25)
    assert BankSpec(variant="threshold").mask_variant() == Threshold()
    assert BankSpec(variant="top-m", edges_per_channel=3).mask_variant() == TopM(3)


@pytest.mark.parametrize(("text", "shape"), [("28x28", (28, 28)), ("3,32,32", (3, 32, 32)), ("784", (784,))])
def test_a_shape_is_read_with_x_or_commas(text, shape):
    assert parse_shape(text) == shape


@pytest.mark.parametrize("text", ["", "x", "28x", "28xa", "0", "-1x2", "1x1x1x1x1", "28.5"])
def test_text_that_is_no_shape_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"shape|invalid literal"):
        parse_shape(text)
