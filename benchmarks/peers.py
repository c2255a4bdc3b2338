"""rnnfast beside its peers, in one run: `python -m benchmarks.peers`. What the columns mean is in README.md here.

Each system has a process of its own, on the same core, and waits there while the others run. They are measured in
turns, each once a round, and a ratio is the median over the rounds. Before anything is timed, the results of all
systems are compared with ours in float64.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import limits, report
from benchmarks.machine import describe
from benchmarks.problems import CELLS, FORWARD, GRIDS, PACKED, QUICK, TRAINING, TRAINING_NO_DX, WORKS, Problem, Shape
from benchmarks.systems import OURS, SYSTEMS, VARIANTS, Numbers
from benchmarks.worker import Failed, Worker, environment

TOLERANCE = {"float32": 1e-3, "float64": 1e-9}  # of the largest element; far above rounding, far below a mistake
ROUNDS, SAMPLE = 5, 0.02  # how often each system is measured, and for how many seconds at least
QUICK_ROUNDS, QUICK_SAMPLE = 3, 0.005


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    data = json.loads(options.from_file.read_text(encoding="utf-8")) if options.from_file else run(options)
    text = report.markdown(data)
    print(text)
    if options.json:
        options.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    if options.plot:
        from benchmarks.plot import roofline

        roofline(data, options.plot)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("shapes", nargs="*", type=shape, metavar="T,B,I,H", help="in place of a grid")
    parser.add_argument("--grid", choices=GRIDS, default="peers")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    known = [*SYSTEMS, *VARIANTS]
    parser.add_argument(
        "--systems", nargs="+", choices=known, default=list(SYSTEMS), help=f"{OURS} is always among them"
    )
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32")
    parser.add_argument("--rounds", type=positive)
    parser.add_argument("--quick", action="store_true", help="a few small shapes, a few short rounds")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--core", type=int, help="the first of as many cores as there are threads")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a roofline picture, PNG or SVG")
    parser.add_argument("--from", type=Path, dest="from_file", metavar="FILE", help="show this JSON, measure nothing")
    options = parser.parse_intermixed_args(arguments)
    options.shapes = options.shapes or (QUICK if options.quick else GRIDS[options.grid])
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    options.systems = [OURS, *(name for name in options.systems if name != OURS)]
    return options


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        msg = f"expected an integer of at least 1, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def shape(text: str) -> Shape:
    sizes = text.split(",")
    if len(sizes) != 4:
        msg = f"expected four sizes T,B,I,H, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    T, B, I, H = map(positive, sizes)
    return T, B, I, H


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; return what the JSON holds."""
    os.environ.update(environment(options.threads))
    if hasattr(os, "sched_setaffinity"):  # the workers inherit it
        core = min(os.sched_getaffinity(0)) if options.core is None else options.core
        os.sched_setaffinity(0, range(core, core + options.threads))
    data = describe() | {"threads": options.threads, "dtype": options.dtype, "rounds": options.rounds}
    data |= {"versions": {}, "absent": {}, "refused": [], "results": []}
    workers = start(options, data)
    measured = workers[OURS].limits(options.dtype)
    problems = [Problem(cell, T, B, I, H, options.dtype) for cell in options.cells for T, B, I, H in options.shapes]
    sample = QUICK_SAMPLE if options.quick else SAMPLE
    try:
        for problem in tqdm(problems, unit="layer"):
            data["results"] += measure(problem, options.works, workers, (options.rounds, sample), data["refused"])
        measured = limits.best_of(measured, workers[OURS].limits(options.dtype))
    except KeyboardInterrupt:
        print("stopped; this is what was measured until then", file=sys.stderr)
    for worker in workers.values():
        worker.close()
    data["limits"] = asdict(measured)
    for result in data["results"]:
        T, B, I, H = result["shape"]
        problem = Problem(result["cell"], T, B, I, H, options.dtype)
        result["limit"] = measured.seconds(problem, result["work"]) if options.threads == 1 else None
    return data


def start(options: argparse.Namespace, data: dict[str, Any]) -> dict[str, Worker]:
    """Start the systems that can be had."""
    workers: dict[str, Worker] = {}
    for name in options.systems:
        system = (SYSTEMS | VARIANTS)[name]
        if system.missing:
            data["absent"][name] = "not installed"
        elif options.dtype not in system.dtypes:
            data["absent"][name] = f"no {options.dtype}"
        elif set(system.works) & set(options.works):
            try:
                workers[name] = Worker(name, options.threads)
                data["versions"] |= workers[name].versions
            except Failed as failed:
                data["absent"][name] = str(failed)
    return workers


def measure(
    problem: Problem,
    works: Sequence[str],
    workers: dict[str, Worker],
    effort: tuple[int, float],
    refused: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return a result for each work that we and a peer can do; what had to be left out is added to `refused`."""
    rounds, sample = effort

    def refuse(name: str, work: str, why: object) -> None:
        refused.append({"system": name, "cell": problem.cell, "shape": problem.shape, "work": work, "why": str(why)})

    can: dict[str, list[str]] = {}
    for name, worker in workers.items():
        try:
            can[name] = worker.prepare(problem)
        except Failed as failed:
            refuse(name, "all", failed)
    exact = expected(problem, works)
    results = []
    for work in works:
        systems: dict[str, dict[str, Any]] = {}
        for name in (name for name in can if work in can[name]):
            try:
                trial = workers[name].try_out(work)
                error = difference(trial.numbers, exact[work])
                if not error <= TOLERANCE[problem.dtype]:
                    refuse(name, work, f"its numbers are off by {error:.1e} of the largest")
                    continue
            except Failed as failed:
                refuse(name, work, failed)
                continue
            runs = math.ceil(sample / trial.seconds)
            systems[name] = {"memory": trial.memory, "error": error, "runs": runs, "seconds": []}
        if OURS not in systems:
            continue
        for _ in range(rounds):
            for name, system in systems.items():
                system["seconds"].append(workers[name].seconds(work, system["runs"]))
        result = {"cell": problem.cell, "shape": problem.shape, "work": work, "flops": problem.flops(work)}
        results.append(result | {"systems": systems})
    return results


def expected(problem: Problem, works: Sequence[str]) -> dict[str, Numbers]:
    """Return what each work has to give, computed in float64."""
    tasks = SYSTEMS[OURS].tasks(Problem(problem.cell, *problem.shape, "float64"))

    def numbers(work: str) -> Numbers:
        return tasks[work].numbers(tasks[work].run())

    exact: dict[str, Numbers] = {}
    if FORWARD in works or PACKED in works:
        exact[FORWARD] = exact[PACKED] = numbers(FORWARD)
    if TRAINING in works or TRAINING_NO_DX in works:
        exact[TRAINING] = gradients = numbers(TRAINING)
        exact[TRAINING_NO_DX] = {name: d for name, d in gradients.items() if name != "dx"}
    return exact


def difference(numbers: Numbers, exact: Numbers) -> float:
    """Return the worst of max|a - b| / max|b|; infinite where an array is missing, has another shape or a NaN."""
    if {name: a.shape for name, a in numbers.items()} != {name: b.shape for name, b in exact.items()}:
        return math.inf
    worst = max(float(np.abs(numbers[name] - b).max() / np.abs(b).max()) for name, b in exact.items())
    return worst if math.isfinite(worst) else math.inf


if __name__ == "__main__":
    sys.exit(main())
