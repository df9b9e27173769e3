"""Trained weights from a safetensors file: matched by name, refused where they do not fit, proved by their hash."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save

from daemon.bank_transfer import check, check_entries
from daemon.errors import BankMismatchError, ConfigError
from daemon.networks import regenerated
from daemon.settings import Settings
from supsup_online import backbone, codec, models, weights
from supsup_online.bank_file import BankFile, encode_fields, write_bank
from supsup_online.edge_popup import initial_scores
from supsup_online.errors import SpecError, WeightsFileError
from supsup_online.fused_trainer import FusedTrainer
from supsup_online.network import Network
from supsup_online.optimisers import Adam
from supsup_online.spec import BankSpec
from supsup_online.stats import MaskStats
from supsup_online.trainer import EdgePopupTrainer
from unit import tiny

ARCHITECTURE = tiny.network(tiny.CONVOLUTIONAL).architecture


def tensors_of(architecture=ARCHITECTURE, seed=0):
    """A random tensor per layer, under its name, and what torchvision's files have besides."""
    rng = np.random.default_rng(seed)
    found = {f"{x.name}.weight": rng.normal(size=x.weight_shape).astype(np.float32) for x in architecture.layers}
    return found | {"bn1.weight": np.ones(3, np.float32), "bn1.num_batches_tracked": np.array(7), "fc.bias": np.ones(2)}


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


def written(path, tensors):
    """A file, and the spec of a bank over it."""
    path.write_bytes(save(tensors))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(tiny.CONVOLUTIONAL, weight_init=f"trained:{digest}")


# ---- what is read


def test_weights_are_matched_by_the_layers_names_and_the_rest_is_left_out(tmp_path):
    tensors = tensors_of()
    spec = written(tmp_path / "weights", tensors)
    network = Network.build(spec, weights_file=tmp_path / "weights")
    expected = [tensors[f"{layer.name}.weight"].ravel() for layer in ARCHITECTURE.layers]
    np.testing.assert_array_equal(network.weights.numpy(), np.concatenate(expected))
    assert network.fingerprint == weights.fingerprint(np.concatenate(expected))


def test_a_layer_that_is_not_in_the_file_is_drawn_from_the_seed(tmp_path):
    spec = written(tmp_path / "weights", without(tensors_of(), "fc.weight"))
    network = Network.build(spec, weights_file=tmp_path / "weights")
    head = network.architecture.sizes[-1]
    drawn = weights.generate(ARCHITECTURE, spec.weight_seed)
    np.testing.assert_array_equal(network.weights.numpy()[-head:], drawn[-head:])
    assert (network.weights.numpy()[:-head] != drawn[:-head]).all()
    other = Network.build(replace(spec, weight_seed=8), weights_file=tmp_path / "weights")
    assert other.fingerprint != network.fingerprint


def test_layers_of_connected_networks_are_called_fc1_fc2_and_so_on(tmp_path):
    architecture = tiny.network().architecture
    path = tmp_path / "weights"
    digest = written(path, tensors_of(architecture)).weight_init
    network = Network.build(replace(tiny.SPEC, weight_init=digest), weights_file=path)
    assert [layer.name for layer in architecture.layers] == ["fc1", "fc2", "fc3"]
    np.testing.assert_array_equal(network.weights.numpy()[:256], tensors_of(architecture)["fc1.weight"].ravel())


def test_scores_over_trained_weights_start_as_over_random_ones_and_learn(tmp_path):
    spec = written(tmp_path / "weights", without(tensors_of(), "fc.weight"))
    network = Network.build(spec, weights_file=tmp_path / "weights")
    trainer = EdgePopupTrainer(network, Adam(0.01))
    hot = trainer.start(3)
    assert (hot.scores == initial_scores(ARCHITECTURE, spec.weight_seed, 3)).all()
    losses = []
    for batch in tiny.permuted(0)(40):
        evaluation = trainer.evaluate(hot, network.inputs(batch.x), network.labels(batch.y))
        losses.append(float(evaluation.mean_loss.detach()))
        trainer.update(hot, evaluation)
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_signs_do_not_stand_for_trained_weights(tmp_path):
    architecture = tiny.network().architecture
    init = written(tmp_path / "weights", tensors_of(architecture)).weight_init
    network = Network.build(replace(tiny.SPEC, weight_init=init), weights_file=tmp_path / "weights")
    with pytest.raises(SpecError, match="signed-constant"):
        FusedTrainer(network, Adam(), "bfloat16")


