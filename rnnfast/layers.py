"""Recurrent layers with the constructors, parameter names and shapes of torch's, and a linear readout.

Sizes are T time steps, B sequences, I inputs, H hidden units, L layers and D directions. The equations and
the order of the gates are in `rnnfast.functional`.
"""

from typing import Any

from . import _core
from ._base.arrays import Array, ArrayLike, checked
from ._base.leak import Leak, leak_of
from ._base.module import Module, Tape, check_tape
from ._base.named import checked_grads
from ._base.names import elman_cell, gru_cell, lstm_cell
from ._base.scalars import Flag, Integer, Number, addressable, flag, size
from ._stack.recurrent import Recurrent
from ._stack.stack import WeightDropout

__all__ = ["GRU", "LSTM", "RNN", "Linear"]


class LSTM(Recurrent[tuple[Array, Array]]):
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
    weight_dropout : float or ("rows", float), optional
        The probability, less than 1, with which `forward` leaves out each element of every w_hh, or each row, scaling
        the others by 1 / (1 - weight_dropout) [5]_ [6]_. Each call draws one mask for all of its steps and sequences.
    peephole : bool, optional
        True: the gates see c, each unit its own [3]_: i and f the one before the step, o the one after it.
    coupled_gates : bool, optional
        True: f = 1 - i, and there are three gates [4]_.

    Attributes
    ----------
    weight_ih_l{k} : ndarray [4·H,I], for k > 0 [4·H,D·H]
    weight_hh_l{k} : ndarray [4·H,H]
    bias_ih_l{k}, bias_hh_l{k} : ndarray [4·H]
        Of layer k; those of its backward direction have the suffix ``_reverse``. The gates' order is i, f, g,
        o; with `coupled_gates` there are three, i, g, o.
    peephole_l{k} : ndarray [3·H]
        With `peephole`, the vectors p_i, p_f, p_o; with `coupled_gates` [2·H], p_i, p_o.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    References
    ----------
    .. [1] Hochreiter, Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997.
    .. [2] Gers, Schmidhuber, Cummins, "Learning to Forget: Continual Prediction with LSTM", Neural
       Computation 12(10), 2000.
    .. [3] Gers, Schraudolph, Schmidhuber, "Learning Precise Timing with LSTM Recurrent Networks", Journal of
       Machine Learning Research 3, 2002.
    .. [4] Greff, Srivastava, Koutník, Steunebrink, Schmidhuber, "LSTM: A Search Space Odyssey",
       arXiv:1503.04069, 2015.
    .. [5] Wan, Zeiler, Zhang, LeCun, Fergus, "Regularization of Neural Networks using DropConnect", ICML 2013.
    .. [6] Merity, Keskar, Socher, "Regularizing and Optimizing LSTM Language Models", arXiv:1708.02182, 2017.

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

    initial_c: Array

    def __init__(
        self,
        input_size: Integer,
        hidden_size: Integer,
        num_layers: Integer = 1,
        bias: Flag = True,
        batch_first: Flag = False,
        dropout: Number = 0.0,
        bidirectional: Flag = False,
        *,
        dtype: Any = "float32",
        seed: Any = None,
        learn_initial_state: Flag = False,
        weight_dropout: WeightDropout = 0.0,
        peephole: Flag = False,
        coupled_gates: Flag = False,
    ) -> None:
        self.peephole = flag(peephole, "peephole")
        self.coupled_gates = flag(coupled_gates, "coupled_gates")
        self.cell = lstm_cell(self.peephole, self.coupled_gates)
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
            weight_dropout=weight_dropout,
        )


class GRU(Recurrent[Array]):
    """Gated recurrent units [1]_, as `torch.nn.GRU`.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        As for `LSTM`.
    dtype, seed
        As for `LSTM`.
    learn_initial_state : bool, optional
        As for `LSTM`, with the one parameter initial_h.
    weight_dropout : float or ("rows", float), optional
        As for `LSTM`.
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
        input_size: Integer,
        hidden_size: Integer,
        num_layers: Integer = 1,
        bias: Flag = True,
        batch_first: Flag = False,
        dropout: Number = 0.0,
        bidirectional: Flag = False,
        *,
        dtype: Any = "float32",
        seed: Any = None,
        learn_initial_state: Flag = False,
        weight_dropout: WeightDropout = 0.0,
        reset_after: Flag = True,
    ) -> None:
        self.reset_after = flag(reset_after, "reset_after")
        self.cell = gru_cell(self.reset_after)
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
            weight_dropout=weight_dropout,
        )


class RNN(Recurrent[Array]):
    """Elman network [1]_, as `torch.nn.RNN`, or of leaky units [2]_.

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
    weight_dropout : float or ("rows", float), optional
        As for `LSTM`.
    leak : float or array [H], optional
        How much of a unit is new at each step, above 0 and up to 1: ``h = (1 - leak) h' + leak f``, where f is what
        the unit would be without. The same in all layers and directions. It is no parameter: optimizers leave it
        alone. (`functional.backward` returns its gradient.)

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
    .. [2] Jaeger, "The Echo State Approach to Analysing and Training Recurrent Neural Networks", GMD Report 148,
       2001.

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
        input_size: Integer,
        hidden_size: Integer,
        num_layers: Integer = 1,
        nonlinearity: str = "tanh",
        bias: Flag = True,
        batch_first: Flag = False,
        dropout: Number = 0.0,
        bidirectional: Flag = False,
        *,
        dtype: Any = "float32",
        seed: Any = None,
        learn_initial_state: Flag = False,
        weight_dropout: WeightDropout = 0.0,
        leak: Leak = 1.0,
    ) -> None:
        self.leak, self.fixed = leak_of(leak, hidden_size, dtype)
        self.cell = elman_cell(nonlinearity, bool(self.fixed))
        self.nonlinearity = str(nonlinearity)
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
            weight_dropout=weight_dropout,
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

    weight: Array
    bias: Array | None

    def __init__(
        self,
        in_features: Integer,
        out_features: Integer,
        bias: Flag = True,
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
        super().__init__(shapes.items(), self.in_features, dtype, seed)

    def __call__(self, x: ArrayLike) -> Array:
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
        return _core.linear(x, self.weight, self.bias)

    def forward(self, x: ArrayLike) -> tuple[Array, Tape]:
        """Return y and the tape for `backward`, which refers to x and the parameters and does not copy them.

        Takes and raises what a call of the layer does.
        """
        x = _core.asarray(x, "x", self.dtype)
        y = self(x)
        return y, Tape(self, x, y.view())

    def backward(
        self, tape: Tape, dy: ArrayLike, *, need_dx: Flag = True, grads: dict[str, Array] | None = None
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
        check_tape(tape, self)
        dy = checked(dy, "dy", tape.y.shape, self.dtype)
        into = checked_grads(grads, self.parameters, tape.x, tape.y, dy)
        given = None if into is None else (into["weight"], into.get("bias"))
        dx, new = _core.linear_backward(tape.x, self.weight, self.bias, dy, flag(need_dx, "need_dx"), given)
        made = {name: d for name, d in zip(("weight", "bias"), new, strict=True) if d is not None}
        return dx, made if grads is None else grads
