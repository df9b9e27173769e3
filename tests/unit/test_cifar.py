"""CIFAR from files as they are published, and what is said of files that are not."""

import numpy as np
import pytest

from supsup_online.cifar import load_cifar, parse_records
from supsup_online.errors import DataError


def records(count, classes, seed=0):
    """Bytes of a published file, with the images and (fine) labels it holds."""
    draws = np.random.default_rng(seed)
    x = draws.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    y = draws.integers(0, classes, count, dtype=np.uint8)
    labels = y[:, None] if classes == 10 else np.stack([y // 5, y], axis=1)
    return np.concatenate([labels, x.reshape(count, -1)], axis=1).tobytes(), x, y


def test_cifar_100_has_its_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    train, x, y = records(7, 100)
    test, test_x, test_y = records(3, 100, seed=1)
    (folder / "train.bin").write_bytes(train)
    (folder / "test.bin").write_bytes(test)
    data = load_cifar(100, tmp_path)
    for found, expected in [(data.train_x, x), (data.train_y, y), (data.test_x, test_x), (data.test_y, test_y)]:
        np.testing.assert_array_equal(found, expected)
    assert (data.name, data.classes, data.train_y.dtype) == ("cifar100", 100, np.int64)


def test_cifar_10_comes_in_five_files(tmp_path):
    parts = [records(2, 10, seed) for seed in range(6)]
    for number, (blob, _, _) in enumerate(parts[:5], 1):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(blob)
    (tmp_path / "test_batch.bin").write_bytes(parts[5][0])
    data = load_cifar(10, tmp_path)
    np.testing.assert_array_equal(data.train_x, np.concatenate([x for _, x, _ in parts[:5]]))
    np.testing.assert_array_equal(data.test_y, parts[5][2])


def test_npz_files_hold_colour_last_and_are_turned_round(tmp_path, monkeypatch):
    _, x, y = records(4, 10)
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", x=x.transpose(0, 2, 3, 1), y=y)
    monkeypatch.setenv("SUPSUP_DATA_DIR", str(tmp_path))
    data = load_cifar()
    np.testing.assert_array_equal(data.train_x, x)
    assert not data.train_x.flags.writeable


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"", "0 bytes are not whole records"),
        (b"\0" * 3072, "3072 bytes are not whole records of 3073"),
        (b"\0" * 3074, "3074 bytes"),
        (b"\x0a" + b"\0" * 3072, "label 10 is out of range"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(blob, message):
    with pytest.raises(DataError, match=message):
        parse_records(blob, 10)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((2, 32, 32, 3), np.float32), [0, 1], "float32"),
        (np.zeros((2, 3, 32, 32), np.uint8), [0, 1], r"expected uint8 \(N, 32, 32, 3\)"),
        (np.zeros((0, 32, 32, 3), np.uint8), np.zeros(0, int), "shape"),
        (np.zeros((2, 32, 32, 3), np.uint8), [0, 10], "labels from 0 to 10"),
        (np.zeros((2, 32, 32, 3), np.uint8), [-1, 1], "labels from -1"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path, x, y, message):
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", x=x, y=np.array(y))
    with pytest.raises(DataError, match=message):
        load_cifar(10, tmp_path)


def test_a_missing_data_set_is_said_with_what_was_looked_for(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no CIFAR-100.*cifar-100-binary"):
        load_cifar(100, tmp_path)
    monkeypatch.delenv("SUPSUP_DATA_DIR", raising=False)
    with pytest.raises(DataError, match="SUPSUP_DATA_DIR"):
        load_cifar(10)
    (tmp_path / "train.bin").write_bytes(records(1, 100)[0])
    with pytest.raises(DataError, match=r"test\.bin cannot be read"):
        load_cifar(100, tmp_path)
