/* The C interface of rnnfast: recurrent layers forward and backward, and streams through stacks of them, for other
 * compiled code. docs/c-api.md has examples.
 *
 * It is a table of functions in a capsule of the extension. Python is needed to fetch the table, not to call it: the
 * functions may be called from any thread, with or without the GIL. Where Python.h is included before this header,
 *
 *     const rnnfast_api* api = rnnfast_import();
 *
 * returns the table, or NULL with an exception set.
 *
 * Sizes are T time steps, B sequences, I inputs, H hidden units, P elements of h, which are H unless h is a projection,
 * D directions and L layers, and of a cell G gates and S states. Of the states, h is [D,B,P], the others [D,B,H]. The
 * documentation of rnnfast.functional names the cells, with their equations, the order of their gates and their states,
 * of which h is the first. A state is an array of pointers to its S parts. In a struct, NULL in place of the array or
 * of a pointer in it means zeros, or that a result is not wanted. Every array is contiguous, aligned to its elements
 * and of the call's dtype. Results have the bits of the Python functions' own.
 *
 * Every function checks its arguments before it writes anything. Arrays that a call writes must not overlap others of
 * the call; forward and backward check that too, and how arrays are aligned, while streams leave it to the caller. In a
 * struct that begins with `size`, what is not needed is zero:
 *
 *     rnnfast_forward_args args = {.size = sizeof args, .T = T, .B = B, .x = x, .y = y};
 *
 * Later versions append functions to the table and members to such structs, and change nothing that is there.
 */
#ifndef RNNFAST_CAPI_H
#define RNNFAST_CAPI_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RNNFAST_CAPSULE "rnnfast._core._C_API"
#define RNNFAST_API_VERSION 3

typedef enum rnnfast_status {
  RNNFAST_OK = 0,
  RNNFAST_INVALID = 1, /* an argument does not fit */
  RNNFAST_NO_MEMORY = 2,
  RNNFAST_BUSY = 3,       /* another call with this stream or tape has not returned */
  RNNFAST_INTERRUPTED = 4 /* the caller's function has ended a run */
} rnnfast_status;

typedef enum rnnfast_dtype { RNNFAST_FLOAT32 = 0, RNNFAST_FLOAT64 = 1 } rnnfast_dtype;

/* What the matrices of a stream with float32 are made of: its dtype; numbers of bfloat16, 2 bytes each; or those from
 * -127 to 127 in a byte each, of which every row has a scale. */
typedef enum rnnfast_format { RNNFAST_SAME = 0, RNNFAST_BFLOAT16 = 1, RNNFAST_INT8 = 2 } rnnfast_format;

/* Of the factors of a layer's products, with float32. RNNFAST_ROUNDED: x, h, the weights and the gradients of gates are
 * rounded to bfloat16, to nearest even, where they are multiplied; sums and all else are float32. That takes a
 * processor with AVX512_BF16, or RNNFAST_BF16=emulate in the environment, and cells other than those that normalise, of
 * one head; else a call returns RNNFAST_INVALID. */
typedef enum rnnfast_precision { RNNFAST_FULL = 0, RNNFAST_ROUNDED = 1 } rnnfast_precision;

/* One direction of one layer: w_ih [G*H,I], in layers of a stack after the first [G*H,P]; w_hh [G*H,P], of several
 * heads [G*H,H/heads]; b_ih and b_hh [G*H], which may be NULL; and as many pointers as there are other parameters, or
 * NULL where there is none: those of the cell, such as the peephole [3*H] of "lstm_peephole", and last w_hr [P,H] where
 * h is a projection. The b_c of "lstm_norm" and "lstm_norm_carried" may be NULL too. */
typedef struct rnnfast_weights {
  const void *w_ih, *w_hh, *b_ih, *b_hh;
  const void* const* more;
} rnnfast_weights;

/* ---- Streams --------------------------------------------------------------------------------------------------- */

/* Layers of one cell, in one direction, each after the first reading the output of the one before. */
typedef struct rnnfast_stack {
  const char* cell; /* its name in rnnfast.functional, such as "lstm" */
  rnnfast_dtype dtype;
  ptrdiff_t num_layers, input_size, hidden_size; /* L, I and H; I alone is a macro of complex.h */
  const rnnfast_weights* layers;                 /* [L] */
  const void* const* state0;                     /* [S] of [L,H], of h [L,P], where every sequence starts */
  ptrdiff_t proj_size;                           /* P of a projection, less than H; 0: there is none */
  ptrdiff_t num_heads;   /* of a cell that may have them, "slstm" or "slstm_exp"; 0 stands for 1 */
  const double* zoneout; /* [S], at least 0 and less than 1: the part of a state before a step in that after it; NULL:
                          * zeros. Not with a projection. */
  double layer_norm_eps; /* above 0, of a cell that normalises, "lstm_norm", "lstm_norm_carried" or "gru_norm": what is
                          * added to the variances; 0 stands for 1e-5 */
  rnnfast_format format; /* of w_ih, w_hh and w_hr. RNNFAST_BFLOAT16 not with several heads, RNNFAST_INT8 not with cells
                          * that may have them or that normalise; neither with float64 */
  const float* const* scales; /* [3*L] of RNNFAST_INT8, else NULL: for w_ih, w_hh and w_hr of each layer, what each row
                               * is multiplied by; those of a w_hr that there is not may be NULL */
} rnnfast_stack;

