"""Commands that look after dead letters: `dlq list`, `dlq show`, `dlq replay`. They talk to Kafka only."""

import heapq
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from daemon import connections, options
from daemon.dead_letters import DeadLetter, DeadLetters
from daemon.errors import ConfigError, StopError
from daemon.kafka_client import KafkaSettings, kafka_settings
from daemon.preview import hexdump, printable, readable
from daemon.replay import Ledger, Outcome, Replay
from daemon.topic_reader import TopicReader
from supsup_online import wire
from supsup_online.errors import BadBatchError

_KAFKA: Final = ("kafka", "topic", "connect_timeout_s", *connections.KAFKA_OPTIONS)
_LIMITS: Final = ("input_shape", "classes", "max_record_bytes", "max_rows")
_PAGE_ROWS: Final = 500
_SHOWN_ERROR: Final = 160
_HEAD: Final = ("letter", "source", "put aside (UTC)", "reason", "bytes", "state", "error")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

_json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")


def _since(text: str) -> int:
    """`30m` (90s, 2h, 7d) or an ISO 8601 time (UTC unless it says otherwise), as milliseconds since the epoch."""
    try:
        if ago := re.fullmatch(r"(\d{1,9})([smhd])", text):
            at = datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            at = datetime.fromisoformat(text)
            at = at if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{text!r}: write 90s, 30m, 2h, 7d, or a time such as 2026-01-31T12:00") from error
    return int(at.timestamp() * 1000)


@click.group()
def dlq() -> None:
    """The dead letters of a topic: records that could not be used."""


# -- list


@dlq.command(
    "list",
    epilog="\b\nExamples:\n  supsup-daemon dlq list --topic digits\n"
    "  supsup-daemon dlq list --topic digits --reason shape --since 2h --limit 0 --json",
)
@options.setting_options(*_KAFKA)
@click.option("--reason", default=None, help="Only those put aside for this reason.")
@click.option(
    "--since", type=_since, default=None, metavar="TIME", help="Only those put aside since 30m, 2h, 7d, or a UTC time."
)
@click.option(
    "--limit", type=click.IntRange(min=0), default=100, show_default=True, help="The newest N of each topic; 0: all."
)
@_json_option
def dlq_list(*, reason: str | None, since: int | None, limit: int, as_json: bool, **_: Any) -> None:
    """One line per dead letter, and how many there are of each reason. With --json one object a line."""
    settings = options.current_settings()
    for topic in settings.topic:
        reasons: Counter[str] = Counter()
        with DeadLetters(kafka_settings(settings), topic) as letters:
            letters.partitions()
            ledger = Ledger(kafka_settings(settings), letters.topic)
            found = _counted(_wanted(letters.all(), reason, since), reasons)
            rows = (_row(letter, replayed=letter in ledger) for letter in found)
            shown = iter(_newest(limit, rows)) if limit else rows
            if as_json:
                for row in shown:
                    click.echo(json.dumps(row))
            else:
                _print_table(shown)
                _print_summary(letters.topic, reasons, limit)


def _wanted(letters: Iterable[DeadLetter], reason: str | None, since: int | None) -> Iterator[DeadLetter]:
    for letter in letters:
        if reason in (None, printable(letter.reason)) and (since is None or letter.failed_ms >= since):
            yield letter


def _counted(letters: Iterable[DeadLetter], reasons: Counter[str]) -> Iterator[DeadLetter]:
    for letter in letters:
        reasons[printable(letter.reason) or "none given"] += 1
        yield letter


