"""The C interface seen through ctypes: its structs, its table, and the calls that solve a problem."""

import ctypes
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_double, c_int, c_size_t, c_ssize_t, c_void_p
from dataclasses import replace
from typing import Any

import numpy as np
from problems import Array, Problem, Results, named_gradients, named_state, num_states

from rnnfast import _core

OK, INVALID, NO_MEMORY, BUSY, INTERRUPTED = range(5)
CAPSULE = b"rnnfast._core._C_API"


def pointers(*names: str) -> list[tuple[str, Any]]:
    return [(name, c_void_p) for name in names]


def sizes(*names: str) -> list[tuple[str, Any]]:
    return [(name, c_ssize_t) for name in names]


class Weights(Structure):
    """`rnnfast_weights`."""

    _fields_ = [*pointers("w_ih", "w_hh", "b_ih", "b_hh"), ("more", POINTER(c_void_p))]


class Stack(Structure):
    """`rnnfast_stack`."""

    _fields_ = [
        ("cell", c_char_p),
        ("dtype", c_int),
        *sizes("num_layers", "input_size", "hidden_size"),
        ("layers", POINTER(Weights)),
        ("state0", POINTER(c_void_p)),
        *sizes("proj_size", "num_heads"),
        ("zoneout", POINTER(c_double)),
        ("layer_norm_eps", c_double),
        ("format", c_int),
        ("scales", POINTER(c_void_p)),
    ]


class Layer(Structure):
    """`rnnfast_layer`."""

    _fields_ = [
        ("size", c_size_t),
        ("cell", c_char_p),
        ("dtype", c_int),
        *sizes("input_size", "hidden_size", "num_directions"),
        ("weights", POINTER(Weights)),
        *sizes("proj_size", "num_heads"),
        ("zoneout", POINTER(c_double)),
        ("layer_norm_eps", c_double),
        ("precision", c_int),
    ]


class ForwardArgs(Structure):
    """`rnnfast_forward_args`."""

    _fields_ = [
        ("size", c_size_t),
        *sizes("T", "B"),
        *pointers("x"),
        ("state0", POINTER(c_void_p)),
        *pointers("y"),
        ("state", POINTER(c_void_p)),
        *pointers("batch_sizes", "resets", "pack", "tape"),
        ("zoneout_masks", POINTER(c_void_p)),
        *pointers("recurrent_factors"),
        ("recurrent_factors_per_gate", c_int),
        *pointers("candidate_mask"),
        ("candidate_mask_per_sequence", c_int),
        ("candidate_dropout", c_double),
    ]


class Gradients(Structure):
    """`rnnfast_gradients`."""

    _fields_ = [*pointers("dw_ih", "dw_hh", "db_ih", "db_hh"), ("dmore", POINTER(c_void_p))]


class BackwardArgs(Structure):
    """`rnnfast_backward_args`."""

    _fields_ = [
        ("size", c_size_t),
        *pointers("dy"),
        ("dstate", POINTER(c_void_p)),
        *pointers("dx"),
        ("dstate0", POINTER(c_void_p)),
        ("gradients", POINTER(Gradients)),
        ("accumulate", c_int),
    ]


def function(*arguments: Any) -> Any:
    return CFUNCTYPE(c_int, *arguments)


Stop: Any = CFUNCTYPE(c_int, c_void_p, c_ssize_t)  # whether a run is to stop


