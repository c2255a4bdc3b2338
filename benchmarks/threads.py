"""How much faster several threads are than one.

python -m benchmarks.threads [T,B,I,H ...] [--cells lstm gru rnn] [--threads N ...]

Prints the time of one thread in ms, and that time by the time of n threads, forward and forward + backward, float32.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

import rnnfast
from rnnfast.lm import LAYERS

SHAPES = [
    (200, 1, 128, 128),
    (200, 1, 256, 256),
    (100, 1, 512, 512),
    (50, 1, 1024, 1024),
    (100, 8, 256, 256),
    (50, 32, 256, 256),
    (50, 64, 512, 512),
    (50, 64, 1024, 1024),
]


def median_time(call: Callable[[], object], budget: float = 0.5) -> float:
    """Return the median of as many calls as fit into so many seconds, three at least."""
    call()
    times: list[float] = []
    while sum(times) < budget or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    def shape(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(",")))

    cores = rnnfast.get_num_threads()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shapes", nargs="*", type=shape, default=SHAPES, metavar="T,B,I,H")
    parser.add_argument("--cells", nargs="+", choices=list(LAYERS), default=["lstm"])
    parser.add_argument("--threads", nargs="+", type=int, default=[n for n in (2, 4, 8, 16) if n <= cores])
    options = parser.parse_args()
    print("cell  T,B,I,H            work            1 thread", *(f"{n:6}" for n in options.threads))
    for cell in options.cells:
        for T, B, I, H in options.shapes:
            layer = LAYERS[cell](I, H, seed=0)
            x = np.random.default_rng(0).standard_normal((T, B, I), np.float32)
            dy = np.ones((T, B, H), np.float32)

            def forward() -> object:
                return layer(x)  # noqa: B023

            def training() -> object:
                return layer.backward(layer.forward(x)[2], dy)  # noqa: B023

            for work, call in (("forward", forward), ("training", training)):
                times = []
                for n in [1, *options.threads]:
                    with rnnfast.threads(n):
                        times.append(median_time(call))
                ratios = " ".join(f"{times[0] / t:6.2f}" for t in times[1:])
                print(f"{cell:5} {f'{T},{B},{I},{H}':18} {work:12} {times[0] * 1e3:11.2f} {ratios}", flush=True)


if __name__ == "__main__":
    main()
