// The thread pool: parallel regions with a barrier inside, workers parked between them.
#pragma once

#include <functional>

#include "types.h"

namespace rnnfast {

constexpr Index most_threads = 1024;  // more is a mistake

constexpr bool is_thread_count(Index n) { return n >= 1 && n <= most_threads; }

// At first RNNFAST_NUM_THREADS, else the first number of OMP_NUM_THREADS, else the number of processors that this
// process may use. Throws std::runtime_error if RNNFAST_NUM_THREADS is no number from 1 to most_threads.
Index get_num_threads();
void set_num_threads(Index n);

// How many threads a call is worth that has so many floating point operations and can be had in so many parts: at most
// `most`, or as many as are set where that is 0. Never more than there are processors, as members that wait for a
// processor hold up those that have one; unless RNNFAST_OVERSUBSCRIBE is set, so that tests meet large teams anywhere.
Index team_size(double flops, Index parts, Index most = 0);

enum class Outcome {
  finished,
  interrupted,  // `poll` said so
  abandoned,    // in a forked child: `poll` forked, and the other members are the parent's
};

// Runs job(team) on `threads` threads at once, the caller being rank 0, and returns when all are done. A caller that
// finds the pool busy runs the job alone; so does a child after fork until its own pool has started. `poll` is called
// on the calling thread now and then; once it is true, barriers and `interrupted` tell the members to return. Neither
// function may throw.
Outcome run_parallel(Index threads, const std::function<void(const Team&)>& job, const std::function<bool()>& poll);

// For a job whose members wait for each other's results, rather than for each other. wait_until returns when done(),
// which is sequentially consistent, or as `interrupted`: false, the call was interrupted. Who makes it true calls tell.
bool wait_until(const Team& team, const std::function<bool()>& done);
void tell(const Team& team);

}  // namespace rnnfast