class Table(Structure):
    """`rnnfast_api`."""

    _fields_ = [
        ("size", c_size_t),
        ("version", c_int),
        ("oldest", c_int),
        ("message", CFUNCTYPE(c_char_p)),
        ("stream_create", function(POINTER(Stack), c_ssize_t, POINTER(c_void_p))),
        ("stream_destroy", CFUNCTYPE(None, c_void_p)),
        ("stream_run", function(c_void_p, c_ssize_t, c_void_p, c_void_p)),
        ("stream_reset", function(c_void_p, c_void_p)),
        ("stream_get_state", function(c_void_p, POINTER(c_void_p))),
        ("stream_set_state", function(c_void_p, POINTER(c_void_p))),
        ("forward", function(POINTER(Layer), POINTER(ForwardArgs))),
        ("backward", function(c_void_p, POINTER(BackwardArgs))),
        ("tape_create", function(POINTER(c_void_p))),
        ("tape_destroy", CFUNCTYPE(None, c_void_p)),
        ("pack_create", function(POINTER(Layer), POINTER(c_void_p))),
        ("pack_update", function(c_void_p, POINTER(Layer))),
        ("pack_destroy", CFUNCTYPE(None, c_void_p)),
        ("get_num_threads", CFUNCTYPE(c_ssize_t)),
        ("set_num_threads", function(c_ssize_t)),
        ("stream_run_until", function(c_void_p, c_ssize_t, c_void_p, c_void_p, Stop, c_void_p)),
    ]


def address() -> int:
    """Return where the table is."""
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = c_void_p, (ctypes.py_object, c_char_p)
    return int(get_pointer(_core._C_API, CAPSULE))


API: Any = Table.from_address(address())


def data(a: Array | None) -> int | None:
    return None if a is None else a.ctypes.data


def state_of(*arrays: Array | None) -> Any:
    """Return an array of pointers, NULL for None."""
    return (c_void_p * len(arrays))(*map(data, arrays))


def weights_of(parameters: Any) -> Any:
    """Return (w_ih, w_hh, b_ih, b_hh, ..) of each direction or layer as an array of structs."""
    return (Weights * len(parameters))(*(Weights(*map(data, ws[:4]), state_of(*ws[4:])) for ws in parameters))


def stack_of(layer: Any) -> Stack:
    """Return the description of a stack of one direction; the layer keeps the arrays."""
    weights = weights_of([layer.of_layer(k)[0] for k in range(layer.num_layers)])
    dtype = layer.dtype == np.float64
    sizes = layer.num_layers, layer.input_size, layer.hidden_size
    rates = np.broadcast_to(layer.zoneout, len(layer.state_sizes))
    zoneout = (c_double * len(rates))(*rates)
    more = layer.proj_size, layer.num_heads, zoneout, layer.eps or 0
    return Stack(layer.cell.encode(), dtype, *sizes, weights, None, *more)


def in_rows(problem: Problem, batch_sizes: Array) -> Problem:
    """Return a problem of one step, cut into rows [N,..] of steps that have these numbers of sequences."""
    assert problem.dy is not None
    p = problem.with_each(lambda s: s[:, : batch_sizes[0]].copy(), "state0", "dstate")
    return replace(p, x=problem.x[0], dy=problem.dy[0])


