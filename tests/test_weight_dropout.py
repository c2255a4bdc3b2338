"""Weight dropout: what its masks leave out of gradients, and learning. (test_masks, and test_sequences for values.)"""

from typing import Any

import numpy as np
import pytest
from modules import B, I, T, make_layer, normal
from problems import assert_same_bits

import rnnfast
from rnnfast.training import SGD

X = normal((T, B, I), "float32", 1)


@pytest.mark.parametrize("rate", [0.3, ("rows", 0.3)], ids=str)
def test_a_tape_has_weights_of_its_own(rate: Any) -> None:
    layer = make_layer("lstm", num_layers=2, bidirectional=True, weight_dropout=rate)
    y, _, tape = layer.forward(X)
    expected = layer.backward(tape, y)[2]
    layer.weight_hh_l0 = layer.weight_hh_l0 * 2
    assert_same_bits(layer.backward(tape, y)[2], expected)
    for name, mask in tape.weight_masks.items():
        assert not expected[name][~mask].any()
        assert expected[name][mask].all()


def test_a_layer_learns_with_dropped_weights() -> None:
    layer = make_layer("gru", (1, 16), weight_dropout=0.2, dtype="float64")
    x = np.random.default_rng(0).integers(0, 2, (6, 64, 1)).astype(np.float64)
    sgd, target = SGD(layer, 0.5), x[0] - 0.5  # what came first
    losses = []
    for _ in range(300):
        y, _, tape = layer.forward(x, outputs="last")
        error = y[:, :1] - target
        losses.append(float((error**2).mean()))
        dy = np.zeros_like(y)
        dy[:, :1] = 2 * error / len(error)
        sgd.step(layer.backward(tape, dy)[2])
    assert np.mean(losses[-20:]) < 0.25 * np.mean(losses[:5])


@pytest.mark.parametrize(("kind", "own"), [("LSTM", {"proj_size": 3}), ("SLSTM", {"num_heads": 2})])
def test_masks_have_the_shape_of_their_weights(kind: str, own: dict[str, Any]) -> None:
    layer: Any = getattr(rnnfast, kind)(X.shape[-1], 4, weight_dropout=0.5, rng=0, **own)
    y, _, tape = layer.forward(X)
    kept = tape.weight_masks["weight_hh_l0"]
    assert kept.shape == layer.weight_hh_l0.shape
    grads = layer.backward(tape, np.ones_like(y))[2]
    assert not grads["weight_hh_l0"][~kept].any()
    assert grads["weight_hh_l0"][kept].all()
    again, _, tape = layer.forward(X, masks={"weight_hh_l0": np.asfortranarray(kept)})
    assert np.array_equal(again, y)
    gradient = layer.backward(tape, np.ones_like(y))[2]["weight_hh_l0"]
    assert gradient.flags.c_contiguous
    assert np.array_equal(gradient, grads["weight_hh_l0"])
