"""Recurrent layers with the constructors, parameter names and shapes of torch's, and the sLSTM.

Sizes are T time steps, B sequences, I inputs, H hidden units, L layers and D directions. The equations and
the order of the gates are in `rnnfast.functional`.
"""

from typing import Any, Literal

from ._base.arrays import Array
from ._base.bounds import bounds_of
from ._base.layer_norm import LayerNorm, norm_of
from ._base.leak import Leak, leak_of
from ._base.names import elman_cell, gru_cell, lstm_cell, slstm_cell
from ._base.precision import Precision
from ._base.scalars import Flag, Integer, Number, count, flag, head_count
from ._base.state import FourStates
from ._stack.options import WeightDropout, Zoneout
from ._stack.recurrent import Recurrent
from .linear import Linear as Linear  # where it was once

__all__ = ["GRU", "LSTM", "RNN", "SLSTM", "Linear"]


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
        the others by 1 / (1 - weight_dropout) [6]_ [7]_. Each call draws one mask for all of its steps and sequences.
    recurrent_dropout : float, optional
        The probability, less than 1, with which `forward` leaves out each element of h' in the recurrent product,
        scaling the others by 1 / (1 - recurrent_dropout) [8]_. Each sequence of a call has a mask for all of its steps.
    recurrent_dropout_per_gate : bool, optional
        True: each gate has a mask of its own, as in Keras.
    candidate_dropout : float, optional
        The probability, less than 1, with which `forward` leaves out each unit of the candidate g where it meets c,
        scaling the others by 1 / (1 - candidate_dropout) [10]_. Each step of each sequence has a mask of its own.
    candidate_dropout_per_sequence : bool, optional
        True: each sequence of a call has one mask for all of its steps.
    zoneout : float or (float, float), optional
        The probability, less than 1, with which `forward` lets a unit of a state keep the value that it had before a
        step [9]_: that of h and c alike, or of h and of c. Each call draws it for every unit, step and sequence. Calls
        of the layer and streams have the mean, ``zoneout s' + (1 - zoneout) s``. Not with `proj_size`.
    peephole : bool, optional
        True: the gates see c, each unit its own [3]_: i and f the one before the step, o the one after it.
    coupled_gates : bool, optional
        True: f = 1 - i, and there are three gates [4]_.
    proj_size : int, optional
        P, less than H: h is a projection to P elements, ``W_hr (o * tanh(c))``, in the state, the output and the
        recurrent product [5]_. By default, 0, there is none, and P is H.
    layer_norm : {"inside", "carried"}, optional
        The products ``W_ih x`` and ``W_hh h'`` of a step are normalised, each over all gates, before gains and biases
        [11]_, and so is c, between the tanh of h and the step ("inside"), or as the step hands it on ("carried"). Not
        with `peephole`, `coupled_gates` or `proj_size`.
    layer_norm_eps : float, optional
        What is added to the variances that these are divided by the roots of, above 0.
    precision : {"full", "bfloat16"}, optional
        "bfloat16": the factors of products, x, h, weights and the gradients of gates, are rounded to bfloat16 in calls,
        `forward` and `backward`; sums, states and gradients are float32. By default as `set_precision` says. Needs a
        processor with AVX512_BF16, float32, and no `layer_norm`.

    Attributes
    ----------
    weight_ih_l{k} : ndarray [4·H,I], for k > 0 [4·H,D·P]
    weight_hh_l{k} : ndarray [4·H,P]
    bias_ih_l{k}, bias_hh_l{k} : ndarray [4·H]
        Of layer k; those of its backward direction have the suffix ``_reverse``. The gates' order is i, f, g,
        o; with `coupled_gates` there are three, i, g, o.
    peephole_l{k} : ndarray [3·H]
        With `peephole`, the vectors p_i, p_f, p_o; with `coupled_gates` [2·H], p_i, p_o.
    weight_hr_l{k} : ndarray [P,H]
        With `proj_size`, the projection.
    gain_ih_l{k}, gain_hh_l{k} : ndarray [4·H]
        With `layer_norm`, what the normalised products are multiplied by; ones at first.
    gain_c_l{k}, bias_c_l{k} : ndarray [H]
        With `layer_norm`, those of c; ones and zeros at first. Without `bias` there is no bias_c.

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
    .. [5] Sak, Senior, Beaufays, "Long Short-Term Memory Recurrent Neural Network Architectures for Large Scale
       Acoustic Modeling", Interspeech 2014.
    .. [6] Wan, Zeiler, Zhang, LeCun, Fergus, "Regularization of Neural Networks using DropConnect", ICML 2013.
    .. [7] Merity, Keskar, Socher, "Regularizing and Optimizing LSTM Language Models", arXiv:1708.02182, 2017.
    .. [8] Gal, Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural Networks",
       arXiv:1512.05287, 2016.
    .. [9] Krueger et al., "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations", arXiv:1606.01305,
       2016.
    .. [10] Semeniuta, Severyn, Barth, "Recurrent Dropout without Memory Loss", arXiv:1603.05118, 2016.
    .. [11] Ba, Kiros, Hinton, "Layer Normalization", arXiv:1607.06450, 2016.

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

    With a projection h is smaller than c:

    >>> y, (h, c) = rnnfast.LSTM(28, 128, proj_size=32)(x)
    >>> y.shape, h.shape, c.shape
    ((50, 32, 32), (1, 32, 32), (1, 32, 128))
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
        recurrent_dropout: Number = 0.0,
        recurrent_dropout_per_gate: Flag = False,
        candidate_dropout: Number = 0.0,
        candidate_dropout_per_sequence: Flag = False,
        zoneout: Zoneout = 0.0,
        peephole: Flag = False,
        coupled_gates: Flag = False,
        proj_size: Integer = 0,
        layer_norm: LayerNorm | None = None,
        layer_norm_eps: Number = 1e-5,
        precision: Precision | None = None,
    ) -> None:
        self.peephole = flag(peephole, "peephole")
        self.coupled_gates = flag(coupled_gates, "coupled_gates")
        others = {
            "peephole": self.peephole,
            "coupled_gates": self.coupled_gates,
            "proj_size": count(proj_size, "proj_size") > 0,
        }
        self.layer_norm = norm_of(layer_norm, ("inside", "carried"), others)
        self.cell = lstm_cell(self.peephole, self.coupled_gates, self.layer_norm)
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
            proj_size=proj_size,
            weight_dropout=weight_dropout,
            recurrent_dropout=recurrent_dropout,
            recurrent_dropout_per_gate=recurrent_dropout_per_gate,
            candidate_dropout=candidate_dropout,
            candidate_dropout_per_sequence=candidate_dropout_per_sequence,
            zoneout=zoneout,
            layer_norm_eps=layer_norm_eps,
            precision=precision,
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
    recurrent_dropout, recurrent_dropout_per_gate
        As for `LSTM`; z * h' has h' itself.
    candidate_dropout, candidate_dropout_per_sequence
        As for `LSTM`, of the candidate n where it meets h.
    zoneout : float, optional
        As for `LSTM`, of h.
    reset_after : bool, optional
        Where the reset gate acts: on the recurrent product, as in torch (True), or before it on the state, as
        published (False).
    layer_norm : "inside", optional
        As for `LSTM`: the two products are normalised. Not with ``reset_after=False``.
    layer_norm_eps : float, optional
        As for `LSTM`.
    precision : {"full", "bfloat16"}, optional
        As for `LSTM`.

    Attributes
    ----------
    weight_ih_l{k}, weight_hh_l{k}, bias_ih_l{k}, bias_hh_l{k} : ndarray
        As for `LSTM`, with three gates in the order r, z, n.
    gain_ih_l{k}, gain_hh_l{k} : ndarray [3·H]
        As for `LSTM`.

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
        recurrent_dropout: Number = 0.0,
        recurrent_dropout_per_gate: Flag = False,
        candidate_dropout: Number = 0.0,
        candidate_dropout_per_sequence: Flag = False,
        zoneout: Number = 0.0,
        reset_after: Flag = True,
        layer_norm: Literal["inside"] | None = None,
        layer_norm_eps: Number = 1e-5,
        precision: Precision | None = None,
    ) -> None:
        self.reset_after = flag(reset_after, "reset_after")
        self.layer_norm = norm_of(layer_norm, ("inside",), {"reset_after=False": not self.reset_after})
        self.cell = gru_cell(self.reset_after, self.layer_norm)
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
            recurrent_dropout=recurrent_dropout,
            recurrent_dropout_per_gate=recurrent_dropout_per_gate,
            candidate_dropout=candidate_dropout,
            candidate_dropout_per_sequence=candidate_dropout_per_sequence,
            zoneout=zoneout,
            layer_norm_eps=layer_norm_eps,
            precision=precision,
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
    recurrent_dropout, recurrent_dropout_per_gate
        As for `LSTM`.
    zoneout : float, optional
        As for `LSTM`, of h.
    leak : float or array [H], optional
        How much of a unit is new at each step, above 0 and up to 1: ``h = (1 - leak) h' + leak f``, where f is what
        the unit would be without. The same in all layers and directions. It is no parameter: optimizers leave it
        alone. (`functional.backward` returns its gradient.)
    precision : {"full", "bfloat16"}, optional
        As for `LSTM`.

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
        recurrent_dropout: Number = 0.0,
        recurrent_dropout_per_gate: Flag = False,
        zoneout: Number = 0.0,
        leak: Leak = 1.0,
        precision: Precision | None = None,
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
            recurrent_dropout=recurrent_dropout,
            recurrent_dropout_per_gate=recurrent_dropout_per_gate,
            zoneout=zoneout,
            precision=precision,
        )


