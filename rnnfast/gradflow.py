"""``python -m rnnfast gradflow``: how fast gradients vanish in layers before any training.

The identity start is that of Le, Jaitly, Hinton (arXiv:1504.00941). torch's start of the LSTM leaves its forget gates
near 1/2, which halves the gradient of c at each step; a bias of 1 (Jozefowicz, Zaremba, Sutskever, "An Empirical
Exploration of Recurrent Network Architectures", ICML 2015) leaves 0.73 of it.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ._base.arrays import Array
from ._base.files import write
from ._base.module import initialize
from ._base.state import STATES
from .flow import gradient_flow
from .layers import GRU, LSTM, RNN
from .lm import UsageError, allocating

INPUTS, SEQUENCES = 16, 8  # enough for the norms to be alike from seed to seed

# Called, layer, its options, how it starts, the bias of its forget gate
START: tuple[tuple[str, Callable[..., Any], dict[str, str], str, float | None], ...] = (
    ("rnn tanh, random start", RNN, {"nonlinearity": "tanh"}, "torch", None),
    ("rnn relu, identity start", RNN, {"nonlinearity": "relu"}, "identity", None),
    ("gru", GRU, {}, "torch", None),
    ("lstm", LSTM, {}, "torch", None),
    ("lstm, forget bias 1", LSTM, {}, "torch", 1.0),
)


def run(*, horizon: int = 100, hidden: int = 128, seed: int = 0, plot: Path | None = None) -> None:
    """Print a table of the norms by distance, and draw them."""
    draw = None if plot is None else _drawing(plot)
    norms = curves(horizon, hidden, seed)
    title = f"H = {hidden}, weights as they start, before any training"
    if draw is not None:
        draw(norms, title)
    distances = steps_back(horizon)
    print("log10 of the norm of dE/dh_t (of dE/dc_t where it says c), by how many steps t comes before the last;")
    print(f"E sees the last step alone, and dE/dh there has the norm 1; {title}\n")
    print(f"{'steps back':26}", *(f"{d:>7}" for d in distances))
    for name, curve in norms.items():
        print(f"{name:26}", *(f"{round(curve[d], 2) + 0.0:7.2f}" for d in distances))  # -0.0 + 0.0 is 0.0
    if plot is not None:
        print(f"\ndrawn to {plot}")


def curves(horizon: int, hidden: int, seed: int) -> dict[str, Array]:
    """Return log10 of the norms by name, each [horizon + 1], at the distances from 0 on."""
    rng = np.random.default_rng(seed)
    layers = {}
    for name, kind, options, scheme, forget_bias in START:
        with allocating():
            layers[name] = kind(INPUTS, hidden, dtype="float64", rng=rng, **options)
        initialize(layers[name], scheme, forget_bias=forget_bias)
    x = rng.standard_normal((horizon + 1, SEQUENCES, INPUTS))
    dy = np.zeros((horizon + 1, SEQUENCES, hidden))
    dy[-1] = rng.standard_normal((SEQUENCES, hidden))
    dy[-1] /= np.linalg.norm(dy[-1])
    made: dict[str, Array] = {}
    for name, layer in layers.items():
        flow = gradient_flow(layer, x, dy)._asdict()
        for state in STATES[layer.cell]:
            with np.errstate(divide="ignore"):  # where it has vanished altogether
                made[name if state == "h" else f"{name}: {state}"] = np.log10(flow[state][0, 0, ::-1])
    return made


def steps_back(horizon: int) -> list[int]:
    """Return 1, 2, 5, 10, 20, 50, ... and the horizon."""
    series = (m * 10**k for k in range(len(str(horizon))) for m in (1, 2, 5))
    return [*(d for d in series if d < horizon), horizon]


def _drawing(path: Path) -> Callable[[dict[str, Array], str], None]:
    """Return what draws the curves, if there is matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        msg = '--plot needs matplotlib: pip install "rnnfast[plot]"'
        raise UsageError(msg) from error

    def draw(norms: dict[str, Array], title: str) -> None:
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        colours: dict[str, str] = {}
        for name, curve in norms.items():
            layer, _, state = name.partition(": ")
            colour = colours.setdefault(layer, f"C{len(colours)}")
            with np.errstate(under="ignore"):
                axes.plot(10.0**curve, color=colour, linestyle="--" if state else "-", label=name)
            axes.set_xlim(0, len(curve) - 1)
        axes.set(title=title, xlabel="steps before the last, the only one that the loss sees")
        axes.set_ylabel("norm of the gradient of h; dashed, of c")
        axes.set_yscale("log", nonpositive="mask")  # nothing where it has vanished altogether
        axes.grid(color="0.9")
        axes.legend(fontsize=8)
        picture = io.BytesIO()
        try:
            figure.savefig(picture, format=path.suffix[1:] or "png", dpi=150)
        except ValueError as error:  # matplotlib's, with the formats that it knows
            msg = f"--plot {path}: {error}"
            raise UsageError(msg) from error
        write(path, picture.getvalue())

    return draw
