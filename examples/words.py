"""A language model of words, with and without weight drop
==========================================================

The text is the first 40,000 words of the topics in Python's help(). An embedding, an LSTM and a linear layer with the
same weights as the embedding (Press and Wolf 2017) predict each next word, out of 1,183; all rare words count as one.
With about 20 passes over so short a text, dropping half of the recurrent weights in each window (weight drop, Merity,
Keskar, Socher 2018) helps a little: the best perplexity on new text is 36.6 with it and 37.5 without. Predicting words
by their frequency gives 209.
"""

# sphinx_gallery_thumbnail_path = "../examples/words.png"

import argparse
import math
import re
from collections import Counter
from collections.abc import Sequence
from pydoc_data.topics import topics

import numpy as np

import rnnfast as rf
from rnnfast.functional import Array
from rnnfast.training import AdamW, CosineSchedule, clip_grad_norm, softmax_cross_entropy

B, T, H, WORDS, RARE = 32, 35, 200, 40_000, 3


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=700, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    parser.add_argument("--picture", help="file for a plot of the perplexity during training")
    options = parser.parse_args(argv)

    words = re.findall(r"\w+|[^\w\s]", " ".join(topics.values()).lower())[:WORDS]
    known = [word for word, n in Counter(words).most_common() if n >= RARE]
    number = {word: k for k, word in enumerate(known, 1)}  # 0: a rare one
    tokens = np.array([number.get(word, 0) for word in words])
    train, test = np.split(tokens, [len(tokens) * 9 // 10])
    print(f"{len(tokens)} words, {len(known) + 1} different ones that are not rare")
    counts = np.bincount(train, minlength=len(known) + 1) + 1
    print(f"perplexity of new text by frequencies: {perplexity(-np.log(counts / counts.sum())[test].mean()):.0f}")
    curves = {}
    for name, rate in (("plain", 0.0), ("weight drop", 0.5)):
        curves[name] = learn(train, test, len(known) + 1, rate, options)
        print(f"perplexity of new text, {name}: {min(curves[name]):.1f}")
    if options.picture:
        draw(options.picture, curves)


def learn(train: Array, test: Array, V: int, rate: float, options: argparse.Namespace) -> list[float]:
    """Return the perplexities of new text while a model is trained."""
    rng = np.random.default_rng(options.seed)
    lstm, readout = rf.LSTM(H, H, weight_dropout=rate, rng=rng), rf.Linear(H, V, rng=rng)
    readout.weight[:] = rng.normal(0, 0.1, (V, H))
    model = rf.Modules(lstm=lstm, readout=readout)  # whose weight is the embedding too
    optimizer, schedule = (
        AdamW(model, weight_decay=0.1),
        CosineSchedule(4e-3, options.steps, warmup=options.steps // 40),
    )
    length = len(train) // B
    streams = train[: B * length].reshape(B, length).T
    curve: list[float] = []
    state = None
    for step in range(options.steps):
        start = step * T % (length - T - 1)
        state = None if start < T else state
        window = streams[start : start + T + 1]
        y, state, tape = lstm.forward(window[:-1], state, embedding=readout.weight)
        logits, readout_tape = readout.forward(y)
        _, dlogits = softmax_cross_entropy(logits, window[1:])

        dy, readout_grads = readout.backward(readout_tape, dlogits)
        _, _, lstm_grads = lstm.backward(tape, dy)
        readout_grads["weight"] += lstm_grads.pop("embedding")
        grads = model.join(lstm=lstm_grads, readout=readout_grads)
        clip_grad_norm(grads, 0.5)
        optimizer.lr = schedule(step)
        optimizer.step(grads)
        if (step + 1) % 50 == 0 or step + 1 == options.steps:
            y, _ = lstm(test[:-1, np.newaxis], embedding=readout.weight)
            curve.append(perplexity(softmax_cross_entropy(readout(y), test[1:, np.newaxis])[0]))
    return curve


def perplexity(nats: float) -> float:
    return math.exp(nats)


def draw(file: str, curves: dict[str, list[float]]) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3))
    for name, curve in curves.items():
        axis.plot(50 * np.arange(1, len(curve) + 1), curve, label=name)
    axis.set(xlabel="steps", ylabel="perplexity of new text", ylim=(35, 60))
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main()
