"""What does not fit is refused: the error names the argument, what was expected and what came; nothing changes."""

import copy
import math
import os
import re
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
from modules import B, H, I, T, make_cell, make_layer, make_state, normal
from problems import Array, Shape, make_problem, num_states, with_dsteps

import rnnfast
from rnnfast import _core, functional
from rnnfast.training import Pruner

rf: Any = rnnfast  # these calls are not what the types allow
F: Any = functional


class World:
    """Everything that a bad call could touch."""

    def __init__(self) -> None:
        self.lstm = make_layer("lstm", num_layers=2, dropout=0.5, learn_initial_state=True)
        self.gru = make_layer("gru", bidirectional=True, batch_first=True)
        self.cell = make_cell("lstm")
        self.rnn_cell = make_cell("rnn_tanh")
        self.readout = rnnfast.Linear(I, H)
        self.x = normal((T, B, I), "float32", 1)
        self.state = make_state(self.lstm, (B,), 2)
        self.y, _, self.tape = self.lstm.forward(self.x, self.state)
        self.dstate = make_state(self.lstm, (B,), 4)
        self.grads = {name: np.ones_like(p) for name, p in self.lstm.state_dict().items()}
        _, self.cell_tape = self.cell.forward(self.x[0])
        _, self.readout_tape = self.readout.forward(self.x)

        problem: Any = make_problem("lstm", "float32", Shape(T, B, I, H))
        self.parameters = problem.parameters
        self.state0 = self.h0, self.c0 = problem.state0
        self.dy = problem.dy
        _, _, self.bare_tape = F.forward("lstm", self.x, self.parameters, self.state0)
        _, _, self.rnn_tape = F.forward("rnn_tanh", self.x, [tuple(p[:H] for p in self.parameters[0])])
        self.token_layer = make_layer("gru")
        _, _, self.token_tape = self.token_layer.forward(np.zeros((T, B), int), embedding=normal((8, I), "float32", 5))
        self.rnn = make_layer("rnn_tanh")
        self.packed = rnnfast.pack_padded(self.x, [5, 2, 4])
        _, _, self.packed_tape = self.lstm.forward(self.packed)
        _, _, self.saving_tape = self.lstm.forward(self.x, checkpoint=2)
        _, _, self.last_tape = self.lstm.forward(self.x, outputs="last")
        _, _, self.gru_tape = self.gru.forward(self.x.swapaxes(0, 1))
        _, _, self.ragged_tape = F.forward(
            "lstm", self.packed.data, self.parameters, batch_sizes=self.packed.batch_sizes
        )
        *_, self.tape_to_come = _core.forward("lstm", self.x, self.parameters, steps=(0, 0))
        self.out = np.ones((T, B, H), np.float32)
        self.bare_grads = [tuple(np.ones_like(p) for p in self.parameters[0])]

    def grads_with(self, **changes: Any) -> dict[str, Any]:
        return {**self.grads, **changes}

    def grads_without(self, name: str) -> dict[str, Any]:
        return {key: g for key, g in self.grads.items() if key != name}

    def token_grads(self, dembedding: Array) -> dict[str, Array]:
        zeros = {name: np.zeros_like(p) for name, p in self.token_layer.parameters.items()}
        return {**zeros, "embedding": dembedding}

    def parameters_with(self, i: int, p: Any) -> list[tuple[Any, ...]]:
        """Return the bare parameters with another i-th one."""
        w = self.parameters[0]
        return [(*w[:i], p, *w[i + 1 :])]

    def grads_bare_with(self, i: int, g: Any) -> list[tuple[Any, ...]]:
        w = self.bare_grads[0]
        return [(*w[:i], g, *w[i + 1 :])]

    def bare(self, *state: Any, **options: Any) -> Any:
        return F.forward("lstm", self.x, self.parameters, *state, **options)


class Case(NamedTuple):
    """One bad call and its error."""

    call: Callable[[World], Any]
    error: type[Exception]
    message: str  # a regular expression


def read_only(a: Array) -> Array:
    a = a.copy()
    a.flags.writeable = False
    return a


class Lies:
    """Says it is an array and fails to be one."""

    def __array__(self, *_: Any, **__: Any) -> Array:
        msg = "no array today"
        raise RuntimeError(msg)


def rnn_of(leak: Any) -> Callable[[World], Any]:
    return lambda _: rf.RNN(3, 4, leak=leak)


def slstm_of(**options: Any) -> Callable[[World], Any]:
    return lambda _: rf.SLSTM(3, 4, **options)


def lstm_of(dtype: Any) -> Callable[[World], Any]:
    return lambda _: rf.LSTM(3, 4, dtype=dtype)


def weight_dropout(rate: Any) -> Callable[[World], Any]:
    return lambda _: rf.LSTM(3, 4, weight_dropout=rate)


def recurrent_dropout(rate: Any) -> Callable[[World], Any]:
    return lambda _: rf.GRU(3, 4, recurrent_dropout=rate)


def factors(given: Any) -> Callable[[World], Any]:
    return lambda w: _core.forward("lstm", w.x, w.parameters, recurrent_factors=given)


KEPT = np.ones((H, H), bool)


def masks(given: Any) -> Callable[[World], Any]:
    return lambda w: rf.RNN(I, H, weight_dropout=0.5).forward(w.x, masks=given)


RENEWED = np.ones((T, B, H), bool)


def zoneout(rate: Any) -> Callable[[World], Any]:
    return lambda _: rf.LSTM(3, 4, zoneout=rate)


def candidate_dropout(rate: Any) -> Callable[[World], Any]:
    return lambda _: rf.LSTM(3, 4, candidate_dropout=rate)


def of_arrays(cell: str, **options: Any) -> Callable[[World], Any]:
    """Call `functional` with options that masks and rates are among."""
    G = _core.cells[cell].num_gates
    weights = [(np.ones((G * H, I), np.float32), np.ones((G * H, H), np.float32), None, None)]
    return lambda w: rf.functional.forward(cell, w.x, weights, **options)


def layer_norm(**options: Any) -> Callable[[World], Any]:
    return lambda _: rf.LSTM(3, 4, **{"layer_norm": "inside", **options})


def eps_of(eps: Any, cell: str = "gru_norm") -> Callable[[World], Any]:
    p: Any = make_problem(cell, "float32", Shape(T, B, I, H))
    return lambda _: F.forward(cell, p.x, p.parameters, layer_norm_eps=eps)


SIZES = r"input_size, hidden_size, num_layers: expected sizes that fit the address space"

X = np.ones((2, 1, 3))

