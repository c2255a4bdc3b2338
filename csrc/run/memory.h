// Aligned memory for tapes and scratch, reused between calls: pages fresh from the operating system would cost a
// training step more than its pointwise work.
#pragma once

#include <cstddef>
#include <utility>

namespace rnnfast {

// Owns memory aligned to a cache line, not initialised. Throws std::bad_alloc.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(capacity_, other.capacity_);
    return *this;
  }

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }  // as asked for

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0, capacity_ = 0;
};

}  // namespace rnnfast
