"""How far a result may lie from the oracle, by dtype. The error of an array is max|a - b| / max|b|."""

import numpy as np
from numpy.typing import NDArray

# The error that remains when every operation rounds once and each sum is one chain in a fixed order: a few
# hundred roundings (6e-8 and 1.1e-16 each) of random sign. The float32 figure is the library's promise; torch
# has 1.5e-7 to 7.5e-7. float64 is bound by the oracle's own rounding, so that its figure has room to spare.
TOLERANCE = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-12}


def relative_error(actual: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Return max|actual - expected| / max|expected|, 0 where both are zero or empty, NaN if either has one."""
    assert actual.shape == expected.shape, f"expected shape {expected.shape}, got {actual.shape}"
    if expected.size == 0:
        return 0.0
    error = np.abs(actual.astype(np.float64) - expected).max()
    return float(error / np.abs(expected).max()) if error != 0 else 0.0
