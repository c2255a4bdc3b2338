"""`Inference`: calls and streams of a stack, which keep nothing.

Sizes are T time steps, B sequences, I inputs, H hidden units, L layers and D directions. Arrays of h, y among them,
have P in place of H where h is a projection.
"""

from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from .._base.arrays import Array, ArrayLike, Integers
from .._base.packed import PackedSequence
from .._base.scalars import Integer
from .._base.state import StateLike, StateT
from . import plain, segments, whole
from .call import CallOptions, Outputs, Override, checked_call, results
from .stack import Stack

if TYPE_CHECKING:
    from ..stream import Stream


class Inference(Stack[StateT]):
    """A stack that can be called and streamed; its parameters may be of any format that the kernels read."""

    @overload
    def __call__(
        self,
        x: PackedSequence,
        state: StateLike | None = None,
        *,
        outputs: Literal["all"] = "all",
        **options: Unpack[CallOptions],
    ) -> tuple[PackedSequence, StateT]: ...
    @overload
    def __call__(
        self,
        x: PackedSequence,
        state: StateLike | None = None,
        *,
        outputs: Literal["last"],
        **options: Unpack[CallOptions],
    ) -> tuple[Array, StateT]: ...
    @overload
    def __call__(
        self, x: ArrayLike, state: StateLike | None = None, *, outputs: Outputs = "all", **options: Unpack[CallOptions]
    ) -> tuple[Array, StateT]: ...
    def __call__(
        self,
        x: ArrayLike | PackedSequence,
        state: StateLike | None = None,
        *,
        lengths: Integers | None = None,
        resets: ArrayLike | None = None,
        outputs: Outputs = "all",
        embedding: ArrayLike | None = None,
        gate_override: Override = None,
    ) -> tuple[Any, StateT]:
        """Run over whole sequences without keeping a tape, without dropout, and with the mean of zoneout.

        With a projection (`proj_size`), arrays of h, including y, have P instead of H, here and in all other calls.

        Parameters
        ----------
        x : array [T,B,I], [B,T,I] if `batch_first`, or [T,I] for one sequence; or a `PackedSequence`
            The input; T is at least 1, B may be 0. An array of integers, [T,B], [B,T] or [T], holds tokens.
        state : array [L·D,B,H] or tuple of such, optional
            The initial state, h, (h, c) or (h, c, n, m); [L·D,H] for one sequence. The default is the learned one of a
            layer with `learn_initial_state`, otherwise zero. A part that is None means zero.
        lengths : integers [B], optional
            The length of each sequence, from 0 to T, in any order. After the end of a sequence, x is not read and y is
            zero. The last state is that of the sequence's last step, or the initial one if its length is 0. The
            backward direction starts at the end of each sequence.
        resets : array of bools like x without its features, optional
            Where an episode begins: the state before such a step is the initial state, and no gradient flows back
            across it. In the backward direction, the episode before it starts there.
        outputs : {"all", "last"}, optional
            With "last", y is only the output at the last step of each sequence, [B,D·H].
        embedding : array [V,I], optional
            The table whose rows the tokens x select. By default tokens are one-hot, from 0 to I - 1.
        gate_override : dict, or sequence of L of them, optional
            Values at which gates are fixed, by their letters: i, f, g, o for the LSTM (i, g, o if gates are coupled),
            r, z, n for the GRU, z, o for the SLSTM. A dict applies to all layers; in a sequence, None means that
            nothing is fixed in that layer.

        Returns
        -------
        y : ndarray [T,B,D·H], or PackedSequence, in the layout of x
            The h of the last layer at every step, with the directions side by side.
        state : as above
            The state after the last step; for a backward direction, after the step at time 0.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid. The message names the argument, what was expected and what was given.
        KeyboardInterrupt
            On Ctrl-C.
        """
        no_options = lengths is None and resets is None and embedding is None and gate_override is None
        if no_options:
            results_of_plain = plain.infer(self, x, state, outputs)
            if results_of_plain is not None:
                return results_of_plain
        call = checked_call(self, x, state, lengths, resets, outputs, embedding, gate_override)
        run = segments.infer if outputs == "last" else whole.infer
        return results(self, call, *run(self, call))

    def stream(self, batch_size: Integer = 1) -> "Stream[StateT]":
        """Create a `Stream`, which runs the layer one or several steps at a time.

        Parameters
        ----------
        batch_size : int, optional
            B, the number of sequences.

        Returns
        -------
        Stream
            A stream at the initial state, with the current parameters: it packs them once, and later changes do not
            affect it.

        Raises
        ------
        TypeError, ValueError
            If `batch_size` does not fit, or the layer is bidirectional.

        Examples
        --------
        >>> import numpy as np
        >>> import rnnfast
        >>> lstm = rnnfast.LSTM(3, 4, rng=0)
        >>> x = np.ones((5, 3), np.float32)
        >>> stream = lstm.stream()
        >>> steps = [stream.step(x_t) for x_t in x]
        >>> np.array_equal(steps, lstm(x)[0])
        True
        """
        from ..stream import Stream

        return Stream(self, batch_size)
