"""The command `paper`: the paper's figures, run and reported."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, get_args

import click

from daemon.paper_run import Order, run_orders
from daemon.progress import progress_bar
from supsup_online.paper import report as reporting
from supsup_online.paper.cells import Scale
from supsup_online.paper.figures import FIGURES, Figure, figure
from supsup_online.paper.results import read_runs

_SCALES: Final = get_args(Scale)
_EXAMPLES = """
\b
Examples:
  supsup-daemon paper list
  supsup-daemon paper run check                          five permutations, a minute
  supsup-daemon paper run permuted-lenet --scale laptop --seeds 3
  supsup-daemon paper report                             tables and pictures of all that was run

Whatever is killed goes on where it was when the same command is given again.
"""

_output = click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("paper-results"),
    show_default=True,
    help="Directory of the results.",
)
_json = click.option("--json", "as_json", is_flag=True, help="JSON on stdout and nothing else.")


@click.group(epilog=_EXAMPLES)
def paper() -> None:
    """The paper's figures: run them, and see ours beside the paper's numbers."""


@paper.command("list")
@_json
def list_figures(*, as_json: bool) -> None:
    """The figures there are."""
    if as_json:
        click.echo(json.dumps([_described(each) for each in FIGURES.values()]))
        return
    for each in FIGURES.values():
        click.echo(f"{each.name:16}{each.source:24}{each.title}")


def _described(each: Figure) -> dict[str, Any]:
    sizes = {scale: sum(cell.setup.tasks * cell.batches for cell in each.cells(scale, 0)) for scale in _SCALES}
    return {
        "name": each.name,
        "source": each.source,
        "title": each.title,
        "claim": each.claim,
        "paper": dict(each.numbers),
        "batches": sizes,
    }


@paper.command(epilog=_EXAMPLES)
@click.argument("names", metavar="FIGURE...", nargs=-1, required=True)
@click.option("--scale", type=click.Choice(_SCALES), default="quick", show_default=True, help="How large.")
@click.option(
    "--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Number of seeds, from --first-seed on."
)
@click.option("--first-seed", type=click.IntRange(min=0), default=0, show_default=True, help="The first of them.")
@click.option("--only", default=None, metavar="TEXT", help="Only methods whose name contains this.")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Methods at a time, a process each."
)
@click.option("--fresh", is_flag=True, help="Begin anew, whatever was run before.")
@_output
@_json
def run(
    names: Sequence[str],
    *,
    scale: Scale,
    seeds: int,
    first_seed: int,
    only: str | None,
    jobs: int,
    fresh: bool,
    output: Path,
    as_json: bool,
) -> None:
    """Run figures; `paper list` names them, `all` is all of them."""
    chosen = list(FIGURES.values()) if "all" in names else [figure(name) for name in names]
    for each in chosen:
        orders = [
            Order(each.name, scale, seed, cell.name, output / each.name / scale, fresh)
            for seed in range(first_seed, first_seed + seeds)
            for cell in each.cells(scale, seed)
            if only is None or only in cell.name
        ]
        if orders:
            _run_figure(each, orders, jobs)
    _report([(each, scale) for each in chosen], output, as_json=as_json)


def _run_figure(each: Figure, orders: Sequence[Order], jobs: int) -> None:
    bar = progress_bar(speed_estimate_period=600)
    cells = [order.made() for order in orders]
    runs = [order.opened() for order in orders]
    total = sum(cell.setup.tasks * cell.batches for cell in cells)
    done = sum(cell.batches * run.learnt for cell, run in zip(cells, runs, strict=True))
    unfinished = [order for order, run in zip(orders, runs, strict=True) if not run.finished]
    begun = time.monotonic()
    with bar:
        row = bar.add_task(each.name, total=total, completed=done)
        run_orders(
            unfinished,
            jobs,
            lambda count: bar.advance(row, count),
            lambda order: bar.console.print(
                f"  {order.cell}, seed {order.seed}: done after {time.monotonic() - begun:.0f} s", highlight=False
            ),
        )


@paper.command(epilog=_EXAMPLES)
@click.argument("names", metavar="[FIGURE]...", nargs=-1)
@_output
@_json
def report(names: Sequence[str], *, output: Path, as_json: bool) -> None:
    """Tables and pictures of what was run, beside the paper's numbers."""
    chosen = [figure(name) for name in names] or list(FIGURES.values())
    found = [(each, scale) for each in chosen for scale in _SCALES if (output / each.name / scale).is_dir()]
    if not found:
        raise click.UsageError(f"nothing was run in {output}: `supsup-daemon paper run FIGURE --output {output}`")
    _report(found, output, as_json=as_json)


def _report(chosen: Sequence[tuple[Figure, Scale]], output: Path, *, as_json: bool) -> None:
    everything = []
    for each, scale in chosen:
        directory = output / each.name / scale
        directory.mkdir(parents=True, exist_ok=True)
        runs = read_runs(directory)
        order = [cell.name for cell in each.cells(scale, 0)]
        rows = reporting.rows(each.at(scale), runs, order)
        pictures = reporting.draw(each.at(scale), runs, directory / "figure", order) if rows else []
        page = _page(each, scale, rows, runs)
        (directory / "report.md").write_text(page, encoding="utf-8")
        everything.append(
            _described(each)
            | {"scale": scale, "unfinished": _unfinished(runs), "rows": [asdict(row) for row in rows]}
            | {"pictures": [str(path) for path in pictures]}
        )
        if not as_json:
            click.echo(page)
        if pictures and not as_json:
            click.echo(f"picture: {pictures[0]}\n")
    if as_json:
        click.echo(json.dumps(everything))


def _unfinished(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{run['cell']}, seed {run['seed']}" for run in runs if not run["finished"]]


def _page(each: Figure, scale: str, rows: Sequence[reporting.Row], runs: Sequence[Mapping[str, Any]]) -> str:
    data = {f"{run['record']['data']}, {run['record']['images']} training images" for run in runs}
    facts = "; ".join([each.source, f"scale {scale}", *sorted(data)])
    parts = [f"## {each.title}", f"{facts}. The paper: {each.claim}."]
    if each.table:
        parts.append(each.table())
    if rows:
        parts.append(reporting.table(rows))
    if unfinished := _unfinished(runs):
        parts.append(f"Not finished: {'; '.join(unfinished)}")
    return "\n\n".join(parts) + "\n"