CONSTRUCTORS = {
    "input_size_0": Case(lambda _: rf.LSTM(0, 4), ValueError, "input_size: expected at least 1, got 0"),
    "hidden_size_-1": Case(lambda _: rf.GRU(3, -1), ValueError, "hidden_size: expected at least 1, got -1"),
    "num_layers_0": Case(lambda _: rf.RNN(3, 4, 0), ValueError, "num_layers: expected at least 1, got 0"),
    "size_float": Case(lambda _: rf.LSTM(3.0, 4), TypeError, "input_size: expected an int, got float"),
    "size_none": Case(lambda _: rf.LSTM(3, None), TypeError, "hidden_size: expected an int, got NoneType"),
    "size_huge": Case(lambda _: rf.LSTM(3, 2**62), ValueError, SIZES),
    "layers_huge": Case(lambda _: rf.LSTM(3, 4, 2**62), ValueError, SIZES),
    "cell_huge": Case(lambda _: rf.GRUCell(2**62, 4), ValueError, "input_size, hidden_size: expected"),
    "linear_huge": Case(lambda _: rf.Linear(2**40, 2**40), ValueError, "in_features, out_features: expected"),
    "linear_0": Case(lambda _: rf.Linear(3, 0), ValueError, "out_features: expected at least 1, got 0"),
    "cell_0": Case(lambda _: rf.LSTMCell(0, 4), ValueError, "input_size: expected at least 1, got 0"),
    "bias_str": Case(lambda _: rf.LSTM(3, 4, 1, "tanh"), TypeError, "bias: expected a bool, got str"),
    "batch_first": Case(lambda _: rf.GRU(3, 4, batch_first=1), TypeError, "batch_first: expected a bool, got int"),
    "bidirectional": Case(lambda _: rf.GRU(3, 4, bidirectional=2), TypeError, "bidirectional: expected a bool"),
    "learned": Case(lambda _: rf.GRU(3, 4, learn_initial_state=0), TypeError, "learn_initial_state: expected a bo"),
    "peephole": Case(lambda _: rf.LSTM(3, 4, peephole=1), TypeError, "peephole: expected a bool, got int"),
    "peephole_cell": Case(lambda _: rf.LSTMCell(3, 4, peephole=None), TypeError, "peephole: expected a bool"),
    "coupled_gates": Case(lambda _: rf.LSTM(3, 4, coupled_gates="no"), TypeError, "coupled_gates: expected a bool"),
    **{
        f"leak_{leak}": Case(rnn_of(leak), ValueError, "leak: expected numbers above 0 and up to 1, got")
        for leak in (0, -0.5, 1.5, float("nan"), float("inf"), 1e-60, 1e300, (0.5, 0.5, 0.5, 0), [1, 1, 1, 1e300])
    },
    "leak_long": Case(lambda _: rf.RNN(3, 4, leak=[0.5] * 3), ValueError, r"leak: expected shape \(4,\), got \(3,\)"),
    "leak_square": Case(lambda _: rf.RNNCell(3, 4, leak=np.ones((4, 4))), ValueError, r"leak: expected shape \(4,\)"),
    "leak_of_many": Case(
        lambda _: rf.RNN(3, 2**40, leak=0.5), ValueError, "hidden_size: expected sizes that fit the address space"
    ),
    "leak_str": Case(lambda _: rf.RNN(3, 4, leak="x"), TypeError, "leak: expected a number, got str"),
    "leak_none": Case(lambda _: rf.RNN(3, 4, leak=None), TypeError, "leak: expected a number, got NoneType"),
    "leak_bool": Case(lambda _: rf.RNN(3, 4, leak=True), TypeError, "leak: expected a number, got bool"),
    "leak_bools": Case(lambda _: rf.RNN(3, 4, leak=[True] * 4), TypeError, "leak: expected numbers, got bool"),
    **{
        f"num_heads_{heads}": Case(slstm_of(num_heads=heads), ValueError, f"num_heads: {expected}")
        for heads, expected in {
            0: "expected at least 1, got 0",
            3: "expected a number that divides hidden_size, 4, got 3",
            8: "expected a number that divides hidden_size, 4, got 8",
        }.items()
    },
    "num_heads_float": Case(slstm_of(num_heads=2.0), TypeError, "num_heads: expected an int, got float"),
    "forget_gate": Case(
        slstm_of(forget_gate="tanh"), ValueError, "forget_gate: expected 'sigmoid' or 'exp', got 'tanh'"
    ),
    **{
        f"min_n_{n}": Case(slstm_of(min_n=n), ValueError, "min_n: expected")
        for n in (0, -1.0, float("nan"), float("inf"), 1e-60, 1e300)
    },
    "min_n_str": Case(slstm_of(min_n="1"), TypeError, "min_n: expected a number, got str"),
    "clamp_gates": Case(slstm_of(clamp_gates=1), TypeError, "clamp_gates: expected a bool, got int"),
    "slstm_huge": Case(
        lambda _: rf.SLSTM(3, 2**40), ValueError, "hidden_size: expected sizes that fit the address space"
    ),
    "slstm_holds_f": Case(
        lambda _: rf.SLSTM(3, 4)(np.zeros((2, 1, 3), np.float32), gate_override={"f": 1.0}),
        ValueError,
        "gate_override: expected gates of slstm, z, o, got 'f'",
    ),
    "heads_of_w_hh": Case(
        lambda _: rf.functional.inference("slstm", X, [(np.ones((16, 3)), np.ones((16, 3)), None, None, np.ones(8))]),
        ValueError,
        r"w_hh: expected shape \(4·H, H / heads\) with H >= 1, got \(16, 3\)",
    ),
    "heads_of_lstm": Case(
        lambda _: rf.functional.inference("lstm", X, [(np.ones((16, 3)), np.ones((16, 2)), None, None)]),
        ValueError,
        r"w_hh: expected shape \(4·H, H\) with H >= 1, got \(16, 2\)",
    ),
    "reset_after": Case(lambda _: rf.GRU(3, 4, reset_after=None), TypeError, "reset_after: expected a bool"),
    "dropout_-0.1": Case(lambda _: rf.LSTM(3, 4, dropout=-0.1), ValueError, r"dropout: expected .*, got -0.1"),
    "dropout_2": Case(lambda _: rf.LSTM(3, 4, dropout=2), ValueError, r"dropout: expected .*, got 2"),
    "dropout_nan": Case(lambda _: rf.LSTM(3, 4, dropout=np.nan), ValueError, r"dropout: expected .*, got nan"),
    "dropout_str": Case(lambda _: rf.LSTM(3, 4, dropout="x"), TypeError, "dropout: expected a number, got str"),
    "dropout_bool": Case(lambda _: rf.LSTM(3, 4, dropout=True), TypeError, "dropout: expected a number, got bool"),
    **{
        f"weight_dropout_{rate}": Case(weight_dropout(rate), ValueError, f"weight_dropout: expected .*{words}")
        for rate, words in {
            -0.1: "less than 1, got -0.1",
            1: "less than 1, got 1.0",
            math.nan: "got nan",
            ("rows", 1): "got 1.0",
            ("rows",): r"a probability or \('rows', probability\), got \('rows',\)",
            ("columns", 0.5): r"a probability or .*got \('columns', 0.5\)",
            (0.5, 0.5): r"a probability or .*got \(0.5, 0.5\)",
        }.items()
    },
    "weight_dropout_str": Case(weight_dropout("rows"), TypeError, "weight_dropout: expected a number, got str"),
    "weight_dropout_bool": Case(weight_dropout(True), TypeError, "weight_dropout: expected a number, got bool"),
    "weight_dropout_rows_str": Case(weight_dropout(("rows", "x")), TypeError, "weight_dropout: expected a number"),
    "masks_list": Case(masks([True]), TypeError, "masks: expected a mapping of names to arrays of bools, got list"),
    "masks_int": Case(masks({0: KEPT}), ValueError, r"masks: expected names among .*, got \[0\]"),
    "masks_plain": Case(
        lambda w: w.lstm.forward(w.x, masks={"weight_hh_l0": KEPT}),
        ValueError,
        "masks: expected none for a layer without weight_dropout, .*dropout or zoneout, got .*weight_hh_l0",
    ),
    **{
        f"recurrent_dropout_{rate}": Case(recurrent_dropout(rate), ValueError, f"recurrent_dropout: expected .*{words}")
        for rate, words in {-0.1: "less than 1, got -0.1", 1: "less than 1, got 1.0", math.nan: "got nan"}.items()
    },
    "recurrent_dropout_str": Case(recurrent_dropout("x"), TypeError, "recurrent_dropout: expected a number, got str"),
    "recurrent_dropout_rows": Case(
        recurrent_dropout(("rows", 0.5)), TypeError, "recurrent_dropout: expected a number, got tuple"
    ),
    "recurrent_dropout_per_gate": Case(
        lambda _: rf.RNN(3, 4, recurrent_dropout_per_gate=0.5), TypeError, "recurrent_dropout_per_gate: expected a bool"
    ),
    "recurrent_dropout_projected": Case(
        lambda _: rf.LSTM(3, 4, recurrent_dropout=0.5, proj_size=2),
        ValueError,
        "recurrent_dropout: expected 0 for a layer with proj_size, got 0.5",
    ),
    "recurrent_dropout_slstm": Case(slstm_of(recurrent_dropout=0.5), TypeError, ".* argument 'recurrent_dropout'"),
    "factors_shape": Case(
        factors(np.ones((1, B, H + 1), np.float32)), ValueError, rf"recurrent_factors: expected shape \(1, {B}, {H}\)"
    ),
    "factors_gates": Case(
        factors(np.ones((1, B, 3, H), np.float32)), ValueError, rf"recurrent_factors: expected shape \(1, {B}, 4, {H}\)"
    ),
    "factors_dtype": Case(factors(np.ones((1, B, H), bool)), TypeError, "recurrent_factors: expected dtype float32"),
    "factors_steps": Case(
        lambda w: _core.forward(
            "lstm", w.x, w.parameters, steps=(0, 0), recurrent_factors=np.ones((1, B, H), np.float32)
        ),
        ValueError,
        "recurrent_factors: expected None, since steps are still to come",
    ),
    "factors_heads": Case(
        lambda _: _core.forward(
            "slstm",
            np.ones((1, 1, 1), np.float32),
            [(*(np.ones(shape, np.float32) for shape in ((16, 1), (16, 2))), None, None, np.ones(8, np.float32))],
            recurrent_factors=np.ones((1, 1, 4), np.float32),
        ),
        ValueError,
        "recurrent_factors: expected None, since there is a projection, or w_hh is of heads",
    ),
    **{
        f"zoneout_{rate}": Case(zoneout(rate), ValueError, f"zoneout: expected a probability.*{words}")
        for rate, words in {
            -0.1: "less than 1, got -0.1",
            1: "less than 1, got 1.0",
            math.nan: "got nan",
            (0.5, 1): "got 1.0",
            (): r"or a pair \(of h, of c\), got \(\)",
            (0.1, 0.2, 0.3): r"or a pair \(of h, of c\), got \(0.1, 0.2, 0.3\)",
        }.items()
    },
    "zoneout_str": Case(zoneout("x"), TypeError, "zoneout: expected a number, got str"),
    "zoneout_bool": Case(zoneout(True), TypeError, "zoneout: expected a number, got bool"),
    "zoneout_pair_str": Case(zoneout((0.1, "x")), TypeError, "zoneout: expected a number, got str"),
    "zoneout_gru_pair": Case(
        lambda _: rf.GRU(3, 4, zoneout=(0.1, 0.1)),
        ValueError,
        r"zoneout: expected a probability, got \(0.1, 0.1\)",
    ),
    "zoneout_proj_size": Case(
        lambda _: rf.LSTM(3, 4, zoneout=0.1, proj_size=2),
        ValueError,
        "zoneout: expected 0 for a layer with proj_size, got 0.1",
    ),
    **{
        f"layer_norm_{name}": Case(
            layer_norm(**{name: value}), ValueError, f"layer_norm: expected None for a layer with {name}, got 'inside'"
        )
        for name, value in {"peephole": True, "coupled_gates": True, "proj_size": 2}.items()
    },
    **{
        f"layer_norm_{form}": Case(layer_norm(layer_norm=form), ValueError, "layer_norm: expected None or 'inside' or ")
        for form in ("Inside", "", 1, True, False, ("inside",))
    },
    "layer_norm_gru": Case(
        lambda _: rf.GRU(3, 4, layer_norm="carried"), ValueError, "layer_norm: expected None or 'inside', got 'carried'"
    ),
    "layer_norm_reset_before": Case(
        lambda _: rf.GRU(3, 4, layer_norm="inside", reset_after=False),
        ValueError,
        "layer_norm: expected None for a layer with reset_after=False, got 'inside'",
    ),
    **{
        f"layer_norm_eps_{eps}": Case(
            layer_norm(layer_norm_eps=eps), ValueError, "layer_norm_eps: expected a positive number within the range"
        )
        for eps in (0, -1e-5, 1e-60, 1e300, float("nan"), float("inf"))
    },
    "layer_norm_eps_str": Case(layer_norm(layer_norm_eps="x"), TypeError, "layer_norm_eps: expected a number, got str"),
    "layer_norm_eps_none": Case(layer_norm(layer_norm_eps=None), TypeError, "layer_norm_eps: expected a number"),
    "layer_norm_eps_without": Case(
        lambda _: rf.GRU(3, 4, layer_norm_eps=0), ValueError, "layer_norm_eps: expected a positive number within"
    ),
    **{
        f"candidate_dropout_{rate}": Case(candidate_dropout(rate), ValueError, f"candidate_dropout: expected .*{words}")
        for rate, words in {-0.1: "less than 1, got -0.1", 1: "less than 1, got 1.0", math.nan: "got nan"}.items()
    },
    "candidate_dropout_str": Case(candidate_dropout("x"), TypeError, "candidate_dropout: expected a number, got str"),
    "candidate_dropout_per_sequence": Case(
        lambda _: rf.GRU(3, 4, candidate_dropout_per_sequence=1),
        TypeError,
        "candidate_dropout_per_sequence: expected a bool, got int",
    ),
    "candidate_dropout_rnn": Case(
        lambda _: rf.RNN(3, 4, candidate_dropout=0.5), TypeError, ".* argument 'candidate_dropout'"
    ),
    "candidate_dropout_slstm": Case(slstm_of(candidate_dropout=0.5), TypeError, ".* argument 'candidate_dropout'"),
    "functional_candidates_rnn": Case(
        of_arrays("rnn_tanh", candidate_dropout=(RENEWED, 0.5)),
        ValueError,
        "candidate_dropout: expected None, since rnn_tanh drops no candidate",
    ),
    "functional_candidates_mask": Case(
        of_arrays("gru", candidate_dropout=RENEWED),
        TypeError,
        r"candidate_dropout: expected a pair \(kept, p\), got nd",
    ),
    "functional_candidates_rate": Case(
        of_arrays("gru", candidate_dropout=(RENEWED, 1)),
        ValueError,
        "candidate_dropout: p: expected a probability of at least 0 and less than 1, got 1",
    ),
    "functional_candidates_no_rate": Case(
        of_arrays("gru", candidate_dropout=(RENEWED, None)),
        TypeError,
        "candidate_dropout: p: expected a number, got None",
    ),
    "functional_candidates_shape": Case(
        of_arrays("gru", candidate_dropout=(RENEWED[..., 1:], 0.5)),
        ValueError,
        rf"candidate_dropout: kept: expected shape \({T}, {B}, {H}\), got \({T}, {B}, {H - 1}\)",
    ),
    "functional_candidates_shape_of_all": Case(
        of_arrays("gru", candidate_dropout=(RENEWED[:1, 1:], 0.5)),
        ValueError,
        rf"candidate_dropout: kept: expected shape \(1, {B}, {H}\)",
    ),
    "functional_candidates_twos": Case(
        of_arrays("gru", candidate_dropout=(RENEWED * 2.0, 0.5)),
        ValueError,
        "candidate_dropout: kept: expected bools, or 0 and 1, got 2",
    ),
    "functional_candidates_steps": Case(
        lambda w: _core.forward("lstm", w.x, w.parameters, steps=(0, 0), candidate_dropout=(RENEWED, 0.5)),
        ValueError,
        "candidate_dropout: expected None, since steps are still to come",
    ),
    "functional_candidates_windows": Case(
        lambda w: _core.backward(
            _core.forward("lstm", w.x, w.parameters, candidate_dropout=(RENEWED, 0.5))[2],
            np.ones((T, B, H), np.float32),
            windows=(1, 1, False, False),
        ),
        ValueError,
        "windows: expected None, since candidates are dropped",
    ),
    "functional_zoneout_rate": Case(
        of_arrays("gru", zoneout=1.0),
        ValueError,
        "zoneout: h: expected a probability of at least 0 and less than 1, got 1.0",
    ),
    "functional_zoneout_bool": Case(
        of_arrays("gru", zoneout=True), TypeError, "zoneout: h: expected a number, got bool"
    ),
    "functional_zoneout_str": Case(of_arrays("gru", zoneout="x"), TypeError, "zoneout: h: expected an array, got str"),
    "functional_zoneout_tuple": Case(
        of_arrays("gru", zoneout=(0.1,)), TypeError, "zoneout: expected one array, h, got a tuple of 1"
    ),
    "functional_zoneout_lstm": Case(
        of_arrays("lstm", zoneout=0.1), TypeError, r"zoneout: expected a tuple \(h, c\), got fl"
    ),
    "functional_zoneout_shape": Case(
        of_arrays("lstm", zoneout=(None, RENEWED[1:])),
        ValueError,
        rf"zoneout: c: expected shape \({T}, {B}, {H}\), got",
    ),
    "functional_zoneout_twos": Case(
        of_arrays("lstm", zoneout=(RENEWED * 2, None)), ValueError, "zoneout: h: expected bools, or 0 and 1, got 2"
    ),
    "functional_zoneout_projection": Case(
        lambda _: rf.functional.forward(
            "rnn_tanh",
            np.ones((1, 1, 1), np.float32),
            [(*(np.ones(shape, np.float32) for shape in ((4, 1), (4, 2))), None, None, np.ones((2, 4), np.float32))],
            zoneout=0.5,
        ),
        ValueError,
        "zoneout: expected None, since h is a projection",
    ),
    "nonlinearity": Case(lambda _: rf.RNN(3, 4, 1, "elu"), ValueError, "nonlinearity: expected .*, got 'elu'"),
    "nonlinearity_bool": Case(lambda _: rf.RNN(3, 4, 1, True), ValueError, "nonlinearity: expected .*, got True"),
    **{
        f"dtype_{dtype}": Case(lstm_of(dtype), TypeError, f"dtype: expected float32 or float64, got {dtype!r}")
        for dtype in ("float16", "int32", "object", "single,", ">f4", None, 3)
    },
    "rng_str": Case(lambda _: rf.LSTM(3, 4, rng="x"), TypeError, "rng: "),
    "rng_-1": Case(lambda _: rf.LSTM(3, 4, rng=-1), ValueError, "rng: "),
}