/* B sequences on their way through a stack. */
typedef struct rnnfast_stream rnnfast_stream;

/* ---- Layers ---------------------------------------------------------------------------------------------------- */

/* One layer. The second of two directions runs backwards in time. */
typedef struct rnnfast_layer {
  size_t size;      /* sizeof(rnnfast_layer) */
  const char* cell; /* as in a stack */
  rnnfast_dtype dtype;
  ptrdiff_t input_size, hidden_size, num_directions; /* I, H and D, which is 1 or 2 */
  const rnnfast_weights* weights; /* [D]; may be NULL for a forward with packed weights and without a tape */
  ptrdiff_t proj_size, num_heads; /* as in a stack */
  const double* zoneout;          /* likewise; a forward may have masks in the place of rates */
  double layer_norm_eps;          /* likewise */
  rnnfast_precision precision;
} rnnfast_layer;

/* A layer's weights as the kernels read them. Any number of calls may use it at once. */
typedef struct rnnfast_pack rnnfast_pack;

/* What a forward keeps for its backward. It refers to x, y, the initial state, the weights and masks and does not copy
 * them: they must not change before the last backward. One call at a time may use it. A tape's memory is used again by
 * the next forward: where sizes do not grow, forward and backward allocate nothing. */
typedef struct rnnfast_tape rnnfast_tape;

/* Where sequences differ in their number of steps, they are ordered by descending length, step t has the first
 * batch_sizes[t] of them, and [T,B,n] stands for [N,n], the rows of all steps one after the other. */
typedef struct rnnfast_forward_args {
  size_t size;                  /* sizeof(rnnfast_forward_args) */
  ptrdiff_t T, B;               /* at least 1 */
  const void* x;                /* [T,B,I] */
  const void* const* state0;    /* [S] of [D,B,H], the initial state; h is [D,B,P] in all of them */
  void* y;                      /* [T,B,D*P], h of every step */
  void* const* state;           /* [S] of [D,B,H], the state after the last step */
  const ptrdiff_t* batch_sizes; /* [T], positive and in descending order, the first is B; NULL: all steps have B rows */
  const unsigned char* resets;  /* [T,B], not 0 where the state before the step is the initial one again; or NULL */
  const rnnfast_pack* pack;     /* the layer's packed weights; NULL: the call packs them */
  rnnfast_tape* tape;           /* filled for backward; NULL: nothing is kept */

  /* Masks of training; the caller draws them. They are bits, the lowest of a byte first, for each of H units, and those
   * of a row begin with a byte of their own: K stands for ceil(H/8). */
  const unsigned char* const* zoneout_masks; /* [S] of [T,B,D*K], 1 where a unit of the state has its new value; NULL,
                                              * also in the array: the layer's rate stands. Not with a projection. */
  const void* recurrent_factors;  /* [D,B,H], what h is multiplied by before it meets w_hh, in all steps; or NULL. Not
                                   * with a projection or heads. */
  int recurrent_factors_per_gate; /* not 0: recurrent_factors are [D,B,G,H], those of gates in the order of w_hh */
  const unsigned char* candidate_mask; /* [T,B,D*K], 1 where the candidate, g of an LSTM or n of a GRU, reaches the
                                        * state, multiplied by 1 / (1 - candidate_dropout); or NULL */
  int candidate_mask_per_sequence;     /* not 0: candidate_mask is [B,D*K], the same in all steps */
  double candidate_dropout;            /* at least 0 and less than 1 */
} rnnfast_forward_args;

/* The gradients of one direction's weights, shaped like them; those of the biases are NULL where these are. Of the
 * cell's other parameters, NULL in place of the array or of a pointer in it means that a gradient is not wanted; that
 * of w_hr is. */
typedef struct rnnfast_gradients {
  void *dw_ih, *dw_hh, *db_ih, *db_hh;
  void* const* dmore;
} rnnfast_gradients;

/* d<name> is the gradient of a loss with respect to <name>. Some of dy and dstate is given. */
typedef struct rnnfast_backward_args {
  size_t size;                        /* sizeof(rnnfast_backward_args) */
  const void* dy;                     /* [T,B,D*P]; NULL: zeros */
  const void* const* dstate;          /* [S] of [D,B,H], of the last state */
  void* dx;                           /* [T,B,I]; NULL: not computed */
  void* const* dstate0;               /* [S] of [D,B,H] */
  const rnnfast_gradients* gradients; /* [D] */
  int accumulate;                     /* not 0: the weights' gradients are added to what is there */
} rnnfast_backward_args;

