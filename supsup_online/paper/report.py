"""What runs of a figure add up to: one row per cell and reading, and the picture."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Picture

from supsup_online.paper.figures import Figure

Line = Mapping[str, Any]
Curves = dict[tuple[str, str], dict[int, list[float]]]  # by cell and reading, then by tasks learnt: a value a seed
_COLUMNS: Final = ("right_label", "right_task", "right_both")


@dataclass(frozen=True, slots=True)
class Row:
    """A cell under a reading, over its seeds, when all of its tasks were learnt; of unfinished ones, so far.

    Attributes:
        cell, reading: names.
        seeds: how many.
        tasks: learnt.
        label: accuracy in percent, of the label alone (lenient); mean over seeds.
        both: of task and label (strict); None where the method knows no tasks.
        found: share of tasks found, percent; None likewise.
        spread: standard deviation over seeds of the strict (else the lenient) accuracy; None of one seed.
        forgetting: by how many points tasks were better at an earlier checkpoint, at their best and on average; None
            where there was none.
        bytes_per_task: stored.
        seconds_per_task, cpu_per_task: spent in training, by the clock and by all cores together.
        paper: the paper's number, percent.
    """

    cell: str
    reading: str
    seeds: int
    tasks: int
    label: float
    both: float | None
    found: float | None
    spread: float | None
    forgetting: float | None
    bytes_per_task: float | None
    seconds_per_task: float
    cpu_per_task: float | None
    paper: float | None


def rows(figure: Figure, runs: Sequence[Mapping[str, Any]], order: Sequence[str] = ()) -> list[Row]:
    """One row per cell and reading, cells in the order of their names; runs that have no score yet are left out."""
    grouped: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for run in runs:
        for reading in dict.fromkeys(line["reading"] for line in run["scores"]):
            grouped[run["cell"], reading].append(run)
    found = [_row(figure, cell, reading, group) for (cell, reading), group in grouped.items()]
    places = {name: place for place, name in enumerate(order)}
    return sorted(found, key=lambda row: places.get(row.cell, len(places)))


def _row(figure: Figure, cell: str, reading: str, runs: Sequence[Mapping[str, Any]]) -> Row:
    runs = [run for run in runs if run["finished"]] or runs
    tasks = min(max(line["learnt"] for line in run["scores"]) for run in runs)
    means = {column: [percent(run, reading, tasks, column) for run in runs] for column in _COLUMNS}
    strict = [value for value in means["right_both"] if value is not None]
    decisive = strict or [value for value in means["right_label"] if value is not None]
    stored = [run["bytes_per_task"] + run["bytes_shared"] / tasks for run in runs if run["finished"]]
    return Row(
        cell=cell,
        reading=reading,
        seeds=len(runs),
        tasks=tasks,
        label=_mean(means["right_label"]) or 0.0,
        both=_mean(means["right_both"]),
        found=_mean(means["right_task"]),
        spread=statistics.stdev(decisive) if len(decisive) > 1 else None,
        forgetting=_mean([_forgetting(run, reading, tasks) for run in runs]),
        bytes_per_task=_mean(stored),
        seconds_per_task=_mean([run["training_s"] / run["learnt"] for run in runs]) or 0.0,
        cpu_per_task=_mean([run["training_cpu_s"] / run["learnt"] for run in runs if "training_cpu_s" in run]),
        paper=figure.numbers.get(f"{cell}, {reading}"),
    )


def percent(run: Mapping[str, Any], reading: str, learnt: int, column: str) -> float | None:
    """Mean over tasks of the share of right answers when so many tasks had been learnt; None where not asked."""
    lines = [line for line in run["scores"] if line["reading"] == reading and line["learnt"] == learnt]
    return _mean([100 * line[column] / line["images"] for line in lines if line[column] is not None])


def _forgetting(run: Mapping[str, Any], reading: str, learnt: int) -> float | None:
    """Mean over tasks, but the last, of (best accuracy so far - accuracy now), in points."""
    before: dict[int, float] = {}
    now: dict[int, float] = {}
    for line in run["scores"]:
        if line["reading"] == reading and line["learnt"] <= learnt:
            value = 100 * line["right_label"] / line["images"]
            into = now if line["learnt"] == learnt else before
            into[line["task"]] = max(value, into.get(line["task"], 0.0))
    return _mean([best - now[task] for task, best in before.items() if task in now])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def curves(runs: Sequence[Mapping[str, Any]], column: str) -> Curves:
    """Cell and reading -> tasks learnt -> accuracy in percent of each seed."""
    found: Curves = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for reading in dict.fromkeys(line["reading"] for line in run["scores"]):
            for learnt in sorted({line["learnt"] for line in run["scores"]}):
                value = percent(run, reading, learnt, column)
                if value is None:
                    value = percent(run, reading, learnt, "right_label")
                if value is not None:
                    found[run["cell"], reading][learnt].append(value)
    return found


def draw(figure: Figure, runs: Sequence[Mapping[str, Any]], stem: Path, order: Sequence[str] = ()) -> list[Path]:
    """Accuracy against tasks learnt, or bars of the last where there are one or two numbers of them; PNG and SVG."""
    places = {name: place for place, name in enumerate(order)}
    lines = curves(sorted(runs, key=lambda run: places.get(run["cell"], len(places))), "right_both")
    bars = all(len(points) < 3 for points in lines.values())
    picture = Picture(figsize=(9, 1.5 + 0.24 * len(lines)) if bars else (9.5, 5.5), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.subplots()
    axes.set_title(figure.title, fontsize=11)
    (_bars if bars else _lines)(axes, lines, figure.numbers)
    paths = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    for path in paths:
        picture.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _lines(axes: Any, lines: Curves, numbers: Mapping[str, float]) -> None:
    """A colour for each cell, a style for each of its readings."""
    styles = ("-", "--", ":", "-.", (0, (1, 4)))
    cells = list(dict.fromkeys(cell for cell, _ in lines))
    palette = colormaps["tab10" if len(cells) <= 10 else "tab20"]
    for (cell, reading), points in lines.items():
        x = sorted(points)
        y = [statistics.fmean(points[count]) for count in x]
        colour = palette(cells.index(cell) % palette.N)
        style = styles[[r for c, r in lines if c == cell].index(reading) % len(styles)]
        axes.plot(
            x, y, marker="o", markersize=3, color=colour, linestyle=style, label=f"{cell}, {reading}: {y[-1]:.1f}"
        )
        if any(len(points[count]) > 1 for count in x):
            low, high = [min(points[count]) for count in x], [max(points[count]) for count in x]
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    for label, value in numbers.items():
        axes.axhline(value, color="0.5", linestyle=":", linewidth=1)
        axes.annotate(f"paper: {label} {value:g} %", (0.01, value), xycoords=("axes fraction", "data"), fontsize=7)
    axes.set_xlabel("tasks learnt")
    axes.set_ylabel("accuracy over all tasks, %\n(task and label; of methods without tasks: label)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=3)


def _bars(axes: Any, lines: Curves, numbers: Mapping[str, float]) -> None:
    labels = [f"{cell}, {reading}" for cell, reading in lines]
    values = [statistics.fmean(points[max(points)]) for points in lines.values()]
    drawn = axes.barh(range(len(labels)), values, color="tab:blue")
    axes.bar_label(drawn, fmt="%.1f", fontsize=7, padding=2)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    for label, value in numbers.items():
        if label in labels:
            place = labels.index(label)
            axes.plot([value, value], [place - 0.45, place + 0.45], color="black", linewidth=2)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlim(0, 107)
    axes.set_xlabel("accuracy, % (task and label; black: the paper)")


def table(found: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    names = "method", "reading", "tasks", "seeds", "task and label %", "label %", "task found %", "forgetting"
    head = f"| {' | '.join((*names, 'KB/task', 's/task', 'CPU s/task', 'paper %'))} |"
    return "\n".join([head, "|---" * (len(names) + 4) + "|", *(_line(row) for row in found)])


def _line(row: Row) -> str:
    def number(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    spread = "" if row.spread is None else f" ± {row.spread:.2f}"
    stored = None if row.bytes_per_task is None else row.bytes_per_task / 1000
    cells = (
        row.cell,
        row.reading,
        str(row.tasks),
        str(row.seeds),
        number(row.both) + (spread if row.both is not None else ""),
        number(row.label) + (spread if row.both is None else ""),
        number(row.found),
        number(row.forgetting),
        number(stored, 1),
        number(row.seconds_per_task, 1),
        number(row.cpu_per_task, 1),
        number(row.paper),
    )
    return f"| {' | '.join(cells)} |"
