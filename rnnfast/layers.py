"""Recurrent layers with the constructors, parameter names and shapes of torch's, and a linear readout.

Sizes are T time steps, B sequences, I inputs, H hidden units, L layers and D directions. The equations and
the order of the gates are in `rnnfast.functional`.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core, functional
from ._module import (
    PARAMETERS,
    Module,
    Tape,
    addressable,
    elman_cell,
    flag,
    gru_cell,
    number,
    recurrent_shapes,
    size,
)
from .functional import GATES, Array, State, checked, each_part, split_state

if TYPE_CHECKING:
    from .stream import Stream

__all__ = ["GRU", "LSTM", "RNN", "Linear"]

INITIAL = "initial_h", "initial_c"  # the parameters of `learn_initial_state`, for each part of the state


class _Recurrent(Module):
    """A stack of L recurrent layers of one cell, in D directions."""

    cell: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: Any = "float32",
        seed: Any = None,
        learn_initial_state: bool = False,
    ) -> None:
        self.input_size = size(input_size, "input_size")
        self.hidden_size = size(hidden_size, "hidden_size")
        self.num_layers = size(num_layers, "num_layers")
        self.bias = flag(bias, "bias")
        self.batch_first = flag(batch_first, "batch_first")
        self.dropout = number(dropout, "dropout")
        self.bidirectional = flag(bidirectional, "bidirectional")
        self.learn_initial_state = flag(learn_initial_state, "learn_initial_state")
        if not 0 <= self.dropout <= 1:
            msg = f"dropout: expected a probability, got {dropout}"
            raise ValueError(msg)
        if self.dropout > 0 and self.num_layers == 1:
            msg = f"dropout: expected 0 for a single layer, as it acts between layers, got {dropout}"
            warnings.warn(msg, stacklevel=2)
        self.gates = GATES[self.cell]
        self.directions = 1 + self.bidirectional
        G, H, L, D = self.gates, self.hidden_size, self.num_layers, self.directions
        widest = max(self.input_size, D * H)
        addressable(L * D * G * H * (widest + H + 2), "input_size, hidden_size, num_layers")
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(L):
            here = recurrent_shapes(G, D * H if layer else self.input_size, H, self.bias)
            shapes |= {name + end: shape for end in self._suffixes(layer) for name, shape in here.items()}
        if self.learn_initial_state:
            shapes |= dict.fromkeys(INITIAL[: 2 if self.cell == "lstm" else 1], (L * D, H))
        super().__init__(shapes, H, dtype, seed)

    def __call__(self, x: object, state: object = None, *, embedding: object = None) -> tuple[Array, State]:
        """Run over whole sequences and keep nothing; no dropout.

        Parameters
        ----------
        x : array [T,B,I], [B,T,I] if `batch_first`, or [T,I] for one sequence
            The input; T is at least 1, B may be 0. An array of integers, [T,B], [B,T] or [T], holds tokens.
        state : array [L·D,B,H] or pair of such, optional
            The initial state, h or (h, c); [L·D,H] for one sequence. By default, the learned one of a layer
            with `learn_initial_state`, else zero; a part of it that is None is zero.
        embedding : array [V,I], optional
            What the tokens x select rows of. By default they are one-hot: from 0 to I - 1.

        Returns
        -------
        y : ndarray [T,B,D·H], laid out as x is
            h of the last layer at every step, the directions side by side.
        state : as above
            After the last step, for a backward direction after the step at time 0.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit. The message names it, what was expected and what came.
        KeyboardInterrupt
            On Ctrl-C, between chunks of time.
        """
        y, last, _ = self._run(functional.inference, x, state, embedding)
        return y, last

    def forward(self, x: object, state: object = None, *, embedding: object = None) -> tuple[Array, State, Tape]:
        """Run over whole sequences and keep what `backward` needs; with dropout between layers.

        Takes and raises what a call of the layer does.

        Returns
        -------
        y, state
            As from a call of the layer; without dropout the same bits.
        tape : Tape
            For `backward`. It refers to x, y, the state, the parameters and the embedding and does not copy
            them: they must not change before the last backward.
        """
        return self._run(functional.forward, x, state, embedding)

    def backward(
        self,
        tape: Tape,
        dy: object = None,
        dstate: object = None,
        *,
        need_dx: bool = True,
        grads: dict[str, Array] | None = None,
    ) -> tuple[Array | None, State, dict[str, Array]]:
        """Backpropagate through time: the gradients of ``sum(dy * y) + sum(dstate * state)``.

        Parameters
        ----------
        tape : Tape
            From this layer's `forward`. It is only read: any number of backwards may use it.
        dy : array like y, optional
            The gradient of y, zero if None.
        dstate : array or pair of arrays like state, optional
            The gradient of the last state, dh or (dh, dc); zero where it or a part of it is None. At least
            one of dy and dstate is required.
        need_dx : bool, optional
            If False, dx is not computed and None is returned for it; nor is the gradient of an embedding.
        grads : dict of ndarrays, optional
            With the keys, shapes and dtype of `state_dict()`, and "embedding" where that has a gradient: the
            gradients are added into these arrays.

        Returns
        -------
        dx : ndarray like x, or None
            None for tokens.
        dstate0 : ndarray or pair of ndarrays like state
            The gradient of the initial state, dh0 or (dh0, dc0).
        grads : dict of ndarrays
            The gradients of the parameters, by the keys of `state_dict()`; `grads` itself if it was given. With
            an embedding, ``grads["embedding"]`` [V,I] is its gradient. That of a learned initial state is the sum
            of dstate0 over B, and zero if `forward` was given another state.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit. The message names it, what was expected and what came.
        KeyboardInterrupt
            On Ctrl-C, between chunks of time; `grads` is then part-way.
        """
        self._check_tape(tape)
        unbatched = tape.y.ndim == 2
        B = 1 if unbatched else tape.y.shape[0 if self.batch_first else 1]
        dx = None if dy is None else self._time_major(checked(dy, "dy", tape.y.shape, self.dtype), unbatched)
        dlast, dfirst = self._checked_state(dstate, "dstate", B, unbatched), self._new_state(B)
        others = {} if tape.embedding is None or not need_dx else {"embedding": tape.embedding}
        self._check_grads(grads, tape.x, tape.y, tape.state, tape.embedding, dx, dlast, **others)
        made: dict[str, Any] = {}
        for layer in reversed(range(self.num_layers)):
            dx, _, new = functional.backward(
                tape.kept[layer],
                dx,
                self._of_layer(dlast, layer),
                need_dx=need_dx or layer > 0,
                grads=None if grads is None else self._tuples(grads, layer),
                out=(None, self._of_layer(dfirst, layer)),
            )
            if layer and tape.masks:
                dx *= tape.masks[layer - 1]
            for suffix, arrays in zip(self._suffixes(layer), new, strict=True):
                made |= zip((name + suffix for name in PARAMETERS), arrays, strict=True)
        if grads is None:
            made |= {name: np.zeros_like(p) for name, p in self.parameters.items() if name in INITIAL}
            made |= dict.fromkeys(others, dx)
            grads = {name: made[name] for name in (*self.parameters, *others)}
        else:
            for name in others:
                grads[name] += dx
        if tape.learned:
            for name, part in zip(INITIAL, dfirst if isinstance(dfirst, tuple) else (dfirst,), strict=False):
                grads[name] += part.sum(axis=1)
        dx = None if dx is None or others else self._laid_out(dx, unbatched)
        return dx, each_part(_first_sequence, dfirst) if unbatched else dfirst, grads

    def stream(self, batch_size: int = 1) -> "Stream":
        """Make a `Stream`: sequences on their way through the layer, one step or some at a time.

        Parameters
        ----------
        batch_size : int, optional
            B, the number of sequences.

        Returns
        -------
        Stream
            At the initial state, with the present parameters: it packs them once and does not see later changes.

        Raises
        ------
        TypeError, ValueError
            If `batch_size` does not fit, or the layer is bidirectional.

        Examples
        --------
        >>> import numpy as np
        >>> import rnnfast
        >>> lstm = rnnfast.LSTM(3, 4, seed=0)
        >>> x = np.ones((5, 3), np.float32)
        >>> stream = lstm.stream()
        >>> steps = [stream.step(x_t) for x_t in x]
        >>> np.array_equal(steps, lstm(x)[0])
        True
        """
        from .stream import Stream

        return Stream(self, batch_size)

    def _run(self, run: Callable[..., Any], x: object, state: object, embedding: object) -> tuple[Array, State, Tape]:
        """Run each layer by `run`, a function of `functional`."""
        rows = None if embedding is None else _core.asarray(embedding, "embedding")
        x, unbatched = self._checked_x(x, rows)
        y = self._time_major(x, unbatched)
        B = y.shape[1]
        learned = state is None and self.learn_initial_state
        first = self._learned_state(B) if learned else self._checked_state(state, "state", B, unbatched)
        last = self._new_state(B)
        kept: list[Any] = []
        masks: list[Array] = []
        for layer in range(self.num_layers):
            if layer and self.dropout and run is functional.forward:
                masks.append(self._mask(y.shape))
                y = y * masks[-1]
            y, _, *tape = run(
                self.cell,
                y,
                self._tuples(self.parameters, layer),
                self._of_layer(first, layer),
                embedding=None if layer else rows,
                out=(None, self._of_layer(last, layer)),
            )
            kept += tape
        y = self._laid_out(y, unbatched)
        last = each_part(_first_sequence, last) if unbatched else last
        return y, last, Tape(self, x, y, first, tuple(kept), tuple(masks), learned, rows)

    def _suffixes(self, layer: int) -> list[str]:
        """Return the ends of the names of a layer's parameters, one for each direction."""
        return [f"_l{layer}", f"_l{layer}_reverse"][: self.directions]

    def _tuples(self, arrays: Mapping[str, Array], layer: int) -> list[tuple[Array | None, ...]]:
        """Return what a layer has of these arrays, as `functional` takes it."""
        return [tuple(arrays.get(name + suffix) for name in PARAMETERS) for suffix in self._suffixes(layer)]

    def _checked_x(self, x: object, embedding: Array | None) -> tuple[Array, bool]:
        """Return x, and whether it is one sequence."""
        x = _core.asarray(x, "x")
        tokens = embedding is not None or (x.dtype.kind in "iu" and x.ndim < 3)
        row = () if tokens else (self.input_size,)
        axes = x.ndim - len(row)
        if axes not in (1, 2) or x.shape[axes:] != row:
            batch, one = ("B, T" if self.batch_first else "T, B"), f"T, {row[0]}" if row else "T,"
            msg = f"x: expected shape ({', '.join((batch, *map(str, row)))}) or ({one}), got {x.shape}"
            raise ValueError(msg)
        return x, axes == 1

    def _time_major(self, a: Array, unbatched: bool) -> Array:
        """Return a view of the caller's `a` as [T,B,*]."""
        if unbatched:
            return a[:, None]
        return a.swapaxes(0, 1) if self.batch_first else a

    def _laid_out(self, a: Array, unbatched: bool) -> Array:
        """Return a view of a [T,B,*] as the caller has it: the inverse of `_time_major`."""
        if unbatched:
            return a[:, 0]
        return a.swapaxes(0, 1) if self.batch_first else a

    # A state is h or (h, c), each part [L·D,B,H]

    def _state(self, part: Callable[[str], Array]) -> Any:
        """Return a state made of what `part` gives for the name of each part."""
        h, c = INITIAL
        return (part(h), part(c)) if self.cell == "lstm" else part(h)

    def _state_shape(self, B: int) -> tuple[int, int, int]:
        return self.num_layers * self.directions, B, self.hidden_size

    def _new_state(self, B: int) -> Any:
        return self._state(lambda _: np.empty(self._state_shape(B), self.dtype))

    def _learned_state(self, B: int) -> Any:
        return self._state(lambda name: np.broadcast_to(self.parameters[name][:, None], self._state_shape(B)))

    def _checked_state(self, state: object, name: str, B: int, unbatched: bool) -> Any:
        split_state(self.cell, state, name)
        units, _, H = shape = self._state_shape(B)
        given = (units, H) if unbatched else shape
        return each_part(lambda part: checked(part, name, given, self.dtype).reshape(shape), state)

    def _of_layer(self, state: Any, layer: int) -> Any:
        D = self.directions
        return each_part(lambda part: part[layer * D : (layer + 1) * D], state)

    def _mask(self, shape: tuple[int, ...]) -> Array:
        """Draw the factors of inverted dropout: 0 with probability p, else 1 / (1 - p)."""
        kept = self.rng.random(shape, np.float32) >= self.dropout
        return kept.astype(self.dtype) * (1 / (1 - self.dropout) if self.dropout < 1 else 0)