ARRAYS = {
    "list": Case(lambda w: w.lstm([[[0.0]]]), ValueError, r"x: expected shape .*, got \(1, 1, 1\)"),
    "ragged_list": Case(
        lambda w: w.lstm([[0.0], [0.0, 1.0]]), TypeError, "x: expected an array, got list, which failed"
    ),
    "list_of_str": Case(lambda w: w.lstm(["x"]), TypeError, "x: expected numbers, got a list that NumPy makes <U1 of"),
    "set": Case(lambda w: w.lstm({0.0}), TypeError, "x: expected an array, got set"),
    "packed": Case(lambda w: w.lstm.backward(w.tape, w.packed), TypeError, "dy: expected an array, got PackedSequence"),
    "none": Case(lambda w: w.lstm(None), TypeError, "x: expected an array, got NoneType"),
    "str": Case(lambda w: w.lstm("x"), TypeError, "x: expected an array, got str"),
    "lies": Case(lambda w: w.lstm(Lies()), TypeError, "x: expected an array, got Lies"),
    "float64": Case(
        lambda w: w.lstm(w.x.astype("f8")),
        TypeError,
        r"x: expected dtype float32, got float64; convert it with .astype\(np.float32\), or use dtype=.float64.",
    ),
    "float16": Case(
        lambda w: w.lstm(w.x.astype("f2")),
        TypeError,
        r"x: expected dtype float32, got float16; convert it with .astype\(np.float32\)$",
    ),
    "int": Case(lambda w: w.lstm(w.x.astype(int)), TypeError, "x: expected dtype float32, got int64"),
    "swapped": Case(
        lambda w: w.lstm(w.x.astype(np.dtype("f4").newbyteorder("S"))),
        TypeError,
        r"x: expected dtype float32, got [<>]f4, which is (big|little)-endian; convert it with .astype\(np.float32\)$",
    ),
    "masked": Case(
        lambda w: w.lstm(np.ma.masked_array(w.x, w.x > 0)), ValueError, "x: expected an array without masked elements"
    ),
    "masked_state": Case(
        lambda w: w.lstm(w.x, tuple(np.ma.masked_array(part, part > 0) for part in w.state)),
        ValueError,
        "state: expected an array without masked elements",
    ),
    "masked_lengths": Case(
        lambda w: w.lstm(w.x, lengths=np.ma.masked_array([5, 2, 4], np.array([False, False, True]))),
        ValueError,
        "lengths: expected an array without masked elements",
    ),
    "complex": Case(lambda w: w.lstm(w.x.astype("c8")), TypeError, "x: expected dtype float32, got complex64"),
    "object": Case(lambda w: w.lstm(w.x.astype(object)), TypeError, "x: expected dtype float32, got object"),
}

LAYERS = {
    "rank_1": Case(lambda w: w.lstm(w.x[0, 0]), ValueError, r"x: expected shape \(T, B, 7\) or \(T, 7\), got \(7,\)"),
    "rank_4": Case(lambda w: w.lstm(w.x[None]), ValueError, r"x: expected shape .*, got \(1, 5, 3, 7\)"),
    "features": Case(lambda w: w.lstm(w.x[..., 1:]), ValueError, r"x: expected shape \(T, B, 7\) .* got \(5, 3, 6\)"),
    "batch_first": Case(lambda w: w.gru(w.x[0, 0]), ValueError, r"x: expected shape \(B, T, 7\) or \(T, 7\), got"),
    "T_0": Case(lambda w: w.lstm(w.x[:0]), ValueError, r"x: expected shape .* with T >= 1, got \(0, 3, 7\)"),
    "T_0_one": Case(lambda w: w.lstm(w.x[:0, 0]), ValueError, r"x: expected shape .* with T >= 1, got"),
    "state_h": Case(lambda w: w.lstm(w.x, w.state[0]), TypeError, r"state: expected a tuple \(h, c\), got ndarray"),
    "state_3": Case(lambda w: w.lstm(w.x, (*w.state, None)), ValueError, r"state: expected .*\(h, c\), got .* 3"),
    "state_tuple": Case(lambda w: w.gru(w.x, w.state), TypeError, "state: expected one array, h, got a tuple of 2"),
    "state_list": Case(
        lambda w: w.lstm(w.x, ([[[0.0]]], None)), ValueError, r"state: expected shape .*, got \(1, 1, 1\)"
    ),
    "state_rank": Case(
        lambda w: w.lstm(w.x[:, 0], w.state), ValueError, r"state: expected shape \(2, 6\), got \(2, 3, 6\)"
    ),
    "state_B": Case(
        lambda w: w.lstm(w.x, (w.state[0], w.state[1][:, :2])),
        ValueError,
        r"state: expected shape \(2, 3, 6\), got \(2, 2, 6\)",
    ),
    "state_dtype": Case(
        lambda w: w.lstm(w.x, (w.state[0], w.state[1].astype("f8"))),
        TypeError,
        "state: expected dtype float32, got float64",
    ),
    "dy_shape": Case(
        lambda w: w.lstm.backward(w.tape, w.y[1:]), ValueError, r"dy: expected shape \(5, 3, 6\), got \(4, 3, 6\)"
    ),
    "dy_dtype": Case(lambda w: w.lstm.backward(w.tape, w.y.astype("f8")), TypeError, "dy: expected dtype float32, got"),
    "dy_list": Case(lambda w: w.lstm.backward(w.tape, [1.0]), ValueError, r"dy: expected shape .*, got \(1,\)"),
    "dy_of_lists": Case(lambda w: w.lstm.backward(w.tape, w.y.tolist()[:-1]), ValueError, "dy: expected shape"),
    "no_gradient": Case(lambda w: w.lstm.backward(w.tape), ValueError, "dy.*: expected at least one"),
    "dstate_h": Case(lambda w: w.lstm.backward(w.tape, w.y, w.dstate[0]), TypeError, r"dstate: expected a tuple \(h,"),
    "dstate_shape": Case(
        lambda w: w.lstm.backward(w.tape, w.y, (w.dstate[0], w.dstate[1][:1])),
        ValueError,
        r"dstate: expected shape \(2, 3, 6\), got \(1, 3, 6\)",
    ),
    "tape_none": Case(lambda w: w.lstm.backward(None, w.y), TypeError, "tape: expected .*, got NoneType"),
    "tape_bare": Case(lambda w: w.lstm.backward(w.bare_tape, w.y), TypeError, "tape: expected .*, got Tape"),
    "tape_other": Case(
        lambda w: copy.deepcopy(w.lstm).backward(w.tape, w.y), ValueError, "tape: expected .*, got one of another"
    ),
    "tape_cell": Case(lambda w: w.lstm.backward(w.cell_tape, w.y), ValueError, "tape: expected .* LSTMCell"),
    "grads_list": Case(lambda w: w.lstm.backward(w.tape, w.y, grads=[]), TypeError, "grads: expected .*, got list"),
    "grads_missing": Case(
        lambda w: w.lstm.backward(w.tape, w.y, grads=w.grads_without("bias_hh_l1")),
        ValueError,
        r"grads: missing keys: .*bias_hh_l1",
    ),
    "grads_unknown": Case(
        lambda w: w.lstm.backward(w.tape, w.y, grads=w.grads_with(bias=w.out)),
        ValueError,
        r"grads: unexpected keys: \['bias'\]$",
    ),
    "grads_shape": Case(
        lambda w: w.lstm.backward(w.tape, w.y, grads=w.grads_with(weight_ih_l0=np.ones((24, 6), np.float32))),
        ValueError,
        r"grads\['weight_ih_l0'\]: expected shape \(24, 7\), got \(24, 6\)",
    ),
    "grads_dtype": Case(
        lambda w: w.lstm.backward(w.tape, w.y, grads=w.grads_with(weight_ih_l0=np.ones((24, 7)))),
        TypeError,
        r"grads\['weight_ih_l0'\]: expected dtype float32, got float64",
    ),
    "grads_not_array": Case(
        lambda w: w.lstm.backward(w.tape, w.y, grads=w.grads_with(weight_ih_l0=None)),
        TypeError,
        r"grads\['weight_ih_l0'\]: expected an ndarray, got NoneType",
    ),
    "grads_read_only": Case(
        lambda w: w.lstm.backward(w.tape, w.y, grads=w.grads_with(weight_ih_l0=read_only(w.lstm.weight_ih_l0))),
        ValueError,
        r"grads\['weight_ih_l0'\]: expected a writable array, got a read-only one",
    ),
    "grads_twice": Case(
        lambda w: w.lstm.backward(w.tape, w.y, grads=w.grads_with(bias_ih_l0=w.grads["bias_hh_l1"])),
        ValueError,
        "grads: expected arrays of their own, got some that overlap",
    ),
    "grads_parameters": Case(
        lambda w: w.lstm.backward(w.tape, w.y, grads=w.lstm.state_dict()),
        ValueError,
        "grads: expected arrays of their own, got some that overlap",
    ),
    "grads_state": Case(
        lambda w: w.lstm.backward(w.tape, w.y, grads=w.grads_with(initial_h=w.state[0][:, 0])),
        ValueError,
        "grads: expected arrays of their own, got some that overlap",
    ),
    "grads_last": Case(
        lambda w: w.lstm.backward(w.last_tape, w.grads["weight_hh_l0"][:3], grads=w.grads),
        ValueError,
        "grads: expected arrays of their own, got some that overlap",
    ),
    "load_list": Case(lambda w: w.lstm.load_state_dict([]), TypeError, "state_dict: expected .*, got list"),
    "load_keys": Case(lambda w: w.lstm.load_state_dict({}), ValueError, "state_dict: missing keys: .*weight_ih_l0"),
    "load_shape": Case(
        lambda w: w.lstm.load_state_dict(w.grads_with(bias_hh_l1=np.ones(6, np.float32))),
        ValueError,
        r"bias_hh_l1: expected shape \(24,\), got \(6,\)",
    ),
    "load_dtype": Case(
        lambda w: w.lstm.load_state_dict(w.grads_with(initial_c=np.ones((2, 6)))),
        TypeError,
        "initial_c: expected dtype float32, got float64",
    ),
    "assign_shape": Case(
        lambda w: setattr(w.lstm, "bias_ih_l0", np.ones(3, np.float32)), ValueError, "bias_ih_l0: expected shape"
    ),
    "assign_none": Case(lambda w: setattr(w.lstm, "bias_ih_l0", None), TypeError, "bias_ih_l0: expected an array"),
}

