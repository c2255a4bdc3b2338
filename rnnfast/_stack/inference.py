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
        """Run over whole sequences and keep nothing; no dropout, and the mean of what zoneout makes.

        With a projection, `proj_size`, arrays of h, y among them, have P in place of H, here and in all other calls.

        Parameters
        ----------
        x : array [T,B,I], [B,T,I] if `batch_first`, or [T,I] for one sequence; or a `PackedSequence`
            The input; T is at least 1, B may be 0. An array of integers, [T,B], [B,T] or [T], holds tokens.
        state : array [L·D,B,H] or tuple of such, optional
            The initial state, h, (h, c) or (h, c, n, m); [L·D,H] for one sequence. By default, the learned one of a
            layer with `learn_initial_state`, else zero; a part of it that is None is zero.
        lengths : integers [B], optional
            How many steps of each sequence are real, from 0 to T, in any order. What x holds beyond is not read. y is
            zero there, the last state is that of the last real step, or the initial one, and the backward direction
            starts at each sequence's own end.
        resets : array of bools like x without its features, optional
            Before such a step the state is the initial one again, and no gradient crosses: an episode begins. To the
            backward direction the episode before it ends there.
        outputs : {"all", "last"}, optional
            "last": y is only what the last real step leaves, [B,D·H], and no more is held.
        embedding : array [V,I], optional
            What the tokens x select rows of. By default they are one-hot: from 0 to I - 1.
        gate_override : dict, or sequence of L of them, optional
            Values that gates are held at, by their letters: i, f, g, o of the LSTM (i, g, o where gates are coupled),
            r, z, n of the GRU, z, o of the SLSTM. A dict is for all layers, in a sequence None is for none.

        Returns
        -------
        y : ndarray [T,B,D·H], or PackedSequence, laid out as x is
            h of the last layer at every step, the directions side by side.
        state : as above
            After the last step, for a backward direction after the step at time 0.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid. The message names the argument, what was expected and what was given.
        KeyboardInterrupt
            On Ctrl-C, between chunks of time.
        """
        no_options = lengths is None and resets is None and embedding is None and gate_override is None
        if no_options and plain.fits(x, self, state, outputs):
            return plain.infer(self, x, state)
        call = checked_call(self, x, state, lengths, resets, outputs, embedding, gate_override)
        run = segments.infer if outputs == "last" else whole.infer
        return results(self, call, *run(self, call))

    def stream(self, batch_size: Integer = 1) -> "Stream[StateT]":
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
        from ..stream import Stream

        return Stream(self, batch_size)
