"""Sequences of different lengths: how much of a handwritten digit must one see?
================================================================================

A GRU reads the first n rows of an image, with n from 1 to 8 drawn at random, and a linear layer predicts the digit from
its last state. Images of similar lengths share a batch, and padding neither takes time nor changes results. Of the
images that were not used in training, 44% are classified correctly after one row, 91% after four, and 96% after all
rows.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from digits import data

import rnnfast as rf
from rnnfast.training import Adam, clip_grad_norm, softmax_cross_entropy

B, H = 64, 128


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=200, help="training epochs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    options = parser.parse_args(argv)

    rng = np.random.default_rng(options.seed)
    x, digits, x_test, digits_test = data(rng)
    gru, readout = rf.GRU(8, H, batch_first=True, rng=rng), rf.Linear(H, 10, rng=rng)
    model = rf.Modules(gru=gru, readout=readout)
    adam = Adam(model, lr=3e-3)
    for epoch in range(options.epochs):
        adam.lr = 3e-3 * (1 - epoch / options.epochs)
        lengths = rng.integers(1, 9, len(x))
        losses = []
        for batch in rf.length_bucketed_batches(lengths, B, rng=rng):
            noise = 0.1 * rng.standard_normal((len(batch), 8, 8), np.float32)  # so that no image comes twice
            last, _, tape = gru.forward(x[batch] + noise, lengths=lengths[batch], outputs="last")
            logits, readout_tape = readout.forward(last)
            loss, dlogits = softmax_cross_entropy(logits, digits[batch])
            losses.append(loss)

            dlast, readout_grads = readout.backward(readout_tape, dlogits)
            _, _, gru_grads = gru.backward(tape, dlast, need_dx=False)
            grads = model.join(gru=gru_grads, readout=readout_grads)
            clip_grad_norm(grads, 1.0)
            adam.step(grads)
        if epoch % 20 == 0:
            print(f"epoch {epoch}: loss {np.mean(losses):.4f}")

    print("test accuracy by rows shown:")
    for rows in range(1, 9):
        last, _ = gru(x_test, lengths=np.full(len(x_test), rows), outputs="last")
        right = np.mean(readout(last).argmax(axis=-1) == digits_test)
        print(f"  {rows}  {right:6.1%}  {'#' * round(60 * right)}")


if __name__ == "__main__":
    main()