CELLS = {
    "rank": Case(lambda w: w.cell(w.x), ValueError, r"x: expected shape \(B, 7\) or \(7,\), got \(5, 3, 7\)"),
    "features": Case(lambda w: w.cell(w.x[0, :, 1:]), ValueError, r"x: expected shape \(B, 7\) .*, got \(3, 6\)"),
    "dtype": Case(lambda w: w.cell(w.x[0].astype("f8")), TypeError, "x: expected dtype float32, got float64"),
    "state_h": Case(lambda w: w.cell(w.x[0], w.state[0]), TypeError, r"state: expected a tuple \(h, c\), got ndarray"),
    "state_tuple": Case(lambda w: w.rnn_cell(w.x[0], w.state), TypeError, "state: expected one array, h, got a tuple"),
    "state_shape": Case(
        lambda w: w.cell(w.x[0], w.state), ValueError, r"state: expected shape \(3, 6\), got \(2, 3, 6\)"
    ),
    "state_one": Case(
        lambda w: w.rnn_cell(w.x[0, 0], w.out[0]), ValueError, r"state: expected shape \(6,\), got \(3, 6\)"
    ),
    "dstate": Case(
        lambda w: w.cell.backward(w.cell_tape, w.dstate),
        ValueError,
        r"dstate: expected shape \(3, 6\), got \(2, 3, 6\)",
    ),
    "no_gradient": Case(lambda w: w.cell.backward(w.cell_tape, None), ValueError, "^dstate: expected at least one"),
    "no_gradients": Case(lambda w: w.cell.backward(w.cell_tape, (None, None)), ValueError, "^dstate: .* at least"),
    "tape": Case(lambda w: w.cell.backward(w.tape, w.dstate), ValueError, "tape: expected .*, got one of another LSTM"),
    "grads": Case(
        lambda w: w.cell.backward(w.cell_tape, (w.out[0], None), grads=w.cell.state_dict()),
        ValueError,
        "grads: expected arrays of their own, got some that overlap",
    ),
}

tokens = np.zeros((T, B), int)
tokens[3, 1] = 7  # I is 7
embedding = np.ones((8, I), np.float32)

TOKENS = {
    "too_large": Case(lambda w: w.lstm(tokens), ValueError, "x: expected tokens from 0 to 6, got 7"),
    "too_large_embedded": Case(
        lambda w: w.lstm.forward(tokens, embedding=embedding[1:]), ValueError, "x: expected tokens from 0 to 6, got 7"
    ),
    "negative": Case(lambda w: w.gru(-tokens), ValueError, "x: expected tokens from 0 to 6, got -7"),
    "beyond_int64": Case(
        lambda w: w.lstm(tokens.astype("u8") << 61),
        ValueError,
        "x: expected tokens from 0 to 6, got 16140901064495857664",
    ),
    "empty_embedding": Case(
        lambda w: F.forward("lstm", tokens, w.parameters, embedding=embedding[:0]), ValueError, "x: expected tokens"
    ),
    "bool": Case(lambda w: w.lstm(tokens > 3), ValueError, r"x: expected shape \(T, B, 7\) .*, got \(5, 3\)"),
    "rank": Case(
        lambda w: w.lstm(tokens[None], embedding=embedding),
        ValueError,
        r"x: expected shape \(T, B\) or \(T,\), got \(1, 5, 3\)",
    ),
    "rank_0": Case(lambda w: w.lstm(np.array(3)), ValueError, r"x: expected shape \(T, B\) or \(T,\), got \(\)"),
    "bare_rank": Case(
        lambda w: F.forward("lstm", tokens[0], w.parameters, embedding=embedding),
        ValueError,
        r"x: expected shape \(T, B\) with T >= 1, got \(3,\)",
    ),
    "T_0": Case(lambda w: F.forward("lstm", tokens[:0], w.parameters), ValueError, "x: expected shape .*T >= 1"),
    "floats": Case(
        lambda w: F.forward("lstm", w.x, w.parameters, embedding=embedding),
        TypeError,
        "x: expected integers as tokens, got float32",
    ),
    "embedding_list": Case(
        lambda w: w.lstm(tokens, embedding=[[0.0]]), ValueError, r"embedding: expected shape .*, got \(1, 1\)"
    ),
    "embedding_dtype": Case(
        lambda w: w.lstm(tokens, embedding=embedding.astype("f8")),
        TypeError,
        "embedding: expected dtype float32, got float64",
    ),
    "embedding_shape": Case(
        lambda w: w.lstm(tokens, embedding=embedding[:, 1:]),
        ValueError,
        r"embedding: expected shape \(8, 7\), got \(8, 6\)",
    ),
    "embedding_rank": Case(
        lambda w: w.lstm(tokens, embedding=embedding[0]), ValueError, r"embedding: expected shape \(V, 7\), got \(7,\)"
    ),
    "out_embedding": Case(
        lambda w: F.inference(
            "lstm", tokens[:, :1], w.parameters, embedding=w.x[0], out=(None, (w.x[:1, :1, :H], None))
        ),
        ValueError,
        "out.*: expected .*overlaps embedding",
    ),
    "grads": Case(
        lambda w: w.token_layer.backward(w.token_tape, w.token_tape.y, grads=w.token_layer.state_dict()),
        ValueError,
        r"grads: missing keys: \['embedding'\]$",
    ),
    "grads_shape": Case(
        lambda w: w.token_layer.backward(w.token_tape, w.token_tape.y, grads=w.token_grads(np.ones((7, 7), "f4"))),
        ValueError,
        r"grads\['embedding'\]: expected shape \(8, 7\), got \(7, 7\)",
    ),
    "grads_overlap": Case(
        lambda w: w.token_layer.backward(
            w.token_tape, w.token_tape.y, grads=w.token_grads(w.token_tape.call.embedding)
        ),
        ValueError,
        "grads: expected arrays of their own",
    ),
    "grads_unwanted": Case(
        lambda w: w.token_layer.backward(
            w.token_tape, w.token_tape.y, need_dx=False, grads=w.token_grads(np.ones((8, 7), "f4"))
        ),
        ValueError,
        r"grads: unexpected keys: \['embedding'\]$",
    ),
    "out_one_hot": Case(
        lambda w: F.backward(F.forward("lstm", tokens % 7, w.parameters)[2], w.dy, out=(w.x, None)),
        ValueError,
        r"out\[0\]: expected None, since dx is not computed",
    ),
}

resets = np.zeros((T, B), bool)
other_packing = rnnfast.pack_padded(np.zeros((T, B, H), np.float32), [5, 3, 3])
other_order = rnnfast.pack_padded(np.zeros((T, B, H), np.float32), [5, 4, 2])


def clip(value: Any) -> Callable[[World], Any]:
    return lambda w: w.lstm.backward(w.tape, w.y, clip_dh=value)


def bare_clip(value: Any) -> Callable[[World], Any]:
    return lambda w: F.backward(w.bare_tape, w.dy, clip_dh=value)


def checkpoint(value: Any) -> Callable[[World], Any]:
    return lambda w: w.lstm.forward(w.x, checkpoint=value)


def bare_sizes(sizes: Any) -> Callable[[World], Any]:
    return lambda w: F.forward("lstm", w.packed.data, w.parameters, batch_sizes=sizes)


def held(gates: Any) -> Callable[[World], Any]:
    return lambda w: w.lstm.forward(w.x, gate_override=gates)


STEPS = r"expected shape \(2, 5, 3, 6\), got"

