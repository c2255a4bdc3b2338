"""The recurrent operators of ONNX on arrays: LSTM, GRU and RNN, with whatever their nodes may ask for.

DynamicQuantizeLSTM of ONNX Runtime is among them: an LSTM whose matrices are integers, which lie transposed.

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
from .._stack.layout import layout_of
from .._stack.quantized import MOST_COLUMNS
from ..functional import linear
from ._quantizing import int8_rows
from ._stepwise import FUNCTIONS, Activation, Matrix, State, Step, Weights, elman, gru, lstm

DYNAMIC_LSTM = "com.microsoft.DynamicQuantizeLSTM"


class Kind(NamedTuple):
    """An operator."""

    gates: str  # in the order of ONNX, by our letters
    full: str  # one of our cells that has all of them
    activations: tuple[str, ...]  # by default
    step: Callable[[Step, Weights, Array, State], State]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    quantized: bool = False  # W [D,I,G·H] and R [D,H,G·H] are integers

    @property
    def weights(self) -> tuple[str, ...]:
        """The inputs that are weights, in the order of `Operator.weights`."""
        return tuple(name for name in self.inputs if name not in _DATA)

    @property
    def required(self) -> tuple[str, ...]:
        """The inputs that every node has."""
        return tuple(name for name in self.inputs if name in {"X", "W", "R"} or "_scale" in name or "_zero" in name)

    @property
    def initial(self) -> tuple[str, ...]:
        """The inputs that are the state before the first step."""
        return tuple(name for name in self.inputs if name.startswith("initial_"))


_INPUTS = "X", "W", "R", "B", "sequence_lens", "initial_h"
_DATA = "X", "sequence_lens", "initial_h", "initial_c"
_LSTM = Kind("iofg", "lstm", ("sigmoid", "tanh", "tanh"), lstm, (*_INPUTS, "initial_c", "P"), ("Y", "Y_h", "Y_c"))
KINDS = {  # by what `operator_of` returns
    "LSTM": _LSTM,
    "GRU": Kind("zrn", "gru", ("sigmoid", "tanh"), gru, _INPUTS, ("Y", "Y_h")),
    "RNN": Kind("", "rnn_tanh", ("tanh",), elman, _INPUTS, ("Y", "Y_h")),
    DYNAMIC_LSTM: _LSTM._replace(
        inputs=(*_LSTM.inputs, "W_scale", "W_zero_point", "R_scale", "R_zero_point"), quantized=True
    ),
}
PEEPHOLES = "iof"  # the order of P

# Which are cells of the kernels: by the full one, input_forget or linear_before_reset, peepholes, and activations
CELLS = {
    ("lstm", False, False, ("sigmoid", "tanh", "tanh")): "lstm",
    ("lstm", False, True, ("sigmoid", "tanh", "tanh")): "lstm_peephole",
    ("lstm", True, False, ("sigmoid", "tanh", "tanh")): "cifg",
    ("lstm", True, True, ("sigmoid", "tanh", "tanh")): "cifg_peephole",
    ("gru", True, False, ("sigmoid", "tanh")): "gru",
    ("gru", False, False, ("sigmoid", "tanh")): "gru_reset_before",
    ("rnn_tanh", False, False, ("tanh",)): "rnn_tanh",
    ("rnn_tanh", False, False, ("relu",)): "rnn_relu",
}

LARGEST_SCALE = 1e36  # of integers: 255 times that is a float32
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
        cells = {CELLS.get((self.kind.full, option, peephole, of_direction)) for of_direction in names}
        self.cell = cells.pop() if len(cells) == 1 and clip is None else None
        self._letters = _core.cells[self.cell or self.kind.full].gates

    def weights(self, W: object, R: object, B: object = None, P: object = None, *steps: object) -> list[Weights]:
        """Check the weights of a node and return those of each direction.

        Parameters
        ----------
        W : array [D,G·H,I], or [D,I,G·H] of integers
        R : array [D,G·H,H], or [D,H,G·H] of integers
        B : array [D,2·G·H], optional
        P : array [D,3·H], optional
        *steps : arrays [D] or [D,G·H]
            Of integers, scales and zero points of W, and those of R.
        """
        w, r = (_core.asarray(a, f"{self.name}: {name}") for name, a in (("W", W), ("R", R)))
        integers = self.kind.quantized
        dtypes = ("int8", "uint8") if integers else ("float32", "float64")
        if w.dtype not in dtypes:
            raise TypeError(self._expected("W", f"dtype {' or '.join(dtypes)}", w.dtype))
        D, G = len(self.backwards), max(len(self.kind.gates), 1)
        axes = (0, 2, 1) if integers else (0, 1, 2)
        for name, a in (("W", w), ("R", r)):
            if a.ndim != 3 or a.shape[axes[2]] < 1:
                sizes = "D", f"{G}·H", "I" if a is w else "H"
                raise ValueError(self._expected(name, f"shape ({', '.join(sizes[k] for k in axes)})", a.shape))
        I, H = w.shape[axes[2]], r.shape[axes[2]] if self.hidden_size is None else self.hidden_size
        for name, a, n in (("W", w, I), ("R", r, H)):
            shape = D, G * H, n
            self._checked(a, name, tuple(shape[k] for k in axes), w.dtype)
        w, r = w.transpose(axes), r.transpose(axes)
        dtype = np.dtype(np.float32) if integers else w.dtype
        b = None if B is None else self._checked(B, "B", (D, 2 * G * H), dtype).reshape(D, 2, G * H)
        p = None if P is None else self._checked(P, "P", (D, 3 * H), dtype)
        seeing = [PEEPHOLES.index(letter) for letter in self._letters if letter in PEEPHOLES]
        w_steps = self._steps_of(w, "W", *steps[:2]) if integers else ()
        r_steps = self._steps_of(r, "R", *steps[2:]) if integers else ()

        def matrix(a: Array, steps: Sequence[Array], d: int) -> Matrix:
            rows, *of_rows = (self.in_our_order(each[d]) for each in (a, *steps))
            return int8_rows(rows, *of_rows) if of_rows else rows

        of_directions = [
            Weights(
                matrix(w, w_steps, d),
                matrix(r, r_steps, d),
                None if b is None else self.in_our_order(b[d, 0]),
                None if b is None else self.in_our_order(b[d, 1]),
                None if p is None else reordered(p[d], seeing, len(PEEPHOLES)),
            )
            for d in range(D)
        ]
        fused = self.cell is not None and max(I, H) <= MOST_COLUMNS
        return of_directions if fused else [each.floats() for each in of_directions]

    def in_our_order(self, a: Array) -> Array:
        """Return the blocks of rows of the gates in our order."""
        order = [self.kind.gates.index(letter) for letter in self._letters] or [0]
        return reordered(a, order, max(len(self.kind.gates), 1))

    def _steps_of(self, a: Array, name: str, scale: object, zero_point: object) -> tuple[Array, Array]:
        """Check scales and zero points and return those of each row, [D,G·H]."""
        D, rows, _ = a.shape
        checked_steps = []
        for kind, given, dtype in (("scale", scale, np.dtype(np.float32)), ("zero_point", zero_point, a.dtype)):
            full = f"{name}_{kind}"
            each = _core.asarray(given, f"{self.name}: {full}")
            if each.shape not in ((D,), (D, rows)):
                raise ValueError(self._expected(full, f"shape {(D,)} or {(D, rows)}", each.shape))
            each = self._checked(each, full, each.shape, dtype)
            fits = (each >= 0) & (each <= LARGEST_SCALE)
            if kind == "scale" and not fits.all():
                raise ValueError(self._expected(full, f"numbers from 0 to {LARGEST_SCALE:.0e}", each[~fits][0]))
            checked_steps.append(np.broadcast_to(each.reshape(D, -1), (D, rows)))
        scales, zero_points = checked_steps
        return scales, zero_points

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
        (I, H), D, dtype = weights[0].sizes, len(weights), weights[0].dtype
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
        first = layout.take_state(tuple(state))
        parameters = [w[: 4 + len(_core.cells[cell].parameters)] for w in weights]
        reverse = self.backwards == (True,)
        sizes = layout.batch_sizes
        y, last = _core.inference(cell, layout.take(x), parameters, first, batch_sizes=sizes, reverse=reverse)
        return [layout.give(y), *layout.whole_state(last, (None,) * len(last))]

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
