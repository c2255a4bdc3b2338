"""One to many: a network sees a handwritten digit and spells its name
======================================================================

A linear layer with tanh computes features from the pixels of an image. They are the initial state of a GRU, which
writes the name letter by letter, up to a full stop; the input of each step is the letter before. For images that were
not used in training, 98.3% of the names are correct, including the full stop.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from digits import data

import rnnfast as rf
from rnnfast.functional import Array
from rnnfast.training import Adam, clip_grad_norm, softmax_cross_entropy

B, H = 64, 128
NAMES = ["zero.", "one.", "two.", "three.", "four.", "five.", "six.", "seven.", "eight.", "nine."]
T = max(map(len, NAMES))
LETTERS = sorted(set("".join(NAMES)))
STOP, IGNORED = LETTERS.index("."), -1  # the stop also stands before the first letter
TARGETS = np.array([[LETTERS.index(a) for a in name] + [IGNORED] * (T - len(name)) for name in NAMES]).T  # [T,10]
INPUTS = np.vstack([np.full(10, STOP), np.maximum(TARGETS[:-1], STOP)])  # what stands before each target


class Speller(rf.Modules):
    """What makes an image's features, what writes letters from there, and its readout."""

    def __init__(self, rng: np.random.Generator) -> None:
        features, gru = rf.Linear(64, H, rng=rng), rf.GRU(len(LETTERS), H, rng=rng)
        super().__init__(features=features, gru=gru, readout=rf.Linear(H, len(LETTERS), rng=rng))

    def gradients(self, images: Array, digits: Array) -> tuple[float, dict[str, Array]]:
        """Return the loss of naming images [B,64] of the digits [B], and its gradients."""
        z, features_tape = self.features.forward(images)
        h0 = np.tanh(z)
        y, _, gru_tape = self.gru.forward(INPUTS[:, digits], h0[np.newaxis])
        logits, readout_tape = self.readout.forward(y)
        loss, dlogits = softmax_cross_entropy(logits, TARGETS[:, digits], ignore_index=IGNORED)

        dy, readout_grads = self.readout.backward(readout_tape, dlogits)
        _, dh0, gru_grads = self.gru.backward(gru_tape, dy)
        dz = dh0[0] * (1 - h0**2)
        _, features_grads = self.features.backward(features_tape, dz, need_dx=False)
        return loss, self.join(features=features_grads, gru=gru_grads, readout=readout_grads)

    def write(self, images: Array) -> list[str]:
        """Return what is written about each of the images [B,64], up to the stop."""
        h = np.tanh(self.features(images))[np.newaxis]
        tokens = [np.full(len(images), STOP)]
        for _ in range(T):
            y, h = self.gru(tokens[-1][np.newaxis], h)
            tokens.append(self.readout(y[0]).argmax(axis=-1))
        texts = ["".join(LETTERS[token] for token in written) for written in np.array(tokens[1:]).T]
        return [text[: text.find(".") + 1] or text for text in texts]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2000, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    options = parser.parse_args(argv)

    rng = np.random.default_rng(options.seed)
    x, digits, x_test, digits_test = data(rng)
    model = Speller(rng)
    adam = Adam(model)
    for step in range(options.steps):
        batch = rng.integers(0, len(x), B)
        noise = 0.1 * rng.standard_normal((B, 64), np.float32)  # so that no image comes twice
        loss, grads = model.gradients(x[batch].reshape(B, 64) + noise, digits[batch])
        clip_grad_norm(grads, 1.0)
        adam.lr = 3e-3 * (1 - step / options.steps)
        adam.step(grads)
        if step % 250 == 0:
            print(f"step {step}: loss {loss:.4f}")

    names = model.write(x_test.reshape(-1, 64))
    for row in x_test[:6].swapaxes(0, 1):  # of six images, side by side
        print("  ".join("".join(2 * " .:#"[int(3.9 * pixel)] for pixel in pixels) for pixels in row))
    print("  ".join(f"{name:^16}" for name in names[:6]))
    right = np.mean([name == NAMES[digit] for name, digit in zip(names, digits_test, strict=True)])
    print(f"named right: {right:.1%}")


if __name__ == "__main__":
    main()
