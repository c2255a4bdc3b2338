#include "memory.h"

#include <mutex>
#include <new>
#include <vector>

#if __has_include(<pthread.h>)
#include <pthread.h>
#define RNNFAST_HAS_FORK 1
#endif

namespace rnnfast {

namespace {

constexpr std::align_val_t alignment{64};
constexpr std::size_t smallest_kept = 1 << 16;           // below, the allocator reuses memory well itself
constexpr std::size_t most_kept = std::size_t{1} << 29;  // bytes that may lie idle

struct Block {
  void* data;
  std::size_t bytes;
};

struct Cache {
  std::mutex mutex;
  std::vector<Block> idle;  // oldest first
  std::size_t bytes = 0;

#if RNNFAST_HAS_FORK
  Cache() {
    // A child must not inherit the mutex locked by a thread that it does not have.
    pthread_atfork([] { cache().mutex.lock(); }, [] { cache().mutex.unlock(); }, [] { cache().mutex.unlock(); });
  }
#endif

  static Cache& cache() {
    static Cache* const instance = new Cache;  // never destroyed: tapes may outlive static destructors
    return *instance;
  }
};

}  // namespace

Buffer::Buffer(std::size_t bytes) {
  if (bytes >= smallest_kept) {
    Cache& cache = Cache::cache();
    const std::lock_guard lock(cache.mutex);
    auto best = cache.idle.end();
    for (auto block = cache.idle.begin(); block != cache.idle.end(); ++block)
      if (block->bytes >= bytes && block->bytes / 2 <= bytes &&
          (best == cache.idle.end() || block->bytes < best->bytes))
        best = block;
    if (best != cache.idle.end()) {
      data_ = best->data;
      bytes_ = best->bytes;
      cache.bytes -= bytes_;
      cache.idle.erase(best);
      return;
    }
  }
  data_ = ::operator new(bytes, alignment);
  bytes_ = bytes;
}

Buffer::~Buffer() {
  if (!data_) return;
  if (bytes_ >= smallest_kept && bytes_ <= most_kept) {
    Cache& cache = Cache::cache();
    const std::lock_guard lock(cache.mutex);
    while (cache.bytes + bytes_ > most_kept) {
      ::operator delete(cache.idle.front().data, alignment);
      cache.bytes -= cache.idle.front().bytes;
      cache.idle.erase(cache.idle.begin());
    }
    cache.idle.push_back({data_, bytes_});
    cache.bytes += bytes_;
  } else {
    ::operator delete(data_, alignment);
  }
}

}  // namespace rnnfast
