"""Weight dropout: where its masks come from, when it acts, what it leaves alone. (test_sequences has its values.)"""

import copy
from typing import Any

import numpy as np
import pytest
from modules import B, H, I, T, make_layer, normal, results
from problems import Array, Results, assert_same_bits
from test_layers import central_differences
from tolerances import relative_error

import rnnfast
from rnnfast.training import SGD

RATES = [0.3, ("rows", 0.3)]
by_rate = pytest.mark.parametrize("rate", RATES, ids=str)


def layer_of(rate: Any = 0.3, **options: Any) -> Any:
    return make_layer("lstm", **{"num_layers": 2, "bidirectional": True, "weight_dropout": rate, **options})


def masks_of(layer: Any, x: Array, **options: Any) -> Results:
    masks: Results = layer.forward(x, **options)[2].weight_masks
    return masks


def solve(layer: Any, x: Array, **options: Any) -> Results:
    y, state, tape = layer.forward(x, **options)
    return results(y, state, *layer.backward(tape, np.ones_like(y)))


X = normal((T, B, I), "float32", 1)


@by_rate
def test_as_many_are_kept_as_the_rate_says(rate: Any) -> None:
    layer = make_layer("gru", (1, 200), num_layers=2, bidirectional=True, weight_dropout=rate)
    masks = masks_of(layer, np.zeros((1, 1, 1), np.float32))
    shape = (600,) if isinstance(rate, tuple) else (600, 200)
    assert {name: mask.shape for name, mask in masks.items()} == {
        name: shape for name in layer.parameters if name.startswith("weight_hh")
    }
    for mask in masks.values():
        assert abs(mask.mean() - 0.7) < 5 * np.sqrt(0.3 * 0.7 / mask.size)
        assert not mask.flags.writeable
    one, *others = masks.values()
    assert not any(np.array_equal(one, other) for other in others)


@by_rate
def test_masks_are_those_of_the_seed_and_of_the_call(rate: Any) -> None:
    layer, again = layer_of(rate), layer_of(rate)
    first, second = masks_of(layer, X), masks_of(layer, X)
    assert all(not np.array_equal(first[name], second[name]) for name in first)
    assert_same_bits(masks_of(again, X), first)
    twin = copy.deepcopy(again)
    assert_same_bits(masks_of(again, X), second)
    assert_same_bits(masks_of(twin, X), second)


CALLS: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {  # options of the layer, x, those of forward
    "some rows": ({}, X[:2, :1], {"outputs": "last"}),
    "lengths": ({}, X, {"lengths": [2, 5, 0]}),
    "packed": ({}, rnnfast.pack_padded(X, [5, 2, 4]), {}),
    "checkpoint": ({"dropout": 0.5}, X, {"checkpoint": 1}),
    "options": ({}, X, {"gate_override": {"f": 0.5}, "resets": np.ones((T, B), bool)}),
    "tokens": ({"learn_initial_state": True}, np.zeros((T, B), int), {}),
    "float64": ({"dtype": "float64"}, X.astype(np.float64), {}),
}


@pytest.mark.parametrize("call", CALLS)
@by_rate
def test_masks_depend_on_nothing_but_seed_and_call(rate: Any, call: str) -> None:
    own, x, options = CALLS[call]
    layer, other = layer_of(rate), layer_of(rate, **own)
    assert_same_bits(masks_of(other, x, **options), masks_of(layer, X))


@by_rate
def test_a_shallower_layer_draws_the_same(rate: Any) -> None:
    layer, deeper = layer_of(rate), layer_of(rate, num_layers=3)
    layer.rng, deeper.rng = (np.random.default_rng(3) for _ in range(2))
    masks = masks_of(deeper, X)
    assert_same_bits(masks_of(layer, X), {name: mask for name, mask in masks.items() if "l2" not in name})


@by_rate
def test_results_do_not_depend_on_threads(rate: Any) -> None:
    layers = [make_layer("gru", (33, 65), num_layers=2, weight_dropout=rate) for _ in range(2)]
    x = normal((70, 9, 33), "float32", 2)
    with rnnfast.threads(1):
        expected = solve(layers[0], x)
    with rnnfast.threads(3):
        assert_same_bits(solve(layers[1], x), expected)


@by_rate
def test_a_tape_gives_the_same_gradients_any_number_of_times(rate: Any) -> None:
    layer = layer_of(rate)
    y, _, tape = layer.forward(X)
    expected = layer.backward(tape, y)[2]
    w_hh = layer.weight_hh_l0.copy()
    layer.forward(X)
    layer.weight_hh_l0 = w_hh * 2  # of which the tape has a copy of its own
    assert_same_bits(layer.backward(tape, y)[2], expected)
    for name, mask in tape.weight_masks.items():
        assert not expected[name][~mask].any()
        assert expected[name][mask].all()


