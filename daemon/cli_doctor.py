"""The command `doctor`: asks, judges, and shows what was found, the worst first."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from daemon import options
from daemon.doctor import Observed, examine
from daemon.doctor_kafka_probe import probe_kafka
from daemon.doctor_measure import embedded_failure, probe_machine
from daemon.doctor_probes import probe_redis
from daemon.errors import ConfigError, ExitCode
from daemon.findings import Finding, Severity, several, worst
from daemon.mask_sizes import MaskSizes
from daemon.settings import START_NAMES, Settings
from supsup_online.errors import SpecError

_STYLES: Final = {Severity.OK: "green", Severity.NOTE: "", Severity.WARNING: "yellow", Severity.PROBLEM: "bold red"}
_CODES: Final = {Severity.WARNING: ExitCode.WARNINGS, Severity.PROBLEM: ExitCode.PROBLEMS}


@click.command(
    epilog="""
\b
Examples:
  supsup-daemon doctor --kafka broker:9092 --redis redis://store:6379/0 --topic digits --bank digits
  supsup-daemon doctor --config supsup.toml --rows 64
  supsup-daemon doctor --config supsup.toml --fail-on problem && supsup-daemon start --config supsup.toml
"""
)
@options.setting_options(*START_NAMES)
@click.option("--rows", type=click.IntRange(min=1), default=128, show_default=True, help="Rows of a usual record.")
@click.option("--measure/--no-measure", default=True, help="Train on noise for a moment, to know times; default: do.")
@click.option(
    "--fail-on",
    type=click.Choice(["warning", "problem"]),
    default="warning",
    show_default=True,
    help="Least severity that the exit code tells.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(*, rows: int, measure: bool, fail_on: str, as_json: bool, **_: Any) -> None:
    """Look whether everything is fit for a trainer with these settings; changes nothing anywhere.

    Exit code 3 tells of a warning, 4 of a problem.
    """
    settings = options.current_settings()
    sizes = _sizes(settings)
    findings = list(examine(settings, _observe(settings, rows, measure=measure), sizes, rows))
    if as_json:
        click.echo(json.dumps(report(findings), indent=2))
    else:
        _show(findings)
    severity = worst(findings)
    if severity >= Severity[fail_on.upper()]:
        sys.exit(_CODES[severity])


def _sizes(settings: Settings) -> MaskSizes:
    try:
        return MaskSizes.of(settings.bank_spec(), settings.learner().optimiser.build().moment_count)
    except SpecError as error:
        raise ConfigError(str(error)) from error


def _observe(settings: Settings, rows: int, *, measure: bool) -> Observed:
    """Ask both servers at once, then this machine, which is measured undisturbed."""
    if settings.embedded:
        machine = probe_machine(settings, rows, measure=measure)
        return Observed(None, None, None, machine, embedded_failure(settings))
    with ThreadPoolExecutor(2) as pool:
        kafka, redis = pool.submit(probe_kafka, settings), pool.submit(probe_redis, settings)
        server, bank = redis.result()
        return Observed(kafka.result(), server, bank, probe_machine(settings, rows, measure=measure))


def report(findings: list[Finding]) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "worst": worst(findings).word,
        "counts": {level.word: sum(f.severity is level for f in findings) for level in Severity},
        "findings": [
            {"severity": f.severity.word, "check": f.check, "found": f.found, "advice": f.advice} for f in findings
        ],
    }


def _show(findings: list[Finding]) -> None:
    table = Table("", "check", "found, and what to do", box=None, header_style="bold")
    for finding in sorted(findings, key=lambda finding: -finding.severity):
        style = _STYLES[finding.severity]
        found = finding.found if not finding.advice else f"{finding.found}\n-> {finding.advice}"
        table.add_row(finding.severity.word, finding.check, found, style=style or None)
    console = Console()
    console.print(table)
    counts = report(findings)["counts"]
    console.print(", ".join(several(count, name) for name, count in reversed(counts.items()) if count and name != "ok"))
