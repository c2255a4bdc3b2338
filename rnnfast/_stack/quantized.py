"""`Quantized`: a stack whose matrices have fewer bits, for inference.

Sizes are those of `Stack`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Never, cast

import numpy as np

from .. import _core
from .._base.arrays import Array
from .._base.formats import FLOAT, FORMATS, Format, KeptArrays, decoded, encoded, operands
from .._base.module import CLASSES, Kept, arguments_of, description_of, kind_of, with_fixed, words_of
from .._base.names import by_direction
from .._base.scalars import choice
from .._base.state import StateT
from .inference import Inference

MOST_COLUMNS = 65_536  # of a sum of products of 127 and 127 in 32 bits, with room to spare


class Quantized(Inference[StateT]):
    """A low-precision layer for inference, as returned by `layer.quantize`.

    It is called and streamed like the original layer, and has the same sizes, options and initial states. It has no
    `forward` and no `backward`, and its arrays are read-only: to change it, change the original layer and quantise that
    again. The first call packs the weights, which takes as much memory again; later calls, from any thread, reuse them.

    ``"bfloat16"``: every element of weight_ih, weight_hh and weight_hr is rounded to 8 significant bits, to nearest
    even. Results are, bit for bit, those of the float32 layer with the rounded weights, which `dequantize` returns.

    ``"int8"`` [1]_: a matrix consists of integers q from -127 to 127 and a scale for each row, its largest magnitude /
    127. Each row of x or h' is rounded to integers with its own scale: its largest magnitude / 127, or 1/127 if the
    cell keeps h between -1 and 1 (larger if h0 exceeds that). A product is the exact sum of products of integers, times
    both scales; everything else is float32. Results therefore do not depend on threads or on other sequences, and on
    the instruction set only in the last digits of activations.

    Parameters
    ----------
    layer : LSTM, GRU, RNN or SLSTM
        A float32 layer.
    format : {"bfloat16", "int8"}

    Attributes
    ----------
    format : str
    weight_ih_l{k}, weight_hh_l{k}, weight_hr_l{k} : ndarray of uint16 or int8
        As in the original layer: the bits of bfloat16 numbers, or integers.
    weight_ih_l{k}_scale, .. : ndarray of float32
        With int8, the scales of the rows.
    bias_ih_l{k}, .. : ndarray of float32
        Vectors and initial states, as in the original layer.
    layer : dict
        The class and the constructor's arguments of the original layer.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or the layer has what the format lacks; see `Recurrent.quantize`.

    References
    ----------
    .. [1] Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
       Inference", CVPR 2018 (arXiv:1712.05877); without zero points.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> q = rnnfast.LSTM(3, 4, rng=0).quantize("int8")
    >>> q
    LSTM(3, 4).quantize('int8')
    >>> y, (h, c) = q(np.ones((5, 2, 3), np.float32))
    >>> y.shape, q.weight_hh_l0.dtype, q.weight_hh_l0_scale.shape
    ((5, 2, 4), dtype('int8'), (16,))
    """

    kept_as = "kept"
    fan = None
    format: Format

    def __init__(
        self,
        layer: Inference[StateT] | Mapping[str, Any],
        format: Format,  # noqa: A002
        *,
        kept: Kept | None = None,
    ) -> None:
        self.format = cast("Format", choice(format, "format", FORMATS))
        if kept is None:
            given = _checked(layer, self.format)
            self.layer = _described(given)
            kept = Kept(encoded(given.parameters, self.format), given.rng)
        else:  # `layer` is a description
            self.layer = cast("dict[str, Any]", layer)
        # The sizes and options of the layer, and this one's arrays, are what its constructor makes of them.
        made = _checked(self._made(KeptArrays(kept.tensors, kept.rng, self.format)), self.format)
        self.layer = _described(made)  # with arguments as they are before a file
        vars(self).update({**vars(made), "fan": None})
        self._packed: dict[int, list[_core.PackedParameters]] = {}  # of layers that have been called
        self.operands = operands(self.parameters)

    def __repr__(self) -> str:
        """Return the call that makes such a layer."""
        kind, arguments = CLASSES[self.layer["class"]], self.layer["arguments"]
        return f"{kind.__name__}({words_of(kind, arguments)}).quantize({self.format!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and copy keep: of the layer's sizes and options, its arguments alone."""
        state = super().__getstate__()
        own = {name: a for name, a in state["attributes"].items() if name not in self.layer["arguments"]}
        return {**state, "attributes": own}

    if not TYPE_CHECKING:

        def __setattr__(self, name: str, value: object) -> None:
            if name != "parameters" or value is not self.parameters:  # a copy adds those of a user's class
                self._check_changeable(name)
            super().__setattr__(name, value)

        def __delattr__(self, name: str) -> None:
            self._check_changeable(name)
            super().__delattr__(name)

    def _check_changeable(self, name: str) -> None:
        own = vars(self)
        if "operands" in own and (name in own or name in self.parameters or hasattr(type(self), name)):
            msg = f"{name}: expected no assignment, as a quantised layer is read-only; quantise a layer that differs"
            raise AttributeError(msg, name=name, obj=self)

    def _for_calls(self, layer: int, others: Mapping[str, Array] | None = None) -> list[Any]:  # noqa: ARG002
        """Return the parameters of a layer, packed: by the first call, for all others."""
        packed = self._packed.get(layer)
        if packed is None:  # threads that come here at once each pack, and one of them is first
            packed = self._packed.setdefault(layer, [_core.pack(self.cell, own) for own in self.of_layer(layer)])
        return packed

    def of_layer(self, layer: int, others: Mapping[str, Array] | None = None) -> list[tuple[Any, ...]]:  # noqa: ARG002
        """Return the parameters of a layer as the kernels take them."""
        directions = by_direction(self.operands, self.names_of(layer))
        return [with_fixed(self, arrays) for arrays in directions] if self.fixed else directions

    def dequantize(self) -> Inference[StateT]:
        """Return a float32 layer of the original class, with the values that the quantised weights represent.

        With bfloat16, its results are bit for bit those of this layer. With int8 they are not, because this layer also
        rounds activations to integers. For type checkers, write ``assert isinstance(layer, LSTM)``.
        """
        return self._made(Kept(decoded(self.parameters)))

    def forward(self, *_args: object, **_options: object) -> Never:
        """Raise TypeError: quantised weights have no gradients."""
        msg = (
            f"forward: expected a layer to train, got {self!r}, which is for inference; its dequantize() can be trained"
        )
        raise TypeError(msg)

    def backward(self, *_args: object, **_options: object) -> Never:
        """Raise TypeError, as `forward` does."""
        msg = f"backward: expected a layer to train, got {self!r}, which is for inference"
        raise TypeError(msg)

    def _made(self, kept: Kept) -> Inference[StateT]:
        kind: Any = CLASSES[self.layer["class"]]
        made: Inference[StateT] = kind(**self.layer["arguments"], **{kind.kept_as: kept})
        return made