def _first_sequence(a: Array) -> Array:
    return a[:, 0]


class LSTM(_Recurrent):
    """Long short-term memory [1]_ with a forget gate [2]_, as `torch.nn.LSTM`.

    Parameters
    ----------
    input_size : int
        I, the number of features of the input.
    hidden_size : int
        H, the number of units of each layer and direction.
    num_layers : int, optional
        L; each layer after the first reads the output of the one before.
    bias : bool, optional
        False: no b_ih and b_hh.
    batch_first : bool, optional
        True: x and y are [B,T,*] instead of [T,B,*]. States are not concerned.
    dropout : float, optional
        The probability with which `forward` zeroes each output of each layer but the last, scaling the others
        by 1 / (1 - dropout).
    bidirectional : bool, optional
        True: D = 2, a second direction runs backwards in time.
    dtype : {"float32", "float64"}, optional
        Of the parameters, and of all arrays that the layer takes and returns.
    seed : int, Generator or what `numpy.random.default_rng` takes, optional
        For the initial weights, U(-1/sqrt(H), 1/sqrt(H)), and the dropout. Both dtypes draw the same.
    learn_initial_state : bool, optional
        True: two more parameters, initial_h and initial_c [L·D,H], zero at first, are where sequences start
        for which no state is given.

    Attributes
    ----------
    weight_ih_l{k} : ndarray [4·H,I], for k > 0 [4·H,D·H]
    weight_hh_l{k} : ndarray [4·H,H]
    bias_ih_l{k}, bias_hh_l{k} : ndarray [4·H]
        Of layer k; those of its backward direction have the suffix ``_reverse``. The gates' order is i, f, g,
        o.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    References
    ----------
    .. [1] Hochreiter, Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997.
    .. [2] Gers, Schmidhuber, Cummins, "Learning to Forget: Continual Prediction with LSTM", Neural
       Computation 12(10), 2000.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> lstm = rnnfast.LSTM(28, 128, num_layers=2, bidirectional=True, seed=0)
    >>> x = np.zeros((50, 32, 28), np.float32)
    >>> y, (h, c) = lstm(x)
    >>> y.shape, h.shape, c.shape
    ((50, 32, 256), (4, 32, 128), (4, 32, 128))
    >>> y, (h, c), tape = lstm.forward(x)
    >>> dx, (dh0, dc0), grads = lstm.backward(tape, np.ones_like(y))
    >>> dx.shape, grads["weight_ih_l1_reverse"].shape
    ((50, 32, 28), (512, 256))

    Tokens are rows of an embedding:

    >>> tokens, embedding = np.zeros((50, 32), int), np.ones((1000, 28), np.float32)
    >>> y, (h, c), tape = lstm.forward(tokens, embedding=embedding)
    >>> dx, (dh0, dc0), grads = lstm.backward(tape, np.ones_like(y))
    >>> dx, grads["embedding"].shape
    (None, (1000, 28))
    """

    cell = "lstm"


