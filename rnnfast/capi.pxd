"""The C interface of rnnfast for Cython: see capi.h, which says what the functions do.

Compile with `rnnfast.get_include()` among the include folders, and fetch the table once:

    from rnnfast.capi cimport rnnfast_api, rnnfast_import

    cdef const rnnfast_api* api = rnnfast_import()
"""

cdef extern from "rnnfast/capi.h" nogil:
    const char* RNNFAST_CAPSULE
    int RNNFAST_API_VERSION

    ctypedef enum rnnfast_status:
        RNNFAST_OK
        RNNFAST_INVALID
        RNNFAST_NO_MEMORY
        RNNFAST_BUSY
        RNNFAST_INTERRUPTED

    ctypedef enum rnnfast_dtype:
        RNNFAST_FLOAT32
        RNNFAST_FLOAT64

    ctypedef enum rnnfast_format:
        RNNFAST_SAME
        RNNFAST_BFLOAT16
        RNNFAST_INT8

    ctypedef enum rnnfast_precision:
        RNNFAST_FULL
        RNNFAST_ROUNDED

    ctypedef struct rnnfast_weights:
        const void* w_ih
        const void* w_hh
        const void* b_ih
        const void* b_hh
        const void* const* more

    ctypedef struct rnnfast_stack:
        const char* cell
        rnnfast_dtype dtype
        Py_ssize_t num_layers
        Py_ssize_t input_size
        Py_ssize_t hidden_size
        const rnnfast_weights* layers
        const void* const* state0
        Py_ssize_t proj_size, num_heads
        const double* zoneout
        double layer_norm_eps
        rnnfast_format format
        const float* const* scales

    ctypedef struct rnnfast_stream:
        pass

    ctypedef struct rnnfast_layer:
        size_t size
        const char* cell
        rnnfast_dtype dtype
        Py_ssize_t input_size
        Py_ssize_t hidden_size
        Py_ssize_t num_directions
        const rnnfast_weights* weights
        Py_ssize_t proj_size, num_heads
        const double* zoneout
        double layer_norm_eps
        rnnfast_precision precision

    ctypedef struct rnnfast_pack:
        pass

    ctypedef struct rnnfast_tape:
        pass

    ctypedef struct rnnfast_forward_args:
        size_t size
        Py_ssize_t T
        Py_ssize_t B
        const void* x
        const void* const* state0
        void* y
        void* const* state
        const Py_ssize_t* batch_sizes
        const unsigned char* resets
        const rnnfast_pack* pack
        rnnfast_tape* tape
        const unsigned char* const* zoneout_masks
        const void* recurrent_factors
        int recurrent_factors_per_gate
        const unsigned char* candidate_mask
        int candidate_mask_per_sequence
        double candidate_dropout

    ctypedef struct rnnfast_gradients:
        void* dw_ih
        void* dw_hh
        void* db_ih
        void* db_hh
        void* const* dmore

    ctypedef struct rnnfast_backward_args:
        size_t size
        const void* dy
        const void* const* dstate
        void* dx
        void* const* dstate0
        const rnnfast_gradients* gradients
        int accumulate

    ctypedef struct rnnfast_api:
        size_t size
        int version
        int oldest
        const char* (*message)() noexcept nogil
        rnnfast_status (*stream_create)(const rnnfast_stack*, Py_ssize_t, rnnfast_stream**) noexcept nogil
        void (*stream_destroy)(rnnfast_stream*) noexcept nogil
        rnnfast_status (*stream_run)(rnnfast_stream*, Py_ssize_t, const void*, void*) noexcept nogil
        rnnfast_status (*stream_reset)(rnnfast_stream*, const unsigned char*) noexcept nogil
        rnnfast_status (*stream_get_state)(rnnfast_stream*, void* const*) noexcept nogil
        rnnfast_status (*stream_set_state)(rnnfast_stream*, const void* const*) noexcept nogil
        rnnfast_status (*forward)(const rnnfast_layer*, const rnnfast_forward_args*) noexcept nogil
        rnnfast_status (*backward)(rnnfast_tape*, const rnnfast_backward_args*) noexcept nogil
        rnnfast_status (*tape_create)(rnnfast_tape**) noexcept nogil
        void (*tape_destroy)(rnnfast_tape*) noexcept nogil
        rnnfast_status (*pack_create)(const rnnfast_layer*, rnnfast_pack**) noexcept nogil
        rnnfast_status (*pack_update)(rnnfast_pack*, const rnnfast_layer*) noexcept nogil
        void (*pack_destroy)(rnnfast_pack*) noexcept nogil
        Py_ssize_t (*get_num_threads)() noexcept nogil
        rnnfast_status (*set_num_threads)(Py_ssize_t) noexcept nogil
        rnnfast_status (*stream_run_until)(
            rnnfast_stream*, Py_ssize_t, const void*, void*, int (*)(void*, Py_ssize_t) noexcept nogil, void*
        ) noexcept nogil

cdef extern from "rnnfast/capi.h":
    const rnnfast_api* rnnfast_import() except NULL
