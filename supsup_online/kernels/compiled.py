"""How the loops of this package are compiled, and how they are spread over cores.

Compilation is cached beside the source, or in the user's cache directory where that cannot be written; with neither
the loops are compiled anew in every process (some seconds). They hold no lock while they run, so plain threads are
enough to use all cores: no second OpenMP runtime beside torch's, and no trouble when two threads call at once.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar

import numba
import torch

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """The function as machine code, without the interpreter's lock.

    Sums keep the order in which they are written and nothing is assumed about NaN, so that one CPU always gives the
    same bytes; only a product and the sum behind it may become one instruction.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return numba.njit(cache=True, **options)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # no directory for the cache can be written
        return numba.njit(**options)(function)  # type: ignore[no-any-return]


def spread(count: int, part: Callable[[int, int], None], *, threads: int | None = None, least: int = 1) -> None:
    """Call `part(start, stop)` over ranges that make up 0..count, one per thread, and wait for all of them.

    Args:
        count: how many items there are.
        part: works on the items start..stop-1; must not depend on how the items are cut.
        threads: how many to use; None: as many as torch does.
        least: fewest items worth a thread of their own.
    """
    number = max(1, min(threads or torch.get_num_threads(), count // max(1, least)))
    if number == 1:
        part(0, count)
        return
    cuts = [count * i // number for i in range(number + 1)]
    others = [_pool(os.getpid()).submit(part, a, b) for a, b in pairwise(cuts[1:])]
    try:
        part(cuts[0], cuts[1])
    finally:
        wait(others)
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads, made at first use and anew after a fork."""
    del process
    return ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="kernel")
