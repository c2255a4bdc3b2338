"""Training with factors rounded to bfloat16: its time beside float32's and torch's, and a language model in bits.

python -m benchmarks.precision [--cells lstm gru] [--shapes T,B,I,H ...] [--hidden H] [--steps N]

First forward + backward of one layer on one thread: ours in float32 and in bfloat16, torch's layer in float32 and under
autocast; they take turns, and ratios are times by ours of bfloat16. Where the processor lacks the instruction for pairs
of bfloat16 there is no such time, and RNNFAST_BF16=emulate gives the numbers alone.

Then a character language model for each cell, trained in both precisions from the same start: bits per character of the
held-out text, and how many tokens a second were trained.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch

import rnnfast
from benchmarks.timing import Call, in_turns
from rnnfast import _core
from rnnfast._base.precision import Precision
from rnnfast.lm import LAYERS, Options, Training, default_text

SHAPES = (50, 32, 256, 256), (50, 64, 512, 512), (100, 16, 128, 128)
NAMES = "bfloat16", "float32", "torch bfloat16", "torch float32"


def ours(kind: Any, x: Any, dy: Any, precision: Precision) -> Call:
    """Return a training step of our layer."""
    layer = kind(x.shape[2], dy.shape[2], rng=0, precision=precision)

    def step() -> Any:
        _, _, tape = layer.forward(x)
        return layer.backward(tape, dy)

    return step


def theirs(kind: Any, x: Any, dy: Any, *, autocast: bool) -> Call:
    """Return a training step of torch's layer."""
    layer = getattr(torch.nn, kind.__name__)(x.shape[2], dy.shape[2])
    x, dy = torch.from_numpy(x).requires_grad_(), torch.from_numpy(dy)

    def step() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y, _ = layer(x)
        y.backward(dy.to(y.dtype))
        return x.grad

    return step


def step_times(kind: Any, shape: tuple[int, ...]) -> dict[str, float]:
    """Return the seconds of a training step."""
    T, B, I, H = shape
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((T, B, n)).astype(np.float32) for n in (I, H))
    calls = {
        "float32": ours(kind, x, dy, "full"),
        "torch bfloat16": theirs(kind, x, dy, autocast=True),
        "torch float32": theirs(kind, x, dy, autocast=False),
    }
    if not _core.config()["bfloat16"].startswith("emulate"):
        calls["bfloat16"] = ours(kind, x, dy, "bfloat16")
    return dict(zip(calls, in_turns(list(calls.values())), strict=True))


def steps(options: argparse.Namespace) -> None:
    """Print the times of all steps."""
    print(
        "cell  T,B,I,H           " + "".join(f"{name:>16}" for name in NAMES) + "   ms, and times by ours of bfloat16"
    )
    for cell in options.cells:
        for shape in options.shapes:
            times = step_times(LAYERS[cell], shape)
            first = times.get("bfloat16")
            words = (
                f"{1e3 * times[n]:8.2f} {times[n] / first if first else float('nan'):6.2f}" if n in times else ""
                for n in NAMES
            )
            print(f"{cell:5} {','.join(map(str, shape)):18}" + "".join(f"{word:>16}" for word in words), flush=True)


def language_models(options: argparse.Namespace) -> None:
    """Train in both precisions and print."""
    print(f"\nlanguage models of {options.hidden} units, {options.steps} steps:")
    print("cell  precision  bits/char  more than full  tokens/s")
    for cell in options.cells:
        full = None
        for precision in get_args(Precision):
            training = Training(default_text(), Options(cell=cell, hidden=options.hidden, steps=options.steps))
            start = time.perf_counter()
            with rnnfast.set_precision(precision):
                for _ in range(options.steps):
                    training.step()
            seconds = time.perf_counter() - start
            bits = training.held_out_bits()
            full = bits if full is None else full
            tokens = options.steps * training.options.batch * training.options.seq_len
            print(f"{cell:5} {precision:9} {bits:10.4f} {bits - full:15.4f} {tokens / seconds:9.0f}", flush=True)


def _shape(word: str) -> tuple[int, ...]:
    return tuple(map(int, word.split(",")))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", nargs="+", choices=tuple(LAYERS), default=["lstm", "gru"])
    parser.add_argument("--shapes", nargs="*", type=_shape, default=SHAPES, metavar="T,B,I,H", help="none: no steps")
    parser.add_argument("--hidden", type=int, default=256, metavar="H", help="of the language models")
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="of their training; 0: no models")
    options = parser.parse_args(argv)
    if _core.config()["bfloat16"] is None:
        parser.exit(1, "this processor has no products of bfloat16; RNNFAST_BF16=emulate gives their numbers\n")
    print("products of bfloat16:", _core.config()["bfloat16"])
    torch.set_num_threads(1)
    rnnfast.set_num_threads(1)
    if options.shapes:
        steps(options)
    if options.steps:
        language_models(options)


if __name__ == "__main__":
    main()