def _newest(limit: int, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest in the order they were put aside; no more than these are held at a time."""
    age = itemgetter("failed_at_ms", "partition", "offset")
    return sorted(heapq.nlargest(limit, rows, key=age), key=age)


def _row(letter: DeadLetter, *, replayed: bool) -> dict[str, Any]:
    return {
        "partition": letter.partition,
        "offset": letter.offset,
        "source": _source(letter),
        "failed_at_ms": letter.failed_ms,
        "reason": printable(letter.reason),
        "error": printable(letter.notes.get("error", b""), _SHOWN_ERROR),
        "bank": printable(letter.notes["bank"]) if "bank" in letter.notes else None,
        "bytes": len(letter.value or b""),
        "truncated_from": letter.truncated_from,
        "replayed": replayed,
        "replayed_from": None if letter.replayed_from is None else printable(letter.replayed_from),
    }


def _source(letter: DeadLetter) -> str | None:
    parts = [letter.notes.get(f"source-{name}") for name in ("topic", "partition", "offset")]
    if None in parts:
        return None
    topic, partition, offset = (printable(part or b"") for part in parts)
    return f"{topic}:{partition}@{offset}"


def _print_table(rows: Iterator[dict[str, Any]]) -> None:
    """In pages, so that a million letters need no more memory than one page; the last column as wide as it is."""
    while page := list(map(_cells, islice(rows, _PAGE_ROWS))):
        widths = [max(map(len, column)) for column in zip(_HEAD, *page, strict=True)][:-1]
        for cells in (_HEAD, *page):
            click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)), cells[-1]]))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    size = f"{row['bytes']}" + (f" of {row['truncated_from']}" if row["truncated_from"] is not None else "")
    state = [word for word, holds in (("again", row["replayed_from"]), ("replayed", row["replayed"])) if holds]
    place, source = f"{row['partition']}:{row['offset']}", row["source"] or ""
    return place, source, _time(row["failed_at_ms"]), row["reason"], size, ", ".join(state), row["error"]


def _print_summary(topic: str, reasons: Counter[str], limit: int) -> None:
    total = sum(reasons.values())
    parts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    newest = f"; the newest {limit} are shown" if limit and total > limit else ""
    click.echo(f"{topic}: {total} dead letters" + (f" ({parts})" if parts else "") + newest)


def _time(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # a clock may say anything
        return str(milliseconds)


# -- show


@dlq.command("show", epilog="\b\nExample:\n  supsup-daemon dlq show 0:17 --topic digits --save letter.bin")
@click.argument("place", metavar="PARTITION:OFFSET")
@options.setting_options(*_KAFKA, *_LIMITS)
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), default=None, help="Write the value to this file."
)
@_json_option
def dlq_show(place: str, *, save: Path | None, as_json: bool, **_: Any) -> None:
    """Everything about one dead letter: its headers, the beginning of its value, and what is wrong with it now."""
    settings = options.current_settings()
    with DeadLetters(kafka_settings(settings), _one_topic(settings.topic)) as letters:
        letter = letters.at(*_place(place, letters.partitions()))
        replayed = letter in Ledger(kafka_settings(settings), letters.topic)
    limits = wire.RecordLimits(settings.input_shape, settings.classes, settings.max_record_bytes, settings.max_rows)
    if save is not None:
        try:
            save.write_bytes(letter.value or b"")
        except OSError as error:
            raise ConfigError(f"cannot write {save}: {error}") from error
    shown = _description(letter, _verdict(letter, limits), replayed=replayed)
    if as_json:
        click.echo(json.dumps(shown, indent=2))
    else:
        _print_letter(letter, shown)


def _one_topic(topics: tuple[str, ...]) -> str:
    if len(topics) != 1:
        raise click.UsageError("name one --topic at a time")
    return topics[0]


def _place(text: str, partitions: list[int]) -> tuple[int, int]:
    found = re.fullmatch(r"(?:(\d{1,9}):)?(\d{1,18})", text)
    if not found:
        raise click.UsageError(f"{text!r} is no place of a letter: write PARTITION:OFFSET, as `dlq list` shows it")
    if found[1] is None and partitions != [0]:
        raise click.UsageError(f"{text!r}: there are {len(partitions)} partitions, write PARTITION:OFFSET")
    return int(found[1] or 0), int(found[2])


def _verdict(letter: DeadLetter, limits: wire.RecordLimits) -> dict[str, str] | None:
    """What the decoder says about the value with these limits; None when it finds nothing wrong."""
    if letter.truncated_from is not None:
        return {"reason": "truncated", "error": "only the beginning of the value was kept, it cannot be decoded"}
    content_type = dict(letter.own).get("content-type", b"").decode("latin-1") or None
    try:
        wire.decode(letter.value, content_type, limits)
    except BadBatchError as error:
        return {"reason": error.reason, "error": printable(str(error).encode())}
    return None


def _description(letter: DeadLetter, verdict: dict[str, str] | None, *, replayed: bool) -> dict[str, Any]:
    value = letter.value or b""
    return {
        **_row(letter, replayed=replayed),
        "error": printable(letter.notes.get("error", b"")),
        "key": None if letter.key is None else printable(letter.key),
        "headers": [[printable(name.encode()), printable(text)] for name, text in letter.own],
        "notes": {printable(name.encode()): printable(text) for name, text in letter.notes.items()},
        "now": verdict,
        "preview": readable(value) or hexdump(value),
    }


def _print_letter(letter: DeadLetter, shown: dict[str, Any]) -> None:
    console = Console()
    table = Table(show_header=False, box=None)
    table.add_row("letter", f"{letter.topic} {letter.place}")
    table.add_row(
        "put aside", f"{_time(shown['failed_at_ms'])} UTC" + (", replayed since" if shown["replayed"] else "")
    )
    if shown["replayed_from"] is not None:
        table.add_row("again", Text(f"it was a replay of {shown['replayed_from']}"))
    for name, text in shown["notes"].items():
        table.add_row(Text(name), Text(text))
    table.add_row("key", Text("none" if shown["key"] is None else shown["key"]))
    for name, text in shown["headers"]:
        table.add_row("own header", Text(f"{name}: {text}"))
    now = shown["now"]
    table.add_row("now", Text(_NOTHING_WRONG if now is None else f"{now['reason']}: {now['error']}"))
    table.add_row("value", "none" if letter.value is None else f"{len(letter.value)} bytes, beginning with")
    console.print(table)
    console.print(Text(shown["preview"]), soft_wrap=True)


_NOTHING_WRONG: Final = (
    "its value can be decoded with these limits; whether the trainer would use it also depends on its bank"
)


# -- replay


@dlq.command(
    "replay",
    epilog="\b\nExamples:\n  supsup-daemon dlq replay 0:17 0:18 --topic digits\n"
    "  supsup-daemon dlq replay --all --reason shape --topic digits --dry-run",
)
@click.argument("places", metavar="[PARTITION:OFFSET]...", nargs=-1)
@options.setting_options(*_KAFKA)
@click.option("--all", "everything", is_flag=True, help="Every letter that was not replayed yet.")
@click.option("--reason", default=None, help="Only those put aside for this reason.")
@click.option("--dry-run", is_flag=True, help="Send nothing; say what would be sent.")
@click.option("--again", is_flag=True, help="Send also what was replayed before.")
@click.option("--to", default=None, help="Send to this topic instead; the key chooses the partition.")
@_json_option
def dlq_replay(places: tuple[str, ...], *, everything: bool, to: str | None, as_json: bool, **given: Any) -> None:
    """Send dead letters back to the topic they came from, key, value and own headers as they were.

    What was sent is remembered, so --all a second time sends only what has come since. A crash in between may send up
    to a hundred letters twice: at least once.
    """
    if bool(places) == everything:
        raise click.UsageError("name letters as PARTITION:OFFSET, or take --all of them")
    settings = options.current_settings()
    kafka, topic = kafka_settings(settings), _one_topic(settings.topic)
    target = to or topic
    with DeadLetters(kafka, topic) as letters:
        known = letters.partitions()
        chosen = [letters.at(*place) for place in sorted({_place(text, known) for text in places})]
        partitions = _partitions(kafka, target)
        dry_run, again = given["dry_run"], given["again"]
        with (
            Replay(kafka, letters.topic, target, None if to else partitions, dry_run=dry_run, again=again) as replay,
            _progress() as bar,
        ):
            row = bar.add_task(f"{'looking' if dry_run else 'replaying'}", sent=0)
            outcome = replay.send(
                letters.all() if everything else chosen,
                reason=None if given["reason"] is None else given["reason"].encode(),
                progress=lambda so_far: bar.update(row, sent=so_far.sent),
            )
    _tell(outcome, letters.topic, target, dry_run=dry_run, as_json=as_json)
    if outcome.refused and not everything:
        raise StopError(f"{len(outcome.refused)} of the letters you named cannot be replayed, see above")


def _partitions(kafka: KafkaSettings, topic: str) -> list[int]:
    with TopicReader(kafka, topic) as reader:
        if not (found := reader.partitions()):
            raise ConfigError(f"there is no topic {topic} to send to: create it, or name another one with --to")
        return found


def _tell(outcome: Outcome, letters: str, target: str, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        shown = {"topic": letters, "to": target, "dry_run": dry_run, "sent": outcome.sent, "bytes": outcome.bytes}
        shown |= {"skipped": outcome.skipped, "copies": outcome.copies, "refused": outcome.refused}
        click.echo(json.dumps(shown))
        return
    for place, why in outcome.refused.items():
        click.echo(f"{letters} {place}: {why}", err=True)
    what = "would be sent" if dry_run else "sent"
    click.echo(
        f"{outcome.sent} dead letters {what} to {target}, {outcome.bytes / 1e6:.1f} MB; {outcome.skipped} were "
        f"replayed before, {outcome.copies} are copies, {len(outcome.refused)} cannot be replayed"
    )


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description} {task.fields[sent]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