class GRU(_Recurrent):
    """Gated recurrent units [1]_, as `torch.nn.GRU`.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        As for `LSTM`.
    dtype, seed
        As for `LSTM`.
    learn_initial_state : bool, optional
        As for `LSTM`, with the one parameter initial_h.
    reset_after : bool, optional
        Where the reset gate acts: on the recurrent product, as in torch (True), or before it on the state, as
        published (False).

    Attributes
    ----------
    weight_ih_l{k}, weight_hh_l{k}, bias_ih_l{k}, bias_hh_l{k} : ndarray
        As for `LSTM`, with three gates in the order r, z, n.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    References
    ----------
    .. [1] Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
       Translation", EMNLP 2014 (arXiv:1406.1078).

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> gru = rnnfast.GRU(3, 4, batch_first=True)
    >>> y, h = gru(np.zeros((2, 5, 3), np.float32))
    >>> y.shape, h.shape
    ((2, 5, 4), (1, 2, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: Any = "float32",
        seed: Any = None,
        learn_initial_state: bool = False,
        reset_after: bool = True,
    ) -> None:
        self.reset_after = flag(reset_after, "reset_after")
        self.cell = gru_cell(reset_after)
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype=dtype,
            seed=seed,
            learn_initial_state=learn_initial_state,
        )


class RNN(_Recurrent):
    """Elman network [1]_, as `torch.nn.RNN`.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As for `LSTM`.
    nonlinearity : {"tanh", "relu"}, optional
        The activation.
    bias, batch_first, dropout, bidirectional
        As for `LSTM`.
    dtype, seed
        As for `LSTM`.
    learn_initial_state : bool, optional
        As for `LSTM`, with the one parameter initial_h.

    Attributes
    ----------
    weight_ih_l{k}, weight_hh_l{k}, bias_ih_l{k}, bias_hh_l{k} : ndarray
        As for `LSTM`, without gates: [H,I], [H,H], [H], [H].

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    References
    ----------
    .. [1] Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> rnn = rnnfast.RNN(3, 4, nonlinearity="relu")
    >>> y, h = rnn(np.zeros((5, 3), np.float32))  # one sequence
    >>> y.shape, h.shape
    ((5, 4), (1, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: Any = "float32",
        seed: Any = None,
        learn_initial_state: bool = False,
    ) -> None:
        self.cell = elman_cell(nonlinearity)
        self.nonlinearity = nonlinearity
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype=dtype,
            seed=seed,
            learn_initial_state=learn_initial_state,
        )