def _described(layer: Inference[Any]) -> dict[str, Any]:
    return {"class": kind_of(layer).__name__, "arguments": arguments_of(layer)}


def _checked(layer: Any, form: str) -> Inference[Any]:
    """Return a layer that has a form in the format."""
    if not isinstance(layer, Inference) or layer.format is not None:
        msg = f"layer: expected LSTM, GRU, RNN or SLSTM, got {type(layer).__name__}"
        raise TypeError(msg)
    if layer.dtype != FLOAT:
        msg = f"dtype: expected a layer of float32 to quantise, got {layer.dtype}"
        raise TypeError(msg)
    what = None
    if form == "int8":
        widest = max(layer.input_size, layer.hidden_size, layer.h_size * layer.directions)
        if "slstm" in layer.cell:
            what = "an SLSTM"
        elif layer.layer_norm is not None:
            what = f"a layer with layer_norm={layer.layer_norm!r}"
        elif widest > MOST_COLUMNS:
            what = f"a layer with matrices of {widest} columns"
    elif layer.num_heads > 1:
        what = f"a layer with num_heads={layer.num_heads}"
    if what is not None:
        msg = f"format: expected another one for {what}, got {form!r}"
        raise ValueError(msg)
    return layer


@description_of.register(Quantized)
def _(quantized: Quantized[Any]) -> dict[str, Any]:
    arguments = {
        name: a.tolist() if isinstance(a, np.ndarray) else a for name, a in quantized.layer["arguments"].items()
    }
    layer = {**quantized.layer, "arguments": arguments}
    return {"class": "Quantized", "arguments": {"layer": layer, "format": quantized.format}}