class SLSTM(Recurrent[FourStates]):
    """Scalar LSTM with exponential gates and a normalizer, sLSTM [1]_.

    Its state is ``(h, c, n, m)``: c is a sum of candidates z, weighted by the input gates and the forget gates since, n
    is the sum of the weights, and m is the logarithm of a scale that both share. With ``i, f, z, o`` before their
    functions written as a_i, a_f, a_z, a_o and ``'`` for the step before::

        l = m' + log sigmoid(a_f)                    forget_gate="sigmoid"
        l = m' + a_f                                 forget_gate="exp"
        m = a_i where n' = 0, else max(a_i, l)
        i = exp(a_i - m)    f = exp(l - m)    z = tanh(a_z)    o = sigmoid(a_o)
        c = f c' + i z
        n = f n' + i
        h = o c / n

    Nothing overflows: i and f are at most 1 once there is a state, and the gates may be as large as 1e4 and more.

    Parameters
    ----------
    input_size, hidden_size : int
        As for `LSTM`.
    num_heads : int, optional
        Into how many heads the units are divided. Those of a head read the h' of the same head alone: w_hh is
        block-diagonal. It divides H.
    num_layers, bias, batch_first, dropout, bidirectional
        As for `LSTM`.
    dtype, seed
        As for `LSTM`.
    learn_initial_state : bool, optional
        As for `LSTM`, with the four parameters initial_h, initial_c, initial_n and initial_m.
    weight_dropout : float or ("rows", float), optional
        As for `LSTM`.
    forget_gate : {"sigmoid", "exp"}, optional
        The function of the forget gate.
    min_n : float, optional
        What n is at least: ``n = max(f n' + i, min_n)``. By default it has no bound.
    clamp_gates : bool, optional
        True: i and f are at most 1 also where n' = 0, where f is at most 2**64 otherwise. Results differ only from a
        state with n = 0 and another c, and in the gradient of a zero initial state.

    Attributes
    ----------
    weight_ih_l{k} : ndarray [4·H,I], for k > 0 [4·H,D·H]
    weight_hh_l{k} : ndarray [4·H,H/num_heads]
        Row j of each gate meets the h' of the head of unit j.
    bias_ih_l{k}, bias_hh_l{k} : ndarray [4·H]
        The gates' order is i, f, z, o.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    `backward` returns the exact gradient, that by way of m included: dm of the last state counts, and dm of the initial
    one comes back. Where n' = 0, it is that of the equations with m = a_i. Of the gates, z and o can be held by
    `gate_override`; i and f are what they are on the scale of m alone.

    References
    ----------
    .. [1] Beck et al., "xLSTM: Extended Long Short-Term Memory", arXiv:2405.04517, 2024.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> slstm = rnnfast.SLSTM(16, 32, num_heads=4)
    >>> y, (h, c, n, m), tape = slstm.forward(np.zeros((50, 8, 16), np.float32))
    >>> y.shape, m.shape, slstm.weight_hh_l0.shape
    ((50, 8, 32), (1, 8, 32), (128, 8))
    >>> dx, (dh0, dc0, dn0, dm0), grads = slstm.backward(tape, np.ones_like(y))
    >>> dx.shape, dm0.shape
    ((50, 8, 16), (1, 8, 32))
    """

    initial_c: Array
    initial_n: Array
    initial_m: Array

    def __init__(
        self,
        input_size: Integer,
        hidden_size: Integer,
        num_heads: Integer = 1,
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
        forget_gate: str = "sigmoid",
        min_n: Number | None = None,
        clamp_gates: Flag = False,
    ) -> None:
        self.num_heads = head_count(num_heads, hidden_size)
        self.cell = slstm_cell(forget_gate)
        self.forget_gate = str(forget_gate)
        self.min_n, self.clamp_gates, self.fixed = bounds_of(min_n, clamp_gates, hidden_size, dtype)
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