/* ---- The table ------------------------------------------------------------------------------------------------- */

typedef struct rnnfast_api {
  size_t size; /* of this table, in bytes */
  int version; /* RNNFAST_API_VERSION of the library */
  int oldest;  /* that of the oldest header whose users it still serves */

  /* What went wrong in the last call on this thread that did not return RNNFAST_OK. */
  const char* (*message)(void);

  /* Makes a stream. It packs the weights into memory of its own and allocates all that its calls need: nothing of the
   * stack is used afterwards. */
  rnnfast_status (*stream_create)(const rnnfast_stack* stack, ptrdiff_t B, rnnfast_stream** stream);

  /* Frees a stream that is in no call; NULL is allowed. */
  void (*stream_destroy)(rnnfast_stream* stream);

  /* Runs T >= 0 steps through all layers, x [T,B,I] -> y [T,B,P], which must not overlap. Allocates nothing. Small work
   * stays on the calling thread. */
  rnnfast_status (*stream_run)(rnnfast_stream* stream, ptrdiff_t T, const void* x, void* y);

  /* Takes the sequences b with rows[b] != 0, all if rows is NULL, back to the initial state. */
  rnnfast_status (*stream_reset)(rnnfast_stream* stream, const unsigned char* rows);

  /* Copy the state, [S] of [L,B,H], of h [L,B,P], out of a stream and into it. */
  rnnfast_status (*stream_get_state)(rnnfast_stream* stream, void* const* state);
  rnnfast_status (*stream_set_state)(rnnfast_stream* stream, const void* const* state);

  /* Runs a layer over whole sequences. Without a tape, memory comes from what the library keeps for such calls. */
  rnnfast_status (*forward)(const rnnfast_layer* layer, const rnnfast_forward_args* args);

  /* Backpropagates through the last forward of a tape. Any number of backwards may follow on a forward. */
  rnnfast_status (*backward)(rnnfast_tape* tape, const rnnfast_backward_args* args);

  /* Makes an empty tape, which forwards of any layers may fill one after the other. One that fails leaves it empty. */
  rnnfast_status (*tape_create)(rnnfast_tape** tape);

  /* Frees a tape that is in no call; NULL is allowed. */
  void (*tape_destroy)(rnnfast_tape* tape);

  /* Packs a layer's weights. They are not used afterwards. */
  rnnfast_status (*pack_create)(const rnnfast_layer* layer, rnnfast_pack** pack);

  /* Packs weights that have changed, or those of another layer of the same sizes, into a pack that is in no call. */
  rnnfast_status (*pack_update)(rnnfast_pack* pack, const rnnfast_layer* layer);

  /* Frees a pack that is in no call; NULL is allowed. */
  void (*pack_destroy)(rnnfast_pack* pack);

  /* How many threads a call may use, from 1 to 1024: one number for all callers in the process. */
  ptrdiff_t (*get_num_threads)(void);
  rnnfast_status (*set_num_threads)(ptrdiff_t n);

  /* As stream_run, and asks about every 20 ms whether to stop: stop(context, t) is called on the calling thread when t
   * steps are done. Unless it returns 0, the run ends with RNNFAST_INTERRUPTED: the state is that after t steps, whose
   * outputs are in y. Until the run has ended, other calls with the stream are busy, those that `stop` makes too. */
  rnnfast_status (*stream_run_until)(rnnfast_stream* stream, ptrdiff_t T, const void* x, void* y,
                                     int (*stop)(void* context, ptrdiff_t t), void* context);
} rnnfast_api;

#ifdef Py_PYTHON_H
/* The table of the rnnfast that is installed, or NULL with an exception set: ImportError where it does not serve this
 * header. The caller holds the GIL. */
static inline const rnnfast_api* rnnfast_import(void) {
  const rnnfast_api* api = (const rnnfast_api*)PyCapsule_Import(RNNFAST_CAPSULE, 0);
  if (!api) return NULL;
  if (api->version >= RNNFAST_API_VERSION && api->oldest <= RNNFAST_API_VERSION && api->size >= sizeof(rnnfast_api))
    return api;
  PyErr_Format(PyExc_ImportError,
               "rnnfast: this extension was compiled for version %d of the C interface, but the installed rnnfast "
               "has version %d: %s",
               RNNFAST_API_VERSION, api->version,
               api->version > RNNFAST_API_VERSION ? "compile the extension again" : "install a newer rnnfast");
  return NULL;
}
#endif

#ifdef __cplusplus
}
#endif

#endif
