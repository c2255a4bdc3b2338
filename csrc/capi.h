/* The C interface of rnnfast: streaming through a stack of recurrent layers, for other compiled code.
 *
 * It is a table of functions in a capsule of the extension. Python is needed to fetch the table, not to call it:
 *
 *     const rnnfast_api* api = PyCapsule_Import(RNNFAST_CAPSULE, 0);
 *     if (!api || api->version < RNNFAST_API_VERSION) ...
 *
 * Sizes are T time steps, B sequences, I inputs, H hidden units, L layers and G gates (lstm 4, gru 3, rnn 1, in torch's
 * order). Every array is contiguous, aligned to its elements and of the stream's dtype. A stream reads its weights
 * once, when it is made. Results have the bits of the layers' own, however the steps are cut into calls.
 *
 * Later versions append functions to the table and change nothing that is there.
 */
#ifndef RNNFAST_CAPI_H
#define RNNFAST_CAPI_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RNNFAST_CAPSULE "rnnfast._core._C_API"
#define RNNFAST_API_VERSION 1

typedef enum rnnfast_status {
  RNNFAST_OK = 0,
  RNNFAST_INVALID = 1, /* an argument does not fit */
  RNNFAST_NO_MEMORY = 2,
  RNNFAST_BUSY = 3 /* another call with this stream has not returned */
} rnnfast_status;

typedef enum rnnfast_dtype { RNNFAST_FLOAT32 = 0, RNNFAST_FLOAT64 = 1 } rnnfast_dtype;

/* One layer: w_ih [G*H,I], in layers after the first [G*H,H]; w_hh [G*H,H]; b_ih and b_hh [G*H], which may be NULL. */
typedef struct rnnfast_weights {
  const void *w_ih, *w_hh, *b_ih, *b_hh;
} rnnfast_weights;

/* Layers of one cell, in one direction, each after the first reading the output of the one before. */
typedef struct rnnfast_stack {
  const char* cell; /* "lstm", "gru", "gru_reset_before", "rnn_tanh" or "rnn_relu" */
  rnnfast_dtype dtype;
  ptrdiff_t num_layers, input_size, hidden_size; /* L, I and H; I alone is a macro of complex.h */
  const rnnfast_weights* layers;                 /* [L] */
  const void *h0, *c0; /* [L,H], where every sequence starts; NULL: zeros. c0 is for the lstm alone */
} rnnfast_stack;

/* B sequences on their way through a stack. */
typedef struct rnnfast_stream rnnfast_stream;

typedef struct rnnfast_api {
  size_t size; /* of this table, in bytes */
  int version; /* RNNFAST_API_VERSION of the library */

  /* What went wrong in the last call on this thread that did not return RNNFAST_OK. */
  const char* (*message)(void);

  /* Makes a stream. It packs the weights into memory of its own and allocates all that its calls need: nothing of the
   * stack is used afterwards. */
  rnnfast_status (*stream_create)(const rnnfast_stack* stack, ptrdiff_t B, rnnfast_stream** stream);

  /* Frees a stream that is in no call; NULL is allowed. */
  void (*stream_destroy)(rnnfast_stream* stream);

  /* Runs T >= 1 steps through all layers, x [T,B,I] -> y [T,B,H], which must not overlap. Allocates nothing. Small work
   * stays on the calling thread. */
  rnnfast_status (*stream_run)(rnnfast_stream* stream, ptrdiff_t T, const void* x, void* y);

  /* Takes the sequences b with rows[b] != 0, all if rows is NULL, back to the initial state. */
  rnnfast_status (*stream_reset)(rnnfast_stream* stream, const unsigned char* rows);

  /* Copy the state, h and c [L,B,H], out of a stream and into it; c is NULL for cells other than the lstm. */
  rnnfast_status (*stream_get_state)(rnnfast_stream* stream, void* h, void* c);
  rnnfast_status (*stream_set_state)(rnnfast_stream* stream, const void* h, const void* c);
} rnnfast_api;

#ifdef __cplusplus
}
#endif

#endif
