"""Compares what two builds of a kernels_test wrote, for one processor and for another: compare.py float A B."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

# About 800 times the distance of two neighbouring numbers, in either dtype; 35 times was seen.
TOLERANCE = {"float": 1e-4, "double": 2e-13}


def main(real: str, *files: str) -> None:
    """Print how far apart the results are, and fail where that is too far."""
    dtype: Any = np.float32 if real == "float" else np.float64
    a, b = (np.frombuffer(Path(file).read_bytes(), dtype) for file in files)
    assert a.size == b.size > 0
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
    apart = np.abs(a - b) / np.maximum(1, np.abs(a))
    print(f"{real}: {a.size} results, at most {apart.max():.1e} apart")
    assert apart.max() <= TOLERANCE[real]


if __name__ == "__main__":
    main(*sys.argv[1:])
