"""Two builds of rnnfast in turns, such as before and after a change: whether their results have the same bits, and the
time of the first by that of the second.

python -m benchmarks.builds A B [--works WORK ...] [--cells CELL ...] [--isa ISA ...] [--at-least MEAN ROW]

A and B are folders that hold a package `rnnfast`: of `pip install --target`, or checkouts with the extension in place.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from tqdm import tqdm

from benchmarks import build_worker, report, stacks
from benchmarks.build_worker import Case
from benchmarks.peers import positive, shape
from benchmarks.problems import BATCHES, FEW, GRIDS, QUICK, SIZES, Shape
from benchmarks.worker import environment

ROUNDS, QUICK_ROUNDS = 40, 20  # in which each build is measured once: many and short, as a machine changes its speed
SAMPLE = 2e-3  # seconds that a build runs in a round, at least
LONG, FEWEST = 1.2, 6  # seconds after which a case gets no further round, and the rounds that it gets in any case
AGAIN = 3  # how often a row that misses --at-least is measured anew, with all its rounds counted


class Work(NamedTuple):
    """What is timed in a row: a task, on these shapes; and compared."""

    task: str
    shapes: Sequence[Shape] = ()
    dtype: str = "float32"


SHAPES = list(dict.fromkeys(shape for grid in GRIDS.values() for shape in grid))
STEPS: list[Shape] = [(1, B, H, H) for B in BATCHES for H in SIZES]
WORKS = {name: Work(name) for name in build_worker.TASKS} | {
    "forward": Work("forward", SHAPES),
    "training": Work("training", SHAPES),
    "one-step": Work("forward", STEPS),
    "one-step-training": Work("training", STEPS),
    "cell": Work("cell", STEPS),
    "cell-training": Work("cell-training", STEPS),
    "step": Work("step", STEPS),
    "run": Work("run", GRIDS["peers"]),
    "run-layers": Work("run-layers", stacks.SHAPES),
    "float64": Work("training", FEW, "float64"),
    "float64-forward": Work("forward", FEW, "float64"),
    **{
        name: Work(name, FEW)
        for name in ("bidirectional", "layers", "lengths", "resets", "tokens", "one-hot", "tbptt", "windows")
    },
}

# Compared in both dtypes, beside the shapes that are timed: below, at and above the lanes of a vector and the rows of a
# tile; and where several threads share the batch or the units, and time has several chunks.
UNITS = 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 20, 24, 31, 32, 33, 47, 48, 49, 65, 100, 130
ROWS = 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17, 64
AWKWARD: list[Shape] = [(1 + 4 * k % 11, ROWS[k % 12], UNITS[-1 - k], H) for k, H in enumerate(UNITS)]
SHARED: list[Shape] = [
    (20, 40, 30, 96),
    (12, 3, 200, 130),
    (300, 1, 1, 20),
    (50, 1, 40, 300),
    (90, 7, 3, 24),
    (1, 70, 100, 200),
]
THREADS = 1, 3


@dataclass(frozen=True)
class Row:
    """The times of a case in both builds, round by round."""

    isa: str
    work: str
    case: Case
    seconds: list[tuple[float, float]]

    @property
    def ratio(self) -> float:
        """Return the median of the rounds' ratios.

        The two times of a round are neighbours, and so share what the machine does for a while; the median leaves out
        the rounds in which it did something to one of them. Each build goes first in every second round.
        """
        return statistics.median(a / b for a, b in self.seconds)


class Failed(str):
    """What a build said in place of an answer."""

    __slots__ = ()


class Build:
    """A process with one build."""

    def __init__(self, folder: Path, isa: str | None = None) -> None:
        variables = environment(1) | {"RNNFAST_OVERSUBSCRIBE": "1"} | ({"RNNFAST_ISA": isa} if isa else {})
        variables["PYTHONPATH"] = os.pathsep.join([str(folder), *sys.path])
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-P", build_worker.__file__],  # without site: an editable install would come first
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | variables,
        )
        self.facts = self.ask("facts")
        foreign = [file for file in self.facts["files"] if not Path(file).is_relative_to(folder)]
        if foreign:
            self.__exit__()
            msg = f"{folder}: expected a whole build, got one that would take {foreign[0]}"
            raise SystemExit(msg)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()  # hangs up, and waits

    def send(self, command: str, **options: Any) -> None:
        assert self.process.stdin
        print(json.dumps([command, options]), file=self.process.stdin, flush=True)

    def receive(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            msg = f"the process of a build ended with {self.process.wait()}"
            raise SystemExit(msg)
        answer = json.loads(line)
        return Failed(answer["error"]) if "error" in answer else answer["answer"]

    def ask(self, command: str, **options: Any) -> Any:
        self.send(command, **options)
        return self.receive()


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    facts = {name: facts_of(folder) for name, folder in (("A", options.a), ("B", options.b))}
    both = [isa for isa in facts["A"]["available"] if isa in facts["B"]["available"]]
    if not set(options.isa or both) <= set(both):
        msg = f"--isa: expected some of {both}, got {options.isa}"
        raise SystemExit(msg)
    cells = [cell for cell in facts["A"]["cells"] if cell in facts["B"]["cells"]]
    options.cells = [cell for cell in cells if cell in (options.cells or cells)]
    for name, folder in (("A", options.a), ("B", options.b)):
        print(f"{name}: {folder}, {facts[name]['version']}, {facts[name]['compiler']}")
    differences = compare(options, options.isa or both)
    rows = measure(options, options.isa or both[-1:])
    print("\n".join(tables(rows)))
    if options.json:
        data = {
            "builds": facts,
            "differences": [asdict(d) for d in differences],
            "rows": [asdict(row) | {"ratio": row.ratio} for row in rows],
        }
        options.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    misses = list(missed(rows, *options.at_least)) if options.at_least else []
    for line in misses:
        print(line)
    return 1 if differences or misses else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.builds", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("a", type=build, metavar="A", help="a folder with a build, such as the one before a change")
    parser.add_argument("b", type=build, metavar="B", help="the other, such as the one after it")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--cells", nargs="+", help="by default, all that both builds have")
    parser.add_argument("--isa", nargs="+", help="by default, all are compared and the best is timed")
    parser.add_argument("--shapes", nargs="+", type=shape, metavar="T,B,I,H", help="in place of all others")
    parser.add_argument("--quick", action="store_true", help="a few small shapes, a few rounds")
    parser.add_argument("--rounds", type=positive, help="of a case; one that takes long gets fewer")
    parser.add_argument("--core", type=int, help="the one to take times on")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--at-least",
        nargs=2,
        type=float,
        metavar=("MEAN", "ROW"),
        help="the exit status is 1 too if the geometric mean of a work is below MEAN, or a ratio below ROW",
    )
    options = parser.parse_intermixed_args(arguments)
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    return options


def build(text: str) -> Path:
    folder = Path(text).resolve()
    if not (folder / "rnnfast" / "__init__.py").is_file():
        msg = f"expected a folder with a package rnnfast, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return folder


def facts_of(folder: Path) -> Any:
    with Build(folder) as process:
        return process.facts


# Bits


@dataclass(frozen=True)
class Difference:
    """A case whose results differ, and the names of those that do; or what B said in place of results."""

    isa: str
    case: Case
    names: list[str]


def compare(options: argparse.Namespace, isas: Sequence[str]) -> list[Difference]:
    """Print and return what differs between the results of the builds."""
    cases = list(dict.fromkeys(compared(options)))
    differences, left_out = [], Counter[str]()
    for isa in isas:
        with Build(options.a, isa) as a, Build(options.b, isa) as b:
            for case in tqdm(cases, desc=f"bits, {isa}", unit="case"):
                for process in (a, b):  # both at once
                    process.send("digests", **asdict(case))
                of_a, of_b = a.receive(), b.receive()
                if isinstance(of_a, Failed):
                    left_out[f"{case.task} of {case.cell}, which A does not do: {of_a}"] += 1
                elif isinstance(of_b, Failed):
                    differences.append(Difference(isa, case, [of_b]))
                elif of_a != of_b:
                    differences.append(Difference(isa, case, different(of_a, of_b)))
    print(f"\nbits on {', '.join(isas)}: {len(isas) * len(cases)} cases, {len(differences)} differ")
    print("".join(f"- {line}\n" for line in said(differences)), end="")
    print("".join(f"- left out {count} times: {what}\n" for what, count in left_out.items()), end="")
    return differences


def different(a: dict[str, str], b: dict[str, str]) -> list[str]:
    """Return the names of the results that differ, or that one build lacks."""
    return [name for name in a | b if a.get(name) != b.get(name)]


def said(differences: Sequence[Difference]) -> Iterator[str]:
    """Yield a line for each task in which cases differ, with the first of them and the names in any."""
    groups: dict[tuple[str, ...], list[Difference]] = {}
    for d in differences:
        groups.setdefault((d.isa, d.case.task, d.case.cell, d.case.dtype), []).append(d)
    for key, group in groups.items():
        names = dict.fromkeys(name for d in group for name in d.names)
        first = f"{group[0].case.shape}, threads: {group[0].case.threads}"
        yield f"{', '.join(key)}: {len(group)} differ, first {first}: {', '.join(names)}"


def compared(options: argparse.Namespace) -> Iterator[Case]:
    awkward, shared = (AWKWARD[::4], SHARED[:2]) if options.quick else (AWKWARD, SHARED)
    if options.shapes:
        awkward, shared = [], options.shapes
    for name in options.works:
        work = WORKS[name]
        for cell in options.cells:
            for sizes in shapes_of(work, options):
                yield Case(work.task, cell, *sizes, work.dtype)
            for dtype in ("float32", "float64"):
                for sizes in awkward:
                    yield Case(work.task, cell, *sizes, dtype)
                for sizes in shared:
                    for threads in THREADS:
                        yield Case(work.task, cell, *sizes, dtype, threads)


def shapes_of(work: Work, options: argparse.Namespace) -> Sequence[Shape]:
    """Return the shapes on which a work is timed."""
    chosen = options.shapes or (QUICK if options.quick else None)
    if not chosen or not work.shapes:
        return work.shapes
    return [(1, B, I, H) if work.shapes is STEPS else (T, B, I, H) for T, B, I, H in chosen]


# Times


def measure(options: argparse.Namespace, isas: Sequence[str]) -> list[Row]:
    """Return a row for each work, cell and shape; stopped, what there is."""
    if hasattr(os, "sched_setaffinity"):  # the builds inherit it
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0)) if options.core is None else options.core})
    rows: list[Row] = []
    try:
        for isa in isas:
            new = [
                Row(isa, name, Case(WORKS[name].task, cell, *sizes, WORKS[name].dtype), [])
                for name in options.works
                for cell in options.cells
                for sizes in shapes_of(WORKS[name], options)
            ]
            add_rounds(options, new)
            rows += [row for row in new if row.seconds]
            for _ in range(AGAIN if options.at_least else 0):
                add_rounds(options, [row for row in rows if row.isa == isa and row.ratio < options.at_least[1]])
    except KeyboardInterrupt:
        print("stopped; this is what was measured until then", file=sys.stderr)
    return rows


def add_rounds(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    """Measure rows of one instruction set, in new processes, whose memory lies elsewhere."""
    if rows:
        isa = rows[0].isa
        with Build(options.a, isa) as a, Build(options.b, isa) as b:
            for row in tqdm(rows, desc=f"times, {isa}", unit="case"):
                row.seconds.extend(times_of(a, b, row.case, options.rounds))


def times_of(a: Build, b: Build, case: Case, rounds: int) -> list[tuple[float, float]]:
    """Return the seconds of a run in each round, of A and of B; nothing where one of them cannot."""
    prepared = [process.ask("prepare", **asdict(case)) for process in (a, b)]
    if any(isinstance(seconds, Failed) for seconds in prepared):
        return []
    runs = math.ceil(SAMPLE / min(prepared))
    times = []
    for k in range(min(rounds, max(FEWEST, int(LONG / (runs * sum(prepared)))))):
        pair = {process: process.ask("seconds", runs=runs) for process in ((a, b) if k % 2 == 0 else (b, a))}
        times.append((pair[a], pair[b]))
    return times


# Tables


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a table of all rows, and one of the works."""
    yield "\ntime of A / time of B: above 1, B is faster. One thread, time of the processor."
    header = ["isa", "work", "cell", "T,B,I,H", "A, ms", "B, ms", "A / B"]
    body = []
    for row in rows:
        a, b = (statistics.median(times) * 1e3 for times in zip(*row.seconds, strict=True))
        body.append([row.isa, row.work, row.case.cell, row.case.shape, f"{a:.4g}", f"{b:.4g}", f"{row.ratio:.3f}"])
    yield from report.lines((header, body))
    header = ["isa", "work", "rows", "geometric mean", "least", "where"]
    body = []
    for (isa, work), group in groups(rows).items():
        least = min(group, key=lambda row: row.ratio)
        where = f"{least.case.cell} {least.case.shape}"
        body.append([isa, work, str(len(group)), f"{mean(group):.3f}", f"{least.ratio:.3f}", where])
    yield from report.lines((header, body))


def groups(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.isa, row.work), []).append(row)
    return found


def mean(rows: Sequence[Row]) -> float:
    return statistics.geometric_mean(row.ratio for row in rows)


def missed(rows: Sequence[Row], least_mean: float, least_row: float) -> Iterator[str]:
    """Yield a line for each work whose mean is too low, and for each such row."""
    for (isa, work), group in groups(rows).items():
        if mean(group) < least_mean:
            yield f"{isa}, {work}: the mean {mean(group):.3f} is below {least_mean}"
    for row in rows:
        if row.ratio < least_row:
            where = f"{row.isa}, {row.work}, {row.case.cell}, {row.case.shape}"
            yield f"{where}: {row.ratio:.3f} is below {least_row}, of {len(row.seconds)} rounds"


if __name__ == "__main__":
    sys.exit(main())
