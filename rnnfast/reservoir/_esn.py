"""The network: its parameters, its calls and how it goes on from one to the next."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .. import _core
from .._base.arrays import Array, ArrayLike, Integers, check_finite, checked, quiet
from .._base.module import Kept, Module
from .._base.packed import checked_lengths
from .._base.scalars import RNG, Integer, Number, addressable, choice, count, positive, size
from ..container import joined
from ..layers import RNN
from ..linear import Linear
from ._readout import Rows, recursive_least_squares, ridge_regression
from ._sparse import Runners
from ._state import State
from ._weights import Each, each, rate, recurrent, scale, share, signs, values

ROWS = 4096  # of states that are held at a time while the readout is fitted


@dataclass
class Run:
    """The arguments of a call, with an axis for the sequences."""

    x: Array  # [T,B,I]
    y: Array | None  # the targets [T,B,O]
    lengths: Array  # [B]
    h: tuple[Array, ...]  # [1,B,H], as a layer takes it
    last: Array | None  # the outputs [B,O] before the first step
    batched: bool

    def state(self) -> State:
        h = tuple(part[0] if self.batched else part[0, 0] for part in self.h)
        return State(h, self.last if self.last is None or self.batched else self.last[0])

    def outputs(self) -> int:
        """Return the size of the targets."""
        return 0 if self.y is None else self.y.shape[-1]

    def sequences(self, a: Array) -> Array:
        return a if self.batched else a[:, 0]


class ESN(Module):
    r"""An echo state network [1]_ with leaky units [2]_.

    With inputs u_t, states x_t, leak a and activation f, a reservoir and the readout are ::

        x_t = (1 - a) x_{t-1} + a f(W x_{t-1} + W_in u_t + b)
        y_t = W_out x_t + b_out

    W is drawn from the normal distribution and scaled to its spectral radius; the elements of W_in and b are +-1 times
    their scaling. An element of W or W_in is nonzero with the probability `density`. With feedback, y_{t-1} is appended
    to u_t; fitting uses the target instead.

    Parameters
    ----------
    input_size : int
        I.
    units : int or sequence of ints
        The number of units H of the reservoir, or of several. The readout reads the states of all of them.
    spectral_radius : float or one for each reservoir, optional
        At least 0: the largest absolute eigenvalue of W. Below 1 the past fades.
    leak : float or one for each reservoir, optional
        More than 0, at most 1. The smaller it is, the more slowly a unit responds.
    density : float or one for each reservoir, optional
        From 0 to 1.
    input_scaling, bias_scaling : float or one for each reservoir, optional
        At least 0.
    feedback_size : int, optional
        The number of outputs O, if they are fed back; 0 if they are not.
    activation : {"tanh", "relu"}, optional
        f.
    arrangement : {"series", "parallel"}, optional
        For several reservoirs: each reads the states of the one before, or all read the same inputs.
    dtype : {"float32", "float64"}, optional
        The dtype of weights, states and outputs. The readout is always fitted in float64.
    rng : int, Generator or what `numpy.random.default_rng` takes, optional
        Draws the weights.

    Attributes
    ----------
    reservoirs : tuple of RNN
    readout : Linear or None
        None until it is fitted.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or if the connections have no cycle and therefore no spectral radius to scale.

    References
    ----------
    .. [1] Jaeger, "The 'Echo State' Approach to Analysing and Training Recurrent Neural Networks", GMD Report 148,
       2001.
    .. [2] Jaeger, Lukosevicius, Popovici, Siewert, "Optimization and Applications of Echo State Networks with
       Leaky-Integrator Neurons", Neural Networks 20(3), 2007.

    Examples
    --------
    >>> import numpy as np
    >>> esn = ESN(3, (200, 100), leak=(1, 0.3), rng=0)
    >>> x = np.random.default_rng(0).standard_normal((500, 8, 3), np.float32)  # 8 sequences at once
    >>> state = esn.fit(x, np.cumsum(x, axis=0) % 1, warmup=50)
    >>> y, state = esn.predict(x)
    >>> states, state = esn.states(x)
    >>> y.shape, states.shape
    ((500, 8, 3), (500, 8, 300))
    """

    reservoirs: tuple[RNN, ...]
    readout: Linear | None

    def __init__(
        self,
        input_size: Integer,
        units: Integer | Sequence[Integer],
        *,
        spectral_radius: Each = 0.9,
        leak: Each = 1.0,
        density: Each = 0.1,
        input_scaling: Each = 1.0,
        bias_scaling: Each = 0.0,
        feedback_size: Integer = 0,
        activation: str = "tanh",
        arrangement: Literal["series", "parallel"] = "series",
        dtype: Any = "float32",
        rng: RNG | None = None,
    ) -> None:
        self.input_size = size(input_size, "input_size")
        self.feedback_size = count(feedback_size, "feedback_size")
        sizes = each(units, "units", None, size)
        addressable(sum(H * (self.input_size + self.feedback_size + H) for H in values(sizes)), "input_size, units")
        self.units = sizes
        K = len(values(sizes))
        self.spectral_radius = each(spectral_radius, "spectral_radius", K, scale)
        self.leak = each(leak, "leak", K, rate)
        self.density = each(density, "density", K, share)
        self.input_scaling = each(input_scaling, "input_scaling", K, scale)
        self.bias_scaling = each(bias_scaling, "bias_scaling", K, scale)
        self.activation = choice(activation, "activation", ("tanh", "relu"))
        self.arrangement = choice(arrangement, "arrangement", ("series", "parallel"))
        start: Any = rng
        kept = start if isinstance(start, Kept) else None
        super().__init__([], None, dtype, start)
        self.reservoirs = tuple(self._reservoir(k, kept) for k in range(K))
        self.readout = None
        if kept and any(name.startswith("readout.") for name in kept.tensors):
            part: Any = _part(kept, "readout.")
            O = len(np.atleast_1d(part.tensors.get("weight", 0)))
            self.readout = Linear(self.num_states, O, dtype=self.dtype, rng=part)
            kept.tensors |= {f"readout.{name}": a for name, a in part.tensors.items()}
        self._runners = Runners()
        self._covariance: Array | None = None  # of recursive least squares, [F+1,F+1]
        self._name_parameters()

    @property
    def num_states(self) -> int:
        """The states F of all reservoirs, which the readout sees."""
        return sum(values(self.units))

    def _reservoir(self, k: int, kept: Kept | None) -> RNN:
        """Return a layer, of what is kept or drawn."""
        H, a, density, radius, scaling, bias = (
            values(given)[k % len(values(given))]
            for given in (
                self.units,
                self.leak,
                self.density,
                self.spectral_radius,
                self.input_scaling,
                self.bias_scaling,
            )
        )
        I = self.input_size + self.feedback_size
        if k and self.arrangement == "series":
            I = values(self.units)[k - 1]
        options: dict[str, Any] = {"nonlinearity": self.activation, "dtype": self.dtype}
        if a != 1:
            options["leak"] = a
        if kept:
            part: Any = _part(kept, f"reservoirs.{k}.")
            rnn = RNN(I, H, rng=part, **options)
            kept.tensors |= {f"reservoirs.{k}.{name}": tensor for name, tensor in part.tensors.items()}
            return rnn
        rnn = RNN(I, H, rng=0, **options)
        drawn = {
            "weight_hh_l0": recurrent(self.rng, H, density, radius),
            "weight_ih_l0": signs(self.rng, (H, I), density, scaling),
            "bias_ih_l0": signs(self.rng, (H,), 1, bias),
            "bias_hh_l0": np.zeros(H),
        }
        for name, array in drawn.items():
            setattr(rnn, name, array.astype(self.dtype))
        return rnn

    def _name_parameters(self) -> None:
        parts: dict[str, Any] = {
            "reservoirs": {str(k): rnn.state_dict() for k, rnn in enumerate(self.reservoirs)},
            "readout": self.readout.state_dict() if self.readout else {},
        }
        self.parameters = joined(parts)

    # Calls

    @quiet
    def states(
        self,
        x: ArrayLike,
        state: State | None = None,
        *,
        y: ArrayLike | None = None,
        lengths: Integers | None = None,
    ) -> tuple[Array, State]:
        """Return the states of all reservoirs side by side.

        Parameters
        ----------
        x : array [T,B,I], or [T,I] for one sequence
        state : State, optional
            The state that an earlier call returned; zero by default.
        y : array [T,B,O] or [T,O], optional
            With feedback, the outputs that are fed back: y_{t-1} with u_t.
        lengths : integers [B], optional
            The length of each sequence.

        Returns
        -------
        states : ndarray [T,B,F] or [T,F]
            Zero after the end of a sequence. F is the number of units of all reservoirs together.
        state : State
            The state after the last step of each sequence.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid.
        """
        run = self._run(x, y, lengths, state, targets=self.feedback_size > 0)
        [(states, _)] = self._driven(run, len(run.x))
        if not self.feedback_size:
            run.last = None  # that of an earlier step
        return run.sequences(states), run.state()

    @quiet
    def fit(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        warmup: Integer = 0,
        ridge: Number = 1e-6,
        lengths: Integers | None = None,
        state: State | None = None,
    ) -> State:
        """Fit the readout by ridge regression, over all sequences in one pass.

        W_out minimizes ``sum |y_t - W_out x_t - b_out|² + ridge |W_out|²``.

        Parameters
        ----------
        x : array [T,B,I], or [T,I] for one sequence
        y : array [T,B,O] or [T,O]
            The targets.
        warmup : int, optional
            The number of first steps of each sequence that are not fitted, as their states still depend on the initial
            state.
        ridge : float, optional
            At least 0.
        lengths : integers [B], optional
            The length of each sequence.
        state : State, optional
            The initial state, zero by default.

        Returns
        -------
        State
            The state after the last step of each sequence, with the last target.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid, or if the states do not determine the readout. In that case nothing has changed.
        """
        run = self._run(x, y, lengths, state, targets=True)
        first, penalty = count(warmup, "warmup"), scale(ridge, "ridge")
        rows = self._rows(run, first)
        self._set_readout(*ridge_regression(rows, self.num_states, run.outputs(), penalty))
        self._covariance = None
        return run.state()

    @quiet
    def partial_fit(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        warmup: Integer = 0,
        ridge: Number = 1e-6,
        forgetting: Number = 1.0,
        lengths: Integers | None = None,
        state: State | None = None,
    ) -> State:
        """Update the readout by recursive least squares, one time step after the other.

        With x extended by a 1 for the bias, each step is ::

            k = P x / (forgetting + x^T P x)
            W_out += (y - W_out x) k^T
            P = (P - k x^T P) / forgetting

        P starts as the identity divided by `ridge`, and W_out as the current readout, or zero. With a `forgetting` of
        1, all calls together therefore give the ridge regression over all their steps, with the bias included in the
        penalty.

        Parameters
        ----------
        x, y, warmup
            As for `fit`. With several sequences, their steps at the same time are processed one after the other.
        ridge : float, optional
            More than 0; used by the first call after the network was created or fitted by `fit`.
        forgetting : float, optional
            More than 0, at most 1: the factor by which the weight of a step decreases with every later step.
        lengths, state
            As for `fit`; to continue the same sequences, pass the state that the previous call returned.

        Returns
        -------
        State
            As from `fit`.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid. In that case nothing has changed.
        """
        run = self._run(x, y, lengths, state, targets=True)
        first, penalty, keep = count(warmup, "warmup"), positive(ridge, "ridge"), rate(forgetting, "forgetting")
        check_finite(np.array(penalty), "ridge")
        O, F = run.outputs(), self.num_states
        if self.readout is not None and self.readout.out_features != O:
            msg = f"y: expected {self.readout.out_features} outputs, as the readout has, got {O}"
            raise ValueError(msg)
        P = np.eye(F + 1) / penalty if self._covariance is None else self._covariance
        w = np.zeros((O, F + 1))
        if self.readout is not None:
            w[:, :F], w[:, F] = self.readout.weight, self.readout.bias
        w, P = recursive_least_squares(self._rows(run, first), w, P, keep)
        self._set_readout(w[:, :F], w[:, F])
        self._covariance = P
        return run.state()

    @quiet
    def predict(
        self, x: ArrayLike, state: State | None = None, *, lengths: Integers | None = None
    ) -> tuple[Array, State]:
        """Return the outputs.

        Parameters
        ----------
        x : array [T,B,I], or [T,I] for one sequence
        state : State, optional
            The state that an earlier call returned; zero by default.
        lengths : integers [B], optional
            The length of each sequence; None with feedback.

        Returns
        -------
        y : ndarray [T,B,O] or [T,O]
            Zero after the end of a sequence.
        state : State
            The state after the last step of each sequence.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid, or there is no readout yet.
        """
        readout = self._fitted()
        run = self._run(x, None, lengths, state, targets=False)
        if self.feedback_size:
            if lengths is not None:
                msg = "lengths: expected None for a network with feedback, got lengths"
                raise ValueError(msg)
            return run.sequences(self._free(run, len(run.x), run.x)), run.state()
        chunks = []
        for states, valid in self._driven(run):
            y = readout(states)
            if not valid.all():
                y[~valid] = 0
            chunks.append(y)
        outputs = np.concatenate(chunks)
        real = run.lengths > 0
        before = np.zeros_like(outputs[0]) if run.last is None else run.last
        run.last = np.where(real[:, np.newaxis], outputs[run.lengths - 1, np.arange(len(real))], before)
        return run.sequences(outputs), run.state()

    @quiet
    def generate(self, n: Integer, state: State | None = None, x: ArrayLike | None = None) -> tuple[Array, State]:
        """Generate outputs, each from the output before.

        Parameters
        ----------
        n : int
            The number of steps.
        state : State, optional
            The initial state, as returned by an earlier call; zero by default.
        x : array [n,B,I] or [n,I], optional
            With feedback, the other inputs. Without feedback, None: each output is the next input.

        Returns
        -------
        y : ndarray [n,B,O] or [n,O]
        state : State

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid, there is no readout yet, or its outputs cannot be inputs.
        """
        readout = self._fitted()
        steps = count(n, "n")
        if self.feedback_size:
            run = self._run(x, None, None, state, targets=False)
            if len(run.x) != steps:
                msg = f"x: expected {steps} steps, got {len(run.x)}"
                raise ValueError(msg)
            return run.sequences(self._free(run, steps, run.x)), run.state()
        if x is not None:
            msg = "x: expected None for a network without feedback, whose outputs are the next inputs, got an array"
            raise ValueError(msg)
        if readout.out_features != self.input_size:
            msg = f"n: expected 0 for outputs that cannot be inputs, of size {readout.out_features}, got {steps}"
            raise ValueError(msg)
        batch = () if state is None or np.ndim(_h_of(state)[0]) == 1 else (len(_h_of(state)[0]),)
        run = self._run(np.zeros((1, *batch, self.input_size), self.dtype), None, None, state, targets=False)
        if run.last is None and state is not None:
            run.last = readout(np.concatenate(run.h, axis=-1)[0])
        return run.sequences(self._free(run, steps, None)), run.state()

    # What calls share

    def _run(self, x: Any, y: Any, lengths: Any, state: object, *, targets: bool) -> Run:
        """Check the arguments of a call."""
        given = _core.asarray(x, "x", self.dtype)
        if given.ndim not in (2, 3) or given.shape[-1] != self.input_size:
            msg = f"x: expected shape (T, B, {self.input_size}) or (T, {self.input_size}), got {given.shape}"
            raise ValueError(msg)
        if not len(given):
            msg = f"x: expected at least 1 step, got shape {given.shape}"
            raise ValueError(msg)
        batched = given.ndim == 3
        T, B = len(given), given.shape[1] if batched else 1
        target = None
        if targets:
            target = _core.asarray(y, "y", self.dtype)
            sizes = (*given.shape[:-1], self.feedback_size or (target.shape[-1] if target.ndim else 1))
            if target.shape != sizes or not sizes[-1]:
                words = ", ".join(map(str, (*given.shape[:-1], self.feedback_size or "O")))
                msg = f"y: expected shape ({words}), got {target.shape}"
                raise ValueError(msg)
            target = target.reshape(T, B, -1) if target.size else np.zeros((T, B, sizes[-1]), self.dtype)
        elif y is not None:
            msg = "y: expected None for a network without feedback, got an array"
            raise ValueError(msg)
        real = np.full(B, T) if lengths is None else checked_lengths(lengths, T, B)
        h, last = self._begin(state, B, batched)
        return Run(given.reshape(T, B, self.input_size), target, real, h, last, batched)

    def _begin(self, state: object, B: int, batched: bool) -> tuple[tuple[Array, ...], Array | None]:
        """Return the states [1,B,H] of the reservoirs, and the outputs [B,O] of the step before."""
        units = values(self.units)
        if state is None:
            return tuple(np.zeros((1, B, H), self.dtype) for H in units), None
        batch = (B,) if batched else ()
        parts = _h_of(state)
        if len(parts) != len(units):
            msg = f"state: expected the states of {len(units)} reservoirs, got {len(parts)}"
            raise ValueError(msg)
        h = tuple(
            checked(part, "state", (*batch, H), self.dtype).reshape(1, B, H)
            for part, H in zip(parts, units, strict=True)
        )
        y: Any = state[1]  # type: ignore[index]
        if y is None:
            return h, None
        O = self.feedback_size or (self.readout.out_features if self.readout else (np.shape(y) or (1,))[-1])
        return h, checked(y, "state", (*batch, O), self.dtype).reshape(B, O)

    def _driven(self, run: Run, at_once: int | None = None) -> Iterator[tuple[Array, Array]]:
        """Yield the states [t,B,F] of some steps at a time and which of them are real [t,B]; go on in `run`."""
        T, B = run.x.shape[:2]
        at_once = at_once or max(1, ROWS // max(B, 1))
        fed = self._fed(run) if self.feedback_size else run.x
        runners = self._runners.of(self.reservoirs)
        for start in range(0, T, at_once):
            x = fed[start : start + at_once]
            lengths = np.clip(run.lengths - start, 0, len(x))
            states, last = [], []
            inputs = x
            for states_of, h in zip(runners, run.h, strict=True):
                y, h_after = states_of(inputs, h, lengths=None if (lengths == len(x)).all() else lengths)
                states.append(y)
                last.append(h_after)
                inputs = y if self.arrangement == "series" else x
            run.h = tuple(last)
            together = states[0] if len(states) == 1 else np.concatenate(states, axis=-1)
            yield together, np.arange(len(x))[:, np.newaxis] < lengths
        if run.y is not None and T:
            before = np.zeros_like(run.y[0]) if run.last is None else run.last
            run.last = np.where((run.lengths > 0)[:, np.newaxis], run.y[run.lengths - 1, np.arange(B)], before)

    def _fed(self, run: Run) -> Array:
        """Return inputs followed by the targets of the step before."""
        assert run.y is not None
        first = np.zeros_like(run.y[:1]) if run.last is None else run.last[np.newaxis]
        return np.concatenate([run.x, np.concatenate([first, run.y[:-1]])], axis=-1)

    def _rows(self, run: Run, warmup: int) -> Rows:
        """Yield states [n,F] that are to be fitted and their targets [n,O], in float64."""
        assert run.y is not None
        if not (run.lengths > warmup).any():
            msg = f"warmup: expected less than the steps of a sequence, got {warmup}"
            raise ValueError(msg)
        start = 0
        for states, valid in self._driven(run):
            late = valid & (np.arange(start, start + len(states)) >= warmup)[:, np.newaxis]
            targets = run.y[start : start + len(states)][late]
            start += len(states)
            rows = states[late]
            check_finite(rows, "x")
            check_finite(targets, "y")
            if len(rows):
                yield rows.astype(np.float64), targets.astype(np.float64)

    def _free(self, run: Run, steps: int, x: Array | None) -> Array:
        """Return outputs [steps,B,O] that are fed back, after x or in its place; go on in `run`."""
        readout = self._fitted()
        B, O = run.x.shape[1], readout.out_features
        outputs = np.zeros((steps, B, O), self.dtype)
        y = np.zeros((B, O), self.dtype) if run.last is None else run.last
        streams = [runner.stream(B) for runner in self._runners.of(self.reservoirs)] if B else []
        for stream, h in zip(streams, run.h, strict=False):
            stream.state = h
        for t in range(steps if B else 0):
            first = inputs = y if x is None else np.concatenate([x[t], y], axis=-1)
            states = []
            for stream in streams:
                states.append(stream.step(inputs))
                inputs = states[-1] if self.arrangement == "series" else first
            y = outputs[t] = readout(np.concatenate(states, axis=-1))
        run.h, run.last = tuple(stream.state for stream in streams) if B else run.h, y
        return outputs

    def _set_readout(self, weight: Array, bias: Array) -> None:
        weight, bias = weight.astype(self.dtype), bias.astype(self.dtype)
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            msg = f"ridge: expected more, since the readout is not finite in {self.dtype}"
            raise ValueError(msg)
        if self.readout is None or self.readout.out_features != len(weight):
            self.readout = Linear(self.num_states, len(weight), dtype=self.dtype, rng=0)
        self.readout.weight, self.readout.bias = weight, bias
        self._name_parameters()

    def _fitted(self) -> Linear:
        if self.readout is None:
            msg = "readout: expected one that has been fitted, got none; call fit first"
            raise ValueError(msg)
        return self.readout


def _h_of(state: object) -> tuple[Any, ...]:
    if not isinstance(state, tuple) or len(state) != 2 or not isinstance(state[0], tuple):
        msg = f"state: expected a State that a call has returned, got {type(state).__name__}"
        raise TypeError(msg)
    return state[0]


def _part(kept: Kept, prefix: str) -> Kept:
    """Take what starts with the prefix out of what is kept."""
    names = [name for name in kept.tensors if name.startswith(prefix)]
    return Kept({name.removeprefix(prefix): kept.tensors.pop(name) for name in names}, kept.rng)
