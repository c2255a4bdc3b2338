"""What LSTM, GRU and RNN layers share: a stack of layers, whose forward and backward they are.

Sizes are T time steps, B sequences, I inputs, H hidden units, L layers and D directions.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeAlias, TypedDict, Unpack, overload

import numpy as np

from . import _core, _segments, functional
from ._arraylike import ArrayLike, Integers
from ._attributes import StackAttributes
from ._layout import Layout, layout_of
from ._module import PARAMETERS, Kept, Module, Shape, Tape, recurrent_shapes
from ._scalars import Flag, Integer, Number, addressable, choice, flag, integer, number, shown, size
from .functional import (
    GATES,
    Array,
    State,
    StateLike,
    StateT,
    checked,
    checked_bound,
    each_part,
    parts_of,
    quiet,
    whole_state,
)
from .ragged import PackedSequence

if TYPE_CHECKING:
    from .stream import Stream

INITIAL = "initial_h", "initial_c"  # the parameters of `learn_initial_state`, for each part of the state

Held: TypeAlias = Mapping[str, Number]
Override: TypeAlias = Held | Sequence[Held | None] | None
Outputs: TypeAlias = Literal["all", "last"]
Flow: TypeAlias = Callable[[int, Array, Array | None], None]


class Call(NamedTuple):
    """The checked arguments of a forward; states and rows as the kernels see them, but for `first`."""

    layout: Layout
    x: Array
    rows: Array  # x
    first: Any  # the initial state, each part [L·D,B,H]
    state: Any
    resets: Array | None
    outputs: str
    held: list[Held | None]  # of each layer
    embedding: Array | None
    learned: bool  # the sequences started from initial_h, initial_c

    @property
    def is_tokens(self) -> bool:
        """Whether x selects rows, of an embedding or of the identity."""
        return len(self.rows.shape) == len(self.layout.row_shape)


class Given(NamedTuple):
    """The checked arguments of a backward, as the kernels see them; what is None is zero."""

    dy: Array | None
    dlast: Any
    dc: list[Array] | None  # of each layer
    dh: list[Array] | None
    clip_dh: float  # 0: none
    need_dx: bool
    flow: Flow | None

    def with_layer(self, d: Array | None, layer: int) -> Array | None:
        """Return the gradient of a layer's y: d from above, and its own."""
        if self.dh is None:
            return d
        return self.dh[layer] if d is None else d + self.dh[layer]


def part_of(state: Any, name: str) -> Any:
    """Return the part of a state that one of INITIAL names; None of no state."""
    return None if state is None else parts_of(state)[INITIAL.index(name)]


@dataclass(frozen=True, eq=False, repr=False)
class LayerTape(Tape):
    """What a layer's forward keeps for its backward. It is only read: any number of backwards may use it."""

    owner: "Recurrent[Any]"
    call: Call
    hidden: tuple[Array, ...]  # h of every step of each layer, as the kernels have it
    kept: Any  # the kernels' tape of each layer, or checkpoints
    masks: tuple[Array, ...]  # the factors of dropout after each layer but the last

    def h(self, layer: int) -> Any:
        """Return h of every step of a layer, [T,B,D·H], laid out as x is: the tape's own, or a copy with padding."""
        rows: Array = self._of(self.hidden, layer).view()
        rows.flags.writeable = False
        return self.call.layout.give(rows)

    def c(self, layer: int) -> Any:
        """Return c of every step of a layer of an LSTM, as `h` does."""
        if self.owner.cell != "lstm":
            msg = f"layer: expected one of an LSTM, got one of {self.owner!r}"
            raise ValueError(msg)
        return self._given(self._of(self.kept, layer).c)

    def gates(self, layer: int) -> dict[str, Any]:
        """Return the activated gates of every step of a layer by their letters, laid out as h is.

        The kernels keep them in blocks of units; each call copies them from there.
        """
        kept = self._of(self.kept, layer)
        return {name: self._given(kept.gate(name)) for name in kept.gates}

    def _of(self, of_layers: Any, layer: int) -> Any:
        L = self.owner.num_layers
        if isinstance(self.kept, _segments.Checkpoints):
            msg = "tape: expected one with every step, got one with checkpoints"
            raise ValueError(msg)
        k = integer(layer, "layer")
        if not -L <= k < L:
            msg = f"layer: expected {-L} to {L - 1}, got {shown(k)}"
            raise ValueError(msg)
        return of_layers[k]

    def _given(self, rows: Array) -> Any:
        layout = self.call.layout
        return layout.give(rows.reshape(*layout.row_shape, rows.shape[-1]))


