"""Recurrent layers one step at a time, with the constructors, parameter names and shapes of torch's cells.

The same kernels as in the layers, at T = 1. Sizes are B sequences, I inputs and H hidden units.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic

import numpy as np

from . import _core
from ._base.arrays import Array, ArrayLike, checked
from ._base.leak import Leak, leak_of
from ._base.module import RecurrentModule, Tape, check_tape, with_fixed
from ._base.named import checked_grads
from ._base.names import elman_cell, gru_cell, lstm_cell, parameter_names, recurrent_shapes
from ._base.scalars import RNG, Flag, Integer, addressable, flag, size
from ._base.state import STATES, Parts, StateLike, StateT, each, parts_of, state_of

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]


class RecurrentCell(RecurrentModule, Generic[StateT]):
    """One step of one cell."""

    weight_ih: Array
    weight_hh: Array
    bias_ih: Array
    bias_hh: Array

    def __init__(
        self,
        input_size: Integer,
        hidden_size: Integer,
        bias: Flag = True,
        *,
        dtype: Any = "float32",
        rng: RNG | None = None,
        seed: RNG | None = None,
    ) -> None:
        self.input_size = size(input_size, "input_size")
        self.hidden_size = size(hidden_size, "hidden_size")
        self.bias = flag(bias, "bias")
        self.gates = _core.cells[self.cell].num_gates
        G, I, H = self.gates, self.input_size, self.hidden_size
        addressable(G * H * (I + H + 2), "input_size, hidden_size")
        shapes = recurrent_shapes(self.cell, I, H, self.bias).items()
        super().__init__(((name, shape) for name, shape in shapes if name not in self.fixed), H, dtype, rng, seed)

    def __call__(self, x: ArrayLike, state: StateLike | None = None) -> StateT:
        """Make one step and keep nothing.

        Parameters
        ----------
        x : array [B,I] or [I]
            The input.
        state : array [B,H] or pair of such, [H] for x [I], optional
            The state before, h or (h, c); zero where it or a part of it is None.

        Returns
        -------
        state : ndarray or pair of ndarrays, as above
            The state after.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid. The message names the argument, what was expected and what was given.
        """
        plain = self._plain_for(x)
        results = None if plain is None else plain.inference(self.parameters, x, state)
        after: StateT = results[1] if results is not None else self._run(_core.inference, x, state)[0]
        return after

    def forward(self, x: ArrayLike, state: StateLike | None = None) -> tuple[StateT, "CellTape"]:
        """Make one step and keep what `backward` needs.

        Takes and raises what a call of the cell does.

        Returns
        -------
        state
            As from a call of the cell.
        tape : CellTape
            For `backward`. It refers to x, the state and the parameters and does not copy them: they must not
            change before the last backward.
        """
        plain = self._plain_for(x)
        results = None if plain is None else plain.forward(self.parameters, x, state)
        if results is None:
            after, fields = self._run(_core.forward, x, state)
            return after, CellTape(owner=self, **fields)
        y, after, kept = results
        view: Any = x  # not x itself, since the caller can give it another shape
        return after, CellTape(owner=self, x=view.view(), y=y, kept=(kept,), plain=plain)

    def backward(
        self, tape: "CellTape", dstate: StateLike, *, need_dx: Flag = True, grads: dict[str, Array] | None = None
    ) -> tuple[Array | None, StateT, dict[str, Array]]:
        """Return the gradients of ``sum(dstate * state)``.

        Parameters
        ----------
        tape : CellTape
            From this cell's `forward`. It is only read: any number of backwards may use it.
        dstate : array or pair of arrays like state
            The gradient of the state after, dh or (dh, dc); zero where a part of it is None.
        need_dx : bool, optional
            If False, dx is not computed and None is returned for it.
        grads : dict of ndarrays, optional
            With the keys, shapes and dtype of `state_dict()`. The gradients are added to these arrays.

        Returns
        -------
        dx : ndarray like x, or None
        dstate0 : ndarray or pair of ndarrays like state
            The gradient of the state before, dh0 or (dh0, dc0).
        grads : dict of ndarrays
            The gradients of the parameters, by the keys of `state_dict()`; `grads` itself if it was given.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid. The message names the argument, what was expected and what was given.
        """
        check_tape(tape, self)
        if grads is None and isinstance(need_dx, bool) and tape.plain is not None:
            gradients = tape.plain.backward(self.parameters, tape.kept[0], None, dstate, need_dx)
            if gradients is not None:
                return gradients
        shape = tape.y.shape
        dlast = self._checked_state(dstate, "dstate", shape)
        if all(part is None for part in dlast):
            msg = "dstate: expected at least one gradient, got none"
            raise ValueError(msg)
        into = checked_grads(grads, self.parameters, tape.x, tape.y, tape.state, dlast)
        given = None if into is None else [self._tuple(into)]
        dx, dfirst, [new] = _core.backward(tape.kept[0], None, dlast, flag(need_dx, "need_dx"), given)
        if dx is not None:
            dx = dx.reshape(tape.x.shape)
        if grads is None:
            made = dict(zip(parameter_names(self.cell), new, strict=True))
            grads = {name: d for name, d in made.items() if d is not None and name in self.parameters}
        return dx, state_of(_as_given(dfirst, shape)), grads

    def _plain_for(self, x: Any) -> _core.PlainLayer | None:
        """Return what computes a step of an array with so many axes, if it is one of NumPy's, made once.

        It returns None where something is not as the kernels take it: `_run` converts it, or says what is wrong.
        """
        if type(x) is not np.ndarray or x.ndim not in (1, 2):
            return None
        # Where another thread assigns an attribute meanwhile, this dict is one that nobody sees any more.
        made: dict[int, _core.PlainLayer] = vars(self).setdefault("_plain", {})
        plain = made.get(x.ndim)
        if plain is None:
            names = parameter_names(self.cell)
            sizes, fixed = (self.hidden_size,) * len(STATES[self.cell]), tuple(map(self.fixed.get, names))
            plain = _core.PlainLayer(self.cell, x.ndim, self.dtype, self.input_size, sizes, (names,), fixed)
            made[x.ndim] = plain
        return plain

    def _run(self, run: Callable[..., Any], x: object, state: object) -> tuple[Any, dict[str, Any]]:
        """Make one step by `run` of the core, which may keep a tape; also return what a `CellTape` has of it."""
        x = _core.asarray(x, "x", self.dtype)
        if x.ndim not in (1, 2) or x.shape[-1] != self.input_size:
            I = self.input_size
            msg = f"x: expected shape (B, {I}) or ({I},), got {x.shape}"
            raise ValueError(msg)
        shape = (*x.shape[:-1], self.hidden_size)
        first = self._checked_state(state, "state", shape)
        parameters = self._tuple(self.parameters)
        if self.fixed:
            parameters = with_fixed(self, parameters)
        y, last, *kept = run(self.cell, _one_step(x), [parameters], first)
        fields = {"x": x, "y": y.reshape(shape), "state": first, "kept": tuple(kept)}
        return state_of(_as_given(last, shape)), fields

    def _checked_state(self, state: object, name: str, shape: tuple[int, ...]) -> Parts:
        """Return the parts of a state as [1,B,H]."""
        parts = parts_of(self.cell, state, name)
        return each(lambda part: _one_step(checked(part, name, shape, self.dtype)), parts)

    def _tuple(self, arrays: Mapping[str, Array]) -> tuple[Array | None, ...]:
        """Return the parameters, or arrays like them, as the kernels take them."""
        return tuple(map(arrays.get, parameter_names(self.cell)))


@dataclass(frozen=True, eq=False, repr=False, init=False)
class CellTape(Tape):
    """What a cell's forward keeps for its backward. It is only read: any number of backwards may use it.

    Attributes
    ----------
    owner : LSTMCell, GRUCell or RNNCell
        The cell whose forward returned it.
    x, y : ndarray
        The input of that forward, and the new h.

    Examples
    --------
    >>> import rnnfast
    >>> _, tape = rnnfast.GRUCell(2, 3, rng=0).forward([1, 2])
    >>> isinstance(tape, rnnfast.CellTape), tape.y.shape
    (True, (3,))
    """

    kept: tuple[_core.Tape]
    plain: _core.PlainLayer | None = None  # what made it

    def __init__(self, **fields: Any) -> None:  # as that of `LayerTape`
        vars(self).update(fields)

    @cached_property
    def state(self) -> Parts:
        """The parts of the state before the step, [1,B,H]."""
        return self.kept[0].state0


def _one_step(a: Array) -> Array:
    """Return a view of a [B,*] or [*] as [1,B,*]."""
    return a[None] if a.ndim == 2 else a[None, None]


def _as_given(state: Parts, shape: tuple[int, ...]) -> Parts:
    """Return a state of the kernels as the caller has it, [B,H] or [H]."""
    return tuple([part.reshape(shape) for part in state])


class LSTMCell(RecurrentCell[tuple[Array, Array]]):
    """One step of an LSTM, as `torch.nn.LSTMCell`; the equations are in `rnnfast.functional`.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    bias : bool, optional
        If False, there are no b_ih and b_hh.
    dtype : {"float32", "float64"}, optional
        The dtype of the parameters, and of all arrays that the cell takes and returns.
    rng : int, Generator or what `numpy.random.default_rng` takes, optional
        For the initial weights, U(-1/sqrt(H), 1/sqrt(H)).
    seed : as `rng`, optional
        Its older name.
    peephole, coupled_gates : bool, optional
        As for the layer `LSTM`.

    Attributes
    ----------
    weight_ih : ndarray [4·H,I]
    weight_hh : ndarray [4·H,H]
    bias_ih, bias_hh : ndarray [4·H]
        The gates' order is i, f, g, o; with `coupled_gates` there are three, i, g, o.
    peephole : ndarray [3·H] or None
        The vectors p_i, p_f, p_o; with `coupled_gates` [2·H], p_i, p_o.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> cell = rnnfast.LSTMCell(3, 4)
    >>> state = None
    >>> for x in np.zeros((5, 2, 3), np.float32):  # T, B, I
    ...     state = cell(x, state)
    >>> h, c = state
    >>> h.shape, c.shape
    ((2, 4), (2, 4))
    """

    peephole: Array | None

    def __init__(
        self,
        input_size: Integer,
        hidden_size: Integer,
        bias: Flag = True,
        *,
        dtype: Any = "float32",
        rng: RNG | None = None,
        seed: RNG | None = None,
        peephole: Flag = False,
        coupled_gates: Flag = False,
    ) -> None:
        has_peephole = flag(peephole, "peephole")
        self.coupled_gates = flag(coupled_gates, "coupled_gates")
        self.cell = lstm_cell(has_peephole, self.coupled_gates)
        if not has_peephole:
            self.peephole = None
        super().__init__(input_size, hidden_size, bias, dtype=dtype, rng=rng, seed=seed)


class GRUCell(RecurrentCell[Array]):
    """One step of a GRU, as `torch.nn.GRUCell`; the equations are in `rnnfast.functional`.

    Parameters
    ----------
    input_size, hidden_size, bias, dtype, rng, seed
        As for `LSTMCell`.
    reset_after : bool, optional
        If True, the reset gate acts on the recurrent product, as in torch. If False, it acts on the state before the
        product, as published.

    Attributes
    ----------
    weight_ih, weight_hh, bias_ih, bias_hh : ndarray
        As for `LSTMCell`, with three gates in the order r, z, n.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> cell = rnnfast.GRUCell(3, 4)
    >>> h, tape = cell.forward(np.zeros(3, np.float32), np.ones(4, np.float32))
    >>> dx, dh0, grads = cell.backward(tape, np.ones(4, np.float32))
    >>> h.shape, dx.shape, dh0.shape
    ((4,), (3,), (4,))
    """

    def __init__(
        self,
        input_size: Integer,
        hidden_size: Integer,
        bias: Flag = True,
        *,
        dtype: Any = "float32",
        rng: RNG | None = None,
        seed: RNG | None = None,
        reset_after: Flag = True,
    ) -> None:
        self.reset_after = flag(reset_after, "reset_after")
        self.cell = gru_cell(self.reset_after)
        super().__init__(input_size, hidden_size, bias, dtype=dtype, rng=rng, seed=seed)


class RNNCell(RecurrentCell[Array]):
    """One step of an Elman network, as `torch.nn.RNNCell`; the equations are in `rnnfast.functional`.

    Parameters
    ----------
    input_size, hidden_size, bias
        As for `LSTMCell`.
    nonlinearity : {"tanh", "relu"}, optional
        The activation.
    dtype, rng, seed
        As for `LSTMCell`.
    leak : float or array [H], optional
        As for the layer `RNN`.

    Attributes
    ----------
    weight_ih, weight_hh, bias_ih, bias_hh : ndarray
        As for `LSTMCell`, without gates: [H,I], [H,H], [H], [H].

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> cell = rnnfast.RNNCell(3, 4, nonlinearity="relu")
    >>> cell(np.zeros((2, 3), np.float32)).shape
    (2, 4)
    """

    def __init__(
        self,
        input_size: Integer,
        hidden_size: Integer,
        bias: Flag = True,
        nonlinearity: str = "tanh",
        *,
        dtype: Any = "float32",
        rng: RNG | None = None,
        seed: RNG | None = None,
        leak: Leak = 1.0,
    ) -> None:
        self.leak, self.fixed = leak_of(leak, hidden_size, dtype)
        self.cell = elman_cell(nonlinearity, bool(self.fixed))
        self.nonlinearity = str(nonlinearity)
        super().__init__(input_size, hidden_size, bias, dtype=dtype, rng=rng, seed=seed)