# ---- what is refused


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (tensors_of() | {"conv1.weight": np.ones((3, 1, 5, 5), np.float32)}, r"\(3, 1, 5, 5\), .* \(3, 1, 3, 3\)"),
        (tensors_of() | {"conv1.weight": np.ones((3, 1, 3, 3), np.float64)}, "conv1.weight is F64: convert it to F32"),
        (tensors_of() | {"fc.weight": np.full((12, 4), np.nan, np.float32)}, "fc.weight holds a number that is not"),
        (tensors_of() | {"fc.weight": np.full((12, 4), np.inf, np.float32)}, "fc.weight holds a number that is not"),
        ({"layer9.weight": np.ones(3, np.float32)}, "no weights for conv-3-4 are in it: .*conv1.weight.*layer9.weight"),
        ({}, "found no tensor"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, tensors, message):
    spec = written(tmp_path / "weights", tensors)
    with pytest.raises(WeightsFileError, match=message) as told:
        Network.build(spec, weights_file=tmp_path / "weights")
    assert str(tmp_path / "weights") in str(told.value)


@pytest.mark.parametrize("blob", [b"", b"no tensors", save(tensors_of())[:-1], b"\xff" * 64])
def test_bytes_that_are_no_safetensors_file_are_refused(blob):
    with pytest.raises(WeightsFileError, match="no safetensors file, or a damaged one"):
        backbone.decode(blob, ARCHITECTURE)


def test_without_the_file_the_setting_is_named_and_the_hash(tmp_path):
    spec = written(tmp_path / "weights", tensors_of())
    with pytest.raises(WeightsFileError, match=f"set weights_file .* sha256 {spec.weight_init[8:]}"):
        Network.build(spec)
    with pytest.raises(ConfigError, match="weights_file"):
        regenerated(spec)


def test_another_file_is_refused_with_both_hashes_and_what_to_do(tmp_path):
    spec = written(tmp_path / "weights", tensors_of())
    other = written(tmp_path / "others", tensors_of(seed=1))
    with pytest.raises(ConfigError) as told:
        regenerated(spec, tmp_path / "others")
    assert all(text in str(told.value) for text in (spec.weight_init[8:], other.weight_init[8:], "set weights_file"))


@pytest.mark.parametrize("name", ["nowhere", "", "nul\0"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name):
    with pytest.raises(WeightsFileError, match="weights_file must name a safetensors file"):
        backbone.weight_init_of(tmp_path / name)


# ---- settings


def test_the_setting_makes_a_bank_over_the_file_and_nothing_else_changes(tmp_path):
    spec = written(tmp_path / "weights", tensors_of())
    made = Settings(weights_file=str(tmp_path / "weights")).bank_spec()
    assert made == replace(BankSpec(), weight_init=spec.weight_init)


def test_a_setting_that_names_no_file_is_a_mistake_in_the_settings(tmp_path):
    with pytest.raises(ConfigError, match="is no file"):
        Settings(weights_file=str(tmp_path)).bank_spec()


def test_trained_weights_and_drawn_ones_of_another_kind_contradict_each_other(tmp_path):
    written(tmp_path / "weights", tensors_of())
    with pytest.raises(ConfigError, match="weight_init"):
        Settings(weights_file=str(tmp_path / "weights"), weight_init="kaiming-normal").bank_spec()


# ---- a bank as a file


def bank_over(path):
    """The entries of a bank of one mask over trained weights."""
    network = Network.build(written(path, tensors_of()), weights_file=path)
    packed = lambda text: encode_fields({k.encode(): v.encode() for k, v in text.items()})  # noqa: E731
    return {
        "bank": packed({"name": "digits", "version": "7", "epoch": "2"}),
        "spec": packed(network.spec.to_text() | {"fingerprint": network.fingerprint}),
        "totals": packed({"records": "3", "next_id": "1"}),
        "mask:0": codec.encode_mask(network, tiny.random_masks(network, 1)[0]),
        "stats:0": packed(MaskStats().to_text()),
    }


def test_a_bank_over_trained_weights_is_checked_with_their_file_and_not_without(tmp_path):
    entries = bank_over(tmp_path / "weights")
    file = io.BytesIO()
    write_bank(file, entries)
    assert check_entries(entries, tmp_path / "weights").masks == 1
    assert check(BankFile(file), weights_file=tmp_path / "weights").masks == 1
    for missing in (lambda: check_entries(entries), lambda: check(BankFile(io.BytesIO(file.getvalue())))):
        with pytest.raises(ConfigError, match="set weights_file"):
            missing()


def test_a_bank_of_another_architecture_over_the_same_file_is_refused(tmp_path):
    entries = bank_over(tmp_path / "weights")
    spec = replace(written(tmp_path / "w", tensors_of()), architecture="conv-3-5")
    text = spec.to_text() | {"fingerprint": "0" * 64}
    entries["spec"] = encode_fields({k.encode(): v.encode() for k, v in text.items()})
    with pytest.raises(BankMismatchError, match="has not the size of a mask of conv-3-5"):
        check_entries(entries, tmp_path / "weights")
    assert models.build("conv-3-5", (4, 4), 12).weight_count != ARCHITECTURE.weight_count