SEQUENCES = {
    "lengths_-1": Case(lambda w: w.lstm(w.x, lengths=[5, -1, 2]), ValueError, "lengths: expected 0 to 5, got -1"),
    "lengths_6": Case(lambda w: w.lstm(w.x, lengths=[5, 6, 2]), ValueError, "lengths: expected 0 to 5, got 6"),
    "lengths_2": Case(lambda w: w.lstm(w.x, lengths=[5, 1]), ValueError, r"lengths: expected shape \(3,\), got \(2,\)"),
    "lengths_float": Case(lambda w: w.lstm(w.x, lengths=[5.0, 1, 2]), TypeError, "lengths: expected integers, got flo"),
    "lengths_bool": Case(lambda w: w.lstm(w.x, lengths=resets[0]), TypeError, "lengths: expected integers, got bool"),
    "lengths_int": Case(lambda w: w.lstm(w.x, lengths=5), TypeError, "lengths: expected an array, got int"),
    "lengths_one": Case(lambda w: w.lstm(w.x[:, 0], lengths=[5, 5]), ValueError, r"lengths: expected shape \(1,\)"),
    "lengths_packed": Case(
        lambda w: w.lstm(w.packed, lengths=[5, 2, 4]), ValueError, "lengths: expected None, since x is packed"
    ),
    "lengths_batch_first": Case(
        lambda w: w.gru(w.x.swapaxes(0, 1), lengths=[6, 0, 0]), ValueError, "lengths: expected 0 to 5, got 6"
    ),
    "packed_sizes": Case(
        lambda w: w.lstm(w.packed._replace(batch_sizes=[2, 3, 3, 2, 1])), ValueError, "x.batch_sizes: expected none"
    ),
    "packed_sum": Case(
        lambda w: w.lstm(w.packed._replace(batch_sizes=[3, 3, 2, 2])), ValueError, r"x.data: expected shape \(10, ...\)"
    ),
    "packed_order": Case(
        lambda w: w.lstm(w.packed._replace(sorted_indices=[0, 0, 1])),
        ValueError,
        "x.sorted_indices: expected each",
    ),
    "packed_features": Case(
        lambda w: w.lstm(w.packed._replace(data=w.packed.data[:, 1:])), ValueError, r"x.data: expected shape \(N, 7\)"
    ),
    "packed_dy": Case(
        lambda w: w.lstm.backward(w.packed_tape, other_packing), ValueError, "dy: expected the batch_sizes of x"
    ),
    "packed_dy_order": Case(
        lambda w: w.lstm.backward(w.packed_tape, other_order), ValueError, "dy: expected the sorted_indices of x"
    ),
    "packed_dy_rows": Case(
        lambda w: w.lstm.backward(w.packed_tape, w.y), ValueError, r"dy: expected shape \(11, 6\), got \(5, 3, 6\)"
    ),
    "packed_dy_alone": Case(
        lambda w: w.lstm.backward(w.tape, other_packing), TypeError, "dy: expected an array, got PackedSequence"
    ),
    "resets_shape": Case(lambda w: w.lstm(w.x, resets=resets[1:]), ValueError, r"resets: expected shape \(5, 3\), got"),
    "resets_features": Case(lambda w: w.lstm(w.x, resets=resets[..., None]), ValueError, "resets: expected shape"),
    "resets_2": Case(
        lambda w: w.lstm(w.x, resets=resets * 0 + 2), ValueError, "resets: expected bools, or 0 and 1, got"
    ),
    "resets_nan": Case(
        lambda w: w.lstm(w.x, resets=resets * np.nan), ValueError, "resets: expected bools, .*, got nan"
    ),
    "resets_str": Case(lambda w: w.lstm(w.x, resets=resets.astype("S")), TypeError, "resets: expected dtype bool, got"),
    "resets_list": Case(
        lambda w: w.lstm(w.x, resets=resets.tolist()[1:]), ValueError, r"resets: expected shape \(5, 3\), got \(4, 3\)"
    ),
    "resets_batch_first": Case(
        lambda w: w.gru(w.x.swapaxes(0, 1), resets=resets), ValueError, r"resets: expected shape \(3, 5\), got \(5, 3\)"
    ),
    "resets_packed": Case(
        lambda w: w.lstm(w.packed, resets=resets), ValueError, r"resets: expected shape \(11,\), got"
    ),
    "outputs": Case(
        lambda w: w.lstm(w.x, outputs="first"), ValueError, "outputs: expected 'all' or 'last', got 'first'"
    ),
    "outputs_array": Case(
        lambda w: w.lstm(w.x, outputs=np.array(["all", "last"])), ValueError, "outputs: expected .*, got array"
    ),
    "checkpoint_array": Case(lambda w: w.lstm.forward(w.x, checkpoint=np.ones(2)), TypeError, "checkpoint: expected"),
    "outputs_int": Case(lambda w: w.lstm.forward(w.x, outputs=1), ValueError, "outputs: expected .*, got 1"),
    "outputs_dy": Case(
        lambda w: w.lstm.backward(w.last_tape, w.y), ValueError, r"dy: expected shape \(3, 6\), got \(5, 3, 6\)"
    ),
    "checkpoint_0": Case(checkpoint(0), ValueError, "checkpoint: expected at least 1, got 0"),
    "checkpoint_-1": Case(checkpoint(-1), ValueError, "checkpoint: expected at least 1, got -1"),
    "checkpoint_x": Case(checkpoint("x"), ValueError, "checkpoint: expected a number of steps or 'auto', got 'x'"),
    "checkpoint_2.5": Case(checkpoint(2.5), TypeError, "checkpoint: expected an int, got float"),
    "checkpoint_bool": Case(checkpoint(True), TypeError, "checkpoint: expected an int, got bool"),
    "checkpoint_tokens": Case(
        lambda w: w.lstm.forward(tokens, checkpoint=2), ValueError, "x: expected tokens from 0 to 6, got 7"
    ),
    "gate_lacking": Case(held({"r": 0.0}), ValueError, "gate_override: expected gates of lstm, i, f, g, o, got 'r'"),
    "gate_lacking_above": Case(held([{"f": 0.0}, {"z": 0.0}]), ValueError, "gate_override: expected gates of .*'z'"),
    "gate_elman": Case(
        lambda w: w.rnn(w.x, gate_override={"h": 0.0}), ValueError, "gate_override: expected None, .* no gates, got 'h'"
    ),
    "gate_two": Case(held({"if": 0.0}), ValueError, "gate_override: expected gates of lstm, .*, got 'if'"),
    "gate_int": Case(held({0: 0.0}), ValueError, "gate_override: expected gates of lstm, .*, got 0"),
    "gate_str": Case(held("f"), TypeError, "gate_override: expected a dict, got str"),
    "gate_number": Case(held(0.5), TypeError, "gate_override: expected a dict, got float"),
    "gate_value": Case(held({"f": "0"}), TypeError, r"gate_override\['f'\]: expected a number, got str"),
    "gate_none": Case(held({"f": None}), TypeError, r"gate_override\['f'\]: expected a number, got NoneType"),
    "gate_value_above": Case(held([None, {"f": [0]}]), TypeError, r"gate_override\['f'\]: expected a number, got list"),
    "gate_layers": Case(
        held([None] * 3), ValueError, "gate_override: expected a dict, or one for each of 2 layers, got 3"
    ),
    "gate_bare": Case(
        lambda w: w.bare(gate_override=[{"f": 0.0}]), TypeError, "gate_override: expected a dict, got list"
    ),
    "dc_gru": Case(
        lambda w: w.gru.backward(w.gru_tape, None, dc=w.y), ValueError, "dc: expected None, since gru has no state c"
    ),
    "dc_shape": Case(lambda w: w.lstm.backward(w.tape, dc=w.y), ValueError, f"dc: {STEPS}"),
    "dc_dtype": Case(
        lambda w: w.lstm.backward(w.tape, dc=np.ones((2, 5, 3, 6))), TypeError, "dc: expected dtype float32"
    ),
    "dh_layers_shape": Case(lambda w: w.lstm.backward(w.tape, dh_layers=w.y), ValueError, f"dh_layers: {STEPS}"),
    "dh_layers_list": Case(
        lambda w: w.lstm.backward(w.tape, dh_layers=[w.y]),
        ValueError,
        r"dh_layers: expected shape .*, got \(1, 5, 3, 6\)",
    ),
    "clip_0": Case(clip(0), ValueError, "clip_dh: expected a positive bound, got 0"),
    "clip_-1": Case(clip(-1.0), ValueError, "clip_dh: expected a positive bound, got -1.0"),
    "clip_nan": Case(clip(np.nan), ValueError, "clip_dh: expected a positive bound, got nan"),
    "clip_vanishing": Case(clip(1e-50), ValueError, "clip_dh: expected a positive bound, got 1e-50"),
    "clip_str": Case(clip("1"), TypeError, "clip_dh: expected a number, got str"),
    "clip_bool": Case(clip(True), TypeError, "clip_dh: expected a number, got bool"),
    "clip_array": Case(clip(np.ones(3)), TypeError, "clip_dh: expected a number, got ndarray"),
    "clip_saved": Case(
        lambda w: w.lstm.backward(w.saving_tape, w.y, clip_dh=0.0), ValueError, "clip_dh: expected a positive bound"
    ),
    "clip_bare": Case(bare_clip(-1), ValueError, "clip_dh: expected a positive bound, got -1"),
    "clip_bare_str": Case(bare_clip("1"), TypeError, "clip_dh: expected a number, got str"),
    "clip_bare_complex": Case(bare_clip(1j), TypeError, "clip_dh: expected a number, got complex"),
    "tape_layer": Case(lambda w: w.tape.h(5), ValueError, "layer: expected -2 to 1, got 5"),
    "tape_layer_type": Case(lambda w: w.tape.gates("l0"), TypeError, "layer: expected an int, got str"),
    "tape_c_gru": Case(
        lambda w: w.gru_tape.c(0), ValueError, "layer: expected one of an LSTM or an SLSTM, got one of GRU"
    ),
    "tape_saving": Case(
        lambda w: w.saving_tape.gates(0), ValueError, "tape: expected one with every step, got .* checkp"
    ),
    "tape_saving_h": Case(
        lambda w: w.saving_tape.h(0), ValueError, "tape: expected one with every step, got .* checkp"
    ),
    "sizes_ascend": Case(
        bare_sizes(np.array([2, 3, 3, 3])), ValueError, "batch_sizes: expected .* descending .* step 1"
    ),
    "sizes_0": Case(bare_sizes(np.array([6, 5, 0])), ValueError, "batch_sizes: expected positive .*, got 0 at step 2"),
    "sizes_sum": Case(bare_sizes(np.array([5, 5])), ValueError, "batch_sizes: expected .* the rows of x, 11, got 10"),
    "sizes_huge": Case(bare_sizes(np.array([2**62] * 3)), ValueError, "batch_sizes: expected a sum that fits"),
    "sizes_none": Case(bare_sizes(np.array([], int)), ValueError, r"batch_sizes: expected shape \(T,\) .*, got \(0,\)"),
    "sizes_float": Case(bare_sizes(np.array([6.0, 5])), TypeError, "batch_sizes: expected integers, got float64"),
    "sizes_nan": Case(bare_sizes(np.array([11, np.nan])), TypeError, "batch_sizes: expected integers, got float64"),
    "sizes_rank": Case(bare_sizes(np.array([[6, 5]])), ValueError, r"batch_sizes: expected shape \(T,\)"),
    "sizes_x": Case(
        lambda w: F.forward("lstm", w.x, w.parameters, batch_sizes=np.array([5])),
        ValueError,
        r"x: expected shape \(N, 7",
    ),
    "bare_resets": Case(
        lambda w: w.bare(resets=resets[:, 0]), ValueError, r"resets: expected shape \(5, 3\), got \(5,\)"
    ),
    "bare_resets_dtype": Case(
        lambda w: w.bare(resets=resets.astype("u1") * 0 + 3), ValueError, "resets: expected bools, or 0 and 1, got 3"
    ),
    "bare_dc": Case(
        lambda w: F.backward(w.rnn_tape, dc=w.dy), ValueError, "dc: expected None, since rnn_tanh has no state c"
    ),
    "bare_dc_shape": Case(lambda w: F.backward(w.bare_tape, dc=w.dy[1:]), ValueError, "^dc: expected shape"),
    "flow": Case(
        lambda w: F.backward(w.bare_tape, w.dy, flow=w.out), TypeError, r"flow: expected a tuple \(h, c\), got ndarray"
    ),
    "flow_shape": Case(
        lambda w: F.backward(w.bare_tape, w.dy, flow=(w.out[1:], None)), ValueError, "flow: h: expected shape"
    ),
    "flow_dc": Case(
        lambda w: F.backward(w.rnn_tape, w.dy, flow=(None, w.out)),
        ValueError,
        r"flow\[1\]: expected None, since rnn_tanh has no state c",
    ),
    "flow_overlap": Case(
        lambda w: F.backward(w.bare_tape, w.dy, flow=(w.out, w.out)), ValueError, "flow: h: .*overlaps flow: c"
    ),
    "flow_dy": Case(lambda w: F.backward(w.bare_tape, w.dy, flow=(w.dy, None)), ValueError, "flow: h: .*overlaps dy"),
}

to_come = "tape: expected one that was made for steps to come"

