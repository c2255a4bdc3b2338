"""How far a result may lie from the oracle, by dtype. The error of an array is max|a - b| / max|b|."""

import numpy as np
from numpy.typing import NDArray

# Each operation rounds once, by at most 6e-8 or 1.1e-16, and a sum is a chain of a few hundred of them with random
# signs. The float32 figure is what the library promises on the shapes that it is timed on; torch is as far off. That
# of float64 leaves room for the oracle's own rounding. A stack hands the error of each layer on to the next.
TOLERANCE = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-12}


def relative_error(actual: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Return max|actual - expected| / max|expected|, 0 where both are zero or empty, NaN if either has one."""
    assert actual.shape == expected.shape, f"expected shape {expected.shape}, got {actual.shape}"
    if expected.size == 0:
        return 0.0
    error = np.abs(actual.astype(np.float64) - expected).max()
    return float(error / np.abs(expected).max()) if error != 0 else 0.0
