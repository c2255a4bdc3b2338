"""Single steps of torch's recurrent modules before and after `rnnfast.torch.accelerate`, float32.

python -m benchmarks.steps [--kinds LSTMCell ...] [--B ...] [--H ...] [--steps T] [--training] [--threads N]

A row is a module with I = H inputs at one B and H: microseconds of torch's, of ours, and their ratio, under no_grad or,
with --training, with all gradients. The two take turns. Rows in which ours is slower end in a mark.
"""

import argparse
import math
from collections.abc import Sequence

import torch
from torch import nn

from benchmarks.machine import describe
from benchmarks.modules import arrays, inference_calls, torch_call, twins
from benchmarks.timing import Call, rounds_of

KINDS = ["LSTMCell", "GRUCell", "RNNCell", "LSTM", "GRU", "RNN"]
SIZES = [1, 4, 16, 64, 256, 1024]
TURNS, SAMPLE = 9, 2e-3


def calls_of(kind: str, T: int, B: int, H: int, training: bool) -> list[Call]:
    """Return the same call of torch's module and of ours."""
    given = arrays(kind, (T, B, H, H))
    modules = twins(getattr(nn, kind)(H, H))
    if training:
        return [torch_call(module, given) for module in modules]
    return inference_calls(None, modules, given.x)[1:]


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--B", nargs="+", type=int, default=SIZES)
    parser.add_argument("--H", nargs="+", type=int, default=SIZES)
    parser.add_argument("--steps", type=int, default=1, help="T of layers")
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    print(f"{describe()}, torch {torch.__version__}, {args.threads} thread(s)\n")
    print("| | B | H = I | torch.nn, µs | rnnfast.torch, µs | ratio | |\n|---|--:|--:|--:|--:|--:|---|")
    logs = []
    for kind in args.kinds:
        for H in args.H:
            for B in args.B:
                rounds = rounds_of(calls_of(kind, args.steps, B, H, args.training), TURNS, SAMPLE)
                theirs, ours = (sorted(times)[len(times) // 2] for times in rounds)
                logs.append(math.log(theirs / ours))
                mark = "slower" if ours > theirs else ""
                print(f"| {kind} | {B} | {H} | {1e6 * theirs:.0f} | {1e6 * ours:.0f} | {theirs / ours:.2f} | {mark} |")
    print(f"\n{len(logs)} rows, geometric mean {math.exp(sum(logs) / len(logs)):.2f}, worst {math.exp(min(logs)):.2f}")


if __name__ == "__main__":
    main()
