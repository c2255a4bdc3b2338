# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: freethreading_compatible=True
"""Streaming: running a layer step by step. `layer.stream()` returns a `Stream`."""

cimport cython
cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.pythread cimport PyThread_get_thread_ident

from .capi cimport (
    RNNFAST_BFLOAT16,
    RNNFAST_BUSY,
    RNNFAST_FLOAT32,
    RNNFAST_FLOAT64,
    RNNFAST_INT8,
    RNNFAST_INTERRUPTED,
    RNNFAST_INVALID,
    RNNFAST_OK,
    RNNFAST_SAME,
    rnnfast_api,
    rnnfast_import,
    rnnfast_stack,
    rnnfast_status,
    rnnfast_stream,
    rnnfast_weights,
)

import os
from threading import main_thread
from types import GenericAlias

import numpy as np

from . import _core
from ._base.arrays import checked, checked_target
from ._base.module import copy_of
from ._base.scalars import addressable, size
from ._base.state import initial_names, parts_of, state_of
from ._stack.stack import Stack, rates_of, state_shapes

__all__ = ["Stream"]

cnp.import_array()

cdef const rnnfast_api* api = rnnfast_import()

# Work, in floating point operations, from which on a call lets other Python threads run meanwhile: about 10 µs, a
# hundred times what that costs.
cdef double worth_releasing = 5e5

# The thread that handles signals; in a forked process it is the one that forked.
cdef unsigned long main_ident = main_thread().ident


def _after_fork():
    global main_ident
    main_ident = PyThread_get_thread_ident()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


cdef int check(rnnfast_status status) except -1:
    if status == RNNFAST_OK:
        return 0
    message = api.message().decode()
    if status == RNNFAST_INVALID:
        raise ValueError(message)
    raise RuntimeError(message) if status == RNNFAST_BUSY else MemoryError(message)


cdef int handle_signals(void* raised, Py_ssize_t t) noexcept with gil:
    """Let Python handle the signals that have come; return whether that raised an error, which goes to a list."""
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        (<list> raised).append(error)
        return 1
    return 0


cdef cnp.ndarray readable(object a):
    """Return an array as the C interface takes it."""
    return cnp.PyArray_FROM_OF(a, cnp.NPY_ARRAY_CARRAY_RO)


cdef void* data(object a):
    """Return where an array's elements are; NULL for None."""
    return NULL if a is None else cnp.PyArray_DATA(a)


cdef cnp.ndarray pointers(object arrays):
    """Return where the arrays are, as the C interface takes those of a state."""
    return np.array([<size_t> data(a) for a in arrays], np.uintp)


cdef tuple dimensions(cnp.ndarray a):
    """Return the shape of an array."""
    return tuple([cnp.PyArray_DIMS(a)[axis] for axis in range(cnp.PyArray_NDIM(a))])


cdef bint overlap(cnp.ndarray a, cnp.ndarray b):
    """Return whether two contiguous arrays share memory."""
    cdef const char* x = cnp.PyArray_BYTES(a)
    cdef const char* y = cnp.PyArray_BYTES(b)
    return x < y + cnp.PyArray_NBYTES(b) and y < x + cnp.PyArray_NBYTES(a)


