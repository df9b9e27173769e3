"""The command `serve`."""

from typing import Any

import click

from daemon import logs, options
from daemon import settings as setting_table


@click.command(
    epilog="""
\b
Examples:
  supsup-daemon serve --redis redis://store:6379/0 --bank digits
  supsup-daemon serve --host 0.0.0.0 --http-token-file token --drain-s 10
  curl -s http://127.0.0.1:8080/v2/models/digits
"""
)
@options.setting_options(*setting_table.SERVE_NAMES)
def serve(**_: Any) -> None:
    """Run a replica: follow a bank, infer the task of requests, answer them (Open Inference Protocol v2).

    It stops on SIGTERM or Ctrl-C after the requests in hand; a second signal ends it at once.
    """
    settings = options.current_settings()
    logs.configure(settings.log_format, settings.log_level)
    from daemon.serve import run_replica  # noqa: PLC0415 - torch takes seconds; a mistake in the settings is told at once

    run_replica(settings, announce=lambda line: click.echo(line, err=True))
