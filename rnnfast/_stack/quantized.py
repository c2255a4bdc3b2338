"""`Quantized`: a stack whose matrices have fewer bits, for inference.

Sizes are those of `Stack`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Never, cast

import numpy as np

from .. import _core
from .._base.arrays import Array
from .._base.formats import FLOAT, FORMATS, Format, KeptArrays, decoded, encoded, operands
from .._base.module import CLASSES, Kept, arguments_of, description_of, kind_of, words_of
from .._base.names import by_direction
from .._base.scalars import choice
from .._base.state import StateT
from .inference import Inference

MOST_COLUMNS = 65_536  # of a sum of products of 127 and 127 in 32 bits, with room to spare


class Quantized(Inference[StateT]):
    """A layer for inference whose matrices have fewer bits: what `layer.quantize` makes.

    It is called and streamed as the layer is, which it has the sizes, options and initial states of. It has no
    `forward` and no `backward`, and its arrays are read-only: to change it, change the layer and quantise that anew.
    The first call packs the weights, which takes as much memory again; later ones, of any thread, find them.

    ``"bfloat16"``: every element of weight_ih, weight_hh and weight_hr is rounded to 8 significant bits, to nearest
    even. Results are, bit for bit, those of the float32 layer with the rounded weights, which `dequantize` returns.

    ``"int8"`` [1]_: a matrix has integers q from -127 to 127 and a scale for each row, its largest magnitude / 127. A
    row a of x, or of h', is made integers by a scale of its own, the largest magnitude / 127, or 1/127 where the cell
    holds h between -1 and 1 (more where h0 goes beyond). A product is the sum of products of integers, exactly, times
    both scales; all else is float32. So results depend neither on the instruction set, but for the last digits of
    activations, nor on threads or other sequences.

    Parameters
    ----------
    layer : LSTM, GRU, RNN or SLSTM
        Of float32.
    format : {"bfloat16", "int8"}

    Attributes
    ----------
    format : str
    weight_ih_l{k}, weight_hh_l{k}, weight_hr_l{k} : ndarray of uint16 or int8
        As in the layer: the bits of bfloat16 numbers, or integers.
    weight_ih_l{k}_scale, .. : ndarray of float32
        Of int8, the scales of the rows.
    bias_ih_l{k}, .. : ndarray of float32
        Vectors and initial states are those of the layer.
    layer : dict
        The class and the constructor's arguments of the layer that this is made of.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or the layer has what the format lacks; see `Recurrent.quantize`.

    References
    ----------
    .. [1] Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
       Inference", CVPR 2018 (arXiv:1712.05877); without zero points.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> q = rnnfast.LSTM(3, 4, seed=0).quantize("int8")
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
        self.packed: dict[int, list[_core.PackedParameters]] = {}  # of layers that have been called
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

    def for_calls(self, layer: int, others: Mapping[str, Array] | None = None) -> list[Any]:  # noqa: ARG002
        """Return the parameters of a layer, packed: by the first call, for all others."""
        packed = self.packed.get(layer)
        if packed is None:  # threads that come here at once each pack, and one of them is first
            packed = self.packed.setdefault(layer, [_core.pack(self.cell, own) for own in self.of_layer(layer)])
        return packed

    def of_layer(self, layer: int, others: Mapping[str, Array] | None = None) -> list[tuple[Any, ...]]:  # noqa: ARG002
        """Return the parameters of a layer as the kernels take them."""
        directions = by_direction(self.operands, self.names_of(layer))
        return [self.with_fixed(arrays) for arrays in directions] if self.fixed else directions

    def dequantize(self) -> Inference[StateT]:
        """Return the float32 layer with the weights that this one's arrays stand for, of the class of the first one.

        Of bfloat16, it gives the bits of this layer. Of int8 it does not: there, activations are integers too. Type
        checkers learn the class by ``assert isinstance(layer, LSTM)``.
        """
        return self._made(Kept(decoded(self.parameters)))

    def forward(self, *_args: object, **_options: object) -> Never:
        """Refuse: there are no gradients with respect to weights of fewer bits."""
        msg = (
            f"forward: expected a layer to train, got {self!r}, which is for inference; its dequantize() can be trained"
        )
        raise TypeError(msg)

    def backward(self, *_args: object, **_options: object) -> Never:
        """Refuse, as `forward` does."""
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
