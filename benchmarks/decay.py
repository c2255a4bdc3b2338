"""Whether a state that decays below the smallest normal numbers makes a run slow.

python -m benchmarks.decay [--sizes H ...]

Prints the time of a run whose input is zero after a burst, by that of one with input at all steps, for small weights
and no biases, T = 2000, B = 4, float32; 1.00 is as it should be.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

import rnnfast
from rnnfast.functional import Array
from rnnfast.lm import LAYERS

T, B = 2000, 4


def least_time(call: Callable[[], object]) -> float:
    """Return the least time of several calls."""
    times = []
    for _ in range(10):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 128, 256], metavar="H")
    options = parser.parse_args()
    rnnfast.set_num_threads(1)
    print("cell     H  forward  forward + backward")
    for cell in LAYERS.values():
        for H in options.sizes:
            layer = cell(H, H, bias=False, rng=0)
            for weight in layer.parameters.values():
                weight *= 0.1
            steady = np.random.default_rng(0).standard_normal((T, B, H), np.float32)
            burst, last = np.zeros_like(steady), np.zeros_like(steady)
            burst[:5], last[-5:] = steady[:5], 1

            def forward(x: Array) -> object:
                return layer(x)  # noqa: B023

            def training(x: Array, dy: Array) -> object:
                return layer.backward(layer.forward(x)[2], dy)  # noqa: B023

            decaying = least_time(lambda: forward(burst)), least_time(lambda: training(burst, last))  # noqa: B023
            normal = least_time(lambda: forward(steady)), least_time(lambda: training(steady, steady))  # noqa: B023
            ratios = [a / b for a, b in zip(decaying, normal, strict=True)]
            print(f"{cell.__name__:5} {H:4} {ratios[0]:8.2f} {ratios[1]:8.2f}", flush=True)


if __name__ == "__main__":
    main()
