"""The C interface of rnnfast for Cython: see capi.h, which says what the functions do.

Compile with `rnnfast.get_include()` among the include folders, and fetch the table once:

    from cpython.pycapsule cimport PyCapsule_Import
    from rnnfast.capi cimport RNNFAST_CAPSULE, rnnfast_api

    cdef const rnnfast_api* api = <const rnnfast_api*> PyCapsule_Import(RNNFAST_CAPSULE, 0)
"""

cdef extern from "rnnfast/capi.h" nogil:
    const char* RNNFAST_CAPSULE
    int RNNFAST_API_VERSION

    ctypedef enum rnnfast_status:
        RNNFAST_OK
        RNNFAST_INVALID
        RNNFAST_NO_MEMORY
        RNNFAST_BUSY

    ctypedef enum rnnfast_dtype:
        RNNFAST_FLOAT32
        RNNFAST_FLOAT64

    ctypedef struct rnnfast_weights:
        const void* w_ih
        const void* w_hh
        const void* b_ih
        const void* b_hh

    ctypedef struct rnnfast_stack:
        const char* cell
        rnnfast_dtype dtype
        Py_ssize_t num_layers
        Py_ssize_t input_size
        Py_ssize_t hidden_size
        const rnnfast_weights* layers
        const void* h0
        const void* c0

    ctypedef struct rnnfast_stream:
        pass

    ctypedef struct rnnfast_api:
        size_t size
        int version
        const char* (*message)() noexcept nogil
        rnnfast_status (*stream_create)(const rnnfast_stack*, Py_ssize_t, rnnfast_stream**) noexcept nogil
        void (*stream_destroy)(rnnfast_stream*) noexcept nogil
        rnnfast_status (*stream_run)(rnnfast_stream*, Py_ssize_t, const void*, void*) noexcept nogil
        rnnfast_status (*stream_reset)(rnnfast_stream*, const unsigned char*) noexcept nogil
        rnnfast_status (*stream_get_state)(rnnfast_stream*, void*, void*) noexcept nogil
        rnnfast_status (*stream_set_state)(rnnfast_stream*, const void*, const void*) noexcept nogil
