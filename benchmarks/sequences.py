"""Ragged batches, resets, checkpoints and long sequences: what a training step takes, as tables in Markdown.

python -m benchmarks.sequences [--tables ragged resets checkpoint long]

float32, one thread. What a row compares takes turns; a time is the median of the rounds, a ratio the median of the
rounds' ratios. It is the time that the processor spends on this process, so that it depends little on what else runs.
"""

import argparse
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

import rnnfast
from benchmarks import report
from benchmarks.report import Table
from benchmarks.timing import Call
from benchmarks.worker import status
from rnnfast.lm import LAYERS

ROUNDS, TURN = 9, 30e-3  # how often each step is measured, and for how many seconds at least


def training(layer: Any, x: Any, dy: Any, **options: Any) -> Call:
    """Return forward and backward with dx."""
    return lambda: layer.backward(layer.forward(x, **options)[2], dy)


def torch_training(layer: Any, x: Any, dy: Any) -> Call:
    """Return the same of torch for packed x and dy."""
    import torch

    torch.set_num_threads(1)
    model = getattr(torch.nn, type(layer).__name__)(layer.input_size, layer.hidden_size)
    model.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in layer.state_dict().items()})
    rows = torch.from_numpy(x.data).requires_grad_()
    packed = torch.nn.utils.rnn.PackedSequence(rows, *map(torch.from_numpy, x[1:]))
    drows = torch.from_numpy(dy.data)

    def step() -> None:
        model.zero_grad()
        rows.grad = None
        model(packed)[0].data.backward(drows)

    return step


def rounds_of(steps: list[Call]) -> list[list[float]]:
    """Return the seconds of processor time that each step takes in each round."""

    def seconds(step: Call) -> float:
        step()  # which finds in the caches what the others left
        runs, started = 0, time.process_time()
        while time.process_time() < started + TURN:
            step()
            runs += 1
        return (time.process_time() - started) / runs

    rounds = [[seconds(step) for step in steps] for _ in range(ROUNDS)]
    return [list(times) for times in zip(*rounds, strict=True)]


def problem(cell: str, T: int, B: int, I: int, H: int) -> tuple[Any, Any, Any]:
    """Return a layer, its input and the gradient of its output."""
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((T, B, size), np.float32) for size in (I, H))
    return LAYERS[cell](I, H, rng=0), x, dy


def row(text: str, steps: list[Call]) -> list[str]:
    """Return the time of the first step in ms, and those of the others by it."""
    first, *others = rounds_of(steps)
    ratios = [statistics.median(a / b for a, b in zip(times, first, strict=True)) for times in others]
    return [text, f"{statistics.median(first) * 1e3:.2f}", *(f"{ratio:.2f}" for ratio in ratios)]


def ragged() -> Table:
    T, B, I, H = 100, 16, 128, 256
    lengths = np.random.default_rng(0).integers(1, T + 1, B)
    real = f"{T},{B},{I},{H}, {lengths.sum() / (T * B):.0%} of it real"
    rows = []
    for cell in LAYERS:
        layer, x, dy = problem(cell, T, B, I, H)
        packed, dpacked = (rnnfast.pack_padded(a, lengths) for a in (x, dy))
        steps = [
            training(layer, x, dy, lengths=lengths),
            training(layer, packed, dpacked),
            training(layer, x, dy),
            torch_training(layer, packed, dpacked),
        ]
        rows.append(row(cell, steps))
    return [real, "with lengths, ms", "packed", "all padding run", "torch, packed"], rows


def resets() -> Table:
    T, B, I, H = 100, 16, 128, 256
    rows = []
    for cell in LAYERS:
        layer, x, dy = problem(cell, T, B, I, H)
        drawn = np.random.default_rng(0).random((T, B))
        masks = [drawn < p for p in (0, 1 / 100, 1 / 10)]
        rows.append(row(cell, [training(layer, x, dy), *(training(layer, x, dy, resets=mask) for mask in masks)]))
    return [f"{T},{B},{I},{H}", "without resets, ms", "a mask without any", "1 of 100", "1 of 10"], rows


def checkpoint() -> Table:
    rows = []
    for shape in (100, 16, 256, 256), (1000, 16, 128, 128), (1000, 16, 256, 256):
        for cell in LAYERS:
            layer, x, dy = problem(cell, *shape)
            lengths = "auto", *(max(len(x) // parts, 1) for parts in (20, 10, 4, 2))
            steps = [training(layer, x, dy, checkpoint=k) for k in (None, *lengths)]
            rows.append(row(f"{cell} {','.join(map(str, shape))}", steps))
    return ["checkpoint", "None, ms", '"auto"', "T / 20", "T / 10", "T / 4", "T / 2"], rows


def train_long(cell: str, T: int, B: int, I: int, H: int) -> tuple[float, int, int]:
    """Return the seconds of a step whose last output counts, and the most memory of this process before and after."""
    rnnfast.set_num_threads(1)
    layer, x = LAYERS[cell](I, H, rng=0), np.random.default_rng(0).standard_normal((T, B, I), np.float32)
    before = status("VmHWM")
    started = time.process_time()
    y, _, tape = layer.forward(x, outputs="last", checkpoint="auto")
    layer.backward(tape, np.ones_like(y))
    return time.process_time() - started, before, status("VmHWM")


def long() -> Table:
    shape = 100_000, 8, 1, 128
    rows = []
    for cell in LAYERS:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            seconds, before, most = process.submit(train_long, cell, *shape).result()
        rows.append([cell, f"{seconds:.1f}", f"{before / 1e6:.0f}", f"{most / 1e6:.0f}"])
    return [",".join(map(str, shape)), "s", "MB before", "MB at most"], rows


TABLES = {table.__name__: table for table in (ragged, resets, checkpoint, long)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    rnnfast.set_num_threads(1)
    for name in parser.parse_args().tables:
        print("\n".join(report.lines(TABLES[name]())), flush=True)


if __name__ == "__main__":
    main()