class CallOptions(TypedDict, total=False):
    """What a call of a layer takes by name, beside `outputs`."""

    lengths: Integers | None
    resets: ArrayLike | None
    embedding: ArrayLike | None
    gate_override: Override


class ForwardOptions(CallOptions, total=False):
    """What `forward` takes by name, beside `outputs`."""

    checkpoint: Integer | str | None


class Recurrent(Module, StackAttributes, Generic[StateT]):
    """A stack of L recurrent layers of one cell, in D directions."""

    cell: str

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
    ) -> None:
        self.input_size = size(input_size, "input_size")
        self.hidden_size = size(hidden_size, "hidden_size")
        self.num_layers = size(num_layers, "num_layers")
        self.bias = flag(bias, "bias")
        self.batch_first = flag(batch_first, "batch_first")
        self.dropout = number(dropout, "dropout")
        self.bidirectional = flag(bidirectional, "bidirectional")
        self.learn_initial_state = flag(learn_initial_state, "learn_initial_state")
        if not 0 <= self.dropout <= 1:
            msg = f"dropout: expected a probability, got {self.dropout}"
            raise ValueError(msg)
        if self.dropout > 0 and self.num_layers == 1 and not isinstance(seed, Kept):
            msg = f"dropout: expected 0 for a single layer, as it acts between layers, got {self.dropout}"
            warnings.warn(msg, stacklevel=2)
        self.gates = GATES[self.cell]
        self.directions = 1 + self.bidirectional
        G, H, L, D = self.gates, self.hidden_size, self.num_layers, self.directions
        widest = max(self.input_size, D * H)
        addressable(L * D * G * H * (widest + H + 2), "input_size, hidden_size, num_layers")
        super().__init__(self._shapes(), H, dtype, seed)

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
        """Run over whole sequences and keep nothing; no dropout.

        Parameters
        ----------
        x : array [T,B,I], [B,T,I] if `batch_first`, or [T,I] for one sequence; or a `PackedSequence`
            The input; T is at least 1, B may be 0. An array of integers, [T,B], [B,T] or [T], holds tokens.
        state : array [L·D,B,H] or pair of such, optional
            The initial state, h or (h, c); [L·D,H] for one sequence. By default, the learned one of a layer
            with `learn_initial_state`, else zero; a part of it that is None is zero.
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
            Values that gates are held at, by their letters: i, f, g, o of the LSTM, r, z, n of the GRU. A dict is for
            all layers, in a sequence None is for none.

        Returns
        -------
        y : ndarray [T,B,D·H], or PackedSequence, laid out as x is
            h of the last layer at every step, the directions side by side.
        state : as above
            After the last step, for a backward direction after the step at time 0.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit. The message names it, what was expected and what came.
        KeyboardInterrupt
            On Ctrl-C, between chunks of time.
        """
        call = self._call(x, state, lengths, resets, outputs, embedding, gate_override)
        run = _segments.infer if outputs == "last" else Recurrent._run
        return self._given(call, *run(self, functional.inference, call)[:2])

    @overload
    def forward(
        self,
        x: PackedSequence,
        state: StateLike | None = None,
        *,
        outputs: Literal["all"] = "all",
        **options: Unpack[ForwardOptions],
    ) -> tuple[PackedSequence, StateT, "LayerTape"]: ...
    @overload
    def forward(
        self,
        x: PackedSequence,
        state: StateLike | None = None,
        *,
        outputs: Literal["last"],
        **options: Unpack[ForwardOptions],
    ) -> tuple[Array, StateT, "LayerTape"]: ...
    @overload
    def forward(
        self,
        x: ArrayLike,
        state: StateLike | None = None,
        *,
        outputs: Outputs = "all",
        **options: Unpack[ForwardOptions],
    ) -> tuple[Array, StateT, "LayerTape"]: ...
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
    ) -> tuple[Any, StateT, "LayerTape"]:
        """Run over whole sequences and keep what `backward` needs; with dropout between layers.

        Takes and raises what a call of the layer does, and

        Parameters
        ----------
        checkpoint : int or "auto", optional
            k: of k steps only one state is kept, and backward runs the others again, k at a time; k is rounded up to
            whole blocks of the sums of the weights' gradients, so that the gradients have the same bits, and to 1024
            rows (t, b), so that what each segment costs does not show. "auto" is the square root of T.

        Returns
        -------
        y, state
            As from a call of the layer; without dropout the same bits.
        tape : LayerTape
            For `backward`. It refers to x, y, the state, the parameters and the embedding and does not copy
            them: they must not change before the last backward.
        """
        call = self._call(x, state, lengths, resets, outputs, embedding, gate_override)
        masks: tuple[Array, ...] = ()
        if checkpoint is None:
            hidden, last, kept, masks = self._run(functional.forward, call)
        else:
            hidden, last, kept = _segments.forward(self, call, _segments.checked_length(checkpoint, call.layout.T))
        given, after = self._given(call, hidden, last)
        if hidden and given is hidden[-1]:
            hidden = *hidden[:-1], given.view()  # the caller can give y another shape
        return given, after, LayerTape(self, call.x, given, call, hidden, kept, masks)

    def backward(
        self,
        tape: "LayerTape",
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
        dstate : array or pair of arrays like state, optional
            The gradient of the last state, dh or (dh, dc); zero where it or a part of it is None. At least
            one of dy, dstate, dc and dh_layers is required.
        dc, dh_layers : array [L,T,B,D·H], [L,B,T,D·H] if `batch_first`, [L,T,D·H] or [L,N,D·H], optional
            The gradients of c and of h of every step of every layer; dc is the LSTM's.
        clip_dh : float, optional
            What a step passes to the one before, dh and the LSTM's dc, is bounded to [-clip_dh, clip_dh], element by
            element; also what the first step of each episode passes to dstate0, whose sum is not bounded.
        need_dx : bool, optional
            If False, dx is not computed and None is returned for it; nor is the gradient of an embedding.
        grads : dict of ndarrays, optional
            With the keys, shapes and dtype of `state_dict()`, and "embedding" where that has a gradient: the
            gradients are added into these arrays.

        Returns
        -------
        dx : like x, or None
            None for tokens. Zero beyond a sequence's length.
        dstate0 : ndarray or pair of ndarrays like state
            The gradient of the initial state, dh0 or (dh0, dc0), summed over the episodes that start from it.
        grads : dict of ndarrays
            The gradients of the parameters, by the keys of `state_dict()`; `grads` itself if it was given. With
            an embedding, ``grads["embedding"]`` [V,I] is its gradient. That of a learned initial state is the sum
            of dstate0 over B, and zero if `forward` was given another state.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit. The message names it, what was expected and what came.
        KeyboardInterrupt
            On Ctrl-C, between chunks of time; `grads` is then part-way.
        """
        return self._backward(tape, dy, dstate, dc, dh_layers, clip_dh, need_dx, grads)

    @quiet
    def _backward(
        self,
        tape: "LayerTape",
        dy: object,
        dstate: object,
        dc: ArrayLike | None = None,
        dh_layers: ArrayLike | None = None,
        clip_dh: Number | None = None,
        need_dx: Flag = True,
        grads: dict[str, Array] | None = None,
        flow: Flow | None = None,
    ) -> tuple[Any, StateT, dict[str, Array]]:
        """Do what `backward` does; `flow` is handed the gradients of all states of each layer."""
        self._check_tape(tape)
        need_dx = flag(need_dx, "need_dx")
        call, layout = tape.call, tape.call.layout
        if dy is None and dstate is None and dc is None and dh_layers is None:
            msg = "dy, dstate: expected at least one gradient, got none"
            raise ValueError(msg)
        if self.cell != "lstm" and dc is not None:
            msg = f"dc: expected None, since {self.cell} has no cell state, got it"
            raise ValueError(msg)
        dlast = self._checked_state(dstate, "dstate", layout)
        d = None
        if call.outputs == "last" and dy is not None:
            rows_of_last = () if layout.unbatched else (layout.B,)
            top = checked(dy, "dy", (*rows_of_last, self.directions * self.hidden_size), self.dtype)
            dlast = self._with_top(layout, dlast, top)
        elif dy is not None:
            d = layout.checked(dy, "dy", (self.directions * self.hidden_size,), self.dtype)
        given = Given(
            d,
            each_part(layout.take_state, dlast),
            self._checked_steps(dc, "dc", layout),
            self._checked_steps(dh_layers, "dh_layers", layout),
            checked_bound(clip_dh),
            need_dx,
            flow,
        )
        others = {} if call.embedding is None or not need_dx else {"embedding": call.embedding}
        steps = tuple(given.dc or ()), tuple(given.dh or ())
        read = call.x, call.first, call.embedding, dy, dstate  # the last two are copied on some ways to `given`
        into = self._check_grads(grads, read, tape.hidden, tuple(given[:2]), steps, **others)
        dfirst = self._new_state(layout)
        back = _segments.backward if isinstance(tape.kept, _segments.Checkpoints) else Recurrent._backward_whole
        dx, made = back(self, tape, given, into, dfirst)
        first = self._state(lambda name: layout.whole_state(part_of(dfirst, name), part_of(dlast, name)))
        if grads is None or into is None:
            made |= {name: dx for name in others if dx is not None}
            made |= {name: np.zeros_like(p) for name, p in self.parameters.items() if name not in made}
            grads = into = {name: made[name] for name in (*self.parameters, *others)}
        else:
            for name in others:
                into[name] += dx
        if call.learned:
            for name in INITIAL[: 1 + (self.cell == "lstm")]:
                into[name] += part_of(first, name).sum(axis=1)
        dx = None if dx is None or call.is_tokens else layout.give(dx)
        return dx, each_part(layout.give_state, first), grads

    def _backward_whole(
        self, tape: "LayerTape", given: Given, grads: dict[str, Array] | None, dfirst: Any
    ) -> tuple[Array | None, dict[str, Array]]:
        """Run the layers backwards, each over all of time; return dx and the gradients of their parameters."""
        d: Any = given.dy
        made: dict[str, Array] = {}
        for layer in reversed(range(self.num_layers)):
            d = given.with_layer(d, layer)
            h = tape.hidden[layer]
            flow: Any = (None, None)
            if given.flow is not None:
                flow = np.empty_like(h), np.empty_like(h) if self.cell == "lstm" else None
            d, _, new = functional.backward(
                tape.kept[layer],
                d,
                self._of_layer(given.dlast, layer),
                dc=None if given.dc is None else given.dc[layer],
                clip_dh=given.clip_dh or None,
                need_dx=given.need_dx or layer > 0,
                grads=None if grads is None else self._tuples(grads, layer),
                flow=flow,
                out=(None, self._of_layer(dfirst, layer)),
            )
            if given.flow is not None:
                given.flow(layer, *flow)
            if layer and tape.masks:
                d *= tape.masks[layer - 1]
            for names, arrays in zip(self._names[layer], new, strict=True):
                made |= {name: array for name, array in zip(names, arrays, strict=True) if array is not None}
        return d, made

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
        from .stream import Stream

        return Stream(self, batch_size)

    def _call(
        self,
        x: object,
        state: object,
        lengths: object,
        resets: object,
        outputs: str,
        embedding: object,
        gate_override: Override,
    ) -> Call:
        """Check the arguments of a forward."""
        rows = None if embedding is None else _core.asarray(embedding, "embedding", self.dtype)
        choice(outputs, "outputs", ("all", "last"))
        held: Sequence[Any] = [gate_override] * self.num_layers
        if isinstance(gate_override, list | tuple):
            held = gate_override
            if len(held) != self.num_layers:
                msg = f"gate_override: expected a dict, or one for each of {self.num_layers} layers, got {len(held)}"
                raise ValueError(msg)
        if gate_override is not None:
            for of_layer in held:
                _core.check_gate_override(self.cell, of_layer, self.dtype)
        x, layout = layout_of(x, lengths, self.input_size, self.batch_first, rows is not None, self.dtype)
        learned = state is None and self.learn_initial_state
        first = self._learned_state(layout.B) if learned else self._checked_state(state, "state", layout)
        if resets is not None:
            resets = layout.checked(resets, "resets", (), np.dtype(bool))
        taken = each_part(layout.take_state, first)
        return Call(layout, x, layout.take(x), first, taken, resets, outputs, list(held), rows, learned)

    def _run(
        self, run: Callable[..., Any], call: Call, *, dropout: bool = True
    ) -> tuple[tuple[Array, ...], Any, tuple[Any, ...], tuple[Array, ...]]:
        """Run each layer by `run`, a function of `functional`; return every h, the last state, tapes and masks."""
        y = call.rows
        last: list[State] = []
        hidden: list[Array] = []
        kept: list[Any] = []
        masks: list[Array] = []
        for layer in range(self.num_layers):
            if layer and self.dropout and dropout and run is functional.forward:
                masks.append(self._mask(y.shape))
                y = quiet(np.multiply)(y, masks[-1])
            y, state, *tape = run(
                self.cell,
                y,
                self._tuples(self.parameters, layer),
                self._of_layer(call.state, layer),
                embedding=None if layer else call.embedding,
                batch_sizes=call.layout.batch_sizes,
                resets=call.resets,
                gate_override=call.held[layer],
            )
            last.append(state)
            hidden = [*hidden, y] if tape else [y]
            kept += tape
        whole: Any = last[0]
        if len(last) > 1:
            whole = self._state(lambda name: np.concatenate([part_of(state, name) for state in last]))
        return tuple(hidden), whole, tuple(kept), tuple(masks)

    def _given(self, call: Call, hidden: tuple[Array, ...], last: Any) -> tuple[Any, Any]:
        """Return y and the last state as the caller has x and the state."""
        layout = call.layout
        whole = self._state(lambda name: layout.whole_state(part_of(last, name), part_of(call.first, name)))
        if call.outputs == "last":
            top = (
                part_of(whole, INITIAL[0])[-self.directions :]
                .swapaxes(0, 1)
                .reshape(layout.B, self.directions * self.hidden_size)
            )
            return top[0] if layout.unbatched else top, each_part(layout.give_state, whole)
        return layout.give(hidden[-1]), each_part(layout.give_state, whole)

    def _shapes(self) -> Iterator[Shape]:
        G, H, L, D = self.gates, self.hidden_size, self.num_layers, self.directions
        for layer in range(L):
            here = recurrent_shapes(G, D * H if layer else self.input_size, H, self.bias)
            yield from ((name + end, shape) for end in self._suffixes(layer) for name, shape in here.items())
        if self.learn_initial_state:
            yield from ((name, (L * D, H)) for name in INITIAL[: 2 if self.cell == "lstm" else 1])

    def _suffixes(self, layer: int) -> list[str]:
        """Return the ends of the names of a layer's parameters, one for each direction."""
        return [f"_l{layer}", f"_l{layer}_reverse"][: self.directions]

    @cached_property
    def _names(self) -> list[list[list[str]]]:
        """The names of each layer's parameters in each direction."""
        return [[[name + end for name in PARAMETERS] for end in self._suffixes(k)] for k in range(self.num_layers)]

    def _tuples(self, arrays: Mapping[str, Array], layer: int) -> list[tuple[Array | None, ...]]:
        """Return what a layer has of these arrays, as `functional` takes it."""
        return [tuple(map(arrays.get, names)) for names in self._names[layer]]

    # A state is h or (h, c), each part [L·D,B,H]

    def _state(self, part: Callable[[str], Array]) -> Any:
        """Return a state made of what `part` gives for the name of each part."""
        h, c = INITIAL
        return (part(h), part(c)) if self.cell == "lstm" else part(h)

    def _state_shape(self, B: int) -> tuple[int, int, int]:
        return self.num_layers * self.directions, B, self.hidden_size

    def _new_state(self, layout: Layout) -> Any:
        running = layout.running
        return self._state(
            lambda _: np.empty(self._state_shape(layout.B if running is None else len(running)), self.dtype)
        )

    def _learned_state(self, B: int) -> Any:
        return self._state(lambda name: np.broadcast_to(self.parameters[name][:, None], self._state_shape(B)))

    def _checked_state(self, state: object, name: str, layout: Layout) -> Any:
        units, _, H = shape = self._state_shape(layout.B)
        given = (units, H) if layout.unbatched else shape
        whole = whole_state(self.cell, state, name)
        return each_part(lambda part: checked(part, name, given, self.dtype).reshape(shape), whole)

    def _checked_steps(self, a: object, name: str, layout: Layout) -> list[Array] | None:
        """Return what is given of each step of each layer as the kernels see it."""
        if a is None:
            return None
        shape = (self.num_layers, *layout.axes, self.directions * self.hidden_size)
        return [layout.take(of_layer) for of_layer in checked(a, name, shape, self.dtype)]

    def _with_top(self, layout: Layout, dlast: Any, dy: Array) -> Any:
        """Return the gradients of the last state with dy, of the top layer's h, added."""
        B, D, H = layout.B, self.directions, self.hidden_size
        whole = self._state(lambda _: np.zeros(self._state_shape(B), self.dtype))
        for part, given in zip(parts_of(whole), parts_of(dlast) if dlast is not None else (), strict=False):
            if given is not None:
                part[...] = given
        part_of(whole, INITIAL[0])[-D:] += dy.reshape(B, D, H).swapaxes(0, 1)
        return whole

    def _of_layer(self, state: Any, layer: int) -> Any:
        D = self.directions
        return each_part(lambda part: part[layer * D : (layer + 1) * D], state)

    def _mask(self, shape: tuple[int, ...]) -> Array:
        """Draw the factors of inverted dropout: 0 with probability p, else 1 / (1 - p)."""
        return self._factors(self.rng.random(shape, np.float32) >= self.dropout)

    def _factors(self, kept: Array) -> Array:
        return kept.astype(self.dtype) * (1 / (1 - self.dropout) if self.dropout < 1 else 0)
