"""Commands that read a bank: `masks list`, `masks show`, `stats`, `watch`. They talk to Redis only."""

import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final

import click
from redis.exceptions import RedisError
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from daemon import connections, options, redis_client
from daemon.errors import BankMismatchError, UnavailableError
from daemon.redis_store import BankReader, EventTail
from daemon.refusals import redis_refusal
from supsup_online.bitpack import MaskLayout

_REFRESH_S: Final = 0.5
_DECISIONS_SHOWN: Final = 12

_json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
_reading_options = options.setting_options("redis", "bank", *connections.REDIS_OPTIONS)


@contextmanager
def _reader() -> Iterator[BankReader]:
    """A reader of the bank that the command's settings name, which must exist."""
    settings = options.current_settings()
    client = redis_client.connect(settings.redis, security=connections.redis_client(settings))
    try:
        reader = BankReader(client, settings.bank)
        reader.spec()
        yield reader
    except RedisError as error:
        raise redis_refusal(error) or UnavailableError(f"Redis does not answer: {error}") from error
    finally:
        client.close()


@click.group()
def masks() -> None:
    """The masks of a bank."""


@masks.command(
    "list", epilog="\b\nExample:\n  supsup-daemon masks list --redis redis://127.0.0.1:6379/0 --bank default"
)
@_reading_options
@_json_option
def masks_list(*, as_json: bool, **_: Any) -> None:
    """One line per mask: what it learnt, from how much, and when."""
    with _reader() as reader:
        rows = reader.stats_text(reader.mask_ids())
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        Console().print(_mask_table(rows))


@masks.command("show", epilog="\b\nExample:\n  supsup-daemon masks show 3")
@click.argument("mask_id", type=click.IntRange(min=0))
@options.setting_options("redis", "bank", "weights_file", *connections.REDIS_OPTIONS)
@_json_option
def masks_show(mask_id: int, *, as_json: bool, **_: Any) -> None:
    """Everything about one mask, the share of edges it keeps in each layer included."""
    with _reader() as reader:
        if mask_id not in reader.mask_ids():
            raise BankMismatchError(
                f"bank {reader.keys.bank!r} holds no mask {mask_id}; see `supsup-daemon masks list`"
            )
        network = reader.network(reader.spec(), options.current_settings().weights_file)
        words = reader.masks(network, [mask_id])[mask_id]
        shown: dict[str, Any] = dict(reader.stats_text([mask_id])[0])
        shown["bytes"] = reader.client.strlen(reader.keys.mask(mask_id))
        shown["hot"] = bool(reader.client.exists(reader.keys.state(mask_id)))
    shown["layers"] = _layer_densities(network.layout, network.layout.unpack(words))
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    table = Table(show_header=False, box=None)
    for name, value in shown.items():
        if name != "layers":
            table.add_row(name, _readable(name, value))
    for i, layer in enumerate(shown["layers"]):
        table.add_row(
            f"layer {i}", f"{layer['kept']} of {layer['edges']} edges kept ({layer['kept'] / layer['edges']:.1%})"
        )
    Console().print(table)


@click.command(epilog="\b\nExample:\n  supsup-daemon stats --json | jq .totals")
@_reading_options
@_json_option
def stats(*, as_json: bool, **_: Any) -> None:
    """The bank at a glance: spec, version, counters, positions, who writes it."""
    with _reader() as reader:
        shown = _bank_summary(reader)
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    table = Table(show_header=False, box=None)
    for name, value in shown.items():
        text = "  ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(name, text)
    Console().print(table)


@click.command(epilog="\b\nExamples:\n  supsup-daemon watch\n  supsup-daemon watch --json   (one event a line)")
@_reading_options
@_json_option
@click.option("--seconds", type=click.FloatRange(min=0), default=None, help="Stop after this long; default: Ctrl-C.")
def watch(*, as_json: bool, seconds: float | None, **_: Any) -> None:
    """Watch a bank live: its masks and the latest decisions."""
    until = None if seconds is None else time.monotonic() + seconds
    with _reader() as reader:
        (_watch_events if as_json else _watch_table)(reader, until)


def _watch_events(reader: BankReader, until: float | None) -> None:
    tail = EventTail(reader)
    while until is None or time.monotonic() < until:
        for event in tail.read():
            click.echo(json.dumps(event))
        time.sleep(_REFRESH_S)


def _watch_table(reader: BankReader, until: float | None) -> None:
    tail = EventTail(reader)
    decisions: deque[str] = deque(maxlen=_DECISIONS_SHOWN)
    with Live(console=Console(), refresh_per_second=4) as live:
        while until is None or time.monotonic() < until:
            decisions.extend(describe(event) for event in tail.read() if event["type"] != "commit")
            seen = _bank_summary(reader)
            head = f"bank {seen['bank']}   version {seen['version']}   masks {seen['masks']} of {seen['budget']}"
            body = _mask_table(reader.stats_text(reader.mask_ids()))
            live.update(Group(Panel(head), body, Panel("\n".join(decisions) or "no decision yet")))
            time.sleep(_REFRESH_S)


def describe(event: dict[str, str]) -> str:
    """An event, a decision mostly, as a line for people."""
    if event["type"] == "import":
        return f"imported {event['masks']} masks of bank {event['bank']} at version {event['from']}"
    what = {
        "allocate": f"new mask {event['mask']}",
        "reuse": f"mask {event['mask']}",
        "over-budget": "no room for a new mask",
    }[event["type"]]
    best = json.loads(event["candidates"])
    against = ""
    if best:
        mask_id, statistic, residual, _ = best[0]
        against = f" (nearest: mask {mask_id}, {event['rule']} {statistic:.2f}"
        against += ")" if residual is None else f", {residual:+.1f} from its own)"
    return f"{event['topic']}:{event['partition']}@{event['offset']}  {event['why']}: {what}{against}"


def _bank_summary(reader: BankReader) -> dict[str, Any]:
    spec = reader.spec_text()
    totals = reader.totals()
    return {
        "bank": reader.keys.bank,
        "version": reader.version(),
        "masks": len(reader.mask_ids()),
        "budget": int(spec["budget"]),
        "accuracy": round(totals["correct"] / totals["samples"], 4) if totals.get("samples") else None,
        "totals": totals,
        "positions": reader.positions(),
        "writer": reader.lease(),
        "spec": spec,
    }


def _mask_table(rows: list[dict[str, str]]) -> Table:
    columns = ("id", "batches", "samples", "accuracy", "loss", "entropy", "density", "created", "updated", "stream")
    table = Table(*columns, box=None, header_style="bold")
    for row in rows:
        table.add_row(*(_readable(name, row.get(_FIELDS.get(name, name), "")) for name in columns))
    return table


_FIELDS: Final = {"created": "created_ms", "updated": "updated_ms"}
_REAL: Final = frozenset({"accuracy", "loss", "entropy", "density", "ratio", "loss_variance"})


def _readable(name: str, value: Any) -> str:
    if name in _REAL:
        return f"{float(value):.4f}"
    if name.removesuffix("_ms") in _FIELDS and value:
        with suppress(ValueError, OverflowError, OSError):  # a producer's clock may say anything
            return datetime.fromtimestamp(int(value) / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return str(value)


def _layer_densities(layout: MaskLayout, mask: Any) -> list[dict[str, int]]:
    layers, start = [], 0
    for rows, columns in layout.shapes:
        part = mask[start : start + rows * columns]
        layers.append({"edges": rows * columns, "kept": int(part.sum())})
        start += rows * columns
    return layers
