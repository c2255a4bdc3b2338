"""How many patterns a Hopfield network holds: the error of recall against the patterns stored, by rule.

python -m benchmarks.capacity [--units N] [--networks R] [--seed S] [--plot FILE]

Prints the percentage of units that asynchronous recall leaves wrong, over all patterns of R networks with random
patterns. docs/hopfield.svg is the picture that the default options draw.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from rnnfast.functional import Array
from rnnfast.hopfield import Hopfield, Rule

LOADS = (0.02, 0.05, 0.08, 0.1, 0.12, 0.14, 0.16, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
DAMAGE = 0.1  # the fraction of units that are turned round before recall
STARTS = "the pattern", f"{DAMAGE:.0%} damaged"


def errors(rule: Rule, load: float, units: int, networks: int, rng: np.random.Generator) -> Array:
    """Return the fraction of units that recall leaves wrong, [2]: from the patterns, and from damaged ones."""
    wrong = np.zeros(len(STARTS))
    for _ in range(networks):
        patterns = rng.choice([-1, 1], (max(1, round(load * units)), units))
        network = Hopfield(units)
        network.store(patterns, rule)
        damaged = np.where(rng.random(patterns.shape) < DAMAGE, -patterns, patterns)
        for k, start in enumerate((patterns, damaged)):
            wrong[k] += (network.recall(start, rng=rng).states != patterns).mean() / networks
    return wrong


def draw(curves: dict[Rule, Array], units: int, path: Path) -> None:
    """Draw the errors [loads,2] of each rule, with the capacities that the literature gives."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    capacities: dict[Rule, float] = {"hebbian": 0.138, "storkey": 1 / math.sqrt(2 * math.log(units))}
    with mpl.rc_context({"svg.hashsalt": "0", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 3.8), layout="constrained")
        axes = figure.subplots()
        for colour, (rule, curve) in enumerate(curves.items()):
            for k, (start, style) in enumerate(zip(STARTS, ("-", "--"), strict=True)):
                axes.plot(LOADS, 100 * curve[:, k], style, color=f"C{colour}", label=f"{rule}, from {start}")
            if rule in capacities:
                axes.axvline(capacities[rule], color=f"C{colour}", lw=0.8, ls=":")
        axes.set(xlabel="patterns stored / units", ylabel="units wrong after recall, %", xlim=(0, 1))
        axes.set_title(f"{units} units, random patterns; dotted: capacities", fontsize=10)
        axes.grid(color="0.9")
        axes.legend(fontsize=8)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--units", type=int, default=250, help="N (default: %(default)s)")
    parser.add_argument("--networks", type=int, default=4, help="for each rule and load (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the errors to this file")
    options = parser.parse_args(argv)

    curves: dict[Rule, Array] = {}
    for rule in get_args(Rule):
        rng = np.random.default_rng(options.seed)
        curves[rule] = np.array([errors(rule, load, options.units, options.networks, rng) for load in LOADS])
    print(f"{'patterns / units':34}", *(f"{load:6.2f}" for load in LOADS))
    for rule, curve in curves.items():
        for k, start in enumerate(STARTS):
            print(f"{f'{rule}, from {start}':34}", *(f"{100 * error:6.2f}" for error in curve[:, k]))
    if options.plot:
        draw(curves, options.units, options.plot)


if __name__ == "__main__":
    main()