CORE = {
    "steps_order": Case(
        lambda w: _core.backward(w.bare_tape, w.dy[:1], steps=(2, 1)), ValueError, "steps: expected 0 <= first <= last"
    ),
    "steps_beyond": Case(lambda w: _core.advance(w.tape_to_come, (3, 6)), ValueError, "steps: expected .* <= 5, got"),
    "steps_-1": Case(lambda w: _core.advance(w.tape_to_come, (-1, 2)), ValueError, "steps: expected 0 <= first"),
    "steps_none": Case(
        lambda w: _core.backward(w.bare_tape, w.dy[:0], steps=(2, 2)), ValueError, "steps: expected at least one step"
    ),
    "steps_float": Case(
        lambda w: _core.advance(w.tape_to_come, cast("Any", (0.0, 2))), TypeError, "steps: expected integers, got float"
    ),
    "steps_packed": Case(
        lambda w: _core.forward("lstm", w.packed.data, w.parameters, batch_sizes=w.packed.batch_sizes, steps=(0, 0)),
        ValueError,
        "steps: expected None",
    ),
    "steps_two": Case(
        lambda w: _core.forward("lstm", w.x, w.parameters * 2, steps=(0, 0)), ValueError, "steps: expected None"
    ),
    "steps_reverse": Case(
        lambda w: _core.forward("lstm", w.x, w.parameters, reverse=True, steps=(0, 0)),
        ValueError,
        "steps: expected None",
    ),
    "reverse_two": Case(
        lambda w: _core.forward("lstm", w.x, w.parameters * 2, reverse=True), ValueError, "reverse: expected False"
    ),
    "advance_over": Case(lambda w: _core.advance(w.bare_tape, (0, 1)), ValueError, to_come),
    "advance_ragged": Case(lambda w: _core.advance(w.ragged_tape, (0, 1)), ValueError, to_come),
    "advance_tape": Case(lambda w: _core.advance(w.tape, (0, 1)), TypeError, "tape: expected a tape of forward"),
    "advance_resets": Case(
        lambda w: _core.advance(w.tape_to_come, (0, 2), resets[:2]), ValueError, "resets: expected None, since the tape"
    ),
    "shift_over": Case(lambda w: _core.shift(w.bare_tape, 0), ValueError, to_come),
    "shift_ragged": Case(lambda w: _core.shift(w.ragged_tape, 1), ValueError, to_come),
    "shift_beyond": Case(
        lambda w: _core.shift(w.tape_to_come, 10), ValueError, "steps: expected a multiple of 5 up to 5"
    ),
    "shift_-5": Case(lambda w: _core.shift(w.tape_to_come, -5), ValueError, "steps: expected a multiple of 5 up to 5"),
    "shift_part": Case(lambda w: _core.shift(w.tape_to_come, 2), ValueError, "steps: expected a multiple of 5 up to 5"),
    "chunks_B": Case(lambda _: _core.chunks(None, 5, -1, 3), ValueError, r"T, B, H: expected .*, got \(5, -1, 3\)"),
    "chunks_T": Case(lambda _: _core.chunks(None, -5, 1, 3), ValueError, "T, B, H: expected"),
    "chunks_H": Case(lambda _: _core.chunks(None, 5, 1, 0), ValueError, "T, B, H: expected"),
    "chunks_huge": Case(lambda _: _core.chunks(None, 2**62, 2**62, 3), ValueError, "T, B, H: expected"),
    "chunks_sizes": Case(lambda _: _core.chunks(np.array([2, 1]), 5, 2, 3), ValueError, "T, B, H: expected"),
    "ends": Case(
        lambda w: _core.forward("lstm", w.x, w.parameters, ends=resets[0, :2]),
        ValueError,
        r"ends: expected shape \(3,\)",
    ),
    "start": Case(
        lambda w: _core.forward("lstm", w.x, w.parameters, start=(w.h0[0], None)),
        ValueError,
        "start: h: expected shape",
    ),
    "dstart": Case(
        lambda w: _core.backward(w.bare_tape, w.dy, dstart=(w.h0[:, 1:], None)), ValueError, "dstart: h: expected shape"
    ),
    "dstart_overlap": Case(
        lambda w: _core.backward(w.bare_tape, w.dy, dstart=(w.h0, None)), ValueError, "dstart: h: .*overlaps h0"
    ),
    "gate_name": Case(lambda w: w.bare_tape.gate("r"), ValueError, "gate: expected one of 'ifgo', got 'r'"),
}

READOUT = {
    "features": Case(lambda w: w.readout(w.out), ValueError, r"x: expected shape \(..., 7\), got \(5, 3, 6\)"),
    "rank": Case(lambda w: w.readout(np.float32(1)), ValueError, r"x: expected shape \(..., 7\), got \(\)"),
    "dtype": Case(lambda w: w.readout(w.x.astype(int)), TypeError, "x: expected dtype float32, got int64"),
    "double": Case(lambda w: w.readout(w.x.astype("f8")), TypeError, "x: expected dtype float32, got float64"),
    "dy": Case(
        lambda w: w.readout.backward(w.readout_tape, w.x),
        ValueError,
        r"dy: expected shape \(5, 3, 6\), got \(5, 3, 7\)",
    ),
    "tape": Case(lambda w: w.readout.backward(w.tape, w.out), ValueError, "tape: expected .*, got one of another LSTM"),
    "grads": Case(
        lambda w: w.readout.backward(w.readout_tape, w.out, grads=w.readout.state_dict()), ValueError, "grads: expected"
    ),
    "bare_dtype": Case(
        lambda w: F.linear(w.x, w.readout.weight.astype(int)),
        TypeError,
        "weight: expected dtype float32 or float64, got",
    ),
    "bare_weight": Case(
        lambda w: F.linear(w.x, w.out), ValueError, r"weight: expected shape \(O, I\), got \(5, 3, 6\)"
    ),
    "bare_bias": Case(
        lambda w: F.linear(w.x, w.readout.weight, w.out[0, 0, :5]),
        ValueError,
        r"bias: expected shape \(6,\), got \(5,\)",
    ),
    "bare_out_shape": Case(
        lambda w: F.linear(w.x, w.readout.weight, out=w.out[0]),
        ValueError,
        r"out: expected shape \(5, 3, 6\), got \(3, 6\)",
    ),
    "bare_out_list": Case(
        lambda w: F.linear(w.x, w.readout.weight, out=[]), TypeError, "out: expected an array, got list"
    ),
    "bare_out_read_only": Case(
        lambda w: F.linear(w.x, w.readout.weight, out=read_only(w.out)), ValueError, "out: expected a writable array"
    ),
    "bare_out_overlap": Case(
        lambda w: F.linear(w.out, np.eye(H, dtype="f4"), out=w.out),
        ValueError,
        "out: expected .*, got an array that overlaps x",
    ),
    "bare_dy": Case(
        lambda w: F.linear_backward(w.x, w.readout.weight, None, w.out[..., 1:]),
        ValueError,
        r"dy: expected shape \(5, 3, 6\), got \(5, 3, 5\)",
    ),
    "bare_grads_list": Case(
        lambda w: F.linear_backward(w.x, w.readout.weight, None, w.out, grads=w.out),
        TypeError,
        r"grads: expected a tuple \(dweight, dbias\), got ndarray",
    ),
    "bare_grads_no_dbias": Case(
        lambda w: F.linear_backward(
            w.x, w.readout.weight, w.readout.bias, w.out, grads=(np.zeros_like(w.readout.weight), None)
        ),
        TypeError,
        "grads: dbias: expected an array, got None",
    ),
    "bare_grads_dbias": Case(
        lambda w: F.linear_backward(
            w.x, w.readout.weight, None, w.out, grads=(np.zeros_like(w.readout.weight), np.zeros(H, "f4"))
        ),
        TypeError,
        "grads: dbias: expected None, since there is no bias",
    ),
    "bare_grads_no_dweight": Case(
        lambda w: F.linear_backward(w.x, w.readout.weight, None, w.out, grads=(None, None)),
        TypeError,
        "grads: dweight: expected an array, got None",
    ),
    "bare_grads_overlap": Case(
        lambda w: F.linear_backward(w.x, w.readout.weight, None, w.out, grads=(w.readout.weight, None)),
        ValueError,
        "grads: dweight: expected memory of its own, got an array that overlaps weight",
    ),
    "bare_grads_overlap_each_other": Case(
        lambda w: F.linear_backward(
            w.x, w.readout.weight, w.readout.bias, w.out, grads=((a := np.zeros((H, I), "f4")), a.ravel()[:H])
        ),
        ValueError,
        "grads: dweight: expected memory of its own, got an array that overlaps grads: dbias",
    ),
}

FUNCTIONAL = {
    **{
        f"eps_{eps}": Case(eps_of(eps), ValueError, f"layer_norm_eps: expected a positive number, got {eps}")
        for eps in (0, -1.0, 1e-60, math.nan, math.inf)
    },
    "eps_large": Case(eps_of(1e60), ValueError, "layer_norm_eps: expected a number within the range of float32"),
    "eps_str": Case(eps_of("x"), TypeError, "layer_norm_eps: expected a number, got str"),
    "eps_of_a_cell_without": Case(
        eps_of(1e-5, "gru"), ValueError, "layer_norm_eps: expected None, since gru normalises nothing, got 1e-05"
    ),
    "cell": Case(
        lambda w: F.forward("gro", w.x, w.parameters), ValueError, "cell: expected one of lstm, .*, got 'gro'"
    ),
    "cell_type": Case(lambda w: F.inference(3, w.x, w.parameters), TypeError, "cell"),
    "x_rank": Case(
        lambda w: F.forward("lstm", w.x[0], w.parameters), ValueError, r"x: expected shape \(T, B, 7\) .*, got \(3, 7\)"
    ),
    "x_T_0": Case(
        lambda w: F.forward("lstm", w.x[:0], w.parameters), ValueError, r"x: expected shape .*T >= 1, got \(0, 3, 7\)"
    ),
    "x_huge": Case(
        lambda w: F.inference("lstm", np.broadcast_to(w.x[:1, :1], (2**30, 2**27, I)), w.parameters),
        ValueError,
        "x: expected",
    ),
    "parameters_none": Case(lambda w: F.forward("lstm", w.x, None), TypeError, "parameters: expected .*, got NoneType"),
    "parameters_0": Case(lambda w: F.forward("lstm", w.x, []), ValueError, "parameters: expected 1 or 2 .*, got 0"),
    "parameters_3": Case(lambda w: F.forward("lstm", w.x, w.parameters * 3), ValueError, "parameters: .*, got 3"),
    "parameters_short": Case(
        lambda w: F.forward("lstm", w.x, [w.parameters[0][:3]]), ValueError, "parameters: expected 4 .*, got 3"
    ),
    "w_ih_shape": Case(
        lambda w: F.forward("lstm", w.x, w.parameters_with(0, np.zeros((23, 7), "f4"))),
        ValueError,
        r"w_ih: expected shape \(24, 7\), got \(23, 7\)",
    ),
    "w_ih_none": Case(
        lambda w: F.forward("lstm", w.x, w.parameters_with(0, None)), TypeError, "w_ih: expected an array, got NoneType"
    ),
    "w_hh_shape": Case(
        lambda w: F.forward("lstm", w.x, w.parameters_with(1, np.zeros((24, 7), "f4"))),
        ValueError,
        r"w_hh: expected shape .*, got \(24, 7\)",
    ),
    "w_hh_dtype": Case(
        lambda w: F.forward("lstm", w.x, w.parameters_with(1, np.zeros((24, 6)))),
        TypeError,
        "w_hh: expected dtype float32, got float64",
    ),
    "w_hh_empty": Case(
        lambda w: F.forward("lstm", w.x, w.parameters_with(1, np.zeros((0, 0), "f4"))),
        ValueError,
        "w_hh: expected shape",
    ),
    "b_ih_shape": Case(
        lambda w: F.forward("lstm", w.x, w.parameters_with(2, np.zeros(6, "f4"))),
        ValueError,
        r"b_ih: expected shape \(24,\), got \(6,\)",
    ),
    "b_hh_list": Case(
        lambda w: F.forward("lstm", w.x, w.parameters_with(3, [0.0] * 23)),
        ValueError,
        r"b_hh: expected shape \(24,\), got \(23,\)",
    ),
    "directions_differ": Case(
        lambda w: F.forward("lstm", w.x, w.parameters + w.parameters_with(0, np.zeros((24, 8), "f4"))),
        ValueError,
        r"w_ih: expected shape \(24, 7\), got \(24, 8\)",
    ),
    "state_h": Case(lambda w: w.bare(w.h0), TypeError, r"state: expected a tuple \(h, c\), got ndarray"),
    "state_shape": Case(
        lambda w: w.bare((w.h0, w.c0[:, 1:])), ValueError, r"c0: expected shape \(1, 3, 6\), got \(1, 2, 6\)"
    ),
    "state_dtype": Case(
        lambda w: w.bare((w.h0.astype("f8"), w.c0)), TypeError, "h0: expected dtype float32, got float64"
    ),
    "out_list": Case(lambda w: w.bare(out=[None, None]), TypeError, r"out: expected a tuple \(y, state\), got list"),
    "out_3": Case(lambda w: w.bare(out=(None,) * 3), ValueError, r"out: expected a tuple \(y, state\), got .* 3"),
    "out_state": Case(lambda w: w.bare(out=(None, w.h0)), TypeError, r"out: expected a tuple \(h, c\), got ndarray"),
    "out_shape": Case(lambda w: w.bare(out=(w.out[1:], None)), ValueError, r"out.*: expected shape \(5, 3, 6\), got"),
    "out_dtype": Case(
        lambda w: w.bare(out=(w.out.astype("f8"), None)), TypeError, "out.*: expected dtype float32, got"
    ),
    "out_read_only": Case(lambda w: w.bare(out=(read_only(w.out), None)), ValueError, "out.*: expected a writable"),
    "out_x": Case(
        lambda w: F.forward("rnn_tanh", w.out, [(np.eye(H, dtype="f4"),) * 2 + (None, None)], out=(w.out, None)),
        ValueError,
        "out.*: expected .*overlaps x",
    ),
    "out_twice": Case(lambda w: w.bare(out=(None, (w.h0, w.h0))), ValueError, "out.*: expected .*overlaps out"),
    "out_state0": Case(lambda w: w.bare((w.h0, w.c0), out=(None, (w.h0, None))), ValueError, "out.*: .*overlaps h0"),
    "out_itself": Case(
        lambda w: w.bare(out=(np.lib.stride_tricks.as_strided(w.out, (T, B, H), (4, 4, 4)), None)),
        ValueError,
        "out.*: expected .*overlaps itself",
    ),
    "tape_none": Case(lambda w: F.backward(None, w.dy), TypeError, "tape: expected .*, got NoneType"),
    "tape_layer": Case(lambda w: F.backward(w.tape, w.dy), TypeError, "tape: expected a tape of functional.forward"),
    "no_gradient": Case(lambda w: F.backward(w.bare_tape), ValueError, "dy.*: expected at least one"),
    "dy_shape": Case(
        lambda w: F.backward(w.bare_tape, w.dy[1:]), ValueError, r"dy: expected shape \(5, 3, 6\), got \(4, 3, 6\)"
    ),
    "dstate_h": Case(lambda w: F.backward(w.bare_tape, None, w.h0), TypeError, r"dstate: expected a tuple \(h, c\)"),
    "dstate_tuple": Case(
        lambda w: F.backward(w.rnn_tape, None, (w.h0, w.c0)),
        TypeError,
        "dstate: expected one array, h, got a tuple of 2",
    ),
    "dstate_shape": Case(
        lambda w: F.backward(w.bare_tape, None, (w.h0[0], None)),
        ValueError,
        r"dstate: dh: expected shape \(1, 3, 6\), got \(3, 6\)",
    ),
    "need_dx": Case(
        lambda w: F.backward(w.bare_tape, w.dy, need_dx=False, out=(w.x, None)), ValueError, "out.*: expected None"
    ),
    "grads_0": Case(lambda w: F.backward(w.bare_tape, w.dy, grads=[]), ValueError, "grads: expected 1 .*, got 0"),
    "grads_shape": Case(
        lambda w: F.backward(w.bare_tape, w.dy, grads=w.grads_bare_with(3, np.zeros(6, "f4"))),
        ValueError,
        r"grads.*b_hh: expected shape \(24,\), got \(6,\)",
    ),
    "grads_none": Case(
        lambda w: F.backward(w.bare_tape, w.dy, grads=w.grads_bare_with(3, None)),
        TypeError,
        "grads.*b_hh: expected an array, got None",
    ),
    "grads_twice": Case(
        lambda w: F.backward(w.bare_tape, w.dy, grads=w.grads_bare_with(2, w.bare_grads[0][3])),
        ValueError,
        "grads.*: expected .*overlaps grads",
    ),
    "grads_parameters": Case(
        lambda w: F.backward(w.bare_tape, w.dy, grads=w.parameters), ValueError, "grads.*: expected .*overlaps w_ih"
    ),
    "sigmoid_int": Case(
        lambda _: F.sigmoid(np.arange(3)), TypeError, "x: expected dtype float32 or float64, got int64"
    ),
    "tanh_list": Case(lambda _: F.tanh([0]), TypeError, "x: expected dtype float32 or float64, got int64"),
    "tanh_out_list": Case(lambda _: F.tanh(np.ones(1), out=[0.0]), TypeError, "out: expected an array, got list"),
    "tanh_out": Case(lambda w: F.tanh(w.x, out=w.out), ValueError, r"out: expected shape \(5, 3, 7\), got \(5, 3, 6\)"),
    "tanh_read_only": Case(lambda w: F.tanh(w.out, out=read_only(w.out)), ValueError, "out: expected a writable array"),
}

