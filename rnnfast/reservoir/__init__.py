"""Echo state networks: fixed random recurrent layers with a linear readout, which is all that is fitted.

Examples
--------
>>> import numpy as np
>>> import rnnfast
>>> wave = np.sin(0.2 * np.arange(600))[:, np.newaxis]
>>> esn = rnnfast.reservoir.ESN(1, 100, dtype="float64", rng=0)
>>> state = esn.fit(wave[:499], wave[1:500], warmup=100)  # to tell the next value
>>> y, state = esn.generate(100, state)  # 100 more, each from the one before
>>> bool(abs(y - wave[500:]).max() < 0.01)
True
"""

from ._esn import ESN
from ._state import State

__all__ = ["ESN", "State"]
