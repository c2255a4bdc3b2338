#include "run/memory.h"

#include <iterator>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace rnnfast {

namespace {

constexpr std::align_val_t alignment{64};
constexpr std::size_t smallest_kept = 1 << 16;           // below, each thread keeps its last ones
constexpr std::size_t smallest_of_thread = 1 << 10;      // below, the allocator is fast
constexpr std::size_t most_kept = std::size_t{1} << 29;  // bytes that may lie idle: the tape of a large training step

struct Block {
  void* data = nullptr;
  std::size_t capacity = 0;
};

// Whether a block has room for so many bytes, and is not far too large. AddressSanitizer sees what is written behind
// blocks that are just as large.
bool suits(const Block& block, std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  return block.capacity == bytes;
#else
  return block.capacity >= bytes && block.capacity / 2 <= bytes;
#endif
}

// Small blocks that a thread has used last: of small calls the allocator takes a good part of the time, not least where
// the memory of a block ends the heap.
struct LastBlocks {
  Block idle[4];
  std::size_t next = 0;
  bool is_over = false;  // the thread ends, and what it still gives back is not kept

  Block take(std::size_t bytes) {
    for (Block& block : idle)
      if (block.data && suits(block, bytes)) return std::exchange(block, Block{});
    return {};
  }

  // Keeps a block in the place of another one, which is returned.
  Block keep(const Block& block) {
    if (is_over) return block;
    for (Block& other : idle)
      if (!other.data) return std::exchange(other, block);
    next = (next + 1) % std::size(idle);
    return std::exchange(idle[next], block);
  }
};

thread_local LastBlocks last_blocks;  // never destroyed, either

struct End {
  bool is_awaited = true;

  ~End() {
    last_blocks.is_over = true;
    for (Block& block : last_blocks.idle) ::operator delete(std::exchange(block, Block{}).data, alignment);
  }
};

thread_local End end_of_thread;

class Cache {
 public:
  // The smallest idle block of this size, if it is not far too large; else none. Of equals it is the last one kept, of
  // which the most is still in a cache.
  Block take(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    auto best = idle_.end();
    for (auto block = idle_.begin(); block != idle_.end(); ++block)
      if (suits(*block, bytes) && (best == idle_.end() || block->capacity <= best->capacity)) best = block;
    if (best == idle_.end()) return {};
    const Block block = *best;
    bytes_ -= block.capacity;
    idle_.erase(best);
    return block;
  }

  // Keeps a block, in place of the oldest ones if there are too many. Throws std::bad_alloc and keeps nothing new.
  void keep(const Block& block) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(block);
    bytes_ += block.capacity;
    while (bytes_ > most_kept) release_oldest();
  }

  void release_all() {
    const std::lock_guard lock(mutex_);
    while (!idle_.empty()) release_oldest();
  }

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  void release_oldest() {
    ::operator delete(idle_.front().data, alignment);
    bytes_ -= idle_.front().capacity;
    idle_.erase(idle_.begin());
  }

  std::mutex mutex_;
  std::vector<Block> idle_;  // oldest first
  std::size_t bytes_ = 0;
};

// Never destroyed: tapes may outlive static destructors. A forked child must not inherit the mutex locked by a thread
// that it does not have.
Cache* make_cache();

Cache& cache = *make_cache();

Cache* make_cache() {
#if !defined(_WIN32)
  pthread_atfork([] { cache.lock(); }, [] { cache.unlock(); }, [] { cache.unlock(); });
#endif
  return new Cache;
}

}  // namespace

Buffer::Buffer(std::size_t bytes) : bytes_(bytes) {
  if (bytes >= smallest_of_thread) {
    const Block block = bytes < smallest_kept ? last_blocks.take(bytes) : cache.take(bytes);
    data_ = block.data, capacity_ = block.capacity;
    if (data_) return;
  }
  capacity_ = bytes;
  try {
    data_ = ::operator new(bytes, alignment);
  } catch (const std::bad_alloc&) {
    cache.release_all();
    data_ = ::operator new(bytes, alignment);
  }
}

Buffer::~Buffer() {
  if (data_ && capacity_ >= smallest_of_thread && capacity_ < smallest_kept && end_of_thread.is_awaited)
    data_ = last_blocks.keep({.data = data_, .capacity = capacity_}).data, capacity_ = 0;
  if (data_ && capacity_ >= smallest_kept && capacity_ <= most_kept) {
    try {
      cache.keep({.data = data_, .capacity = capacity_});
      return;
    } catch (const std::bad_alloc&) {
      // no room to remember it
    }
  }
  ::operator delete(data_, alignment);
}

}  // namespace rnnfast
