"""What a stack gains where each chunk of time passes through all layers before the next: time of a layer after the
other over the whole sequence, by the time of `stream.run` of the stack. Float32, one thread, weights packed beforehand.

python -m benchmarks.stacks [T,B,I,H ...] [--cells lstm gru rnn] [--layers L ...]
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

import rnnfast
from benchmarks.peers import shape
from benchmarks.timing import in_turns
from rnnfast.lm import LAYERS

SHAPES = [(50, 32, 256, 256), (100, 1, 256, 256), (100, 16, 512, 512), (200, 64, 128, 128)]


def by_chunks(stack: Any, x: Any) -> Callable[[], Any]:
    stream, y = stack.stream(x.shape[1]), np.empty((*x.shape[:2], stack.hidden_size), np.float32)
    return lambda: stream.run(x, out=y)


def by_layers(stack: Any, x: Any) -> Callable[[], Any]:
    """Return the same work: each layer over the whole sequence."""
    parameters, inputs, runs = stack.state_dict(), x, []
    for l in range(stack.num_layers):
        layer = type(stack)(inputs.shape[-1], stack.hidden_size)
        layer.load_state_dict({f"{name[:-1]}0": a for name, a in parameters.items() if name.endswith(f"_l{l}")})
        y = np.empty((*x.shape[:2], stack.hidden_size), np.float32)
        runs.append((layer.stream(x.shape[1]), inputs, y))
        inputs = y

    def run() -> Any:
        for stream, inputs, y in runs:
            stream.run(inputs, out=y)
        return y

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("shapes", nargs="*", type=shape, default=SHAPES, metavar="T,B,I,H")
    parser.add_argument("--cells", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--layers", nargs="+", type=int, default=[2, 3], metavar="L")
    options = parser.parse_args()
    rnnfast.set_num_threads(1)
    print("cell  T,B,I,H          layers  by chunks, ms  by layers / by chunks")
    for cell in options.cells:
        for T, B, I, H in options.shapes:
            for L in options.layers:
                stack = LAYERS[cell](I, H, num_layers=L, rng=0)
                x = np.random.default_rng(0).standard_normal((T, B, I), np.float32)
                calls = by_chunks(stack, x), by_layers(stack, x)
                assert np.array_equal(calls[0](), calls[1]())
                chunks, layers = in_turns(calls)
                sizes = f"{T},{B},{I},{H}"
                print(f"{cell:5} {sizes:16} {L:6} {chunks * 1e3:14.2f} {layers / chunks:22.3f}", flush=True)


if __name__ == "__main__":
    main()
