# cython: language_level=3
"""Compiled code that uses the C interface without the GIL: training steps, and a stream fed step by step."""

import numpy as np

from rnnfast.capi cimport (
    RNNFAST_FLOAT32,
    RNNFAST_FLOAT64,
    RNNFAST_FULL,
    RNNFAST_OK,
    RNNFAST_SAME,
    rnnfast_api,
    rnnfast_backward_args,
    rnnfast_forward_args,
    rnnfast_gradients,
    rnnfast_import,
    rnnfast_layer,
    rnnfast_pack,
    rnnfast_stack,
    rnnfast_status,
    rnnfast_stream,
    rnnfast_tape,
    rnnfast_weights,
)

cdef const rnnfast_api* api = rnnfast_import()


cdef void* data(object a):
    return NULL if a is None else <void*> <size_t> a.ctypes.data


def pointers(object arrays):
    """Return where arrays are, as an array of pointers."""
    return np.array([<size_t> data(a) for a in arrays], np.uintp)


cdef int check(rnnfast_status status) except -1:
    if status != RNNFAST_OK:
        raise ValueError(api.message().decode())
    return 0


def train(object call, int passes=1, bint packed=False):
    """Go forward and back this many times, the gradients of the weights summed up, and write call.results."""
    p = call.problem
    dtype = RNNFAST_FLOAT32 if p.x.itemsize == 4 else RNNFAST_FLOAT64
    cell, H, heads = p.cell.encode(), p.hidden_size, call.layer.num_heads
    cdef rnnfast_weights[2] weights
    cdef rnnfast_gradients[2] gradients
    more = [(pointers(ws[4:]), pointers(gs[4:])) for ws, gs in zip(p.parameters, call.grads)]
    for d, (ws, gs, (of_w, of_g)) in enumerate(zip(p.parameters, call.grads, more)):
        weights[d] = rnnfast_weights(
            data(ws[0]), data(ws[1]), data(ws[2]), data(ws[3]), <const void* const*> data(of_w)
        )
        gradients[d] = rnnfast_gradients(
            data(gs[0]), data(gs[1]), data(gs[2]), data(gs[3]), <void* const*> data(of_g)
        )
    cdef rnnfast_layer layer = rnnfast_layer(
        sizeof(rnnfast_layer), cell, dtype, p.x.shape[-1], H, len(p.parameters), &weights[0],
        call.layer.proj_size, heads, NULL, 0, RNNFAST_FULL
    )
    sizes = call.batch_sizes
    states = [pointers(arrays) for arrays in (call.state0, call.state, call.dstate, call.dstate0)]
    state0, state, dstate, dstate0 = states
    cdef rnnfast_forward_args forward = rnnfast_forward_args(
        sizeof(rnnfast_forward_args), len(p.x if sizes is None else sizes), p.x.shape[1] if sizes is None else sizes[0],
        data(p.x), <const void* const*> data(state0), data(call.y), <void* const*> data(state),
        <const Py_ssize_t*> data(sizes), <const unsigned char*> data(call.resets), NULL, NULL,
        NULL, NULL, 0, NULL, 0, 0,
    )
    cdef rnnfast_backward_args backward = rnnfast_backward_args(
        sizeof(rnnfast_backward_args), data(p.dy), <const void* const*> data(dstate),
        data(call.dx), <void* const*> data(dstate0), &gradients[0], 0,
    )
    cdef rnnfast_pack* pack = NULL
    cdef rnnfast_tape* tape = NULL
    cdef rnnfast_status status
    with nogil:
        status = api.tape_create(&tape)
        if status == RNNFAST_OK and packed:
            status = api.pack_create(&layer, &pack)
        forward.tape, forward.pack = tape, pack
        for i in range(passes):
            backward.accumulate = i > 0
            if status == RNNFAST_OK:
                status = api.forward(&layer, &forward)
            if status == RNNFAST_OK:
                status = api.backward(tape, &backward)
        api.tape_destroy(tape)
        api.pack_destroy(pack)
    check(status)


def stream(object layer, object x, object y):
    """Feed x [T,B,I] step by step through a stack, and write y [T,B,H]."""
    cdef rnnfast_weights[8] weights
    layers = [layer.of_layer(k)[0] for k in range(layer.num_layers)]
    more = [pointers(ws[4:]) for ws in layers]
    for k, ws in enumerate(layers):
        weights[k] = rnnfast_weights(
            data(ws[0]), data(ws[1]), data(ws[2]), data(ws[3]), <const void* const*> data(more[k])
        )
    dtype = RNNFAST_FLOAT32 if x.itemsize == 4 else RNNFAST_FLOAT64
    cell = layer.cell.encode()
    cdef rnnfast_stack stack = rnnfast_stack(
        cell, dtype, layer.num_layers, layer.input_size, layer.hidden_size, &weights[0], NULL,
        layer.proj_size, layer.num_heads, NULL, layer.eps or 0, RNNFAST_SAME, NULL
    )
    cdef Py_ssize_t t, T = x.shape[0], x_step = x[0].nbytes, y_step = y[0].nbytes
    cdef const char* source = <const char*> data(x)
    cdef char* target = <char*> data(y)
    cdef rnnfast_stream* made = NULL
    check(api.stream_create(&stack, x.shape[1], &made))
    cdef rnnfast_status status = RNNFAST_OK
    with nogil:
        for t in range(T):
            if status == RNNFAST_OK:
                status = api.stream_run(made, 1, source + t * x_step, target + t * y_step)
        api.stream_destroy(made)
    check(status)
