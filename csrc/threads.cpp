#include "threads.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace rnnfast {

namespace {

// Long enough to bridge the unevenness of a chunk's shares, short enough not to steal a shared core for long.
constexpr int spins_before_yield = 2000;

void wait_briefly(int& spins) {
  if (++spins > spins_before_yield) {
    std::this_thread::yield();
    return;
  }
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr std::uint64_t never = std::numeric_limits<std::uint64_t>::max();

struct Region {
  const std::function<void(const Team&)>& job;
  const std::function<bool()>& poll;
  Index size;
  std::atomic<Index> arrived = 0, finished = 0;
  std::atomic<std::uint64_t> phase = 0;         // barriers passed by all
  std::atomic<std::uint64_t> stops_at = never;  // the barrier from which on members are told to return
};

Region& region_of(const Team& team) { return *static_cast<Region*>(team.context); }

// Rank 0 decides before it arrives, and names the barrier, so that all members leave at the same one.
bool barrier(const Team& team) {
  Region& region = region_of(team);
  const std::uint64_t phase = region.phase.load(std::memory_order_relaxed);
  if (team.rank == 0 && region.poll()) region.stops_at.store(phase, std::memory_order_relaxed);
  if (region.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == region.size) {
    region.arrived.store(0, std::memory_order_relaxed);
    region.phase.store(phase + 1, std::memory_order_release);
  } else {
    int spins = 0;
    while (region.phase.load(std::memory_order_acquire) == phase) wait_briefly(spins);
  }
  return region.stops_at.load(std::memory_order_relaxed) > phase;
}

// Names the next barrier, like one that is arrived at: a member that is late in leaving the one before goes on to it.
bool interrupted(const Team& team) {
  Region& region = region_of(team);
  const std::uint64_t phase = region.phase.load(std::memory_order_relaxed);
  if (team.rank == 0 && region.poll()) region.stops_at.store(phase, std::memory_order_relaxed);
  return region.stops_at.load(std::memory_order_relaxed) <= phase;
}

Team team_of(Region& region, Index rank) { return {rank, region.size, barrier, interrupted, &region}; }

void run_member(Region& region, Index rank) {
  region.job(team_of(region, rank));
  region.finished.fetch_add(1, std::memory_order_release);
}

// Takes a flag that nobody has, and gives it back.
struct Claim {
  std::atomic_flag& flag;
  const bool taken;
  explicit Claim(std::atomic_flag& f) : flag(f), taken(!f.test_and_set(std::memory_order_acquire)) {}
  ~Claim() {
    if (taken) flag.clear(std::memory_order_release);
  }
};

class Pool {
 public:
  // The team may come out smaller where threads cannot be started or the pool is busy.
  void run(Region& region) {
    const Claim claim(busy_);
    if (!claim.taken) region.size = 1;
    if (region.size > 1) {
      grow(region.size - 1);
      region.size = min_size(region.size);
      const std::lock_guard lock(mutex_);
      region_ = &region;
      size_ = region.size;
      ++generation_;
      wake_.notify_all();
    }
    run_member(region, 0);
    int spins = 0;
    while (region.finished.load(std::memory_order_acquire) < region.size) {
      interrupted(team_of(region, 0));
      wait_briefly(spins);
    }
  }

 private:
  Index min_size(Index size) const {
    const Index most = Index(workers_.size()) + 1;
    return size < most ? size : most;
  }

  void grow(Index workers) {
    try {
      while (Index(workers_.size()) < workers) {
        const Index rank = Index(workers_.size()) + 1;
        workers_.emplace_back([this, rank, seen = generation_] { work(rank, seen); });
      }
    } catch (const std::exception&) {
      // no more threads or memory to be had; the threads that run suffice
    }
  }

  void work(Index rank, std::uint64_t seen) {
    for (;;) {
      Region* region;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return generation_ != seen; });
        seen = generation_;
        region = rank < size_ ? region_ : nullptr;
      }
      if (region) run_member(*region, rank);
    }
  }

  std::atomic_flag busy_;             // set while a region runs, which may be one further out on the same thread
  std::vector<std::thread> workers_;  // changed by whoever has set busy_
  std::mutex mutex_;                  // guards what follows
  std::condition_variable wake_;
  std::uint64_t generation_ = 0;
  Region* region_ = nullptr;  // dangles after its end; only the workers it still needs may look
  Index size_ = 0;
};

// Never destroyed: workers wait in it until the process ends. Made when the library is loaded, since a fork might find
// a lazy start half done. A forked child has none of the workers and starts anew.
Pool* make_pool();

std::atomic<Pool*> current_pool = make_pool();

Pool* make_pool() {
#if !defined(_WIN32)
  pthread_atfork(nullptr, nullptr, [] { current_pool.store(new Pool, std::memory_order_release); });
#endif
  return new Pool;
}

Index usable_processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n ? n : 1;
}

// The number of threads that an environment variable holds; 0 if it holds none.
Index threads_in(const char* name) {
  const char* text = std::getenv(name);
  if (!text || !*text) return 0;
  char* end = nullptr;
  const long n = std::strtol(text, &end, 10);
  return *end == '\0' && n >= 1 && n <= most_threads ? n : 0;
}

Index default_num_threads() {
  const char* own = std::getenv("RNNFAST_NUM_THREADS");
  if (own && *own) {
    if (const Index n = threads_in("RNNFAST_NUM_THREADS")) return n;
    throw std::runtime_error("RNNFAST_NUM_THREADS: expected a number of threads from 1 to " +
                             std::to_string(most_threads) + ", got '" + own + "'");
  }
  const Index openmp = threads_in("OMP_NUM_THREADS");
  return openmp ? openmp : usable_processors();
}

std::atomic<Index>& num_threads() {
  static std::atomic<Index> n = default_num_threads();
  return n;
}

}  // namespace

Index get_num_threads() { return num_threads().load(std::memory_order_relaxed); }

void set_num_threads(Index n) { num_threads().store(n, std::memory_order_relaxed); }

Index team_size(double flops, Index parts, Index most) {
  // Work that a thread should have before it is worth waking: about 50 µs at 80 GFLOP/s.
  constexpr double flops_per_thread = 4e6;
  const double worth = flops / flops_per_thread;
  most = std::min(most ? most : get_num_threads(), parts);
  return worth >= double(most) ? most : worth < 1 ? 1 : Index(worth);
}

bool run_parallel(Index threads, const std::function<void(const Team&)>& job, const std::function<bool()>& poll) {
  Region region{job, poll, threads};
  if (threads > 1)
    current_pool.load(std::memory_order_acquire)->run(region);
  else
    run_member(region, 0);
  return region.stops_at.load(std::memory_order_relaxed) == never;
}

}  // namespace rnnfast
