"""What the calls of a small layer and cell take from Python, T = B = 1, I = H, float32, one thread.

python -m benchmarks.calls [--layers LSTM ...] [--sizes H ...]

Those of a layer or, with a state, of its cell; the same of `rnnfast.functional`, and a step of a stream, which makes no
arrays. All that stand in a row take turns. Beside the same calls of an older build, run one after the other, they show
what a change gains.
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


def calls_of(kind: str, H: int) -> dict[str, Call]:
    """Return the calls of a row by their titles."""
    layer = getattr(rnnfast, kind.removesuffix("Cell"))(H, H, rng=0)
    x = np.random.default_rng(0).standard_normal((1, 1, H), np.float32)
    cell, parameters, stream = layer.cell, layer.of_layer(0), layer.stream()
    y, state = layer(x)
    if kind.endswith("Cell"):
        module, first, dy, dstate = getattr(rnnfast, kind)(H, H, rng=0), state, None, state
        given: tuple[Any, ...] = (x[0], one_step(state))
        gradient = one_step(dstate)
    else:
        module, first, dy, dstate = layer, None, np.ones_like(y), None
        given, gradient = (x,), dy
    tape = module.forward(*given)[-1]
    kept = functional.forward(cell, x, parameters, first)[-1]

    def training() -> None:
        module.backward(module.forward(*given)[-1], gradient)

    return {
        "`layer(x)`": lambda: module(*given),
        "`forward`": lambda: module.forward(*given),
        "`backward`": lambda: module.backward(tape, gradient),
        "both": training,
        "`functional.inference`": lambda: functional.inference(cell, x, parameters, first),
        "`functional.forward`": lambda: functional.forward(cell, x, parameters, first),
        "`functional.backward`": lambda: functional.backward(kept, dy, dstate),
        "a step": lambda: stream.step(x[0], y[0]),
    }


def one_step(state: Any) -> Any:
    """Return a layer's state as its cell takes it."""
    return tuple(part[0] for part in state) if isinstance(state, tuple) else state[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, metavar="H")
    options = parser.parse_args()
    rnnfast.set_num_threads(1)
    machine = describe()
    print(f"{machine['processor']}, {machine['isa']}, {machine['date']}, µs\n")
    kinds = (name + suffix for suffix in ("", "Cell") for name in options.layers)
    for i, (kind, H) in enumerate((kind, H) for kind in kinds for H in options.sizes):
        calls = calls_of(kind, H)
        if i == 0:
            print("| | H |", " | ".join(calls), "|")
            print("|---|--:|" + "--:|" * len(calls))
        times = (f"{1e6 * t:.2f}" for t in in_turns(list(calls.values())))
        print(f"| {kind} | {H} |", " | ".join(times), "|", flush=True)


if __name__ == "__main__":
    main()
