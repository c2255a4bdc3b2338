"""`Recurrent`: the training of LSTM, GRU and RNN layers.

Sizes are T time steps, B sequences, I inputs, H hidden units, L layers and D directions. Arrays of h, y among them, and
of its gradients have P in place of H where h is a projection.
"""

from collections.abc import Mapping
from typing import Any, Literal, Unpack, overload

from .._base.arrays import Array, ArrayLike, Integers
from .._base.formats import Format
from .._base.module import check_tape
from .._base.packed import PackedSequence
from .._base.scalars import Flag, Integer, Number
from .._base.state import StateLike, StateT
from . import plain, segments, whole
from .backpropagation import backward
from .call import ForwardOptions, Outputs, Override, checked_call, results, with_masks
from .inference import Inference
from .quantized import Quantized
from .stack import drawing, is_masked
from .tape import LayerTape


class Recurrent(Inference[StateT]):
    """A stack of L recurrent layers of one cell, in D directions."""

    @overload
    def forward(
        self,
        x: PackedSequence,
        state: StateLike | None = None,
        *,
        outputs: Literal["all"] = "all",
        **options: Unpack[ForwardOptions],
    ) -> tuple[PackedSequence, StateT, LayerTape]: ...
    @overload
    def forward(
        self,
        x: PackedSequence,
        state: StateLike | None = None,
        *,
        outputs: Literal["last"],
        **options: Unpack[ForwardOptions],
    ) -> tuple[Array, StateT, LayerTape]: ...
    @overload
    def forward(
        self,
        x: ArrayLike,
        state: StateLike | None = None,
        *,
        outputs: Outputs = "all",
        **options: Unpack[ForwardOptions],
    ) -> tuple[Array, StateT, LayerTape]: ...
    def forward(
        self,
        x: ArrayLike | PackedSequence,
        state: StateLike | None = None,
        *,
        lengths: Integers | None = None,
        resets: ArrayLike | None = None,
        outputs: Outputs = "all",
        checkpoint: Integer | str | None = None,
        embedding: ArrayLike | None = None,
        gate_override: Override = None,
        masks: Mapping[str, ArrayLike] | None = None,
    ) -> tuple[Any, StateT, LayerTape]:
        """Run over whole sequences and keep what `backward` needs; with dropout of all kinds, and zoneout.

        Takes and raises what a call of the layer does, and

        Parameters
        ----------
        checkpoint : int or "auto", optional
            k: of k steps only one state is kept, and backward runs the others again, k at a time; k is rounded up to
            whole blocks of the sums of the weights' gradients, so that the gradients have the same bits, and to 1024
            rows (t, b), so that what each segment costs does not show. "auto" is the square root of T.
        masks : mapping of arrays of bools, or 0 and 1, optional
            For a layer with `weight_dropout`: which elements, in the shape of the parameter, or which rows [G·H] of the
            weight_hh_l{k} are kept, by the names of these. With `recurrent_dropout`: which elements of h' the product
            sees, as recurrent_l{k}, or recurrent_l{k}_reverse, [B,H], or [B,G,H] for each gate in the order of w_hh; of
            one sequence without B. With `candidate_dropout`: which candidates are kept, as candidate_l{k}, or with
            ``_reverse``, [T,B,H] laid out as x is; with `candidate_dropout_per_sequence` [B,H]. With `zoneout`: which
            units have their new value, as zoneout_h_l{k} and zoneout_c_l{k}, likewise [T,B,H]. The masks of names that
            are not there are drawn.

        Returns
        -------
        y, state
            As from a call of the layer; without dropout and zoneout the same bits.
        tape : LayerTape
            For `backward`. It refers to x, y, the state, the parameters and the embedding and does not copy
            them: they must not change before the last backward. `tape.weight_masks`, `tape.recurrent_masks`,
            `tape.candidate_masks` and `tape.zoneout_masks` are the masks, as `masks` takes them.
        """
        no_options = lengths is None and resets is None and embedding is None and gate_override is None
        is_whole = masks is None and not is_masked(self)
        if no_options and is_whole and checkpoint is None and plain.fits(x, self, state, outputs):
            return plain.forward(self, x, state)
        call = checked_call(self, x, state, lengths, resets, outputs, embedding, gate_override)
        k = None if checkpoint is None else segments.checked_length(checkpoint, call.layout.T)
        kept: Any
        between: tuple[Array, ...] = ()
        with drawing(self):
            call = call if is_whole else with_masks(self, call, masks)
            if k is None:
                hidden, last, kept, between = whole.forward(self, call)
            else:
                hidden, last, kept = segments.forward(self, call, k)
        given, after = results(self, call, hidden, last)
        if hidden and given is hidden[-1]:
            hidden = *hidden[:-1], given.view()  # the caller can give y another shape
        return given, after, LayerTape(self, call.x, given, call, hidden, kept, between)

    def backward(
        self,
        tape: LayerTape,
        dy: ArrayLike | PackedSequence | None = None,
        dstate: StateLike | None = None,
        *,
        dc: ArrayLike | None = None,
        dh_layers: ArrayLike | None = None,
        clip_dh: Number | None = None,
        need_dx: Flag = True,
        grads: dict[str, Array] | None = None,
    ) -> tuple[Any, StateT, dict[str, Array]]:
        """Backpropagate through time: the gradients of ``sum(dy * y) + sum(dstate * state)``, and of `dc`, `dh_layers`.

        Parameters
        ----------
        tape : LayerTape
            From this layer's `forward`. It is only read: any number of backwards may use it.
        dy : array like y, optional
            The gradient of y, zero if None. What it holds beyond a sequence's length is not read.
        dstate : array or tuple of arrays like state, optional
            The gradient of the last state, dh, (dh, dc) or (dh, dc, dn, dm); zero where it or a part of it is None. At
            least one of dy, dstate, dc and dh_layers is required.
        dc, dh_layers : array [L,T,B,D·H], [L,B,T,D·H] if `batch_first`, [L,T,D·H] or [L,N,D·H], optional
            The gradients of c and of h of every step of every layer; dc is the LSTM's and the SLSTM's.
        clip_dh : float, optional
            What a step passes to the one before, dh and the gradients of its other states, is bounded to
            [-clip_dh, clip_dh], element by element; also what the first step of each episode passes to dstate0, whose
            sum is not bounded.
        need_dx : bool, optional
            If False, dx is not computed and None is returned for it; nor is the gradient of an embedding.
        grads : dict of ndarrays, optional
            With the keys, shapes and dtype of `state_dict()`, and "embedding" where that has a gradient: the
            gradients are added into these arrays.

        Returns
        -------
        dx : like x, or None
            None for tokens. Zero beyond a sequence's length.
        dstate0 : ndarray or tuple of ndarrays like state
            The gradient of the initial state, dh0, (dh0, dc0) or (dh0, dc0, dn0, dm0), summed over the episodes that
            start from it.
        grads : dict of ndarrays
            The gradients of the parameters, by the keys of `state_dict()`; `grads` itself if it was given. With
            an embedding, ``grads["embedding"]`` [V,I] is its gradient. That of a learned initial state is the sum
            of dstate0 over B, and zero if `forward` was given another state.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid. The message names the argument, what was expected and what was given.
        KeyboardInterrupt
            On Ctrl-C, between chunks of time; `grads` is then part-way.
        """
        check_tape(tape, self)
        no_options = dc is None and dh_layers is None and clip_dh is None and grads is None
        if no_options and isinstance(need_dx, bool) and plain.fits_tape(self, tape, dy, dstate):
            return plain.backward(self, tape, dy, dstate, need_dx)
        return backward(
            self, tape, dy, dstate, dc=dc, dh_layers=dh_layers, clip_dh=clip_dh, need_dx=need_dx, grads=grads
        )

    def quantize(self, format: Format) -> Quantized[StateT]:  # noqa: A002
        """Make a layer for inference whose matrices have fewer bits, from the present parameters.

        Parameters
        ----------
        format : {"bfloat16", "int8"}
            bfloat16: each weight is rounded, and results are those of the layer with these weights, bit for bit. int8:
            products are sums of integers, with a scale for each row of weights and of activations.

        Returns
        -------
        Quantized
            It does not see later changes of the parameters.

        Raises
        ------
        TypeError, ValueError
            If the format is no such word or has no form for the layer: one of float64, for int8 an sLSTM, `layer_norm`
            or sizes above 65,536, for bfloat16 an sLSTM of several heads; or a parameter is not finite.

        Examples
        --------
        >>> import numpy as np
        >>> import rnnfast
        >>> lstm = rnnfast.LSTM(3, 4, seed=0)
        >>> q = lstm.quantize("int8")
        >>> x = np.ones((5, 2, 3), np.float32)
        >>> bool(np.abs(q(x)[0] - lstm(x)[0]).max() < 0.01)
        True
        """
        return Quantized(self, format)
