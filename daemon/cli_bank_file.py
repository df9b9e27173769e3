"""Commands that take a bank in hand: `bank export`, `bank import`, `bank verify`."""

import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
from click import progressbar
from rich.console import Console
from rich.table import Table

from daemon import bank_check, bank_transfer, connections, options, redis_client
from daemon.bank_check import BankSummary
from daemon.errors import BankMismatchError, ConfigError
from daemon.redis_keys import BankKeys
from daemon.redis_store import BankReader
from supsup_online.bank_file import BankFile, write_bank
from supsup_online.errors import CodecError

_STDOUT: Final = Path("-")

_json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
_redis_options = options.setting_options("redis", "bank", "weights_file", *connections.REDIS_OPTIONS)
_to_write = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
_to_read = click.Path(dir_okay=False, exists=True, path_type=Path)


@click.group()
def bank() -> None:
    """A whole bank as one file: to back it up, move it, check it."""


@bank.command(
    "export",
    epilog="\b\nExamples:\n  supsup-daemon bank export digits.bank --bank digits\n"
    "  supsup-daemon bank export - --bank digits | ssh elsewhere 'cat > digits.bank'",
)
@_to_write
@click.option("--force", is_flag=True, help="Overwrite FILE if it is there.")
@_redis_options
@_json_option
def bank_export(file: Path, *, force: bool, as_json: bool, **_: Any) -> None:
    """Write the bank to FILE, as it is between two commits; its trainer may go on meanwhile.

    FILE holds spec, masks, statistics, hot states, counters and positions. It appears once it is complete. - writes to
    standard output.
    """
    _refuse_to_overwrite(file, force=force)
    with _reader() as reader:
        snapshots = bank_transfer.Snapshots(reader)
        with _progress("reading", snapshots.expected_bytes()) as bar:
            snapshots.read = bar.update
            entries = snapshots.take()
    summary = bank_transfer.check_entries(entries, options.current_settings().weights_file)
    with _progress("writing", sum(map(len, entries.values()))) as bar:
        if file == _STDOUT:
            written = write_bank(sys.stdout.buffer, entries, bar.update)
            sys.stdout.flush()
        else:
            with _appearing(file, force=force) as target:
                written = write_bank(target, entries, bar.update)
    _show(summary, {"file": str(file), "bytes": written}, as_json=as_json, to_stderr=file == _STDOUT)


@bank.command(
    "import",
    epilog="\b\nExamples:\n  supsup-daemon bank import digits.bank --redis redis://new:6379/0\n"
    "  supsup-daemon bank import digits.bank --bank digits-of-friday\n"
    "  supsup-daemon bank import digits.bank --replace",
)
@click.argument("file", type=_to_read)
@click.option("--replace", is_flag=True, help="Put it in the place of the bank of that name.")
@_redis_options
@_json_option
def bank_import(file: Path, *, replace: bool, as_json: bool, **_: Any) -> None:
    """Write the bank in FILE to Redis: checked first, then all of it at once.

    Without --bank it gets the name it had. No trainer may be at work on a bank of that name; one that was is refused
    from then on.
    """
    context = click.get_current_context()
    settings = options.current_settings(context)
    entries: dict[str, bytes] = {}
    with _opened(file) as source, _progress("checking", source.size) as bar:

        def keep(name: str, payload: bytes) -> None:
            entries[name] = payload
            bar.update(len(payload))

        summary = bank_transfer.check(source, keep, settings.weights_file)
    name = summary.bank if options.origins_of(context)["bank"] == "default" else settings.bank
    with redis_client.connect(settings.redis, security=connections.redis_client(settings)) as client:
        done = bank_transfer.put(client, BankKeys(name), entries, summary, replace=replace)
    more = {"file": str(file), "imported_as": name, "new_version": done.version, "new_epoch": done.epoch}
    _show(summary, more, as_json=as_json)


@bank.command(
    "verify",
    epilog="\b\nExamples:\n  supsup-daemon bank verify digits.bank\n  supsup-daemon bank verify --bank digits",
)
@click.argument("file", type=_to_read, required=False)
@_redis_options
@_json_option
def bank_verify(file: Path | None, *, as_json: bool, **_: Any) -> None:
    """Check FILE, or without FILE the bank in Redis, and say what it holds.

    Everything is looked at: spec, the weights' fingerprint (they are made anew from the seed), every mask, hot state,
    statistic and position. The exit code is 65 when something is damaged.
    """
    if file is not None:
        settings = options.current_settings()
        with _opened(file) as source, _progress("checking", source.size) as bar:
            summary = bank_transfer.check(
                source, lambda _name, payload: bar.update(len(payload)), settings.weights_file
            )
            _show(summary, {"file": str(file), "bytes": source.size}, as_json=as_json)
        return
    with _reader() as reader:
        entries = bank_transfer.Snapshots(reader).take()
        summary = bank_transfer.check_entries(entries, options.current_settings().weights_file)
    _show(summary, {}, as_json=as_json)


@contextmanager
def _reader() -> Iterator[BankReader]:
    settings = options.current_settings()
    with redis_client.connect(settings.redis, security=connections.redis_client(settings)) as client:
        yield BankReader(client, settings.bank)


@contextmanager
def _opened(path: Path) -> Iterator[BankFile]:
    """A bank file whose checksum is right."""
    with path.open("rb") as file:
        try:
            opened = BankFile(file)
            opened.verify_checksum()
        except CodecError as error:
            raise BankMismatchError(f"{path}: {error}") from error
        yield opened


def _refuse_to_overwrite(path: Path, *, force: bool) -> None:
    if path != _STDOUT and path.exists() and not force:
        raise ConfigError(f"{path} is there already: choose another name, or --force")


@contextmanager
def _appearing(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """A file that is there, whole and on the disk, when the block has ended; not at all when it has failed."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _refuse_to_overwrite(path, force=force)
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    with suppress(OSError):  # some file systems cannot
        os.fsync(folder)
    os.close(folder)


def _progress(label: str, length: int) -> Any:
    return progressbar(length=max(length, 1), label=label, file=sys.stderr, show_pos=False)


def _show(summary: BankSummary, more: dict[str, Any], *, as_json: bool, to_stderr: bool = False) -> None:
    shown = {**more, **bank_check.as_json(summary)}
    if as_json:
        click.echo(json.dumps(shown, indent=2), err=to_stderr)
        return
    table = Table(show_header=False, box=None)
    for name, value in shown.items():
        text = "  ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(name, text)
    Console(stderr=to_stderr).print(table)
