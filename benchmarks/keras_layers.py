"""Training and predicting with Keras's recurrent layers before and after `rnnfast.keras.accelerate`.

KERAS_BACKEND=torch python -m benchmarks.keras_layers [--layers LSTM ...] [--shapes T,B,I,H ...] [--batches N]

A model is one layer, the last output of which a dense layer reads, trained by `fit` with Adam; before and after take
turns. KERAS_BACKEND=jax does the same with JAX. One thread; with JAX bind the process to a core, as `taskset -c 1`.
"""

import argparse
import os
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np

import rnnfast.keras
from benchmarks.machine import describe
from benchmarks.peers import shape
from benchmarks.timing import Call, seconds

LAYERS = ["LSTM", "GRU", "SimpleRNN"]
SHAPES = [(50, 32, 128, 256)]
TURNS = 5


def twins(kind: str, sizes: tuple[int, ...]) -> list[Any]:
    """Return a compiled model and the same accelerated."""
    T, _, I, H = sizes
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        layers = [keras.Input((T, I)), getattr(keras.layers, kind)(H), keras.layers.Dense(1)]
        models.append(keras.Sequential(layers))
        models[-1].compile("adam", "mse")
    rnnfast.keras.accelerate(models[1])
    return models


def calls(model: Any, sizes: tuple[int, ...], batches: int) -> list[Call]:
    """Return a call that trains on some batches, and one that predicts from them."""
    T, B, I, _ = sizes
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((batches * B, T, I), np.float32), rng.standard_normal((batches * B, 1), np.float32)
    train = partial(model.fit, x, y, batch_size=B, shuffle=False, verbose=0)
    return [lambda: train().history["loss"][0], partial(model.predict, x, batch_size=B, verbose=0)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS)
    parser.add_argument("--shapes", nargs="+", type=shape, default=SHAPES, metavar="T,B,I,H")
    parser.add_argument("--batches", type=int, default=8)
    options = parser.parse_args(argv)
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        torch.set_num_threads(1)
    rnnfast.set_num_threads(1)
    machine = describe()
    print(f"{machine['processor']}, {machine['isa']}, Keras {keras.__version__} on {backend}, {machine['date']}\n")
    print("| layer | T,B,I,H | work | before, ms per batch | after, ms per batch | times as fast |")
    print("|---|--:|---|--:|--:|--:|")
    for kind in options.layers:
        for sizes in options.shapes:
            pairs = zip(*(calls(model, sizes, options.batches) for model in twins(kind, sizes)), strict=True)
            for work, pair in zip(("fit", "predict"), pairs, strict=True):
                for call in pair:  # compiles
                    call()
                rounds = [[seconds(call, 1) for call in pair] for _ in range(TURNS)]
                before, after = (statistics.median(times) / options.batches for times in zip(*rounds, strict=True))
                row = kind, ",".join(map(str, sizes)), work, f"{1e3 * before:.1f}", f"{1e3 * after:.1f}"
                print("|", " | ".join(row), f"| {before / after:.2f} |", flush=True)


if __name__ == "__main__":
    main()
