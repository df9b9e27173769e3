"""Files of numpy, read as if a stranger had written them: whatever is wrong with one is one kind of error."""

import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from supsup_online.errors import DataError

# What numpy and zipfile raise on damaged or hostile files: RuntimeError for encryption and unknown compression, the
# errors of programming and of memory for headers that promise what is not there.
_ERRORS: Final = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz file; pickled objects are refused.

    Args:
        path: the file.
        names: which arrays; None: all.

    Raises:
        DataError: the file is missing or damaged, or holds no such arrays.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: np.asarray(stored[name]) for name in (stored.files if names is None else names)}
    except _ERRORS as error:
        raise DataError(f"{path} is not a readable .npz file: {_said(error)}") from error


def read_npy(path: Path) -> NDArray[Any]:
    """The array of an .npy file; pickled objects are refused.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except _ERRORS as error:
        raise DataError(f"{path} is not a readable .npy file: {_said(error)}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is not a readable .npy file: it holds several arrays")
    return array


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