@by_rate
def test_gradients_are_those_of_the_raw_weights(rate: Any) -> None:
    layer = layer_of(rate, dtype="float64")
    x, dy = X.astype(np.float64), normal((T, B, 2 * H), "float64", 2)
    _, _, tape = layer.forward(x)
    grads = layer.backward(tape, dy)[2]

    def loss() -> float:
        return float((dy * layer.forward(x, masks=tape.weight_masks)[0]).sum())

    for name in tape.weight_masks:
        assert relative_error(central_differences(loss, layer.parameters[name]), grads[name]) < 1e-7


@by_rate
def test_masks_that_are_given_are_used_and_the_others_drawn(rate: Any) -> None:
    layer, twin = layer_of(rate), layer_of(rate)
    drawn = masks_of(layer, X)
    expected = solve(layer, X)
    name, kept = "weight_hh_l1", np.random.default_rng(0).random(drawn["weight_hh_l1"].shape) < 0.5
    masks = masks_of(twin, X, masks={name: kept})
    assert_same_bits(masks, {**drawn, name: kept})
    assert masks[name] is not kept
    assert_same_bits(solve(twin, X), expected)  # the call that was given a mask counts as one
    y, _, tape = layer.forward(X)
    assert np.array_equal(layer.forward(X, masks=tape.weight_masks)[0], y)


def test_the_rate_is_not_of_the_masks_that_are_given() -> None:
    layer = layer_of(0.25)
    kept = {name: np.ones_like(mask) for name, mask in masks_of(layer, X).items()}
    plain = layer_of(0)
    for name in kept:
        plain.parameters[name] /= np.float32(0.75)
    assert np.abs(layer.forward(X, masks=kept)[0] - plain(X)[0]).max() < 1e-6


def test_only_forward_leaves_weights_out() -> None:
    layer, plain = make_layer("gru", weight_dropout=0.5), make_layer("gru")
    before = layer.rng.bit_generator.state
    assert np.array_equal(layer(X)[0], plain(X)[0])
    assert np.array_equal(layer(X, outputs="last")[0], plain(X, outputs="last")[0])
    assert np.array_equal(layer.stream(B).run(X), plain(X)[0])
    dy = np.ones((T, B, H), np.float32)
    assert np.array_equal(rnnfast.gradient_flow(layer, X, dy).h, rnnfast.gradient_flow(plain, X, dy).h)
    assert layer.rng.bit_generator.state == before
    assert not np.array_equal(layer.forward(X)[0], plain(X)[0])


@pytest.mark.parametrize("rate", [0, 0.0, ("rows", 0)], ids=str)
@pytest.mark.parametrize("form", [{}, {"num_layers": 2, "bidirectional": True}], ids=["one", "four"])
def test_a_rate_of_zero_is_the_plain_layer(rate: Any, form: dict[str, Any]) -> None:
    layer, plain = make_layer("lstm", weight_dropout=rate, **form), make_layer("lstm", **form)
    assert repr(layer) == repr(plain)
    assert_same_bits(solve(layer, X), solve(plain, X))
    assert layer.forward(X)[2].weight_masks == {}
    assert_same_bits(solve(layer, X, masks={}), solve(plain, X))
    assert layer.rng.bit_generator.state == plain.rng.bit_generator.state


@pytest.mark.parametrize("checkpoint", [None, 2])
def test_a_forward_that_fails_draws_nothing(checkpoint: Any) -> None:
    layer = layer_of(dropout=0.5)
    before = layer.rng.bit_generator.state
    tokens = np.zeros((T, B), int)
    tokens[-1, -1] = I
    for x, masks in ((tokens, None), (X, {"weight_hh_l0": np.ones(3, bool)})):
        with pytest.raises(ValueError, match="expected"):
            layer.forward(x, checkpoint=checkpoint, masks=masks)
    assert layer.rng.bit_generator.state == before


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
    layer: Any = getattr(rnnfast, kind)(X.shape[-1], 4, weight_dropout=0.5, seed=0, **own)
    y, _, tape = layer.forward(X)
    kept = tape.weight_masks["weight_hh_l0"]
    assert kept.shape == layer.weight_hh_l0.shape
    grads = layer.backward(tape, np.ones_like(y))[2]
    assert not grads["weight_hh_l0"][~kept].any()
    assert grads["weight_hh_l0"][kept].all()
    assert np.array_equal(layer.forward(X, masks={"weight_hh_l0": kept})[0], y)
