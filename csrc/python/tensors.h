// Tensors of another framework, read and made through a table of C functions that their class carries: DLPack's
// exchange API, https://dmlc.github.io/dlpack/latest/c_api.html. Its structs are declared here as they lie in memory.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>

#include "python/arrays.h"

namespace rnnfast::dlpack {

struct Version {
  std::uint32_t major, minor;
};

struct Tensor {
  void* data;
  std::int32_t device_type, device_id;
  std::int32_t ndim;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  std::int64_t *shape, *strides;  // in elements
  std::uint64_t byte_offset;
};

struct ManagedTensor {
  Version version;
  void* context;
  void (*deleter)(ManagedTensor*);
  std::uint64_t flags;
  Tensor tensor;
};

struct ExchangeTable {
  Version version;
  ExchangeTable* older;
  void* allocate;
  void* own;
  int (*make)(ManagedTensor*, void** object);
  int (*read)(void* object, Tensor*);
  void* current_stream;
};

constexpr const char* capsule_name = "dlpack_exchange_api";
constexpr std::uint32_t major_version = 1;
constexpr std::int32_t cpu = 1;
constexpr std::uint8_t floating_point = 2;

}  // namespace rnnfast::dlpack

namespace rnnfast {

// The classes whose objects are plain tensors: exactly these, as derived ones may compute in another way.
class TensorClasses {
 public:
  TensorClasses(const py::type& tensor, const py::type& parameter);

  // Whether the numbers of all tensors among some objects are those in memory: of some views they are those with the
  // other sign, which DLPack does not say. Asked before any of them is read, as torch may run Python code to answer.
  bool have_signs(const py::tuple& objects) const;

  // A tensor as its class describes it, or none where it is not a plain one, of float32 or float64 on the CPU.
  std::optional<dlpack::Tensor> look(const py::handle& object) const;

  // What a plain tensor is, or none. A step's has no axis of time or of directions yet, which it gets. The memory lives
  // as long as the tensor is left as it is.
  std::optional<Array> read(const py::handle& object, bool is_step) const;

  // A tensor with memory of its own, not initialised; of a step one of three axes is made without the first of them.
  Results::Made make(const py::dtype& dtype, const Shape& shape, bool is_step) const;

  // A tensor of the elements of a contiguous array, which it keeps alive.
  py::object make(const py::object& array) const;

  // One of a copy of them.
  py::object copy(const py::object& array) const;

  // A tensor [n] of memory that `owner` has.
  py::object make(const py::object& owner, void* data, Index n, Index item) const;

 private:
  static constexpr std::int32_t most_axes = 8;

  bool has(const py::handle& object) const;
  py::object made(const py::object& owner, void*& data, const Shape& shape, Index item) const;

  py::object tensor_, parameter_, is_neg_;  // kept alive
  const dlpack::ExchangeTable* table_ = nullptr;
};

}  // namespace rnnfast
