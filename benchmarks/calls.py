"""What the calls of a small layer take from Python, T = B = 1, I = H, float32, one thread.

python -m benchmarks.calls [--layers LSTM ...] [--sizes H ...]

Those of a layer, of `rnnfast.functional`, and a step of a stream, which makes no arrays. All that stand in a row take
turns. Beside the same calls of an older build, run one after the other, they show what a change gains.
"""

import argparse
from typing import Any

import numpy as np

import rnnfast
from benchmarks.machine import describe
from benchmarks.timing import Call, in_turns
from rnnfast import functional, lm

LAYERS = [layer.__name__ for layer in lm.LAYERS.values()]
SIZES = [4, 16, 64]


def calls_of(layer: Any) -> dict[str, Call]:
    """Return the calls of a row by their titles."""
    x = np.random.default_rng(0).standard_normal((1, 1, layer.input_size), np.float32)
    cell, parameters = layer.cell, layer.of_layer(0)
    y, _, tape = layer.forward(x)
    _, _, kept = functional.forward(cell, x, parameters)
    dy, stream = np.ones_like(y), layer.stream()

    def training() -> None:
        *_, new = layer.forward(x)
        layer.backward(new, dy)

    return {
        "`layer(x)`": lambda: layer(x),
        "`forward`": lambda: layer.forward(x),
        "`backward`": lambda: layer.backward(tape, dy),
        "both": training,
        "`functional.inference`": lambda: functional.inference(cell, x, parameters),
        "`functional.forward`": lambda: functional.forward(cell, x, parameters),
        "`functional.backward`": lambda: functional.backward(kept, dy),
        "a step": lambda: stream.step(x[0], y[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, metavar="H")
    options = parser.parse_args()
    rnnfast.set_num_threads(1)
    machine = describe()
    print(f"{machine['processor']}, {machine['isa']}, {machine['date']}, µs\n")
    for i, (kind, H) in enumerate((kind, H) for kind in options.layers for H in options.sizes):
        calls = calls_of(getattr(rnnfast, kind)(H, H, rng=0))
        if i == 0:
            print("| | H |", " | ".join(calls), "|")
            print("|---|--:|" + "--:|" * len(calls))
        print(
            f"| {kind} | {H} |", " | ".join(f"{1e6 * t:.2f}" for t in in_turns(list(calls.values()))), "|", flush=True
        )


if __name__ == "__main__":
    main()