OTHERS = {
    "scheme": Case(lambda w: rf.initialize(w.lstm, "zeros"), ValueError, "scheme: expected .*, got 'zeros'"),
    "scheme_list": Case(lambda w: rf.initialize(w.lstm, []), ValueError, r"scheme: expected .*, got \[\]"),
    "attribute": Case(lambda _: rf.LSTN, AttributeError, "module 'rnnfast' has no attribute 'LSTN'"),
    "layer": Case(lambda _: rf.initialize("lstm", "torch"), TypeError, "layer: expected .*, got str"),
    "forget_bias_gru": Case(
        lambda w: rf.initialize(w.gru, "torch", forget_bias=1), ValueError, "forget_bias: expected None .*GRU"
    ),
    "forget_bias_linear": Case(
        lambda w: rf.initialize(w.readout, "torch", forget_bias=1),
        ValueError,
        "forget_bias: expected None .*Linear",
    ),
    "forget_bias_coupled": Case(
        lambda _: rf.initialize(rf.LSTM(3, 4, coupled_gates=True), "torch", forget_bias=1),
        ValueError,
        "forget_bias: expected None .*coupled_gates=True",
    ),
    "forget_bias_none": Case(
        lambda _: rf.initialize(rf.LSTM(3, 4, bias=False), "torch", forget_bias=1),
        ValueError,
        "forget_bias: expected None .*bias=False",
    ),
    "forget_bias_str": Case(
        lambda w: rf.initialize(w.lstm, "xavier", forget_bias="1"),
        TypeError,
        "forget_bias: expected a number, got str",
    ),
    "initialize_rng": Case(lambda w: rf.initialize(w.lstm, "torch", rng=-1), ValueError, "rng: "),
    "count": Case(lambda _: rf.num_parameters([3]), TypeError, "layer: expected .*, got int"),
    "threads_0": Case(lambda _: rf.set_num_threads(0), ValueError, "n: expected .*, got 0"),
    "threads_-1": Case(lambda _: rf.threads(-1).__enter__(), ValueError, "n: expected .*, got -1"),
    "threads_str": Case(lambda _: rf.set_num_threads("2"), TypeError, "n"),
}


def formats_of(i: int, given: Any, form: str = "int8", run: Any = _core.inference) -> Callable[[World], Any]:
    """Return a call of the kernels with a layer of fewer bits, and another i-th parameter."""

    def call(w: World) -> Any:
        [own] = rnnfast.RNN(I, H, rng=0).quantize(cast("Any", form)).of_layer(0)
        return run("rnn_tanh", w.x, [(*own[:i], given, *own[i + 1 :])])

    return call


INT8, SCALES = np.ones((H, H), np.int8), np.ones(H, np.float32)
BITS = np.ones((H, H), np.uint16)
QUANTIZED = {
    "format": Case(lambda w: w.lstm.quantize("int4"), ValueError, "format: expected 'bfloat16' or 'int8', got 'int4'"),
    "none": Case(lambda w: w.lstm.quantize(None), ValueError, "format: expected 'bfloat16' or 'int8', got None"),
    "double": Case(
        lambda _: rf.GRU(3, 4, dtype="float64").quantize("int8"), TypeError, "dtype: expected a layer of float32"
    ),
    "layer_norm": Case(
        lambda _: rf.GRU(3, 4, layer_norm="inside").quantize("int8"),
        ValueError,
        "format: expected another one for a layer with layer_norm='inside', got 'int8'",
    ),
    "slstm": Case(lambda _: rf.SLSTM(3, 4).quantize("int8"), ValueError, "format: expected another one for an SLSTM"),
    "heads": Case(
        lambda _: rf.SLSTM(3, 4, 2).quantize("bfloat16"), ValueError, "format: expected another .* with num_heads=2"
    ),
    "columns": Case(
        lambda _: rf.RNN(65_537, 1).quantize("int8"), ValueError, "format: expected another one .* of 65537 columns"
    ),
    "cell": Case(lambda w: rf.Quantized(w.cell, "int8"), TypeError, "layer: expected .*, got LSTMCell"),
    "twice": Case(
        lambda w: rf.Quantized(w.gru.quantize("int8"), "int8"), TypeError, "layer: expected .*, got Quantized"
    ),
    "x": Case(lambda w: w.gru.quantize("int8")(w.x[..., 1:]), ValueError, r"x: expected shape \(B, T, 7\)"),
    "stream": Case(lambda w: w.gru.quantize("int8").stream(), ValueError, "layer: expected one direction"),
    "batch_size": Case(lambda w: w.lstm.quantize("int8").stream(0), ValueError, "batch_size: expected at least 1"),
    "forward": Case(lambda w: w.lstm.quantize("int8").forward(w.x), TypeError, "forward: expected a layer to train"),
    "backward": Case(
        lambda w: w.lstm.quantize("bfloat16").backward(w.tape, w.y), TypeError, "backward: expected a layer to train"
    ),
    "core_forward": Case(
        formats_of(2, None, run=_core.forward), TypeError, "w_ih: expected float32 or float64 to train, got fewer bits"
    ),
    "no_scales": Case(formats_of(1, INT8), TypeError, "w_hh: expected int8 and scales"),
    "mixed": Case(formats_of(1, INT8.astype("f4")), TypeError, "w_hh: expected int8 and scales"),
    "mixed_bits": Case(formats_of(1, (INT8, SCALES), "bfloat16"), TypeError, "w_hh: expected dtype uint16, got int8"),
    "bits_shape": Case(formats_of(1, BITS[1:], "bfloat16"), ValueError, r"w_hh: expected shape .*, got \(5, 6\)"),
    "shape": Case(formats_of(1, (INT8[:, 1:], SCALES)), ValueError, "w_hh: expected shape"),
    "scales": Case(formats_of(1, (INT8, SCALES[1:])), ValueError, r"w_hh's scales: expected shape \(6,\), got \(5,\)"),
    "scales_dtype": Case(
        formats_of(1, (INT8, SCALES.astype("f8"))), TypeError, "w_hh's scales: expected dtype float32"
    ),
    "bias": Case(formats_of(2, SCALES.astype("i1")), TypeError, "b_ih: expected dtype float32, got int8"),
}


def pruner(module: Any = "lstm", density: Any = 0.5, block: Any = (16, 1), **options: Any) -> Callable[[World], Any]:
    """Return what makes a pruner of one of the world's modules, or of another."""
    options = {"start": 1, "stop": 5, "every": 2, **options}
    return lambda w: Pruner(getattr(w, module) if isinstance(module, str) else module, density, block, **options)


