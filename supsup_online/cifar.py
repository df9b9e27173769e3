"""CIFAR-10 and CIFAR-100 (A. Krizhevsky, 2009) from their published binary files, or from npz files.

A binary file is records of one size, without a header:

    | data set  | bytes 0 ..         | then, 3072 bytes                                      |
    |-----------|--------------------|-------------------------------------------------------|
    | CIFAR-10  | label              | 32 rows of 32 red values, then the green, then the blue |
    | CIFAR-100 | coarse, fine label | the same                                              |

The other published forms are pickles, which are not read here. Images come channels first, (N, 3, 32, 32).
"""

import os
from pathlib import Path
from typing import Final

import numpy as np

from supsup_online.datasets import Dataset, load_npz
from supsup_online.errors import DataError

_IMAGE: Final = (3, 32, 32)
_PIXELS: Final = 3 * 32 * 32
_CIFAR10_FILES: Final = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_FOLDERS: Final = {10: ("cifar10", "cifar-10-batches-bin"), 100: ("cifar100", "cifar-100-binary")}

Arrays = tuple[np.ndarray, np.ndarray]


def load_cifar(classes: int = 10, data_dir: Path | None = None) -> Dataset:
    """CIFAR-10 or CIFAR-100 (fine labels), or a part of it.

    Args:
        classes: 10 or 100.
        data_dir: a folder with the published binary files, or `train.npz` and `test.npz` with arrays x uint8
            (N, 32, 32, 3) and y (N,); or a folder above it. None: the folder named by `SUPSUP_DATA_DIR`.

    Raises:
        DataError: no folder is given, it holds no such files, or they are damaged.
    """
    given = data_dir or (Path(named) if (named := os.environ.get("SUPSUP_DATA_DIR")) else None)
    if given is None:
        raise DataError(f"CIFAR-{classes} has to be there: name its folder in SUPSUP_DATA_DIR")
    for folder in (given, *(given / name for name in _FOLDERS[classes])):
        if parts := _read(folder, classes):
            (train_x, train_y), (test_x, test_y) = parts
            for array in (train_x, train_y, test_x, test_y):
                array.setflags(write=False)
            return Dataset(f"cifar{classes}", train_x, train_y, test_x, test_y, classes, str(folder))
    raise DataError(
        f"no CIFAR-{classes} in {given}: expected the binary version's files, or train.npz and test.npz, "
        f"there or in {' or '.join(_FOLDERS[classes])} below it"
    )


def _read(folder: Path, classes: int) -> tuple[Arrays, Arrays] | None:
    """Training and test images, or None where the folder holds neither form."""
    if classes == 100 and (folder / "train.bin").is_file():
        return _records([folder / "train.bin"], 100), _records([folder / "test.bin"], 100)
    if classes == 10 and (folder / _CIFAR10_FILES[0]).is_file():
        return _records([folder / name for name in _CIFAR10_FILES], 10), _records([folder / "test_batch.bin"], 10)
    if (folder / "train.npz").is_file():
        return _images(folder / "train.npz", classes), _images(folder / "test.npz", classes)
    return None


def _records(paths: list[Path], classes: int) -> Arrays:
    """Files one after the other."""
    parts = []
    for path in paths:
        try:
            blob = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        parts.append(parse_records(blob, classes, str(path)))
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def parse_records(blob: bytes, classes: int, name: str = "CIFAR records") -> Arrays:
    """Images uint8 (N, 3, 32, 32) and labels int64 (N,) of one binary file.

    Raises:
        DataError: its size is not that of whole records, it is empty, or a label is out of range.
    """
    labels = 1 if classes == 10 else 2
    size = labels + _PIXELS
    if not blob or len(blob) % size:
        raise DataError(f"{name}: {len(blob)} bytes are not whole records of {size}")
    records = np.frombuffer(blob, dtype=np.uint8).reshape(-1, size)
    y = records[:, labels - 1].astype(np.int64)
    if y.max() >= classes:
        raise DataError(f"{name}: label {y.max()} is out of range, there are {classes} classes")
    return np.ascontiguousarray(records[:, labels:]).reshape(-1, *_IMAGE), y


def _images(path: Path, classes: int) -> Arrays:
    x, y = load_npz(path)
    if x.dtype != np.uint8 or x.shape[1:] != (32, 32, 3) or not len(x):
        raise DataError(f"{path}: x is {x.dtype} of shape {x.shape}, expected uint8 (N, 32, 32, 3)")
    if y.min() < 0 or y.max() >= classes:
        raise DataError(f"{path}: labels from {y.min()} to {y.max()}, expected 0 to {classes - 1}")
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), y
