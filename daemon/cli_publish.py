"""The command `publish`."""

import json
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import click
from rich.progress import Progress, TextColumn

from daemon import connections, kafka_client, options, publisher
from daemon.kafka_client import kafka_settings
from daemon.progress import progress_bar
from daemon.publisher import Format, Outgoing
from supsup_online.datasets import load_mnist
from supsup_online.scenarios import Kind, Order, Scenario, schedule

_EXAMPLES = """
\b
Examples:
  supsup-daemon publish --topic digits --scenario permuted --tasks 5 --order random --batches 1000
  supsup-daemon publish --topic mine train.npz            arrays x (n, ...) and y (n,), 128 rows a record
  supsup-daemon publish --topic mine part-0.arrow part-1.arrow
  echo '{"x": [[0.1, 0.2]], "y": [1]}' | supsup-daemon publish --topic mine -
"""


@click.command(epilog=_EXAMPLES)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, allow_dash=True))
@options.setting_options("kafka", "topic", "create_topics", "connect_timeout_s", *connections.KAFKA_OPTIONS)
@click.option(
    "--scenario",
    type=click.Choice(get_args(Kind)),
    default="permuted",
    show_default=True,
    help="Without FILES: MNIST tasks.",
)
@click.option(
    "--order", type=click.Choice(get_args(Order)), default="random", show_default=True, help="Order of the tasks."
)
@click.option("--tasks", type=click.IntRange(min=1), default=5, show_default=True, help="Number of tasks.")
@click.option("--batches", type=click.IntRange(min=1), default=1000, show_default=True, help="Length of the stream.")
@click.option(
    "--seed",
    "stream_seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of tasks, order and batches.",
)
@click.option("--rows", type=click.IntRange(min=1), default=128, show_default=True, help="Rows a record.")
@click.option(
    "--format", "encoding", type=click.Choice(get_args(Format)), default="arrow", show_default=True, help="Encoding."
)
@click.option("--key", default=None, help="Record key of FILES: names the stream.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=None, help="Records per second at most.")
@click.option("--json", "as_json", is_flag=True, help="Print the totals as one JSON object.")
def publish(files: tuple[Path, ...], *, as_json: bool, rate: float | None, **given: Any) -> None:
    """Publish labelled batches: FILES (.npz, .arrow, .jsonl, or - for JSON lines), or a scenario made from MNIST."""
    settings = options.current_settings()
    if len(settings.topic) != 1:
        raise click.UsageError("publish to one --topic at a time")
    topic = settings.topic[0]
    kafka = kafka_settings(settings)
    if settings.create_topics:
        kafka_client.create_topics(kafka, [topic])
    total = None if files else given["batches"]
    records = _from_files(files, given) if files else _from_scenario(given)
    begun = time.monotonic()
    with _progress() as bar:
        row = bar.add_task(f"publishing to {topic}", total=total, size="")
        count, size = publisher.send(
            settings.kafka,
            topic,
            records,
            rate=rate,
            security=kafka.security,
            progress=lambda n, b: bar.update(row, completed=n, size=f"{b / 1e6:.1f} MB"),
        )
    seconds = time.monotonic() - begun
    if as_json:
        click.echo(json.dumps({"topic": topic, "records": count, "bytes": size, "seconds": round(seconds, 3)}))
    else:
        click.echo(
            f"{count} records, {size / 1e6:.1f} MB in {seconds:.1f} s ({count / max(seconds, 1e-9):.0f} records/s)"
        )


def _from_scenario(given: dict[str, Any]) -> Iterator[Outgoing]:
    plan = schedule(given["order"], given["tasks"], given["batches"], given["stream_seed"])
    scenario = Scenario(load_mnist(), given["scenario"], given["tasks"], given["stream_seed"])
    return publisher.from_scenario(
        scenario, plan, given["rows"], given["encoding"], keyed=given["order"] == "interleaved"
    )


def _from_files(files: tuple[Path, ...], given: dict[str, Any]) -> Iterator[Outgoing]:
    key = None if given["key"] is None else given["key"].encode()
    return chain.from_iterable(_from_file(path, given, key) for path in files)


def _from_file(path: Path, given: dict[str, Any], key: bytes | None) -> Iterator[Outgoing]:
    if str(path) == "-":
        return publisher.from_json_lines(sys.stdin, key)
    match path.suffix:
        case ".npz":
            return publisher.from_npz(path, given["rows"], given["encoding"], key)
        case ".arrow" | ".arrows":
            return publisher.from_arrow(path, key)
        case ".jsonl" | ".json" | ".ndjson":
            return publisher.from_json_file(path, key)
    raise click.UsageError(f"{path}: unknown kind of file; use .npz, .arrow, .jsonl, or - for JSON lines on stdin")


def _progress() -> Progress:
    return progress_bar(TextColumn("{task.fields[size]}"))
