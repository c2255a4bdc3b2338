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
from ._base.scalars import RNG, Flag, Integer, Number, count, flag, head_count
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
        L, the number of layers; each layer after the first reads the output of the one before.
    bias : bool, optional
        If False, there are no b_ih and b_hh.
    batch_first : bool, optional
        If True, x and y are [B,T,*] instead of [T,B,*]. States are not affected.
    dropout : float, optional
        The probability with which `forward` drops each output of each layer except the last. The others are scaled by 1
        / (1 - dropout).
    bidirectional : bool, optional
        If True, D = 2, and a second direction runs backwards in time.
    dtype : {"float32", "float64"}, optional
        The dtype of the parameters, and of all arrays that the layer takes and returns.
    rng : int, Generator or what `numpy.random.default_rng` takes, optional
        For the initial weights, U(-1/sqrt(H), 1/sqrt(H)), and the dropout. Both dtypes draw the same. A generator
        that is passed to several layers continues from one to the next.
    seed : as `rng`, optional
        Its older name.
    learn_initial_state : bool, optional
        If True, sequences without a given state start from two more parameters, initial_h and initial_c [L·D,H], which
        are initially zero.
    weight_dropout : float or ("rows", float), optional
        The probability, less than 1, with which `forward` drops each element of every w_hh, or each row [6]_ [7]_. The
        others are scaled by 1 / (1 - weight_dropout). Each call draws one mask for all of its steps and sequences.
    recurrent_dropout : float, optional
        The probability, less than 1, with which `forward` drops each element of h' in the recurrent product [8]_. The
        others are scaled by 1 / (1 - recurrent_dropout). Each sequence of a call has one mask for all of its steps.
    recurrent_dropout_per_gate : bool, optional
        If True, each gate has its own mask, as in Keras.
    candidate_dropout : float, optional
        The probability, less than 1, with which `forward` drops each unit of the candidate g before it is added to c
        [10]_. The others are scaled by 1 / (1 - candidate_dropout). Each step of each sequence has its own mask.
    candidate_dropout_per_sequence : bool, optional
        If True, each sequence of a call has one mask for all of its steps.
    zoneout : float or (float, float), optional
        The probability, less than 1, with which `forward` lets a unit of a state keep its value from before the step
        [9]_: one number for both h and c, or one for each. Each call draws masks for every unit, step and sequence.
        Plain calls of the layer and streams use the mean, ``zoneout s' + (1 - zoneout) s``. Not with `proj_size`.
    peephole : bool, optional
        If True, the gates of each unit also read its c [3]_: i and f the c before the step, o the c after it.
    coupled_gates : bool, optional
        If True, f = 1 - i, and there are three gates [4]_.
    proj_size : int, optional
        P, less than H. In the state, the output and the recurrent product, h is a projection to P elements, ``W_hr (o *
        tanh(c))`` [5]_. By default, 0, there is no projection, and P is H.
    layer_norm : {"inside", "carried"}, optional
        The products ``W_ih x`` and ``W_hh h'`` of a step are normalised before gains and biases are applied, each over
        all gates [11]_. c is normalised as well, either only inside the tanh of h ("inside"), or so that the next step
        reads the normalised c ("carried"). Not with `peephole`, `coupled_gates` or `proj_size`.
    layer_norm_eps : float, optional
        A positive number that is added to variances before their square root is taken.
    precision : {"full", "bfloat16"}, optional
        With "bfloat16", the factors of products (x, h, weights and the gradients of gates) are rounded to bfloat16 in
        calls, `forward` and `backward`; sums, states and gradients are float32. The default is that of `set_precision`.
        It needs a processor with AVX512_BF16 and float32, and cannot be combined with `layer_norm`.

    Attributes
    ----------
    weight_ih_l{k} : ndarray [4·H,I], for k > 0 [4·H,D·P]
    weight_hh_l{k} : ndarray [4·H,P]
    bias_ih_l{k}, bias_hh_l{k} : ndarray [4·H]
        The parameters of layer k; those of its backward direction have the suffix ``_reverse``. The order of the gates
        is i, f, g, o; with `coupled_gates` it is i, g, o.
    peephole_l{k} : ndarray [3·H]
        With `peephole`, the vectors p_i, p_f, p_o; with `coupled_gates` [2·H], p_i, p_o.
    weight_hr_l{k} : ndarray [P,H]
        With `proj_size`, the projection.
    gain_ih_l{k}, gain_hh_l{k} : ndarray [4·H]
        With `layer_norm`, the gains of the normalised products; initially ones.
    gain_c_l{k}, bias_c_l{k} : ndarray [H]
        With `layer_norm`, the gain and bias of c; initially ones and zeros. Without `bias` there is no bias_c.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

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
    >>> lstm = rnnfast.LSTM(28, 128, num_layers=2, bidirectional=True, rng=0)
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
        rng: RNG | None = None,
        seed: RNG | None = None,
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
            rng=rng,
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
    dtype, rng, seed
        As for `LSTM`.
    learn_initial_state : bool, optional
        As for `LSTM`, with the one parameter initial_h.
    weight_dropout : float or ("rows", float), optional
        As for `LSTM`.
    recurrent_dropout, recurrent_dropout_per_gate
        As for `LSTM`; the h' in z * h' is not affected.
    candidate_dropout, candidate_dropout_per_sequence
        As for `LSTM`, for the candidate n before it is added to h.
    zoneout : float, optional
        As for `LSTM`, of h.
    reset_after : bool, optional
        If True, the reset gate acts on the recurrent product, as in torch. If False, it acts on the state before the
        product, as published.
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
        If an argument is invalid.

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
        rng: RNG | None = None,
        seed: RNG | None = None,
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
            rng=rng,
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
    """Elman network [1]_, as `torch.nn.RNN`, or with leaky units [2]_.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As for `LSTM`.
    nonlinearity : {"tanh", "relu"}, optional
        The activation.
    bias, batch_first, dropout, bidirectional
        As for `LSTM`.
    dtype, rng, seed
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
        The fraction of a unit that is updated at each step, above 0 and at most 1: ``h = (1 - leak) h' + leak f``,
        where f is the h of a plain RNN. It is the same in all layers and directions, and it is not a parameter:
        optimizers do not change it. `functional.backward` returns its gradient.
    precision : {"full", "bfloat16"}, optional
        As for `LSTM`.

    Attributes
    ----------
    weight_ih_l{k}, weight_hh_l{k}, bias_ih_l{k}, bias_hh_l{k} : ndarray
        As for `LSTM`, without gates: [H,I], [H,H], [H], [H].

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

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
        rng: RNG | None = None,
        seed: RNG | None = None,
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
            rng=rng,
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

    Its state is ``(h, c, n, m)``: c is a sum of candidates z, weighted by the input gates and by the later forget
    gates, n is the sum of these weights, and m is the logarithm of a scale that both share. a_i, a_f, a_z, a_o are the
    pre-activations of the gates, and ``'`` marks the step before::

        l = m' + log sigmoid(a_f)                    forget_gate="sigmoid"
        l = m' + a_f                                 forget_gate="exp"
        m = a_i where n' = 0, else max(a_i, l)
        i = exp(a_i - m)    f = exp(l - m)    z = tanh(a_z)    o = sigmoid(a_o)
        c = f c' + i z
        n = f n' + i
        h = o c / n

    Nothing overflows: i and f are at most 1 once n is not zero, even if pre-activations are 1e4 and more.

    Parameters
    ----------
    input_size, hidden_size : int
        As for `LSTM`.
    num_heads : int, optional
        The number of heads into which the units are divided; H must be a multiple of it. The units of a head read only
        the h' of the same head, so w_hh is block-diagonal.
    num_layers, bias, batch_first, dropout, bidirectional
        As for `LSTM`.
    dtype, rng, seed
        As for `LSTM`.
    learn_initial_state : bool, optional
        As for `LSTM`, with the four parameters initial_h, initial_c, initial_n and initial_m.
    weight_dropout : float or ("rows", float), optional
        As for `LSTM`.
    forget_gate : {"sigmoid", "exp"}, optional
        The activation of the forget gate.
    min_n : float, optional
        The minimum of n: ``n = max(f n' + i, min_n)``. By default there is none.
    clamp_gates : bool, optional
        If True, i and f are at most 1 even where n' = 0; otherwise f is at most 2**64 there. This affects results only
        for a state with n = 0 and a nonzero c, and the gradient of a zero initial state.

    Attributes
    ----------
    weight_ih_l{k} : ndarray [4·H,I], for k > 0 [4·H,D·H]
    weight_hh_l{k} : ndarray [4·H,H/num_heads]
        Row j of each gate is multiplied by the h' of the head of unit j.
    bias_ih_l{k}, bias_hh_l{k} : ndarray [4·H]
        The order of the gates is i, f, z, o.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    Notes
    -----
    `backward` returns the exact gradient, including the part through m: it takes dm of the last state into account, and
    returns dm of the initial state. Where n' = 0, it is the gradient of the equations with m = a_i. `gate_override` can
    fix the gates z and o, but not i and f, whose values depend on the scale m.

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
        rng: RNG | None = None,
        seed: RNG | None = None,
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
            rng=rng,
            seed=seed,
            learn_initial_state=learn_initial_state,
            weight_dropout=weight_dropout,
        )
