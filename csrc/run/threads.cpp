#include "run/threads.h"

#include <algorithm>
#include <atomic>
#include <cctype>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <functional>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "run/processors.h"

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace rnnfast {

namespace {

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Where members that wait for each other sleep. Most waits are over in a microsecond, so that a member spins first; but
// where other processes take the processors, it would spin while the one that it waits for waits for a processor.
class Bell {
 public:
  static constexpr int few_spins = 2000;    // bridge the unevenness of a chunk's shares, some 0.1 ms
  static constexpr int many_spins = 20000;  // and what another member does meanwhile of a wave

  // To be called after each change that `done` of a wait depends on. The change and done() are sequentially consistent:
  // either the sleeper sees the change, or the ringer the sleeper.
  void ring() {
    if (sleepers_.load() == 0) return;
    { const std::lock_guard lock(mutex_); }
    rung_.notify_all();
  }

  // Waits until done(). Calls ask() every few milliseconds, or more often.
  template <class Done, class Ask>
  void wait(Done&& done, Ask&& ask, int most_spins = few_spins) {
    if (done() || spin(done, most_spins)) return;
    while (!done()) {
      {
        std::unique_lock lock(mutex_);
        sleepers_.fetch_add(1);
        rung_.wait_for(lock, std::chrono::milliseconds(10), done);
        sleepers_.fetch_sub(1);
      }
      ask();
    }
  }

 private:
  // Whether spinning was enough. A thread whose spinning was in vain twice in a row leaves it out for some waits, for
  // more of them each time.
  template <class Done>
  static bool spin(Done&& done, int most_spins) {
    constexpr int most_losses = 8;
    thread_local int losses = 0, waits_to_sleep = 0;
    if (waits_to_sleep > 0) {
      --waits_to_sleep;
      return false;
    }
    for (int i = 0; i < most_spins; ++i) {
      pause();
      if (!done()) continue;
      losses = 0;
      return true;
    }
    losses = std::min(losses + 1, most_losses);
    waits_to_sleep = losses > 1 ? 1 << losses : 0;
    return false;
  }

  std::atomic<int> sleepers_ = 0;
  std::mutex mutex_;
  std::condition_variable rung_;
};

constexpr std::uint64_t never = std::numeric_limits<std::uint64_t>::max();

std::atomic<std::uint64_t> forks = 0;  // that this process came from

struct Region {
  const std::function<void(const Team&)>& job;
  const std::function<bool()>& poll;
  Index size;
  Bell* bell = nullptr;  // of the pool
  std::atomic<Index> arrived = 0, finished = 0;
  std::atomic<std::uint64_t> phase = 0;         // barriers passed by all
  std::atomic<std::uint64_t> stops_at = never;  // the barrier from which on members are told to return
  const std::uint64_t process = forks.load(std::memory_order_relaxed);
  bool abandoned = false;  // rank 0 was told to return since it is alone
};

Region& region_of(const Team& team) { return *static_cast<Region*>(team.context); }

// Only the parent has the other members.
bool is_alone(const Region& region) {
  return region.size > 1 && forks.load(std::memory_order_relaxed) != region.process;
}

// On rank 0, which names the barrier at which all are told to return. True: it returns at once.
bool ask(Region& region, std::uint64_t barrier) {
  if (region.poll()) region.stops_at.store(barrier, std::memory_order_relaxed);
  if (is_alone(region)) region.abandoned = true;
  return region.abandoned;
}

// Names the next barrier, like one that is arrived at: a member that is late in leaving the one before goes on to it.
bool interrupted(const Team& team) {
  Region& region = region_of(team);
  const std::uint64_t phase = region.phase.load(std::memory_order_relaxed);
  if (team.rank == 0 && ask(region, phase)) return true;
  return region.stops_at.load(std::memory_order_relaxed) <= phase;
}

// Rank 0 decides before it arrives, and names the barrier, so that all members leave at the same one. What it is told
// while it waits concerns the next one: others may have left this one already.
bool barrier(const Team& team) {
  if (team.size == 1) return !interrupted(team);
  Region& region = region_of(team);
  const std::uint64_t phase = region.phase.load(std::memory_order_relaxed);
  if (team.rank == 0 && ask(region, phase)) return false;
  if (region.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == region.size) {
    region.arrived.store(0, std::memory_order_relaxed);
    region.phase.store(phase + 1);
    region.bell->ring();
  } else {
    region.bell->wait([&] { return region.phase.load() != phase || region.abandoned; },
                      [&] {
                        if (team.rank == 0) ask(region, phase + 1);
                      });
  }
  return region.stops_at.load(std::memory_order_relaxed) > phase && !region.abandoned;
}

Team team_of(Region& region, Index rank) {
  return {.rank = rank, .size = region.size, .barrier = barrier, .interrupted = interrupted, .context = &region};
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
    region.bell = &bell_;
    if (region.size > 1) {
      grow(region.size - 1);
      region.size = min_size(region.size);
      const std::lock_guard lock(mutex_);
      region_ = &region;
      size_ = region.size;
      ++generation_;
      wake_.notify_all();
    }
    region.job(team_of(region, 0));
    const Index others = region.size - 1;
    if (others == 0 || region.abandoned) return;
    bell_.wait([&] { return region.finished.load() == others || region.abandoned; },
               [&] { interrupted(team_of(region, 0)); });
    if (region.finished.load() == others) region.abandoned = false;  // all was done before the fork
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
      if (!region) continue;
      region->job(team_of(*region, rank));
      region->finished.fetch_add(1);  // whereupon it may be gone
      bell_.ring();
    }
  }

  std::atomic_flag busy_;             // set while a region runs, which may be one further out on the same thread
  std::vector<std::thread> workers_;  // changed by whoever has set busy_
  std::mutex mutex_;                  // guards what follows
  std::condition_variable wake_;
  std::uint64_t generation_ = 0;
  Region* region_ = nullptr;  // dangles after its end; only the workers it still needs may look
  Index size_ = 0;
  Bell bell_;
};

