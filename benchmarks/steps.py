"""Torch's recurrent modules before and after `rnnfast.torch.accelerate`, from single steps up, float32.

python -m benchmarks.steps [--kinds LSTMCell ...] [--T ...] [--B ...] [--H ...] [--training] [--threads N]

A row is a module with I = H inputs at one T, B and H: microseconds of torch's, of ours, and their ratio, under no_grad
or, with --training, forward and backward with all gradients. The two take turns. What looks slower is measured again,
for longer; rows in which ours is slower then end in a mark. Cells take one step.
"""

import argparse
import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import nn

from benchmarks.machine import describe
from benchmarks.modules import arrays, inference_calls, torch_call, twins
from benchmarks.timing import Call, rounds_of

KINDS = ["LSTMCell", "GRUCell", "RNNCell", "LSTM", "GRU", "RNN"]
STEPS, BATCHES, SIZES = [1, 2, 4, 16, 64], [1, 4, 16, 64], [1, 16, 64, 256, 1024]
TURNS, SAMPLE = 5, 2e-3


def calls_of(kind: str, T: int, B: int, H: int, training: bool) -> list[Call]:
    """Return the same call of torch's module and of ours."""
    given = arrays(kind, (T, B, H, H))
    modules = twins(getattr(nn, kind)(H, H))
    if training:
        return [torch_call(module, given) for module in modules]
    return inference_calls(None, modules, given.x)[1:]


def measured(calls: Sequence[Call]) -> tuple[float, float]:
    """Return the median times of torch's and of ours in seconds."""
    for turns in (TURNS, 5 * TURNS):
        theirs, ours = (sorted(times)[turns // 2] for times in rounds_of(calls, turns, SAMPLE))
        if ours <= theirs:
            break
    return theirs, ours


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--T", nargs="+", type=int, default=STEPS)
    parser.add_argument("--B", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--H", nargs="+", type=int, default=SIZES)
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    print(f"{describe()}, torch {torch.__version__}, {args.threads} thread(s)\n")
    print("| | T | B | H = I | torch.nn, µs | rnnfast.torch, µs | ratio | |\n|---|--:|--:|--:|--:|--:|--:|---|")
    logs = []
    for kind in args.kinds:
        for T, H, B in product([1] if kind.endswith("Cell") else args.T, args.H, args.B):
            theirs, ours = measured(calls_of(kind, T, B, H, args.training))
            logs.append(math.log(theirs / ours))
            times = f"{1e6 * theirs:.0f} | {1e6 * ours:.0f} | {theirs / ours:.2f}"
            print(f"| {kind} | {T} | {B} | {H} | {times} | {'slower' if ours > theirs else ''} |", flush=True)
    slower = sum(log < 0 for log in logs)
    mean, worst = math.exp(sum(logs) / len(logs)), math.exp(min(logs))
    print(f"\n{len(logs)} rows, {slower} slower, geometric mean {mean:.2f}, worst {worst:.2f}")


if __name__ == "__main__":
    main()
