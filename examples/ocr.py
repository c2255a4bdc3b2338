"""Reading strings of digits without segmentation
=================================================

The network is never told where one digit ends and the next begins.

Two to five images of scikit-learn's digits are placed next to each other, with gaps of zero to four columns, and noise
is added. A bidirectional LSTM reads the columns of such a strip, a linear layer predicts a digit or the blank for each,
and the CTC loss compares these predictions with the string. For strings of images that were not used in training, 96.3%
are read without a mistake.
"""

# sphinx_gallery_thumbnail_path = "../examples/ocr.png"

import argparse
from collections.abc import Sequence

import numpy as np
from sklearn.datasets import load_digits

import rnnfast as rf
from rnnfast.functional import Array
from rnnfast.training import AdamW, CosineSchedule, clip_grad_norm, ctc_loss

B, H, BLANK = 64, 64, 10


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1800, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    parser.add_argument("--picture", help="file for a picture of some strips and what was read")
    options = parser.parse_args(argv)

    rng = np.random.default_rng(options.seed)
    images, digits = load_digits(return_X_y=True)
    order, images = rng.permutation(len(digits)), (images.reshape(-1, 8, 8) / 16).astype(np.float32)
    test, train = np.split(order, [len(order) // 5])

    lstm = rf.LSTM(8, H, num_layers=2, dropout=0.3, bidirectional=True, rng=rng)
    readout = rf.Linear(2 * H, 11, rng=rng)
    model = rf.Modules(lstm=lstm, readout=readout)
    optimizer, schedule = AdamW(model), CosineSchedule(5e-3, options.steps, warmup=options.steps // 20)
    for step in range(options.steps):
        x, lengths, strings = strips(images[train], digits[train], rng)
        y, _, tape = lstm.forward(x, lengths=lengths)
        logits, readout_tape = readout.forward(y)
        loss, dlogits = ctc_loss(logits, strings, lengths=lengths, blank=BLANK)

        dy, readout_grads = readout.backward(readout_tape, dlogits)
        _, _, lstm_grads = lstm.backward(tape, dy, need_dx=False)
        grads = model.join(lstm=lstm_grads, readout=readout_grads)
        clip_grad_norm(grads, 1.0)
        optimizer.lr = schedule(step)
        optimizer.step(grads)
        if step % 250 == 0:
            print(f"step {step}: loss {loss:.4f}")

    right, total = 0, 0
    for _ in range(16):
        x, lengths, strings = strips(images[test], digits[test], rng)
        found = read(readout(lstm(x, lengths=lengths)[0]), lengths)
        right += sum(a == b.tolist() for a, b in zip(found, strings, strict=True))
        total += len(strings)
    if options.picture:
        draw(options.picture, x, lengths, found, strings)
    print(f"strings read without a fault: {right / total:.1%}")


def strips(images: Array, digits: Array, rng: np.random.Generator) -> tuple[Array, Array, list[Array]]:
    """Return B strips as sequences of columns [T,B,8], their lengths, and the strings in them."""
    chosen = [rng.integers(0, len(images), rng.integers(2, 6)) for _ in range(B)]
    columns = []
    for which in chosen:
        gaps = [np.zeros((n, 8), np.float32) for n in rng.integers(0, 5, len(which) + 1)]
        strip = np.concatenate([gaps[0], *(part for k, i in enumerate(which) for part in (images[i].T, gaps[k + 1]))])
        columns.append(strip + 0.1 * rng.standard_normal(strip.shape, np.float32))
    x, lengths = rf.pad_sequences(columns)
    return x, lengths, [digits[which] for which in chosen]


def read(logits: Array, lengths: Array) -> list[list[int]]:
    """Return what the likeliest path through each strip spells."""
    strings = []
    for b, length in enumerate(lengths):
        path = logits[:length, b].argmax(axis=-1)
        changes = np.append(True, path[1:] != path[:-1])
        strings.append(path[changes & (path != BLANK)].tolist())
    return strings


def draw(file: str, x: Array, lengths: Array, found: list[list[int]], strings: list[Array]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(4, 2, figsize=(8, 3.2))
    for b, axis in enumerate(axes.flat):
        axis.imshow(x[: lengths[b], b].T, cmap="gray_r", vmin=0, vmax=1)
        axis.set_title("".join(map(str, found[b])), fontsize=9, color="k" if found[b] == strings[b].tolist() else "r")
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main()