// Never destroyed: workers wait in it until the process ends. Made when the library is loaded, since a fork might find
// a lazy start half done. A forked child has none of the workers and starts anew.
Pool* make_pool();

std::atomic<Pool*> current_pool = make_pool();

Pool* make_pool() {
#if !defined(_WIN32)
  pthread_atfork(nullptr, nullptr, [] {
    forks.fetch_add(1, std::memory_order_relaxed);
    current_pool.store(new Pool, std::memory_order_release);
  });
#endif
  return new Pool;
}

// The number of threads that a text begins with, and that ends at `end`; 0 if there is none.
Index number_in(const char* text, char*& end) {
  const long n = std::strtol(text, &end, 10);
  return is_thread_count(n) ? n : 0;
}

// The first of a list, those of nested regions: "4", "4,2", "4 , 2". 0 where it is something else.
Index first_number_in(const char* text) {
  char* end;
  const Index n = number_in(text, end);
  while (std::isspace(static_cast<unsigned char>(*end))) ++end;
  return *end == '\0' || *end == ',' ? n : 0;
}

Index default_num_threads() {
  if (const char* own = std::getenv("RNNFAST_NUM_THREADS"); own && *own) {
    char* end;
    const Index n = number_in(own, end);
    if (n && *end == '\0') return n;
    throw std::runtime_error("RNNFAST_NUM_THREADS: expected a number of threads from 1 to " +
                             std::to_string(most_threads) + ", got '" + own + "'");
  }
  if (const char* openmp = std::getenv("OMP_NUM_THREADS"))
    if (const Index n = first_number_in(openmp)) return n;
  const Index granted = granted_processors(), scheduled = scheduled_processors();
  return granted ? std::min(granted, scheduled) : scheduled;
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
  static const bool oversubscribes = std::getenv("RNNFAST_OVERSUBSCRIBE");
  const double worth = flops / flops_per_thread;
  most = std::min(most ? most : get_num_threads(), parts);
  if (worth < 2 || most < 2) return 1;
  if (!oversubscribes) most = std::min(most, scheduled_processors());
  return worth >= double(most) ? most : Index(worth);
}

bool wait_until(const Team& team, const std::function<bool()>& done) {
  bool stops = false;
  Bell* const bell = region_of(team).bell;
  if (bell)
    bell->wait([&] { return stops || done(); }, [&] { stops = interrupted(team); }, Bell::many_spins);
  else
    done();
  return !stops;
}

void tell(const Team& team) {
  if (Bell* const bell = region_of(team).bell) bell->ring();
}

Outcome run_parallel(Index threads, const std::function<void(const Team&)>& job, const std::function<bool()>& poll) {
  Region region = {.job = job, .poll = poll, .size = threads};
  if (threads > 1)
    current_pool.load(std::memory_order_acquire)->run(region);
  else
    job(team_of(region, 0));
  if (region.stops_at.load(std::memory_order_relaxed) != never) return Outcome::interrupted;
  return region.abandoned ? Outcome::abandoned : Outcome::finished;
}

}  // namespace rnnfast
