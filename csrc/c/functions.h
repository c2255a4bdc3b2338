// The table, and its functions, of which capi.h says what they do.
#pragma once

#include <cstddef>

#include "c/capi.h"

namespace rnnfast {

extern const rnnfast_api c_api;

rnnfast_status forward(const rnnfast_layer* layer, const rnnfast_forward_args* args);
rnnfast_status backward(rnnfast_tape* tape, const rnnfast_backward_args* args);
rnnfast_status tape_create(rnnfast_tape** tape);
void tape_destroy(rnnfast_tape* tape);
rnnfast_status pack_create(const rnnfast_layer* layer, rnnfast_pack** pack);
rnnfast_status pack_update(rnnfast_pack* pack, const rnnfast_layer* layer);
void pack_destroy(rnnfast_pack* pack);

// What callers inside the library add to a call: memory for what its tape keeps, in place of a tape, and that the
// single direction runs backwards in time.
struct Borrowed {
  void* tape;         // null: nothing is kept
  std::size_t bytes;  // at least what `lent_bytes` says
  bool reverse;
};

// Throws std::invalid_argument. `masked`: the forward has zoneout_masks of all states.
std::size_t lent_bytes(const rnnfast_layer& layer, std::ptrdiff_t T, std::ptrdiff_t B, bool masked);
rnnfast_status forward(const rnnfast_layer* layer, const rnnfast_forward_args* args, const Borrowed& lent);
rnnfast_status backward(const rnnfast_layer* layer, const rnnfast_forward_args* forward, const Borrowed& lent,
                        const rnnfast_backward_args* args);

rnnfast_status stream_create(const rnnfast_stack* stack, ptrdiff_t B, rnnfast_stream** stream);
void stream_destroy(rnnfast_stream* stream);
rnnfast_status stream_run(rnnfast_stream* stream, ptrdiff_t T, const void* x, void* y);
rnnfast_status stream_run_until(rnnfast_stream* stream, ptrdiff_t T, const void* x, void* y,
                                int (*stop)(void* context, ptrdiff_t t), void* context);
rnnfast_status stream_reset(rnnfast_stream* stream, const unsigned char* rows);
rnnfast_status stream_get_state(rnnfast_stream* stream, void* const* state);
rnnfast_status stream_set_state(rnnfast_stream* stream, const void* const* state);

}  // namespace rnnfast
