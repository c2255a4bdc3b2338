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
        """Run over whole sequences and keep what `backward` needs; with all kinds of dropout, and zoneout.

        It takes and raises what a call of the layer does. It also takes these parameters:

        Parameters
        ----------
        checkpoint : int or "auto", optional
            k: only one state in every k steps is kept, and backward recomputes the others, k steps at a time. k is
            rounded up to whole chunks of the sums of weight gradients, so that the gradients have the same bits, and to
            at least 1024 rows (t, b), so that the overhead of a segment is small. "auto" is the square root of T.
        masks : mapping of arrays of bools, or 0 and 1, optional
            Masks by name, True where something is kept. For `weight_dropout`, weight_hh_l{k}: elements, in the shape of
            the parameter, or rows [G·H]. For `recurrent_dropout`, recurrent_l{k} or recurrent_l{k}_reverse: elements of
            h' in the product, [B,H], or [B,G,H] for each gate in the order of w_hh; without B for one sequence. For
            `candidate_dropout`, candidate_l{k}, also with ``_reverse``: candidates, [T,B,H] in the layout of x, or
            [B,H] with `candidate_dropout_per_sequence`. For `zoneout`, zoneout_h_l{k} and zoneout_c_l{k}: units with
            their new value, [T,B,H] as well. Masks that are missing are drawn.

        Returns
        -------
        y, state
            The same as from a call of the layer, bit for bit if there is no dropout and no zoneout.
        tape : LayerTape
            For `backward`. It refers to x, y, the state, the parameters and the embedding without copying them: they
            must not change before the last backward. `tape.weight_masks`, `tape.recurrent_masks`,
            `tape.candidate_masks` and `tape.zoneout_masks` are the masks used, in the form that `masks` accepts.
        """
        no_options = lengths is None and resets is None and embedding is None and gate_override is None
        is_whole = masks is None and not is_masked(self)
        if no_options and is_whole and checkpoint is None:
            results_of_plain = plain.forward(self, x, state, outputs)
            if results_of_plain is not None:
                return results_of_plain
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
        tape = LayerTape(owner=self, x=call.x, y=given, call=call, hidden=hidden, kept=kept, masks=between)
        return given, after, tape

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
            The gradient of y; None means zero. Values after the end of a sequence are not read.
        dstate : array or tuple of arrays like state, optional
            The gradient of the last state, dh, (dh, dc) or (dh, dc, dn, dm). None, or a part that is None, means zero.
            At least one of dy, dstate, dc and dh_layers is required.
        dc, dh_layers : array [L,T,B,D·H], [L,B,T,D·H] if `batch_first`, [L,T,D·H] or [L,N,D·H], optional
            The gradients of c and h of every step of every layer. Only the LSTM and the SLSTM have dc.
        clip_dh : float, optional
            The gradients that a step passes to the step before, dh and those of the other states, are clipped to
            [-clip_dh, clip_dh], element by element. So are those that the first step of each episode passes to dstate0,
            but not their sum.
        need_dx : bool, optional
            If False, dx is not computed and None is returned for it; nor is the gradient of an embedding.
        grads : dict of ndarrays, optional
            With the keys, shapes and dtype of `state_dict()`, and "embedding" if that has a gradient. The gradients are
            added to these arrays.

        Returns
        -------
        dx : like x, or None
            None for tokens. Zero after the end of a sequence.
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
            On Ctrl-C. `grads` then holds incomplete results.
        """
        check_tape(tape, self)
        no_options = dc is None and dh_layers is None and clip_dh is None and grads is None
        if no_options and isinstance(need_dx, bool) and tape.plain is not None:
            gradients = tape.plain.backward(self.parameters, tape.kept[0], dy, dstate, need_dx)
            if gradients is not None:
                return gradients
        return backward(
            self, tape, dy, dstate, dc=dc, dh_layers=dh_layers, clip_dh=clip_dh, need_dx=need_dx, grads=grads
        )

    def quantize(self, format: Format) -> Quantized[StateT]:  # noqa: A002
        """Return a low-precision layer for inference, with the current parameters.

        Parameters
        ----------
        format : {"bfloat16", "int8"}
            With bfloat16, each weight is rounded, and results are bit for bit those of the layer with the rounded
            weights. With int8, products are sums of integers, with a scale for each row of weights and of activations.

        Returns
        -------
        Quantized
            Later changes to the layer's parameters do not affect it.

        Raises
        ------
        TypeError, ValueError
            If the format is unknown or not available for the layer (float64; for int8 an sLSTM, `layer_norm` or sizes
            above 65,536; for bfloat16 an sLSTM with several heads), or if a parameter is not finite.

        Examples
        --------
        >>> import numpy as np
        >>> import rnnfast
        >>> lstm = rnnfast.LSTM(3, 4, rng=0)
        >>> q = lstm.quantize("int8")
        >>> x = np.ones((5, 2, 3), np.float32)
        >>> bool(np.abs(q(x)[0] - lstm(x)[0]).max() < 0.01)
        True
        """
        return Quantized(self, format)
