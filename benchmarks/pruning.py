"""Language models pruned while they are trained: what is left, what it costs in bits, and how long a step takes.

python -m benchmarks.pruning [--cell lstm] [--hidden H] [--steps N] [--densities D ...] [--plot FILE]

Each model is trained by the same steps, the first without pruning, the others in blocks of 16 units by one column as
`python -m rnnfast train --density D` does. Then: the share of weights that is left in the layer's matrices, bits per
character of the held-out text, a step of the layer's stream at B = 1, all of them taking turns, and the layer's file
with only the blocks that are left, in float32, bfloat16 and int8.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import rnnfast
from benchmarks.timing import Call, in_turns
from rnnfast.lm import LAYERS, Options, Training, default_text


class Row(NamedTuple):
    """One model."""

    density: float
    left: float  # the share of weights that are not zero
    bits: float  # per character
    step: float  # seconds
    sizes: list[int]  # of files, in bytes


def trained(options: argparse.Namespace, density: float) -> tuple[Any, float]:
    """Train a model; return its layer and the bits per character of the held-out text."""
    run = Options(cell=options.cell, hidden=options.hidden, steps=options.steps, density=density, batch=options.batch)
    training = Training(default_text(), run)
    for _ in range(options.steps):
        training.step()
    return training.model.rnn, training.held_out_bits()


def step_of(layer: Any) -> Call:
    """Return one step of a stream of one sequence."""
    x = np.random.default_rng(0).standard_normal((1, layer.input_size), np.float32)
    stream, out = layer.stream(1), np.empty((1, layer.hidden_size), np.float32)
    return lambda: stream.step(x, out=out)


def size(layer: Any) -> int:
    """Return the bytes of the layer's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "layer")
        layer.save(path, sparse=True)
        return path.stat().st_size


def left(layer: Any) -> float:
    """Return the share of the weights of matrices that are not zero."""
    matrices = [a for name, a in layer.state_dict().items() if name.startswith("weight")]
    return float(sum(map(np.count_nonzero, matrices)) / sum(a.size for a in matrices))


def table(options: argparse.Namespace) -> list[Row]:
    """Train all models, print and return what they are."""
    models = []
    for density in options.densities:
        models.append(trained(options, density))
        print(f"density {density}: {models[-1][1]:.4f} bits per character", flush=True)
    times = in_turns([step_of(layer) for layer, _ in models])
    rows = [
        Row(density, left(layer), bits, seconds, [size(m) for m in (layer, *map(layer.quantize, ("bfloat16", "int8")))])
        for density, (layer, bits), seconds in zip(options.densities, models, times, strict=True)
    ]
    first = rows[0]
    print(f"\n{options.cell} of {options.hidden} units, {options.steps} steps of training\n")
    columns = ["density", "left", "bits per character", "more than dense", "step, µs", "times as fast"]
    print(f"| {' | '.join([*columns, 'file, KiB', 'of bfloat16', 'of int8'])} |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        sizes = " | ".join(f"{n / 1024:.0f}" for n in row.sizes)
        print(
            f"| {row.density:g} | {row.left:.3f} | {row.bits:.4f} | {row.bits / first.bits - 1:.1%} | "
            f"{row.step * 1e6:.2f} | {first.step / row.step:.2f} | {sizes} |"
        )
    return rows


def plot(rows: list[Row], title: str, path: Path) -> None:
    """Draw bits per character and the time of a step by density."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "0", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.2, 3), layout="constrained")
        quality, speed = figure.subplots(1, 2)
        densities = [row.density for row in rows]
        quality.plot(densities, [row.bits for row in rows], marker="o", ms=4, color="C0")
        quality.axhline(1.03 * rows[0].bits, ls=":", color="C7")
        quality.text(1, 1.03 * rows[0].bits, "3% more than dense", va="bottom", ha="right", fontsize=8, color="C7")
        quality.set(title="bits per character, held out", xlabel="density")
        speed.plot(densities, [row.step * 1e6 for row in rows], marker="o", ms=4, color="C3")
        speed.set(title="a step of one sequence, µs", xlabel="density", ylim=(0, None))
        figure.suptitle(title, fontsize=10)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cell", choices=LAYERS, default="lstm")
    parser.add_argument("--hidden", type=int, default=256, metavar="H")
    parser.add_argument("--batch", type=int, default=Options.batch, metavar="B", help="of training")
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="of training")
    parser.add_argument("--densities", nargs="+", type=float, default=[1, 0.5, 0.3, 0.2, 0.1], metavar="D")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    threads = rnnfast.get_num_threads()
    rnnfast.set_num_threads(1)
    rows = table(options)
    rnnfast.set_num_threads(threads)
    if options.plot:
        plot(rows, f"{options.cell.upper()} of {options.hidden} units, a character language model", options.plot)


if __name__ == "__main__":
    main()
