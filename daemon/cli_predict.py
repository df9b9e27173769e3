"""The command `predict`: files answered from a bank in Redis, without a replica."""

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, get_args

import click
import numpy as np
from numpy.typing import NDArray
from redis.exceptions import RedisError

from daemon import connections, options, publisher, redis_client
from daemon.errors import UnavailableError
from daemon.following import Follower
from daemon.redis_store import BankReader
from daemon.refusals import redis_refusal
from supsup_online import datasets, wire
from supsup_online.answering import Answer, Inference, Inquiry, answer
from supsup_online.errors import DataError
from supsup_online.predictor import Scope
from supsup_online.snapshot import Snapshot
from supsup_online.types import Objective

_EXAMPLES = """
\b
Examples:
  supsup-daemon predict images.npy > answers.csv
  supsup-daemon predict --bank digits --format json test.npz
  echo '{"x": [[0.1, 0.2]]}' | supsup-daemon predict --bank mine -
"""
_COLUMNS: Final = ("file", "row", "label", "task", "confidence", "novel")

Piece = tuple[NDArray[np.generic], NDArray[np.int64] | None]


@click.command(epilog=_EXAMPLES)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True))
@options.setting_options("redis", "bank", "novel_margin", "weights_file", *connections.REDIS_OPTIONS)
@click.option(
    "--inference",
    type=click.Choice(get_args(Inference)),
    default="exact",
    show_default=True,
    help="How the task is inferred.",
)
@click.option(
    "--objective",
    type=click.Choice(get_args(Objective)),
    default="H",
    show_default=True,
    help="Of one-shot and binary inference.",
)
@click.option(
    "--scope",
    type=click.Choice(get_args(Scope)),
    default="sample",
    show_default=True,
    help="sample: each row its own task; batch: all rows of a piece are one.",
)
@click.option("--rows", type=click.IntRange(1, 4096), default=128, show_default=True, help="Rows at a time.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "json"]),
    default="csv",
    show_default=True,
    help="csv, or JSON lines with the probabilities.",
)
def predict(
    files: tuple[Path, ...], *, form: str, rows: int, inference: Inference, objective: Objective, scope: Scope, **_: Any
) -> None:
    """Answer FILES (.npy, .npz, .arrow, .jsonl, or - for JSON lines): label, task, confidence, and whether it is novel.

    The bank is read from Redis once, at its newest version. Where a file has labels, the accuracy is told at the end.
    """
    settings = options.current_settings()
    inquiry = Inquiry(inference, objective, scope, settings.novel_margin)
    tally = _Tally()
    with _snapshot(settings) as snapshot:
        spec = snapshot.network.spec
        limits = wire.RecordLimits(spec.input_shape, spec.classes)
        writer = _Writer(sys.stdout, form)
        for path in files:
            first = 0
            for x, y in _pieces(path, rows, limits):
                found = answer(snapshot, snapshot.network.inputs(x), inquiry)
                writer.write(str(path), first, found)
                tally.add(found, y)
                first += len(x)
    click.echo(f"version {snapshot.version}: {tally}", err=True)


@contextmanager
def _snapshot(settings: Any) -> Iterator[Snapshot]:
    """The bank at its newest version."""
    client = redis_client.connect(settings.redis, security=connections.redis_client(settings))
    try:
        reader = BankReader(client, settings.bank)
        follower = Follower(reader, reader.network(reader.spec(), settings.weights_file))
        follower.catch_up()
        yield follower.snapshot
    except RedisError as error:
        raise redis_refusal(error) or UnavailableError(f"Redis does not answer: {error}", server="redis") from error
    finally:
        client.close()


def _pieces(path: Path, rows: int, limits: wire.RecordLimits) -> Iterator[Piece]:
    """Checked batches of a file.

    Raises:
        DataError: the file is unreadable, or of an unknown kind.
        BadBatchError: what is in it does not fit the bank.
    """
    if path.suffix in {".npy", ".npz"}:
        x, y = datasets.load_npz(path) if path.suffix == ".npz" else (datasets.load_npy(path), None)
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            yield wire.decode(wire.encode_arrow(x[part], None if y is None else y[part]), None, limits)
        return
    if str(path) == "-":
        records = publisher.from_json_lines(sys.stdin, None)
    elif path.suffix in {".arrow", ".arrows"}:
        records = publisher.from_arrow(path, None)
    elif path.suffix in {".jsonl", ".json", ".ndjson"}:
        records = publisher.from_json_file(path, None)
    else:
        raise DataError(f"{path}: unknown kind of file; use .npy, .npz, .arrow, .jsonl, or - for JSON lines")
    for record in records:
        yield wire.decode(record.value, record.content_type, limits)


class _Writer:
    """Rows of answers as CSV with a header, or as JSON lines."""

    def __init__(self, out: IO[str], form: str) -> None:
        self._out = out
        self._csv = csv.writer(out, lineterminator="\n") if form == "csv" else None
        if self._csv is not None:
            self._csv.writerow(_COLUMNS)

    def write(self, file: str, first: int, found: Answer) -> None:
        columns = (found.labels, found.mask_ids, found.confidences, found.novel, found.probabilities)
        for row, (label, task, confidence, novel, p) in enumerate(
            zip(*(values.tolist() for values in columns), strict=True)
        ):
            values = (file, first + row, label, task, round(confidence, 6), novel)
            if self._csv is not None:
                self._csv.writerow([*values[:-1], str(novel).lower()])
            else:
                shown = dict(zip(_COLUMNS, values, strict=True)) | {"probabilities": [round(share, 6) for share in p]}
                self._out.write(json.dumps(shown) + "\n")


@dataclass(slots=True)
class _Tally:
    """What was answered, and how much of it right."""

    rows: int = 0
    novel: int = 0
    labelled: int = 0
    right: int = 0
    masks: set[int] = field(default_factory=set)

    def add(self, found: Answer, y: NDArray[np.int64] | None) -> None:
        self.rows += len(found.labels)
        self.novel += int(found.novel.sum())
        self.masks.update(found.mask_ids.tolist())
        if y is not None:
            self.labelled += len(y)
            self.right += int((found.labels == y).sum())

    def __str__(self) -> str:
        text = f"{self.rows} rows under {len(self.masks)} masks, {self.novel} novel"
        return f"{text}, accuracy {self.right / self.labelled:.1%}" if self.labelled else text
