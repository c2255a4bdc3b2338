"""An echo state network continues a chaotic series
===================================================

The equation of Mackey and Glass, dx/dt = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x(t), is a model of the number of
blood cells, and a common test for forecasts. A reservoir of 500 fixed random units reads 2,500 values, and a linear
readout of its states learns to predict the next value. After that, each output becomes the next input.
"""

# sphinx_gallery_thumbnail_path = "../examples/mackey_glass.png"

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rnnfast.functional import Array
from rnnfast.reservoir import ESN

TAUGHT, AHEAD, TAU, STEPS = 2500, 500, 17, 10  # STEPS of the integration for a value


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--units", type=int, default=500, help="units of the reservoir (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the series and the forecast to this file")
    options = parser.parse_args(argv)

    x = np.tanh(series(TAUGHT + AHEAD + 1) - 1)[:, np.newaxis]
    esn = ESN(1, options.units, spectral_radius=0.95, bias_scaling=0.2, dtype="float64", rng=options.seed)
    state = esn.fit(x[:TAUGHT], x[1 : TAUGHT + 1], warmup=200, ridge=1e-10)
    one_step, _ = esn.predict(x[TAUGHT:-1], state)
    alone, _ = esn.generate(AHEAD, state)  # from the last target, x[TAUGHT]

    true = x[TAUGHT + 1 :]
    print(f"one step ahead, root mean squared error by the deviation: {error(one_step, true):.6f}")
    print(f"84 steps by itself, likewise: {error(alone[:84], true[:84]):.6f}")
    if options.picture:
        draw(true, alone, options.picture)


def series(n: int) -> Array:
    """Return x(0), x(1), .., after some time to forget the start."""
    dt, delay = 1 / STEPS, TAU * STEPS
    x = np.full(delay + (n + 500) * STEPS + 1, 1.2)

    def slope(now: float, late: float) -> float:
        return 0.2 * late / (1 + late**10) - 0.1 * now

    for i in range(delay, len(x) - 1):  # Heun's method
        first = slope(x[i], x[i - delay])
        x[i + 1] = x[i] + dt / 2 * (first + slope(x[i] + dt * first, x[i - delay + 1]))
    values: Array = x[delay::STEPS][500 : 500 + n]
    return values


def error(y: Array, true: Array) -> float:
    return float(np.sqrt(np.square(y - true).mean()) / true.std())


def draw(true: Array, alone: Array, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(true, color="0.6", lw=3, label="Mackey-Glass")
    axes.plot(alone, color="C0", lw=1, label="the network by itself")
    axes.set(xlabel="steps after the last value that it heard", xlim=(0, len(true)))
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()

# %%
# .. image:: ../../examples/mackey_glass.png
#    :alt: 500 values of the series, and the forecast of the network
