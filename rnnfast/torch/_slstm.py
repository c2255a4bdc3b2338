"""The sLSTM, which torch lacks."""

import math
from typing import Any

import torch
from torch import Tensor

from .._base.bounds import bounds_of
from .._base.names import BIASES, WEIGHTS, ends_of, recurrent_shapes, slstm_cell
from .._base.scalars import flag, head_count, number, size
from .._base.state import STATES
from ._modules import MODES, Recurrent

MODES["SLSTM"], MODES["SLSTM_EXP"] = "slstm", "slstm_exp"


class _Unfit(torch.nn.Module):  # type: ignore[misc]
    """What stands behind SLSTM where a class of `torch.nn` stands behind the others: errors for what does not fit."""

    def forward(self: Any, input: Any, hx: Any = None) -> Any:  # noqa: A002 (the name in torch)
        x = input[0] if isinstance(input, torch.nn.utils.rnn.PackedSequence) else input
        if not isinstance(x, Tensor):
            msg = f"input: expected a Tensor or a PackedSequence, got {type(input).__name__}"
            raise TypeError(msg)
        dtype, shape = self.weight_ih_l0.dtype, tuple(x.shape)
        states = self._state_shapes(shape, None if x is input else input[1], len(STATES[MODES[self.mode]]))
        if not states:
            I = self.input_size
            msg = f"input: expected shape (T, B, {I}), (B, T, {I}) with batch_first or (T, {I}), T >= 1, got {shape}"
            raise ValueError(msg)
        parts = STATES[MODES[self.mode]]
        if x.dtype == dtype and (not isinstance(hx, tuple | list) or len(hx) != len(parts)):
            msg = f"hx: expected a tuple ({', '.join(parts)}), got {type(hx).__name__}"
            raise TypeError(msg)
        state = states[0]  # as all of them
        wrong = [t for t in hx or () if not isinstance(t, Tensor) or t.dtype != dtype or tuple(t.shape) != state]
        if x.dtype == dtype and wrong:
            t = wrong[0]
            given = f"{t.dtype} {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
            msg = f"hx: expected tensors {dtype} {state}, got {given}"
            raise ValueError(msg)
        msg = f"input: expected a tensor {dtype} on {self.weight_ih_l0.device}, got {x.dtype} on {x.device}"
        raise TypeError(msg)


class SLSTM(Recurrent, _Unfit):
    """The scalar LSTM with exponential gates [1]_ for torch; `rnnfast.SLSTM` has its equations.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    num_heads : int, optional
        The number of heads into which the units are divided; H must be a multiple of it.
    num_layers, bias, batch_first, dropout, bidirectional
        As for `torch.nn.LSTM`.
    forget_gate, min_n, clamp_gates
        As for `rnnfast.SLSTM`, keyword-only.
    device, dtype : optional
        Of the parameters.

    Attributes
    ----------
    weight_ih_l{k}, weight_hh_l{k}, bias_ih_l{k}, bias_hh_l{k} : Parameter
        Named and shaped as those of `rnnfast.SLSTM`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid. If the parameters are not float32 or float64 on the CPU, torch's operators compute
        step by step.

    References
    ----------
    .. [1] Beck et al., "xLSTM: Extended Long Short-Term Memory", arXiv:2405.04517, 2024.

    Examples
    --------
    >>> import torch
    >>> import rnnfast.torch
    >>> slstm = rnnfast.torch.SLSTM(16, 32, num_heads=4)
    >>> y, (h, c, n, m) = slstm(torch.zeros(50, 8, 16))
    >>> y.shape, m.shape
    (torch.Size([50, 8, 32]), torch.Size([1, 8, 32]))
    >>> slstm
    SLSTM(16, 32, num_heads=4)
    """

    bounds: Tensor
    proj_size = 0

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_heads: int = 1,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        forget_gate: str = "sigmoid",
        min_n: float | None = None,
        clamp_gates: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = size(input_size, "input_size"), size(hidden_size, "hidden_size")
        self.num_heads = head_count(num_heads, hidden_size)
        self.num_layers, self.bias = size(num_layers, "num_layers"), flag(bias, "bias")
        self.batch_first, self.bidirectional = flag(batch_first, "batch_first"), flag(bidirectional, "bidirectional")
        self.dropout = number(dropout, "dropout")
        if not 0 <= self.dropout <= 1:
            msg = f"dropout: expected a probability, got {self.dropout}"
            raise ValueError(msg)
        self.mode = slstm_cell(forget_gate).upper()
        self.forget_gate = forget_gate
        self.min_n, self.clamp_gates, fixed = bounds_of(min_n, clamp_gates, hidden_size, "float64")
        made: dict[str, Any] = {"device": device, "dtype": dtype or torch.get_default_dtype()}
        self.register_buffer("bounds", torch.tensor(fixed["bounds"], **made), persistent=False)
        self._flat_weights_names: list[str] = []
        D = 1 + self.bidirectional
        for k in range(self.num_layers):
            I = D * self.hidden_size if k else self.input_size
            shapes = recurrent_shapes(MODES[self.mode], I, self.hidden_size, self.bias, heads=self.num_heads)
            own = [*WEIGHTS, *(BIASES if self.bias else ())]
            for end in ends_of(k, D):
                for name in own:
                    self.register_parameter(name + end, torch.nn.Parameter(torch.empty(shapes[name], **made)))
                self._flat_weights_names += [*(name + end for name in own), "bounds"]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew, U(-1/sqrt(H), 1/sqrt(H))."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            torch.nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        """Return the constructor's arguments, without what is at its default."""
        defaults = {
            "num_heads": 1,
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
            "forget_gate": "sigmoid",
            "min_n": None,
            "clamp_gates": False,
        }
        others = [f"{name}={getattr(self, name)!r}" for name, value in defaults.items() if getattr(self, name) != value]
        return ", ".join([str(self.input_size), str(self.hidden_size), *others])
