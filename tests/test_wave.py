"""Stacks that run as a wavefront: the same bits as one layer after the other, for any number of threads."""

from typing import Any

import numpy as np
import pytest
from modules import KINDS, make_layer, make_state, named_states, normal
from problems import Results, assert_same_bits, named

import rnnfast
from rnnfast import _core
from rnnfast._stack import wave

T, B, I, H, L = 150, 2, 24, 72, 3
RESETS = np.random.default_rng(5).random((T, B)) < 0.1

# Of a layer, of its calls, and of its forwards alone.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "float64": ({"dtype": "float64"}, {}, {}),
    "dropout": ({"dropout": 0.5}, {}, {}),
    "checkpoints and dropout": ({"dropout": 0.5}, {"resets": RESETS}, {"checkpoint": 10}),
    "resets": ({}, {"resets": RESETS}, {}),
    "the last output": ({}, {"outputs": "last", "resets": RESETS}, {}),
    "held gates": ({}, {"gate_override": [{"f": 0.5}, None, {"i": 1.0}]}, {}),
    "a learned state": ({"learn_initial_state": True}, {}, {}),
    "one sequence": ({"batch_first": True}, {}, {}),
    "a projection": ({"proj_size": 17, "dropout": 0.2}, {}, {}),
    "masks of weights and of h": ({"weight_dropout": 0.2, "recurrent_dropout": 0.3}, {}, {}),
    "masks of units": ({"zoneout": (0.2, 0.1), "candidate_dropout": 0.3, "dropout": 0.4}, {}, {"checkpoint": 30}),
}


def runs_as_wave(layer: Any, x: Any, backward: bool = False, **options: Any) -> bool:
    """Return whether a call runs as a wavefront."""
    seen = []
    name = "run_backward" if backward else "run_forward"
    run = getattr(wave, name)

    def noted(*arguments: Any, **named: Any) -> Any:
        seen.append(True)
        return run(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wave, name, noted)
        y, _, tape = layer.forward(x, **options)
        layer.backward(tape, y)
    return bool(seen)


def solve(
    layer: Any, x: Any, options: dict[str, Any], more: dict[str, Any], *, threads: int, wave_too: bool
) -> Results:
    """Run a new copy of a layer in each way."""
    rnnfast.set_num_threads(threads)
    layer.rng = np.random.default_rng(3)
    with pytest.MonkeyPatch.context() as patch:
        if not wave_too:
            patch.setattr(wave, "pays", lambda *_, **__: False)
        y0, last0 = layer(x, **options)
        y, last, tape = layer.forward(x, **options, **more)
        dx, dstate0, grads = layer.backward(tape, np.ones_like(y))
    inferred = {f"inferred {name}": a for name, a in {"y": y0, **named_states(last0, last0)}.items()}
    return {**inferred, **named(y=y, dx=dx), **named_states(last, dstate0), **grads}


def check(layer: Any, x: Any, options: dict[str, Any], more: dict[str, Any]) -> None:
    rnnfast.set_num_threads(2)
    assert runs_as_wave(layer, x, **options, **more)
    assert runs_as_wave(layer, x, backward=True, **options, **more) == (not more)
    expected = solve(layer, x, options, more, threads=2, wave_too=False)
    for threads in (1, 2, 3, 5):
        assert_same_bits(solve(layer, x, options, more, threads=threads, wave_too=True), expected)


@pytest.mark.parametrize("cell", KINDS)
def test_every_cell_has_the_bits_of_one_layer_after_the_other(cell: str) -> None:
    layer = make_layer(cell, (I, H), num_layers=L)
    check(layer, normal((T, B, I), "float32", 1), {"state": make_state(layer, (B,), 2)}, {})


@pytest.mark.parametrize("case", OPTIONS)
def test_every_option_has_the_bits_of_one_layer_after_the_other(case: str) -> None:
    own, options, more = OPTIONS[case]
    layer = rnnfast.LSTM(I, H, L, rng=0, **own)
    shape = (2 * T, I) if case == "one sequence" else (T, B, I)
    check(layer, normal(shape, layer.dtype, 1), options, more)


@pytest.mark.parametrize("layers", [2, 4, 7])
def test_layers_may_be_more_or_fewer_than_threads(layers: int) -> None:
    layer = rnnfast.GRU(I, H, layers, rng=0)
    check(layer, normal((T, B, I), "float32", 1), {}, {})


def test_what_has_two_directions_or_tokens_or_lengths_runs_layer_by_layer() -> None:
    rnnfast.set_num_threads(2)
    x, tokens = normal((T, B, I), "float32", 1), np.zeros((T, B), int)
    layer = rnnfast.LSTM(I, H, L, rng=0)
    assert runs_as_wave(layer, x)
    assert not runs_as_wave(layer, tokens)
    assert not runs_as_wave(layer, tokens, backward=True)
    assert not runs_as_wave(layer, x, lengths=[T, T - 1])
    assert not runs_as_wave(rnnfast.LSTM(I, H, L, bidirectional=True, rng=0), x)
    assert not runs_as_wave(rnnfast.LSTM(I, H, 1, proj_size=3, rng=0), x)
    rnnfast.set_num_threads(1)
    assert not runs_as_wave(layer, x)


def test_a_wave_of_few_steps_or_rows_is_right_too() -> None:
    for T, B in (1, 1), (2, 3), (5, 1), (17, 2), (3, 0):  # which is not chosen for them
        layer = rnnfast.LSTM(I, H, L, rng=0)
        x = normal((T, B, I), "float32", 1)
        parameters = [layer_parameters(layer, k) for k in range(L)]
        results = _core.forward_wave("lstm", x, parameters, None, training=True)
        y, last, tape = layer.forward(x)
        assert_same_bits(
            named(y=results[-1][0], **{f"h{k}": r[1][0] for k, r in enumerate(results)}),
            named(y=y, **{f"h{k}": last[0][k : k + 1] for k in range(L)}),
        )
        assert [t.cell for *_, t in results] == ["lstm"] * L
        assert_same_bits(named(h=tape.h(0)), named(h=results[0][0]))


def layer_parameters(layer: Any, k: int) -> Any:
    return [tuple(layer.parameters[f"{name}_l{k}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))]


def test_the_core_refuses_what_no_wave_can_have() -> None:
    layer = rnnfast.LSTM(I, H, L, rng=0)
    x, parameters = normal((4, B, I), "float32", 1), [layer_parameters(layer, k) for k in range(L)]

    def run(x: Any = x, parameters: Any = parameters, **options: Any) -> Any:
        return _core.forward_wave("lstm", x, parameters, None, training=False, **options)

    with pytest.raises(ValueError, match="parameters: expected those of at least one layer"):
        run(parameters=[])
    with pytest.raises(TypeError, match="parameters: expected those of each layer"):
        run(parameters=None)
    with pytest.raises(ValueError, match="expected numbers and layers of one direction"):
        run(x=np.zeros((4, B), int))
    with pytest.raises(ValueError, match="out: expected 3 entries"):
        run(out=[None])
    with pytest.raises(ValueError, match="dropout: expected 2 entries"):
        run(dropout=[x])
    with pytest.raises(ValueError, match="dropout: expected shape"):
        run(dropout=[x, x])
    with pytest.raises(ValueError, match="x: expected shape"):
        run(parameters=[parameters[0], parameters[0]])
