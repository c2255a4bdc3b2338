"""Options as attributes: which may be assigned, and that they are checked as the constructors' arguments are."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from modules import solve_layer
from problems import assert_same_bits

import rnnfast
from rnnfast import hopfield, reservoir

CHANGES: dict[str, tuple[Any, Any, type[Exception]]] = {  # of an option that may change: what it may be, and what not
    "batch_first": (True, 1, TypeError),
    "dropout": (0.5, 2.0, ValueError),
    "weight_dropout": (("rows", 0.5), 1.0, ValueError),
    "recurrent_dropout": (0.5, -0.1, ValueError),
    "recurrent_dropout_per_gate": (True, 0.5, TypeError),
    "candidate_dropout": (0.5, 2.0, ValueError),
    "candidate_dropout_per_sequence": (True, None, TypeError),
    "zoneout": (0.5, "x", TypeError),
    "layer_norm_eps": (0.1, 0, ValueError),
    "precision": ("full", "half", ValueError),
    "beta": (2.0, -1, ValueError),
    "rng": (np.random.default_rng(3), "x", TypeError),
}
LAYERS = ["LSTM", "GRU", "RNN", "SLSTM"]
MADE: dict[str, Callable[[], Any]] = {
    **{
        kind: partial(getattr(rnnfast, kind), 4, 6, rng=0)
        for kind in (*LAYERS, "LSTMCell", "GRUCell", "RNNCell", "Linear")
    },
    "Hopfield": lambda: hopfield.Hopfield(4),
    "ModernHopfield": lambda: hopfield.ModernHopfield(np.eye(3, dtype=np.float32)),
    "ESN": lambda: reservoir.ESN(2, 8, density=1, rng=0),
}


@pytest.mark.parametrize("kind", MADE)
def test_an_option_is_checked_when_it_is_assigned_or_cannot_be(kind: str) -> None:
    module: Any = MADE[kind]()
    takes = set(inspect.signature(type(module)).parameters)
    options = takes - {*module.parameters, "patterns"} | {*CHANGES, *(["layer_norm"] if kind in LAYERS else [])}
    for name in sorted(options):
        may_change = name in CHANGES and (name in takes or name == "rng")
        if name in CHANGES and name not in module.changeable:
            continue  # an attribute that is the user's
        before = getattr(module, name, None)
        if may_change:
            good, bad, error = CHANGES[name]
            with pytest.raises(error, match=f"^{name}: "):
                setattr(module, name, bad)
            assert getattr(module, name) is before
            setattr(module, name, good)
            assert getattr(module, name) == good
        else:
            for value in (before, 1, "carried"):
                with pytest.raises(AttributeError, match=f"^{name}: expected no assignment"):
                    setattr(module, name, value)
            assert getattr(module, name, None) is before


def test_an_option_goes_with_the_others_when_it_is_assigned() -> None:
    for own, name in (
        ({"proj_size": 2}, "zoneout"),
        ({"proj_size": 2}, "recurrent_dropout"),
        ({"layer_norm": "inside"}, "candidate_dropout"),
    ):
        layer = rnnfast.LSTM(3, 4, **own)
        with pytest.raises(ValueError, match=f"^{name}: expected 0 for a layer with {next(iter(own))}, got 0.5"):
            setattr(layer, name, 0.5)
        assert getattr(layer, name) == 0


def test_a_rate_that_is_assigned_is_the_constructors() -> None:
    x = np.ones((5, 3, 4), np.float32)
    layer, other = rnnfast.GRU(4, 6, rng=0), rnnfast.GRU(4, 6, rng=0, zoneout=0.5, batch_first=True)
    layer.zoneout, layer.batch_first = 0.5, True
    assert_same_bits(solve_layer(layer, x), solve_layer(other, x))
    assert repr(layer) == repr(other)
