"""Associative memory: noisy handwritten digits, repaired by Hopfield networks
==============================================================================

The first images of scikit-learn's digits, converted to black and white, are stored, and some pixels of each are
flipped. The digits are so similar that Hebb's rule confuses them. The pseudo-inverse restores all ten, and so does the
modern network, which stores the images themselves and has a much larger capacity.
"""

# sphinx_gallery_thumbnail_path = "../examples/hopfield_digits.png"

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from rnnfast.functional import Array
from rnnfast.hopfield import Hopfield, ModernHopfield


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=10, help="images to store, at most 1797 (default: %(default)s)")
    parser.add_argument("--noise", type=float, default=0.15, help="fraction of pixels to flip (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the images before and after to this file")
    options = parser.parse_args(argv)

    rng = np.random.default_rng(options.seed)
    images = np.where(load_digits().data[: options.images] > 7, 1, -1)
    noisy = np.where(rng.random(images.shape) < options.noise, -images, images)
    rows = {"stored": images, "noisy": noisy}
    for rule in ("hebbian", "storkey", "pseudo_inverse"):
        network = Hopfield(images.shape[1])
        network.store(images, rule)
        rows[rule] = network.recall(noisy, rng=rng).states
    modern = ModernHopfield(images.astype(np.float32))
    rows["modern"] = np.sign(modern.recall(noisy.astype(np.float32)).states)

    for name, row in rows.items():
        print(f"{name:14}: {np.mean(row != images):6.1%} of the pixels wrong")
    if options.picture:
        draw(rows, options.picture)


def draw(rows: dict[str, Array], path: Path) -> None:
    """Draw the first ten images of each row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    for axes, (name, row) in zip(figure.subplots(len(rows)), rows.items(), strict=True):
        framed = np.pad(row[:10].reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)), constant_values=-1)
        axes.imshow(np.concatenate(list(framed), axis=1), cmap="binary")
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(name.replace("_", "\n"), rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()

# %%
# .. image:: ../../examples/hopfield_digits.png
#    :alt: Ten digits as they are stored, with noise, and as four networks repair them
