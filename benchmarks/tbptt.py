"""What truncated gradients cost: all windows in one backward, beside a plain backward and separate windows.

python -m benchmarks.tbptt [--cells CELL ...] [--sizes T B H] [--steps K1 K2]

Prints a Markdown table of backward times, one thread, float32, I = H: of the plain backward, of tbptt_gradient without
its forward, and of a backward for each window over the steps from its tau on, with what one forward has kept.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import rnnfast
from rnnfast import _core
from rnnfast.lm import LAYERS

KINDS = [layer.__name__ for layer in LAYERS.values()]


def separate(layer: Any, tape: Any, dy: Any, k1: int, k2: int) -> None:
    """Run the windows one after the other, as they would be during training, but without what is done in between."""
    T = len(dy)
    grads: list[Any] = [None] * layer.num_layers
    for end in [*range(k1, T, k1), T]:
        tau, start = max(0, end - k2), (end - 1) // k1 * k1
        d = np.zeros_like(dy[tau:end])
        d[max(start, tau) - tau :] = dy[max(start, tau) : end]
        for k in reversed(range(layer.num_layers)):
            d, _, grads[k] = _core.backward(tape.kept[k], d, grads=grads[k], steps=(tau, end))


def medians(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """Return the median time of each call in ms; they take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, own in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            own.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(own) for own in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--sizes", nargs=3, type=int, default=[1024, 32, 256], metavar=("T", "B", "H"))
    parser.add_argument("--steps", nargs=2, type=int, default=[16, 64], metavar=("K1", "K2"))
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    rnnfast.set_num_threads(1)
    (T, B, H), (k1, k2) = options.sizes, options.steps
    print(f"T = {T}, B = {B}, I = H = {H}, k1 = {k1}, k2 = {k2}; float32, one thread\n")
    print("| layer | plain | all windows at once | | separate windows | |")
    print("|---|--:|--:|--:|--:|--:|")
    x, dy = (np.random.default_rng(seed).standard_normal((T, B, H), np.float32) for seed in range(2))
    for cell in options.cells:
        for L in (1, 2):
            layer = getattr(rnnfast, cell)(H, H, num_layers=L, rng=0)
            *_, tape = layer.forward(x)
            calls: list[Callable[[], object]] = [
                lambda: layer.forward(x),  # noqa: B023
                lambda: layer.backward(tape, dy),  # noqa: B023
                lambda: rnnfast.tbptt_gradient(layer, x, dy, k1, k2),  # noqa: B023
                lambda: separate(layer, tape, dy, k1, k2),  # noqa: B023
            ]
            forward, plain, both, apart = medians(calls, options.repeats)
            once = both - forward
            ratios = f"{once:.0f} ms | {once / plain:.2f} x | {apart:.0f} ms | {apart / plain:.2f} x |"
            print(f"| {cell}, L = {L} | {plain:.0f} ms | {ratios}", flush=True)


if __name__ == "__main__":
    main()
