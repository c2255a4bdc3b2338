"""How much faster several threads are than one, and that they cost little where there is one core.

python -m benchmarks.threads [T,B,I,H,L ...] [--cells lstm gru rnn] [--threads N ...] [--one-core] [--markdown FILE]

Prints the time of one thread in ms, and that time by the time of n threads, in float32: `layer(x)`, `layer.forward`
and `layer.backward` of L layers. With --one-core the process is bound to one core, and the pool is told to start as
many threads all the same, which it does not do otherwise.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import rnnfast
from benchmarks.machine import describe
from benchmarks.timing import rounds_of
from rnnfast.lm import LAYERS

SHAPES = [
    (200, 1, 128, 128, 1),
    (200, 1, 256, 256, 1),
    (100, 1, 512, 512, 1),
    (50, 1, 1024, 1024, 1),
    (100, 8, 256, 256, 1),
    (50, 32, 256, 256, 1),
    (50, 64, 512, 512, 1),
    (50, 64, 1024, 1024, 1),
    (200, 1, 64, 64, 3),
    (200, 1, 128, 128, 3),
    (100, 1, 256, 256, 3),
    (200, 1, 256, 256, 3),
    (400, 1, 256, 256, 3),
    (1000, 1, 256, 256, 3),
    (200, 1, 256, 256, 2),
    (200, 1, 256, 256, 4),
    (100, 1, 512, 512, 3),
    (100, 8, 128, 128, 3),
]


def counts(cores: int) -> list[int]:
    """Return numbers of threads up to that of the cores: all of them, or of more than eight the powers of two."""
    return [n for n in range(2, cores + 1) if cores <= 8 or n == cores or n & (n - 1) == 0]


def calls_of(cell: str, T: int, B: int, I: int, H: int, L: int) -> Iterator[tuple[str, Callable[[], object]]]:
    layer = LAYERS[cell](I, H, num_layers=L, rng=0)
    x = np.random.default_rng(0).standard_normal((T, B, I), np.float32)
    dy = np.ones((T, B, H), np.float32)
    yield "layer(x)", lambda: layer(x)
    yield "forward", lambda: layer.forward(x)
    tape = layer.forward(x)[2]
    yield "backward", lambda: layer.backward(tape, dy)


def with_threads(n: int, call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with rnnfast.threads(n):
            return call()

    return run


def rows(cells: list[str], shapes: list[tuple[int, ...]], threads: list[int], sample: float) -> Iterator[str]:
    yield "| cell | T,B,I,H | layers | work | 1, ms |" + "".join(f" {n} |" for n in threads)
    yield "|---|---|--:|---|--:|" + "--:|" * len(threads)
    for cell in cells:
        for *sizes, L in shapes:
            shape = ",".join(map(str, sizes))
            for work, call in calls_of(cell, *sizes, L):  # type: ignore[call-arg]
                one, *others = rounds_of([with_threads(n, call) for n in [1, *threads]], 9, sample)
                ratios = [statistics.median(a / b for a, b in zip(one, other, strict=True)) for other in others]
                times = "".join(f" {ratio:.2f} |" for ratio in ratios)
                yield f"| {cell} | {shape} | {L} | {work} | {statistics.median(one) * 1e3:.2f} |{times}"


def main() -> None:
    def shape(text: str) -> tuple[int, ...]:
        sizes = tuple(map(int, text.split(",")))
        return sizes if len(sizes) == 5 else (*sizes, 1)

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shapes", nargs="*", type=shape, default=SHAPES, metavar="T,B,I,H,L")
    parser.add_argument("--cells", nargs="+", choices=list(LAYERS), default=["lstm"])
    parser.add_argument("--threads", nargs="+", type=int)
    parser.add_argument("--one-core", action="store_true")
    parser.add_argument("--sample", type=float, default=0.02, help="seconds of each measurement")
    parser.add_argument("--markdown", type=Path, help="where the table is kept, besides")
    options = parser.parse_args()
    threads = options.threads or ([2, 16] if options.one_core else counts(rnnfast.get_num_threads()))
    if options.one_core:
        os.environ["RNNFAST_OVERSUBSCRIBE"] = "1"  # read at the first call
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    machine = describe()
    cores = "one core, to which all threads are bound" if options.one_core else f"{machine['cores']} cores"
    software = f"{machine['system']}, Python {machine['python']}; {machine['isa']}, {machine['compiler']}"
    lines = [
        f"{machine['date']}, {machine['processor']}, {cores}, {software}, float32.",
        "",
        "The time of one thread in ms, and that time by the time of several.",
        "",
    ]
    for line in lines:
        print(line)
    for line in rows(options.cells, options.shapes, threads, options.sample):
        print(line, flush=True)
        lines.append(line)
    if options.markdown:
        options.markdown.write_text("\n".join(["# Threads", "", *lines, ""]))


if __name__ == "__main__":
    main()
