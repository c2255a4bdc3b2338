#include "run/dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "run/processors.h"

namespace rnnfast {

const KernelTable* kernel_table = nullptr;

#define RNNFAST_TABLE(isa)                                                                 \
  namespace isa {                                                                          \
  extern const Kernels<float> kernels_float;                                               \
  extern const Kernels<double> kernels_double;                                             \
  const KernelTable table = {.name = #isa, .f32 = &kernels_float, .f64 = &kernels_double}; \
  }

RNNFAST_TABLE(baseline)
#ifdef RNNFAST_HAS_avx2
RNNFAST_TABLE(avx2)
#endif
#ifdef RNNFAST_HAS_avx512
RNNFAST_TABLE(avx512)
#endif

namespace {

// The checks name the same features as the compiler flags in CMakeLists.txt.
std::vector<const KernelTable*> find_available() {
  std::vector<const KernelTable*> found = {&baseline::table};
#if defined(RNNFAST_HAS_avx2) || defined(RNNFAST_HAS_avx512)
  __builtin_cpu_init();
#endif
#ifdef RNNFAST_HAS_avx2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::table);
#endif
#ifdef RNNFAST_HAS_avx512
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    found.push_back(&avx512::table);
#endif
  return found;
}

// Intel's processors bring weights from the second level too late for the multiply-adds unless they are asked for
// ahead; others need it for what lies beyond that level, and beyond 1 MB.
CacheSizes cache_sizes(Index second_level) {
#if defined(RNNFAST_HAS_avx2) || defined(RNNFAST_HAS_avx512)
  if (__builtin_cpu_is("intel")) return {.near = second_level, .far = second_level / 8};
#endif
  return {.near = second_level, .far = std::max(second_level, Index(1) << 20)};
}

}  // namespace

std::vector<const KernelTable*> available_kernels() {
  static const std::vector<const KernelTable*> available = find_available();
  return available;
}

const KernelTable& choose_kernels() {
  const auto available = available_kernels();
  if (const Index bytes = second_cache_level())
    for (const KernelTable* table : available) {
      table->f32->set_cache_sizes(cache_sizes(bytes));
      table->f64->set_cache_sizes(cache_sizes(bytes));
    }
  const char* wanted = std::getenv("RNNFAST_ISA");
  if (!wanted || !*wanted) return *available.back();
  std::string names;
  for (const KernelTable* table : available) {
    if (wanted == std::string(table->name)) return *table;
    names += (names.empty() ? "" : ", ") + std::string(table->name);
  }
  throw std::runtime_error("RNNFAST_ISA: expected one of " + names + " (what this machine supports), got '" + wanted +
                           "'");
}

}  // namespace rnnfast