ONLY_READ = rf.RNN(3, 4, rng=0)
ONLY_READ.parameters["weight_hh_l0"].flags.writeable = False
MODULE = "module: expected a recurrent layer, a cell or Modules with one, got"
PRUNING = {
    "module_linear": Case(pruner("readout"), TypeError, f"{MODULE} Linear"),
    "module_none": Case(pruner(None), TypeError, f"{MODULE} NoneType"),
    "module_arrays": Case(pruner({"weight_hh_l0": X}), TypeError, f"{MODULE} dict"),
    "module_modules": Case(pruner(rf.Modules(a=rf.Linear(2, 3))), TypeError, f"{MODULE} Modules"),
    "module_quantized": Case(
        pruner(rf.GRU(3, 4).quantize("int8")), TypeError, r"module: expected layers to train, got GRU\(3, 4\)\.quant"
    ),
    "module_read_only": Case(pruner(ONLY_READ), ValueError, r"module\['weight_hh_l0'\]: expected .*, got a read-only"),
    **{
        f"density_{density}": Case(
            pruner(density=density), ValueError, "density: expected a number above 0 and up to 1"
        )
        for density in (0, -0.5, 1.5, float("nan"), float("inf"))
    },
    "density_str": Case(pruner(density="x"), TypeError, "density: expected a number, got str"),
    "density_bool": Case(pruner(density=True), TypeError, "density: expected a number, got bool"),
    "block_int": Case(pruner(block=16), TypeError, "block: expected two integers, got int"),
    "block_str": Case(pruner(block="16"), TypeError, "block: expected two integers, got str"),
    "block_three": Case(pruner(block=(1, 2, 3)), ValueError, r"block: expected two integers, got \(1, 2, 3\)"),
    "block_zero": Case(pruner(block=(16, 0)), ValueError, "block: expected at least 1, got 0"),
    "block_float": Case(pruner(block=(16, 1.0)), TypeError, "block: expected an int, got float"),
    "start_negative": Case(pruner(start=-1), ValueError, "start: expected at least 0, got -1"),
    "start_float": Case(pruner(start=1.0), TypeError, "start: expected an int, got float"),
    "stop_start": Case(pruner(stop=1), ValueError, "stop: expected more than start, 1, got 1"),
    "stop_none": Case(pruner(stop=None), TypeError, "stop: expected an int, got NoneType"),
    "every_zero": Case(pruner(every=0), ValueError, "every: expected at least 1, got 0"),
    "every_bool": Case(pruner(every=True), TypeError, "every: expected an int, got bool"),
    "keep_diagonal": Case(pruner(keep_diagonal=1), TypeError, "keep_diagonal: expected a bool, got int"),
    "balanced": Case(pruner(balanced="yes"), TypeError, "balanced: expected a bool, got str"),
    "save_sparse": Case(lambda w: w.lstm.save("never", sparse=1), TypeError, "sparse: expected a bool, got int"),
}

CASES = {
    f"{group}-{name}": case
    for group, cases in {
        "constructor": CONSTRUCTORS,
        "array": ARRAYS,
        "layer": LAYERS,
        "cell": CELLS,
        "tokens": TOKENS,
        "sequences": SEQUENCES,
        "core": CORE,
        "readout": READOUT,
        "functional": FUNCTIONAL,
        "quantized": QUANTIZED,
        "pruning": PRUNING,
        "other": OTHERS,
    }.items()
    for name, case in cases.items()
}


def arrays(value: Any) -> Iterator[Array]:
    """Find every array in a world, a layer, a dict or a sequence."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from arrays(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from arrays(part)
    elif isinstance(value, World) or hasattr(value, "parameters"):
        yield from arrays(vars(value))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_bad_call_says_so_and_changes_nothing(case: Case) -> None:
    world = World()
    before = [a.copy() for a in arrays(world)]
    rng, threads = world.lstm.rng.bit_generator.state, rf.get_num_threads()
    with pytest.raises(case.error, match=f"^{case.message}" if ":" in case.message else case.message) as raised:
        case.call(world)
    assert raised.type is case.error
    assert all(np.array_equal(a, b) for a, b in zip(arrays(world), before, strict=True))
    assert world.lstm.rng.bit_generator.state == rng
    assert rf.get_num_threads() == threads
    world.lstm.backward(world.tape, world.y, world.dstate, grads=world.grads)  # the tape is as good as before


@pytest.mark.parametrize("cell", _core.cells)
def test_what_a_cell_does_not_have_is_refused(cell: str) -> None:
    p: Any = make_problem(cell, "float32", Shape(T, B, I, H))
    G, [weights] = _core.cells[cell].num_gates, p.parameters
    rows = dict.fromkeys(("w_ih", "w_hh", "b_ih", "b_hh"), G) | _core.cells[cell].parameters
    *_, tape = F.forward(cell, p.x, p.parameters)
    for k, (name, n) in enumerate(rows.items()):
        longer = np.zeros(((n + 1) * H, *weights[k].shape[1:]), np.float32)
        with pytest.raises(ValueError, match=rf"^{name}: expected shape .*, got \({(n + 1) * H},"):
            F.forward(cell, p.x, [(*weights[:k], longer, *weights[k + 1 :])])
        with pytest.raises(ValueError, match=rf"^grads\[0\]: {name}: expected shape .*, got \({(n + 1) * H},"):
            F.backward(tape, p.dy, grads=[(*weights[:k], longer, *weights[k + 1 :])])
    for k in [k for k, name in enumerate(rows) if not name.startswith("b_")]:
        with pytest.raises(TypeError, match=rf"^{[*rows][k]}: expected an array, got NoneType"):
            F.forward(cell, p.x, [(*weights[:k], None, *weights[k + 1 :])])
    # One more than there are would be a projection, where the cell can have one.
    for wrong in (weights[:-1], (*weights, *weights[-1:] * (1 + _core.cells[cell].projects))):
        with pytest.raises(ValueError, match=rf"^parameters: expected {len(rows)} .*, got {len(wrong)}$"):
            F.forward(cell, p.x, [wrong])
    states = num_states(cell)
    for wrong in ((*p.state0, None), p.state0[0] if states > 1 else p.state0):
        with pytest.raises((TypeError, ValueError), match=r"^state: expected "):
            F.forward(cell, p.x, p.parameters, wrong)
    for gate in {*string.ascii_lowercase} - {*_core.cells[cell].held}:
        with pytest.raises(ValueError, match=r"^gate_override: expected "):
            F.forward(cell, p.x, p.parameters, gate_override={gate: 0.5})


STATES_OF_A_CALL: dict[str, Callable[..., Any]] = {
    "state0": lambda p, _, state: _core.inference(p.cell, p.x, p.parameters, state),
    "start": lambda p, _, state: _core.forward(p.cell, p.x, p.parameters, start=state),
    "out[1]": lambda p, _, state: _core.forward(p.cell, p.x, p.parameters, out=(None, state)),
    "dstate": lambda p, tape, state: _core.backward(tape, p.dy, state),
    "dstart": lambda p, tape, state: _core.backward(tape, p.dy, dstart=state),
    "flow": lambda p, tape, state: _core.backward(tape, p.dy, flow=state),
    "out[1] of backward": lambda p, tape, state: _core.backward(tape, p.dy, out=(None, state)),
}


@pytest.mark.parametrize("argument", STATES_OF_A_CALL)
@pytest.mark.parametrize("cell", _core.cells)
def test_the_core_takes_a_state_as_a_tuple_of_its_parts(cell: str, argument: str) -> None:
    p: Any = make_problem(cell, "float32", Shape(T, B, I, H))
    name, call, states = argument.split(" ")[0], STATES_OF_A_CALL[argument], _core.cells[cell].states
    *_, tape = _core.forward(cell, p.x, p.parameters)
    S, content = len(states), f"({', '.join(states)})"
    arrays = [np.zeros((T, B, H) if name == "flow" else (1, B, H), np.float32) for _ in range(S + 1)]
    for wrong in (arrays[0], dict(zip(states, arrays, strict=False)), 0, "h"):
        message = f"{name}: expected a tuple {content}, got {type(wrong).__name__}"
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            call(p, tape, wrong)
    for n in {0, S - 1, S + 1}:
        with pytest.raises(ValueError, match=f"^{re.escape(f'{name}: expected {S} entries {content}, got {n}')}$"):
            call(p, tape, tuple(arrays[:n]))
    call(p, tape, None)
    call(p, tape, (None,) * S)
    call(p, tape, tuple(arrays[:-1]))


@pytest.mark.parametrize("cell", _core.cells)
def test_the_core_takes_gradients_of_every_state_beside_h(cell: str) -> None:
    p: Any = with_dsteps(make_problem(cell, "float32", Shape(T, B, I, H)))
    *_, tape = _core.forward(cell, p.x, p.parameters)
    content = f"({', '.join(_core.cells[cell].states[1:])})"
    wrong: Any
    for wrong in (p.dy, 0):
        with pytest.raises(TypeError, match=f"^dsteps: expected a tuple {re.escape(content)}, got "):
            _core.backward(tape, p.dy, dsteps=wrong)
    for wrong in ((*p.dsteps, p.dy), *([p.dsteps[1:]] if p.dsteps else [])):
        with pytest.raises(ValueError, match=f"^dsteps: expected {len(p.dsteps)} entries {re.escape(content)}, got "):
            _core.backward(tape, p.dy, dsteps=wrong)
    for name, k in zip(_core.cells[cell].states[1:], range(len(p.dsteps)), strict=True):
        wrong = (*p.dsteps[:k], p.dsteps[k][1:], *p.dsteps[k + 1 :])
        with pytest.raises(ValueError, match=f"^d{name}: expected shape"):
            _core.backward(tape, p.dy, dsteps=wrong)
    for given in (None, (None,) * len(p.dsteps), p.dsteps):
        _core.backward(tape, p.dy, dsteps=given)


@pytest.mark.parametrize("cell", _core.cells)
def test_the_core_names_the_part_of_a_state(cell: str) -> None:
    p: Any = make_problem(cell, "float32", Shape(T, B, I, H))
    *_, tape = _core.forward(cell, p.x, p.parameters)
    names = {"state0": "{}0", "start": "start: {}", "out[1]": "out[1]: {}", "dstate": "dstate: d{}"}
    names |= {"dstart": "dstart: {}", "flow": "flow: {}", "out[1] of backward": "out[1]: {}"}
    states = _core.cells[cell].states
    for argument, form in names.items():
        for k, state in enumerate(states):
            given = tuple(np.zeros((1, B + 1, H), np.float32) if i == k else None for i in range(len(states)))
            with pytest.raises(ValueError, match=f"^{re.escape(form.format(state))}: expected shape"):
                STATES_OF_A_CALL[argument](p, tape, given)


@pytest.mark.parametrize("out", [(), (None,), (None,) * 3, 0], ids=str)
def test_out_of_the_core_is_a_pair(out: Any) -> None:
    p: Any = make_problem("gru", "float32", Shape(T, B, I, H))
    *_, tape = _core.forward("gru", p.x, p.parameters)
    with pytest.raises((TypeError, ValueError), match=r"^out: expected .* \(y, state\), got "):
        _core.forward("gru", p.x, p.parameters, out=out)
    with pytest.raises((TypeError, ValueError), match=r"^out: expected .* \(dx, dstate0\), got "):
        _core.backward(tape, p.dy, out=out)


def test_parameters_that_grow_while_they_are_read_are_read_once() -> None:
    w_ih, w_hh = np.ones((4, 3)), np.ones((4, 4))
    parameters: list[Any] = []

    class Growing:
        def __array__(self, dtype: object = None, copy: object = None) -> Any:
            parameters.extend([(w_ih, w_hh, None, None)] * 40)
            return w_ih

    parameters.append((Growing(), w_hh, None, None))
    y, _ = _core.inference("rnn_tanh", np.ones((5, 2, 3)), parameters)
    assert y.shape == (5, 2, 4)


def test_tapes_are_made_by_forward_alone() -> None:
    Tape: Any = _core.Tape
    for make in (Tape, lambda: Tape.__new__(Tape), lambda: object.__new__(Tape)):
        with pytest.raises(TypeError):
            make()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *[("RNNFAST_NUM_THREADS", n, "a number of threads from 1 to 1024") for n in ("0", "-1", "1025", "4abc", "2.5")],
        ("RNNFAST_NUM_THREADS", "9" * 30, "a number of threads from 1 to 1024"),
        ("RNNFAST_ISA", "sse9", "one of baseline"),
    ],
)
def test_a_wrong_setting_in_the_environment_fails_the_import(name: str, value: str, expected: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import rnnfast"],
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert f"ImportError: {name}: expected {expected}" in run.stderr
    assert f"got '{value}'" in run.stderr
