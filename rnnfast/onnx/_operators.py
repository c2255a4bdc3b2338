"""The recurrent operators of ONNX on arrays: LSTM, GRU and RNN, with whatever their nodes may ask for.

A node that is one of our cells runs in its kernel. Any other, one with other activation functions or a clip, runs one
step at a time in NumPy: exact, but slower.

Sizes are T time steps, B sequences, I inputs, H hidden units, G gates and D directions. The gates'
order is ours from `Operator.weights` on.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from .._base.arrays import Array, checked
from .._base.names import reordered
from .._base.state import each
from .._stack.layout import layout_of
from ..functional import linear
from ._stepwise import FUNCTIONS, Activation, State, Step, Weights, elman, gru, lstm


class Kind(NamedTuple):
    """An operator."""

    gates: str  # in the order of ONNX, by our letters
    full: str  # one of our cells that has all of them
    activations: tuple[str, ...]  # by default
    step: Callable[[Step, Weights, Array, State], State]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def initial(self) -> tuple[str, ...]:
        """The inputs that are the state before the first step."""
        return tuple(name for name in self.inputs if name.startswith("initial_"))


_INPUTS = "X", "W", "R", "B", "sequence_lens", "initial_h"
KINDS = {
    "LSTM": Kind("iofg", "lstm", ("sigmoid", "tanh", "tanh"), lstm, (*_INPUTS, "initial_c", "P"), ("Y", "Y_h", "Y_c")),
    "GRU": Kind("zrn", "gru", ("sigmoid", "tanh"), gru, _INPUTS, ("Y", "Y_h")),
    "RNN": Kind("", "rnn_tanh", ("tanh",), elman, _INPUTS, ("Y", "Y_h")),
}
PEEPHOLES = "iof"  # the order of P
WEIGHTS = "W", "R", "B", "P"

# Which of them are cells of the kernels: by operator, input_forget or linear_before_reset, peepholes, and activations
CELLS = {
    ("LSTM", False, False, ("sigmoid", "tanh", "tanh")): "lstm",
    ("LSTM", False, True, ("sigmoid", "tanh", "tanh")): "lstm_peephole",
    ("LSTM", True, False, ("sigmoid", "tanh", "tanh")): "cifg",
    ("LSTM", True, True, ("sigmoid", "tanh", "tanh")): "cifg_peephole",
    ("GRU", True, False, ("sigmoid", "tanh")): "gru",
    ("GRU", False, False, ("sigmoid", "tanh")): "gru_reset_before",
    ("RNN", False, False, ("tanh",)): "rnn_tanh",
    ("RNN", False, False, ("relu",)): "rnn_relu",
}

DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}  # which run backwards in time


class Operator:
    """A node without its weights.

    Attributes
    ----------
    name : str
        For errors.
    kind : Kind
    backwards : tuple of D bools
        Which directions run backwards in time.
    batch_first : bool
        X is [B,T,I], Y [B,T,D,H], and states are [B,D,H]: `layout` 1.
    hidden_size : int or None
        H, where the node says it.
    cell : str or None
        The kernels' cell that the node is.
    """

    def __init__(self, op_type: str, name: str, attributes: Mapping[str, Any], *, peephole: bool = False) -> None:
        self.name = f"{op_type} {name!r}"
        self.kind = KINDS[op_type]
        direction = self._choice(attributes, "direction", tuple(DIRECTIONS))
        self.backwards = DIRECTIONS[direction]
        self.batch_first = self._choice(attributes, "layout", (0, 1)) == 1
        self.hidden_size: int | None = attributes.get("hidden_size")
        if self.hidden_size is not None and self.hidden_size < 1:
            raise ValueError(self._expected("hidden_size", "at least 1", self.hidden_size))
        clip = attributes.get("clip")
        if clip is not None and not clip > 0:
            raise ValueError(self._expected("clip", "a positive number", clip))
        option = any(bool(attributes.get(name)) for name in ("input_forget", "linear_before_reset"))
        names, activations = self._activations(attributes)
        self._steps = [
            Step(
                functions,
                (lambda x: x) if clip is None else lambda x: np.clip(x, -clip, clip),
                option,
            )
            for functions in activations
        ]
        cells = {CELLS.get((op_type, option, peephole, of_direction)) for of_direction in names}
        self.cell = cells.pop() if len(cells) == 1 and clip is None else None
        self._letters = _core.cells[self.cell or self.kind.full].gates

    def weights(self, W: object, R: object, B: object = None, P: object = None) -> list[Weights]:
        """Check the weights of a node and return those of each direction.

        Parameters
        ----------
        W : array [D,G·H,I]
        R : array [D,G·H,H]
        B : array [D,2·G·H], optional
        P : array [D,3·H], optional
        """
        w, r = (_core.asarray(a, f"{self.name}: {name}") for name, a in (("W", W), ("R", R)))
        if w.dtype not in (np.float32, np.float64):
            raise TypeError(self._expected("W", "dtype float32 or float64", w.dtype))
        D, G = len(self.backwards), max(len(self.kind.gates), 1)
        for name, a in (("W", w), ("R", r)):
            if a.ndim != 3 or a.shape[2] < 1:
                raise ValueError(self._expected(name, f"shape (D, {G}·H, {'I' if a is w else 'H'})", a.shape))
        I, H = w.shape[2], r.shape[2] if self.hidden_size is None else self.hidden_size
        w, r = self._checked(w, "W", (D, G * H, I), w.dtype), self._checked(r, "R", (D, G * H, H), w.dtype)
        b = None if B is None else self._checked(B, "B", (D, 2 * G * H), w.dtype).reshape(D, 2, G * H)
        p = None if P is None else self._checked(P, "P", (D, 3 * H), w.dtype)
        order = [self.kind.gates.index(letter) for letter in self._letters] or [0]
        seeing = [PEEPHOLES.index(letter) for letter in self._letters if letter in PEEPHOLES]
        return [
            Weights(
                reordered(w[d], order, G),
                reordered(r[d], order, G),
                None if b is None else reordered(b[d, 0], order, G),
                None if b is None else reordered(b[d, 1], order, G),
                None if p is None else reordered(p[d], seeing, len(PEEPHOLES)),
            )
            for d in range(D)
        ]

    def run(
        self, weights: Sequence[Weights], X: object, lengths: object, initial: Sequence[object]
    ) -> tuple[Array, ...]:
        """Return the outputs of `kind`: Y and the last states.

        Parameters
        ----------
        weights : D Weights
        X : array [T,B,I]
        lengths : array of int32 [B] or None
            `sequence_lens`. Y is zero beyond; of sequences of length 0 so are Y_h and Y_c.
        initial : sequence of arrays [D,B,H] or None
            The states that `kind.initial` names.

        All shapes are those of `layout` 0.
        """
        I, H, D, dtype = weights[0].w_ih.shape[1], weights[0].w_hh.shape[1], len(weights), weights[0].w_ih.dtype
        x = _core.asarray(X, f"{self.name}: X")
        if x.ndim != 3:
            raise ValueError(self._expected("X", f"shape ({'B, T' if self.batch_first else 'T, B'}, {I})", x.shape))
        x = self._steps_first(self._checked(x, "X", (*x.shape[:2], I), dtype))
        T, B, _ = x.shape
        given = (B, D, H) if self.batch_first else (D, B, H)
        state = [
            None if part is None else self._steps_first(self._checked(part, name, given, dtype))
            for name, part in zip(self.kind.initial, initial, strict=True)
        ]
        if lengths is not None:
            lengths = self._checked(lengths, "sequence_lens", (B,), np.dtype(np.int32))
            if B and not 0 <= lengths.min() <= lengths.max() <= T:
                raise ValueError(self._expected("sequence_lens", f"0 to {T}", lengths))
        if T * B == 0:
            y, last = np.zeros((T, B, D, H), dtype), [np.zeros((D, B, H), dtype) for _ in state]
        elif self.cell is not None:
            y, *last = self._fused(self.cell, weights, x, lengths, state)
        else:
            y, *last = self._stepwise(weights, x, lengths, state)
        y = y.reshape(T, B, D, H)
        if self.batch_first:
            return y.swapaxes(0, 1), *(part.swapaxes(0, 1) for part in last)
        return y.swapaxes(1, 2), *last

    def _fused(
        self, cell: str, weights: Sequence[Weights], x: Array, lengths: Any, state: Sequence[Array | None]
    ) -> list[Array]:
        """Run the kernel: return h of each step [T,B,D·H] and the last state, each part [D,B,H]."""
        _, layout = layout_of(x, lengths, x.shape[2], batch_first=False, embedded=False, dtype=x.dtype)
        first = each(layout.take_state, tuple(state))
        parameters = [w[: 4 + len(_core.cells[cell].parameters)] for w in weights]
        reverse = self.backwards == (True,)
        sizes = layout.batch_sizes
        y, last = _core.inference(cell, layout.take(x), parameters, first, batch_sizes=sizes, reverse=reverse)
        return [layout.give(y), *(layout.whole_state(part, None) for part in last)]

    def _stepwise(
        self, weights: Sequence[Weights], x: Array, lengths: Any, state: Sequence[Array | None]
    ) -> list[Array]:
        """Do what `_fused` does, one step at a time."""
        (T, B, _), (_, H) = x.shape, weights[0].w_hh.shape
        runs = np.arange(T)[:, None] < (T if lengths is None else lengths)  # [T,B] or [T,1]
        runs = np.broadcast_to(runs, (T, B))[..., None]
        y = np.zeros((T, B, len(weights), H), x.dtype)
        last = [np.zeros((len(weights), B, H), x.dtype) for _ in state]
        for d, (w, step, backwards) in enumerate(zip(weights, self._steps, self.backwards, strict=True)):
            gates_x = linear(x, w.w_ih, w.b_ih)
            before = tuple(np.zeros((B, H), x.dtype) if part is None else part[d] for part in state)
            for t in reversed(range(T)) if backwards else range(T):
                after = self.kind.step(step, w, gates_x[t], before)
                before = tuple(np.where(runs[t], a, b) for a, b in zip(after, before, strict=True))
                y[t, :, d] = np.where(runs[t], before[0], 0)
            for part, h in zip(last, before, strict=True):
                part[d] = np.where(runs.any(axis=0), h, 0)
        return [y, *last]

    def _activations(self, attributes: Mapping[str, Any]) -> tuple[list[tuple[str, ...]], list[list[Activation]]]:
        """Return the activation functions of each direction, by name and with alpha and beta in them."""
        D, n = len(self.backwards), len(self.kind.activations)
        given = attributes.get("activations", self.kind.activations * D)
        names = [name.lower() for name in given]
        if n == 1:
            names = names[:D]  # the default that the specification gives for RNN has two whatever D is
        if len(names) != n * D:
            raise ValueError(self._expected("activations", f"{n * D} names", given))
        unknown = [name for name, lower in zip(given, names, strict=False) if lower not in FUNCTIONS]
        if unknown:
            raise ValueError(self._expected("activations", "functions of the specification", unknown))
        left = {which: iter(attributes.get(f"activation_{which}", ())) for which in ("alpha", "beta")}
        functions: list[Activation] = []
        for name in names:
            f, *defaults = FUNCTIONS[name]
            values = []
            for (which, others), default in zip(left.items(), defaults, strict=True):
                values.append(0.0 if default is None else next(others, default))
                if np.isnan(values[-1]):
                    raise ValueError(self._expected(f"activation_{which}", f"a value for {name}", "none"))
            functions.append(_bound(f, *values))
        cut = [slice(d * n, (d + 1) * n) for d in range(D)]
        return [tuple(names[part]) for part in cut], [functions[part] for part in cut]

    def _choice(self, attributes: Mapping[str, Any], name: str, options: Sequence[Any]) -> Any:
        value = attributes.get(name, options[0])
        if value not in options:
            raise ValueError(self._expected(name, " or ".join(map(repr, options)), repr(value)))
        return value

    def _checked(self, a: object, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return checked(a, f"{self.name}: {name}", shape, dtype)

    def _expected(self, name: str, expected: str, got: object) -> str:
        return f"{self.name}: {name}: expected {expected}, got {got}"

    def _steps_first(self, a: Array) -> Array:
        return a.swapaxes(0, 1) if self.batch_first else a


def _bound(f: Callable[[Array, float, float], Array], alpha: float, beta: float) -> Activation:
    return lambda x: f(x, alpha, beta)