@cython.final
cdef class Stream:
    """Stream(layer, batch_size=1)\n--\n
    Runs a layer over B sequences, one or several steps at a time.

    A stream packs the weights once, when it is created; later changes to the layer's parameters do not affect it. It
    also keeps a copy of the parameters (or the quantised layer itself), so that it can be copied and pickled; a copy continues from the same state.
    Steps and runs give bit for bit what the layer gives for whole sequences, however these are cut. A call allocates no
    memory if x and `out` are contiguous and do not overlap. There is no dropout, and zoneout uses its mean.

    One call at a time may use a stream; different streams may be used by different threads at once.

    Parameters
    ----------
    layer : LSTM, GRU, RNN or SLSTM
        It must be unidirectional: a backward direction would need the end of the sequences.
    batch_size : int, optional
        B.

    Attributes
    ----------
    batch_size : int
    state : ndarray [L,B,H] or tuple of such
        A copy of h, (h, c) or (h, c, n, m) after the last step. It can be assigned; a part that is None means zero.
        With a projection to P elements, h is [L,B,P], and y has P instead of H.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or the layer is bidirectional.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> lstm = rnnfast.LSTM(3, 4, rng=0)
    >>> stream = lstm.stream()
    >>> x = np.ones((5, 3), np.float32)
    >>> ys = [stream.step(x_t) for x_t in x]
    >>> y, _ = lstm(x)
    >>> np.array_equal(ys, y)
    True
    """

    cdef rnnfast_stream* stream
    cdef readonly Py_ssize_t batch_size
    cdef Py_ssize_t num_layers, input_size, h_size
    cdef int typenum
    cdef bint batch_first
    cdef double flops  # of a step
    cdef str cell
    cdef object dtype
    cdef object layer  # a copy of its own, or one that nothing changes

    __class_getitem__ = classmethod(GenericAlias)  # so that annotations can say Stream[State]

    def __cinit__(self, object layer, object batch_size=1):
        if not isinstance(layer, Stack):
            raise TypeError(f"layer: expected LSTM, GRU, RNN or SLSTM, got {type(layer).__name__}")
        if layer.bidirectional:
            raise ValueError(f"layer: expected one direction, as the other starts at the end, got {layer!r}")
        sequences = size(batch_size, "batch_size")
        addressable(sequences * (layer.input_size + layer.hidden_size), "batch_size", "elements of a step")
        self.batch_size = sequences
        layer = self.layer = copy_of(layer) if layer.format is None else layer  # nothing changes a quantised one
        self.num_layers, self.input_size, self.h_size = layer.num_layers, layer.input_size, layer.h_size
        self.batch_first, self.cell, self.dtype = layer.batch_first, layer.cell, layer.dtype
        self.typenum = cnp.NPY_FLOAT if self.dtype == np.float32 else cnp.NPY_DOUBLE

        arrays = layer.parameters
        self.flops = 2.0 * self.batch_size * sum(p.size for name, p in arrays.items() if name.startswith("weight"))

        cell = self.cell.encode()
        cdef rnnfast_weights* weights = <rnnfast_weights*> PyMem_Malloc(self.num_layers * sizeof(rnnfast_weights))
        if not weights:
            raise MemoryError
        cdef rnnfast_stack stack
        stack.cell = cell
        stack.dtype = RNNFAST_FLOAT32 if self.typenum == cnp.NPY_FLOAT else RNNFAST_FLOAT64
        stack.num_layers, stack.input_size, stack.hidden_size = self.num_layers, self.input_size, layer.hidden_size
        stack.proj_size, stack.num_heads = layer.proj_size, layer.num_heads
        stack.layers = weights
        cdef cnp.ndarray state0 = pointers(list(map(arrays.get, initial_names(self.cell))))
        stack.state0 = <const void* const*> cnp.PyArray_DATA(state0)
        cdef cnp.ndarray zoneout = np.array(rates_of(layer))
        stack.zoneout = <const double*> cnp.PyArray_DATA(zoneout)
        stack.layer_norm_eps = layer.eps or 0
        format = layer.format
        stack.format = {None: RNNFAST_SAME, "bfloat16": RNNFAST_BFLOAT16, "int8": RNNFAST_INT8}[format]
        cdef cnp.ndarray scales = np.zeros((self.num_layers, 3), np.uintp)
        stack.scales = <const float* const*> cnp.PyArray_DATA(scales)
        cdef list others = []  # keeps the arrays of pointers
        for l in range(self.num_layers):
            arrays_of_layer = list(layer.of_layer(l)[0])
            if format == "int8":
                for place, i in enumerate([0, 1, -1][: 3 if layer.proj_size else 2]):
                    arrays_of_layer[i], of_rows = arrays_of_layer[i]
                    scales[l, place] = <size_t> data(of_rows)
            w_ih, w_hh, b_ih, b_hh, *more = arrays_of_layer
            weights[l].w_ih, weights[l].w_hh = data(w_ih), data(w_hh)
            weights[l].b_ih, weights[l].b_hh = data(b_ih), data(b_hh)
            others.append(pointers(more))
            weights[l].more = <const void* const*> data(others[l])
        try:
            check(api.stream_create(&stack, self.batch_size, &self.stream))
        finally:
            PyMem_Free(weights)

    def __dealloc__(self):
        api.stream_destroy(self.stream)

    def __repr__(self):
        return f"Stream({self.layer!r}, batch_size={self.batch_size})"

    def __reduce__(self):
        return Stream, (self.layer, self.batch_size), self.state

    def __setstate__(self, object state):
        self.state = state

    def step(self, object x, object out=None):
        """Advance all sequences by one step.

        Parameters
        ----------
        x : array [B,I], or [I] for a batch size of 1
        out : ndarray [B,H], or [H], optional
            Where y goes; it may overlap x.

        Returns
        -------
        y : ndarray [B,H], or [H]
            h of the last layer; `out` if that was given.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit. Then nothing has changed.
        RuntimeError
            If another call with this stream has not returned. Then nothing has changed.
        """
        return self.advance(x, out, 0)

    def run(self, object x, object out=None):
        """Advance all sequences by T steps.

        Parameters
        ----------
        x : array [T,B,I], [B,T,I] if the layer is `batch_first`, or [T,I] for a batch size of 1
            T may be 0.
        out : ndarray like y, optional
            Where y goes; it may overlap x.

        Returns
        -------
        y : ndarray [T,B,H], laid out as x is
            h of the last layer at every step; `out` if that was given.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit. Then nothing has changed.
        RuntimeError
            If another call with this stream has not returned. Then nothing has changed.
        KeyboardInterrupt
            On Ctrl-C, or what another handler of signals raises. The state is that after a part of the steps, and
            `out` may hold a part of y.
        """
        return self.advance(x, out, 1)

    def reset(self, object rows=None):
        """Take sequences back to the initial state: the layer's learned one, else zero.

        Parameters
        ----------
        rows : int, sequence of ints or array of B bools, optional
            Which of the B sequences; by default all.

        Raises
        ------
        TypeError, ValueError
            If `rows` does not fit.
        RuntimeError
            If another call with this stream has not returned.
        """
        if rows is None:
            check(api.stream_reset(self.stream, NULL))
            return
        cdef cnp.ndarray mask = self.mask(rows)
        check(api.stream_reset(self.stream, <const unsigned char*> cnp.PyArray_DATA(mask)))

    @property
    def state(self):
        parts = tuple([np.empty(shape, self.dtype) for shape in state_shapes(self.layer, self.batch_size)])
        cdef cnp.ndarray targets = pointers(parts)
        check(api.stream_get_state(self.stream, <void* const*> cnp.PyArray_DATA(targets)))
        return state_of(parts)

    @state.setter
    def state(self, object value):
        shapes = state_shapes(self.layer, self.batch_size)
        given = parts_of(self.cell, value, "state")
        parts = [self.part(part, shape) for part, shape in zip(given, shapes, strict=True)]
        cdef cnp.ndarray sources = pointers(parts)
        check(api.stream_set_state(self.stream, <const void* const*> cnp.PyArray_DATA(sources)))

    cdef object part(self, object a, tuple shape):
        return np.zeros(shape, self.dtype) if a is None else readable(checked(a, "state", shape, self.dtype))

    cdef object mask(self, object rows):
        """Return which sequences `rows` names, as B bools."""
        B = self.batch_size
        rows = np.asarray(rows) if isinstance(rows, (int, list, tuple, range)) else _core.asarray(rows, "rows")
        if rows.dtype == bool:
            return readable(checked(rows, "rows", (B,), rows.dtype))
        mask = np.zeros(B, bool)
        if rows.size:
            if rows.dtype.kind not in "iu":
                raise TypeError(f"rows: expected ints or bools, got {rows.dtype}")
            if rows.min() < 0 or rows.max() >= B:
                raise ValueError(f"rows: expected numbers from 0 to {B - 1}, got {rows}")
            mask[rows] = True
        return mask

    cdef object advance(self, object x, object out, int time):
        """Run one step (time = 0), or all steps of arrays that have an axis of time (time = 1)."""
        cdef cnp.ndarray given = x if self.has_dtype(x) else _core.asarray(x, "x", self.dtype)
        cdef int ndim = cnp.PyArray_NDIM(given)
        cdef const cnp.npy_intp* shape = cnp.PyArray_DIMS(given)
        cdef bint batched = ndim == time + 2
        cdef bint batch_first = batched and (not time or self.batch_first)
        if (
            not (ndim == time + 1 and self.batch_size == 1 or batched and shape[not batch_first] == self.batch_size)
            or shape[ndim - 1] != self.input_size
        ):
            raise ValueError(f"x: expected shape {self.expected(time)}, got {dimensions(given)}")
        cdef Py_ssize_t T = shape[batch_first] if time else 1

        # The sequences side by side at each step, which they are not in [B,T,I].
        cdef bint transposed = time and batch_first and self.batch_size > 1
        cdef cnp.ndarray source = cnp.PyArray_SwapAxes(given, 0, 1) if transposed else given
        if not cnp.PyArray_ISCARRAY_RO(source):
            source = readable(source)
        cdef cnp.npy_intp[3] y_shape
        y_shape[0], y_shape[1] = cnp.PyArray_DIMS(source)[0], cnp.PyArray_DIMS(source)[1] if ndim == 3 else 1
        y_shape[ndim - 1] = self.h_size
        cdef const char* x_data = cnp.PyArray_BYTES(source)  # now: to check `out` may run code that changes x
        cdef cnp.ndarray y, target
        if out is not None and not transposed and self.fits(out, ndim, y_shape, source):
            y = out
            self.steps(T, x_data, cnp.PyArray_BYTES(y))
            return y
        if out is not None:
            target = checked_target(out, "out", (*dimensions(given)[:-1], self.h_size), self.dtype)
        y = cnp.PyArray_EMPTY(ndim, y_shape, self.typenum, 0)
        self.steps(T, x_data, cnp.PyArray_BYTES(y))
        cdef cnp.ndarray result = cnp.PyArray_SwapAxes(y, 0, 1) if transposed else y
        if out is None:
            return result
        cnp.PyArray_CopyInto(target, result)
        return out

    cdef bint has_dtype(self, object a):
        """Return whether this is an array of NumPy's own class and of the layer's dtype."""
        return (
            cnp.PyArray_CheckExact(a)
            and cnp.PyArray_TYPE(<cnp.ndarray> a) == self.typenum
            and cnp.PyArray_ISNOTSWAPPED(<cnp.ndarray> a)
        )

    cdef bint fits(self, object out, int ndim, const cnp.npy_intp* shape, cnp.ndarray source):
        """Return whether the C interface can write to `out`."""
        if not self.has_dtype(out):
            return False
        cdef cnp.ndarray y = out
        if not cnp.PyArray_ISCARRAY(y) or cnp.PyArray_NDIM(y) != ndim:
            return False
        for axis in range(ndim):
            if cnp.PyArray_DIMS(y)[axis] != shape[axis]:
                return False
        return not overlap(source, y)

    cdef int steps(self, Py_ssize_t T, const char* x, char* y) except -1:
        """Run the steps; where they are many, let other threads and signals in."""
        if T * self.flops < worth_releasing:
            return check(api.stream_run(self.stream, T, x, y))
        cdef list raised = []
        cdef void* context = <void*> raised
        cdef rnnfast_status status
        # Other threads have no signals to handle, and may still run when there is no interpreter left to ask.
        cdef bint is_main = PyThread_get_thread_ident() == main_ident
        with nogil:
            if is_main:
                status = api.stream_run_until(self.stream, T, x, y, handle_signals, context)
            else:
                status = api.stream_run(self.stream, T, x, y)
        if status == RNNFAST_INTERRUPTED:
            raise raised.pop()
        return check(status)

    cdef str expected(self, int time):
        """Return the shapes that x may have, in words."""
        batch, width = self.batch_size, self.input_size
        axes = (batch,) if not time else (batch, "T") if self.batch_first else ("T", batch)
        shapes = [(*axes, width)]
        if batch == 1:
            shapes.append(("T", width) if time else (width,))
        return " or ".join(str(shape) for shape in shapes).replace("'", "")
