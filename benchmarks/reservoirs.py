"""The states of a reservoir of leaky tanh units beside reservoirpy's, of one sequence and of many.

python -m benchmarks.reservoirs [--dtype D ...] [--units H ...] [--density D ...] [--steps T]
    [--sequences B]

Both have the same weights, of the same dtype, and one thread; reservoirpy keeps its states in float64 all the same, and
runs many sequences one after the other. They take turns; a time is the median of the rounds, a ratio that of the
rounds' ratios. `full` is our time with the full matrix in place of lists of connections, or the reverse where the
density asks for the matrix: by the time that is measured.
"""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

import rnnfast
from benchmarks.timing import Call, rounds_of
from rnnfast.functional import Array
from rnnfast.reservoir import ESN

ROUNDS = 5


def theirs(esn: ESN) -> Any:
    """Return reservoirpy's reservoir with the weights of ours."""
    from reservoirpy.nodes import Reservoir
    from scipy.sparse import csr_array

    [rnn] = esn.reservoirs
    return Reservoir(W=csr_array(rnn.weight_hh_l0), Win=csr_array(rnn.weight_ih_l0), lr=esn.leak, dtype=esn.dtype.type)


def calls(esn: ESN, x: Array) -> list[Call]:
    """Return the calls that make the states of x [T,B,I]: ours, theirs and the full matrix's."""
    reservoir, apart = theirs(esn), np.ascontiguousarray(x.swapaxes(0, 1))
    [rnn] = esn.reservoirs
    found, expected = esn.states(x[:50])[0], reservoir.run(apart[:, :50]).swapaxes(0, 1)
    if np.abs(found - expected).max() > 1e-3:
        msg = "expected the states of reservoirpy, got others"
        raise RuntimeError(msg)
    return [lambda: esn.states(x), lambda: reservoir.run(apart), lambda: rnn(x)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dtype", nargs="+", choices=("float64", "float32"), default=["float64", "float32"])
    parser.add_argument("--units", nargs="+", type=int, default=[1000], metavar="H")
    parser.add_argument("--density", nargs="+", type=float, default=[0.1], metavar="D")
    parser.add_argument("--steps", type=int, default=10_000, metavar="T", help="of one sequence; of many T / 20 each")
    parser.add_argument("--sequences", type=int, default=32, metavar="B")
    options = parser.parse_args(argv)
    rnnfast.set_num_threads(1)
    print("dtype       H density     T   B  µs a step  GFLOP/s  reservoirpy  full matrix (times ours)")
    for dtype in options.dtype:
        for H in options.units:
            for density in options.density:
                esn = ESN(1, H, leak=0.3, density=density, dtype=dtype, rng=0)
                for T, B in ((options.steps, 1), (max(1, options.steps // 20), options.sequences)):
                    x = np.random.default_rng(0).uniform(-1, 1, (T, B, 1)).astype(dtype)
                    first, *others = rounds_of(calls(esn, x), ROUNDS, 4e-3)
                    ratios = [statistics.median(a / b for a, b in zip(times, first, strict=True)) for times in others]
                    seconds = statistics.median(first) / (T * B)
                    rate = 2 * np.count_nonzero(esn.reservoirs[0].weight_hh_l0) / seconds / 1e9
                    print(
                        f"{dtype} {H:5} {density:7} {T:5} {B:3} {seconds * 1e6:10.2f} {rate:8.2f} {ratios[0]:12.2f} "
                        f"{ratios[1]:12.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
