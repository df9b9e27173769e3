"""The command line. Results go to stdout, logs and progress to stderr; exit codes are in `daemon.errors`."""

import importlib
import json
import sys
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from daemon import logs, options
from daemon import settings as setting_table
from daemon.errors import ExitCode, StopError
from supsup_online import __version__
from supsup_online.errors import SupsupError

_EXAMPLES = """
\b
Examples:
  supsup-daemon demo                          see the whole idea work, nothing else needed
  supsup-daemon start --embedded              a trainer with its own broker and Redis
  supsup-daemon start --kafka k1:9092,k2:9092 --redis redis://r:6379/0 --topic digits
  supsup-daemon publish --topic digits --scenario permuted --tasks 5 --batches 1000
  supsup-daemon masks list
  supsup-daemon watch
  supsup-daemon dlq list --topic digits
  supsup-daemon bank export digits.bank --bank digits
"""


_UNFOLDED: Final = 240  # columns, where nobody but a program reads the lines

# Commands by the module that holds them, which is imported when the command is used: torch and river take seconds.
_ELSEWHERE: Final = {
    "bank": "daemon.cli_bank_file",
    "demo": "daemon.cli_demo",
    "doctor": "daemon.cli_doctor",
    "dlq": "daemon.cli_dlq",
    "masks": "daemon.cli_bank",
    "paper": "daemon.cli_paper",
    "predict": "daemon.cli_predict",
    "publish": "daemon.cli_publish",
    "serve": "daemon.cli_serve",
    "stats": "daemon.cli_bank",
    "watch": "daemon.cli_bank",
}
_HELP: Final = {
    "bank": "A whole bank as one file: back it up, move it, check it.",
    "demo": "See the whole idea work; nothing else needed.",
    "doctor": "Look whether everything is fit for a trainer; changes nothing.",
    "dlq": "The dead letters of a topic.",
    "masks": "The masks of a bank.",
    "paper": "The paper's figures: run them, and see ours beside the paper's numbers.",
    "predict": "Answer files from a bank: label, task, confidence.",
    "publish": "Publish labelled batches: files, or tasks made from MNIST.",
    "serve": "Run a replica: follow a bank, infer the task of requests, answer them.",
    "stats": "The bank at a glance.",
    "watch": "Watch a bank live: masks and decisions.",
}


class _Commands(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(importlib.import_module(_ELSEWHERE[cmd_name]), cmd_name)
        return command

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        here = {name: command.get_short_help_str(70) for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl(sorted((here | _HELP).items()))


@click.group(
    cls=_Commands, epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="supsup-daemon")
def cli() -> None:
    """Continual learning on a stream: one frozen random network, one binary mask per task, the task inferred."""
    logs.configure("auto", "warning")  # stdout is for results; `start` sets its own level


@cli.command(
    epilog="""
\b
Examples:
  supsup-daemon start --embedded --state-dir .supsup
  supsup-daemon start --kafka broker:9092 --redis redis://store:6379/0 --topic digits --bank digits
  supsup-daemon start --config supsup.toml --burst
"""
)
@options.setting_options(*setting_table.START_NAMES)
def start(**_: Any) -> None:
    """Run a trainer: labelled batches from Kafka in, masks in Redis out.

    It stops on SIGTERM or Ctrl-C after the batch in hand, with everything committed; a second signal ends it at once.
    """
    settings = options.current_settings()
    logs.configure(settings.log_format, settings.log_level)
    from daemon import bootstrap  # noqa: PLC0415 - see above; a mistake in the settings is told at once

    bootstrap.run_trainer(settings, announce=lambda line: click.echo(line, err=True))


@cli.group()
def config() -> None:
    """Settings."""


@config.command("show")
@options.setting_options(*setting_table.NAMES)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def config_show(context: click.Context, /, *, as_json: bool, **_: Any) -> None:
    """Show every setting, its value and where that comes from (flag, environment, file or default)."""
    settings = options.current_settings(context)
    origins = options.origins_of(context)
    values = settings.model_dump(mode="json")
    values["redis"] = setting_table.without_password(settings.redis)
    if as_json:
        click.echo(json.dumps({name: {"value": values[name], "origin": origins[name]} for name in values}, indent=2))
        return
    shown = Table("setting", "value", "origin", box=None)
    for name, value in values.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        shown.add_row(name, text, origins[name], style=None if origins[name] == "default" else "bold")
    Console(width=None if sys.stdout.isatty() else _UNFOLDED).print(shown)


def main() -> None:
    """Entry point of `supsup-daemon`: runs a command, turns errors into one clear message and an exit code."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(ExitCode.INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(ExitCode.FAILURE)
    except SupsupError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code if isinstance(error, StopError) else ExitCode.FAILURE)