class Call:
    """A forward and a backward of a problem as C makes them: structs that may be changed, and where results go.

    With `batch_sizes`, x and dy are [N,..], and resets [N].
    """

    def __init__(self, problem: Problem, batch_sizes: Array | None = None, resets: Array | None = None) -> None:
        p: Any = problem
        rows = p.x if batch_sizes is None else batch_sizes
        T, B = len(rows), p.x.shape[1] if batch_sizes is None else int(rows[0])
        D, H, P, I = len(p.parameters), p.hidden_size, p.state_sizes[0], p.x.shape[-1]

        def new(*shape: int) -> Array:
            return np.full(shape, 7, p.x.dtype)

        def new_state() -> list[Array]:
            return [new(D, B, n) for n in p.state_sizes]

        self.problem, self.batch_sizes, self.resets = problem, batch_sizes, resets
        self.y, self.state = new(*p.x.shape[:-1], D * P), new_state()
        self.dx, self.dstate0 = new(*p.x.shape), new_state()
        self.grads = [tuple(None if w is None else new(*w.shape) for w in ws) for ws in p.parameters]

        weights, dtype = weights_of(p.parameters), p.x.dtype == np.float64
        projected, heads = P if P < H else 0, P // p.parameters[0][1].shape[1]
        eps = p.layer_norm_eps or 0
        self.layer = Layer(ctypes.sizeof(Layer), p.cell.encode(), dtype, I, H, D, weights, projected, heads, None, eps)
        nothing = (None,) * num_states(p.cell)
        self.state0, self.dstate = p.state0 or nothing, p.dstate or nothing
        self.forward = ForwardArgs(
            ctypes.sizeof(ForwardArgs),
            T,
            B,
            data(p.x),
            state_of(*self.state0),
            data(self.y),
            state_of(*self.state),
            data(batch_sizes),
            data(resets),
        )
        self._set_masks(D, H)
        gradients = (Gradients * D)(*(Gradients(*map(data, ws[:4]), state_of(*ws[4:])) for ws in self.grads))
        self.backward = BackwardArgs(
            ctypes.sizeof(BackwardArgs),
            data(p.dy),
            state_of(*self.dstate),
            data(self.dx),
            state_of(*self.dstate0),
            gradients,
        )

    def _set_masks(self, D: int, H: int) -> None:
        """Set the masks that the problem has."""
        p, forward = self.problem, self.forward

        def bits(mask: Array) -> Array:
            units = np.packbits(mask.reshape(*mask.shape[:-1], D, H), axis=-1, bitorder="little")
            return np.ascontiguousarray(units.reshape(*mask.shape[:-1], -1))

        self.masks: list[Array | None] = []  # which C refers to
        if p.zoneout is not None:
            rates = [0 if part is None or isinstance(part, np.ndarray) else part for part in p.zoneout]
            self.layer.zoneout = (c_double * len(rates))(*rates)
            self.masks += [bits(part) if isinstance(part, np.ndarray) else None for part in p.zoneout]
            forward.zoneout_masks = state_of(*self.masks)
        if p.recurrent_factors is not None:
            forward.recurrent_factors = data(p.recurrent_factors)
            forward.recurrent_factors_per_gate = p.recurrent_factors.ndim == 4
        if p.candidate_dropout is not None:
            kept, forward.candidate_dropout = p.candidate_dropout
            self.masks.append(bits(kept))
            forward.candidate_mask = data(self.masks[-1])
            forward.candidate_mask_per_sequence = len(kept) == 1 and kept.ndim == 3

    @property
    def results(self) -> Results:
        """What was written, by name."""
        cell, state, dstate0 = self.problem.cell, tuple(self.state), tuple(self.dstate0)
        return {"y": self.y, **named_state(cell, state), **named_gradients(cell, self.dx, dstate0, self.grads)}

    def solve(self, tape: "Handle") -> Results:
        """Run forward and backward; raise ValueError where the arguments do not fit."""
        self.forward.tape = tape.value
        check(API.forward(self.layer, self.forward))
        check(API.backward(tape.value, self.backward))
        return self.results


def check(status: int) -> None:
    """Raise what a status stands for."""
    if status != OK:
        raise {INVALID: ValueError, NO_MEMORY: MemoryError, BUSY: RuntimeError}[status](API.message().decode())


class Handle:
    """A tape, or with a layer its packed weights; freed with the object."""

    def __init__(self, layer: Layer | None = None) -> None:
        handle = c_void_p()
        made = API.tape_create(handle) if layer is None else API.pack_create(layer, handle)
        self.destroy = API.tape_destroy if layer is None else API.pack_destroy
        check(made)
        self.value = handle.value

    def __del__(self) -> None:
        if hasattr(self, "value"):
            self.destroy(self.value)


class Stream:
    """A stream through a layer's stack; freed with the object."""

    def __init__(self, layer: Any, batch_size: int = 1) -> None:
        handle = c_void_p()
        check(API.stream_create(stack_of(layer), batch_size, handle))
        self.value = handle.value

    def __del__(self) -> None:
        if hasattr(self, "value"):
            API.stream_destroy(self.value)
