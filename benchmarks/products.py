"""How close to the peak plain products of matrices come, in float32: what can be hoped for above it.

python -m benchmarks.products [M,N,K ..]

x [M,K] by w [N,K], transposed, as torch computes it with its library and rnnfast.functional.linear, in turns.
"""

import argparse
from functools import partial

import numpy as np
import torch

import rnnfast
from benchmarks import limits
from benchmarks.timing import in_turns
from rnnfast import functional

SIZES = "256,256,256", "512,512,512", "1024,1024,1024", "2048,2048,2048", "1600,1024,256", "3200,4096,1024"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sizes", nargs="*", default=SIZES, metavar="M,N,K")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rnnfast.set_num_threads(1)
    peak = limits.measure("float32").peak
    print(f"peak of one core: {peak / 1e9:.0f} GFLOP/s\n")
    print(f"{'M,N,K':18}{'torch':>8}{'of peak':>9}{'rnnfast':>9}{'of peak':>9}")
    rng = np.random.default_rng(0)
    for size in options.sizes:
        M, N, K = map(int, size.split(","))
        x, w = rng.standard_normal((M, K), np.float32), rng.standard_normal((N, K), np.float32)
        y = np.empty((M, N), np.float32)
        x_t, w_t, y_t = map(torch.from_numpy, (x, w, y.copy()))
        calls = partial(torch.mm, x_t, w_t.T, out=y_t), partial(functional.linear, x, w, out=y)
        theirs, ours = (2 * M * N * K / seconds for seconds in in_turns(calls))
        print(f"{size:18}{theirs / 1e9:8.0f}{theirs / peak:9.2f}{ours / 1e9:9.0f}{ours / peak:9.2f}", flush=True)


if __name__ == "__main__":
    main()