class Linear(Module):
    """The readout ``y = x weight^T + bias``, as `torch.nn.Linear`.

    Parameters
    ----------
    in_features, out_features : int
        I and O.
    bias : bool, optional
        False: no bias.
    dtype : {"float32", "float64"}, optional
        Of the parameters, and of all arrays that the layer takes and returns.
    seed : int, Generator or what `numpy.random.default_rng` takes, optional
        For the initial weights, U(-1/sqrt(I), 1/sqrt(I)).

    Attributes
    ----------
    weight : ndarray [O,I]
    bias : ndarray [O] or None

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> readout = rnnfast.Linear(4, 2)
    >>> y, tape = readout.forward(np.ones((5, 3, 4), np.float32))
    >>> dx, grads = readout.backward(tape, np.ones_like(y))
    >>> y.shape, dx.shape, grads["bias"]
    ((5, 3, 2), (5, 3, 4), array([15., 15.], dtype=float32))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        self.in_features = size(in_features, "in_features")
        self.out_features = size(out_features, "out_features")
        addressable(self.out_features * (self.in_features + 1), "in_features, out_features")
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        if flag(bias, "bias"):
            shapes["bias"] = (self.out_features,)
        else:
            self.bias = None
        super().__init__(shapes, self.in_features, dtype, seed)

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "bias": "bias" in self.parameters}

    def __call__(self, x: object) -> Array:
        """Return ``x weight^T + bias``.

        Parameters
        ----------
        x : array [..., I]

        Returns
        -------
        y : ndarray [..., O]

        Raises
        ------
        TypeError, ValueError
            If x does not fit.
        """
        return functional.linear(x, self.weight, self.bias)

    def forward(self, x: object) -> tuple[Array, Tape]:
        """Return y and the tape for `backward`, which refers to x and the parameters and does not copy them.

        Takes and raises what a call of the layer does.
        """
        x = _core.asarray(x, "x")
        y = self(x)
        return y, Tape(self, x, y)

    def backward(
        self, tape: Tape, dy: object, *, need_dx: bool = True, grads: dict[str, Array] | None = None
    ) -> tuple[Array | None, dict[str, Array]]:
        """Return the gradients of ``sum(dy * y)``.

        Parameters
        ----------
        tape : Tape
            From this layer's `forward`.
        dy : array [..., O]
            The gradient of y.
        need_dx : bool, optional
            If False, dx is not computed and None is returned for it.
        grads : dict of ndarrays, optional
            With the keys, shapes and dtype of `state_dict()`: the gradients are added into these arrays.

        Returns
        -------
        dx : ndarray [..., I] or None
        grads : dict of ndarrays
            By the keys of `state_dict()`; `grads` itself if it was given.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit.
        """
        self._check_tape(tape)
        dy = checked(dy, "dy", tape.y.shape, self.dtype)
        self._check_grads(grads, tape.x, tape.y, dy)
        given = None if grads is None else (grads["weight"], grads.get("bias"))
        dx, new = functional.linear_backward(tape.x, self.weight, self.bias, dy, need_dx=need_dx, grads=given)
        made = {name: d for name, d in zip(("weight", "bias"), new, strict=True) if d is not None}
        return dx, made if grads is None else grads
