"""Tables of a run, in Markdown that reads as well in a terminal."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.problems import ODD, WORKS
from benchmarks.systems import OURS, VARIANTS

Table = tuple[list[str], list[list[str]]]  # the names of the columns, and rows; the first column is text


@dataclass(frozen=True)
class Point:
    """One work on one shape. A ratio is time of the system / our time: above 1 we are faster."""

    cell: str
    shape: str
    work: str
    seconds: float
    flops: int
    fraction: float | None  # limit / our time
    memory: dict[str, int | None]
    ratios: dict[str, float]

    @property
    def gflops(self) -> float:
        return self.flops / self.seconds * 1e-9

    @property
    def best(self) -> str | None:
        """Return the peer that is fastest here."""
        return min((name for name in self.ratios if name not in VARIANTS), key=self.ratios.__getitem__, default=None)

    @property
    def to_best(self) -> float | None:
        return None if self.best is None else self.ratios[self.best]


def points(data: dict[str, Any]) -> list[Point]:
    return [_point(result) for result in data["results"]]


def _point(result: dict[str, Any]) -> Point:
    systems = result["systems"]
    ours = np.array(systems[OURS]["seconds"])
    seconds = float(np.median(ours))
    return Point(
        result["cell"],
        ",".join(map(str, result["shape"])),
        result["work"],
        seconds,
        result["flops"],
        result["limit"] / seconds if result["limit"] else None,
        {name: system["memory"] for name, system in systems.items()},
        {name: float(np.median(np.array(s["seconds"]) / ours)) for name, s in systems.items() if name != OURS},
    )


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of those that are there, None if none is."""
    known = [value for value in values if value is not None]
    return math.exp(sum(map(math.log, known)) / len(known)) if known else None


def markdown(data: dict[str, Any]) -> str:
    """Return the machine, a summary, and a table for each cell and work."""
    measured = points(data)
    names = list(dict.fromkeys(name for point in measured for name in point.ratios))
    paragraphs = ["# rnnfast and its peers", *machine(data), "## Summary", *lines(summary(measured, names))]
    for cell, work, group in groups(measured):
        paragraphs += [f"## {cell}: {WORKS[work]}", *lines(details(group))]
    odd = odd_sizes(measured)
    if odd[1]:
        paragraphs += ["## Odd sizes", "", "GFLOP/s by that of the multiple of 16", *lines(odd)]
    if data["refused"]:
        paragraphs += ["## Left out", *refused(data)]
    return "\n".join(paragraphs)


def machine(data: dict[str, Any]) -> Iterator[str]:
    limits = data["limits"]
    peak = f"peak {limits['peak'] * 1e-9:.0f} GFLOP/s"
    levels = [f"{level['name']} {level['bandwidth'] * 1e-9:.0f} GB/s" for level in limits["levels"]]
    sizes = [f"{name} {size >> 10} KiB" for name, size in data["caches"].items()]
    chosen = " (RNNFAST_ISA)" if data["RNNFAST_ISA"] else ""
    threads = "one thread" if data["threads"] == 1 else f"{data['threads']} threads"
    yield ""
    yield f"- {data['date']}, {data['processor']}, {', '.join(sizes)}, {data['system']}, Python {data['python']}"
    yield f"- {data['dtype']}, {data['isa']}{chosen}, {threads}, median of {data['rounds']} rounds, {data['compiler']}"
    yield f"- measured on one core: {peak}, {', '.join(levels)}"
    yield "- " + ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    if data["absent"]:
        yield "- not compared: " + ", ".join(f"{name} ({why})" for name, why in data["absent"].items())
    yield ""


def groups(measured: Sequence[Point]) -> Iterator[tuple[str, str, list[Point]]]:
    for cell in dict.fromkeys(point.cell for point in measured):
        for work in WORKS:
            group = [point for point in measured if (point.cell, point.work) == (cell, work)]
            if group:
                yield cell, work, group


def summary(measured: Sequence[Point], names: Sequence[str]) -> Table:
    """Return the geometric means over the shapes, and the shape where the best peer comes closest or leads most."""
    rows = []
    for cell, work, group in groups(measured):
        compared = [point for point in group if point.to_best is not None]
        closest = min(compared, key=lambda point: point.to_best or 0, default=None)
        least = "-" if closest is None else f"{ratio(closest.to_best)} {closest.best} at {closest.shape}"
        rows.append([f"{cell}, {WORKS[work]}", *means(group, names), least])
    return ["geometric means", "of limit", *names, "best peer", "least ratio to a peer"], rows


def details(group: Sequence[Point]) -> Table:
    names = list(dict.fromkeys(name for point in group for name in point.ratios))
    header = ["T,B,I,H", "ms", "GFLOP/s", "MB", "of limit", *names, "best peer", "its name", "its MB"]
    rows = [
        [
            point.shape,
            f"{point.seconds * 1e3:.3f}",
            f"{point.gflops:.1f}",
            _megabytes(point.memory[OURS]),
            ratio(point.fraction),
            *(ratio(point.ratios.get(name)) for name in names),
            ratio(point.to_best),
            point.best or "-",
            _megabytes(point.memory.get(point.best or "")),
        ]
        for point in group
    ]
    return header, [*rows, ["geometric mean", "", "", "", *means(group, names), "", ""]]


def odd_sizes(measured: Sequence[Point]) -> Table:
    """Return our speed at odd sizes by that at the sizes around them, where both were measured."""
    rows = []
    for cell, work, group in groups(measured):
        speeds = {point.shape: point.gflops for point in group}
        for odd, around in ODD.items():
            name, below, above = (",".join(map(str, shape)) for shape in (odd, *around))
            if {name, below, above} <= speeds.keys():
                ratios = [ratio(speeds[name] / speeds[other]) for other in (below, above)]
                rows.append([f"{cell}, {WORKS[work]}", name, *ratios])
    return ["", "T,B,I,H", "below", "above"], rows


def means(group: Sequence[Point], names: Sequence[str]) -> list[str]:
    """Return the means of the columns `of limit`, the systems and `best peer`."""
    of_systems = ([point.ratios.get(name) for point in group] for name in names)
    columns = [[point.fraction for point in group], *of_systems, [point.to_best for point in group]]
    return [ratio(geometric_mean(column)) for column in columns]


def refused(data: dict[str, Any]) -> Iterator[str]:
    yield ""
    for row in data["refused"]:
        shape = ",".join(map(str, row["shape"]))
        yield f"- {row['system']}, {row['cell']}, {shape}, {row['work']}: {row['why']}"


def lines(table: Table) -> Iterator[str]:
    """Yield a Markdown table with its columns aligned: the first to the left, figures to the right."""
    header, rows = table
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        return "| " + " | ".join([first, *others]) + " |"

    yield ""
    yield line(header)
    yield "|" + "|".join("-" * (w + 2) if k == 0 else "-" * (w + 1) + ":" for k, w in enumerate(widths)) + "|"
    yield from map(line, rows)
    yield ""


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _megabytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.1f}"
