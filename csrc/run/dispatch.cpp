#include "run/dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "run/processors.h"

#ifdef RNNFAST_HAS_avx2
#include <cpuid.h>
#endif

namespace rnnfast {

const KernelTable* kernel_table = nullptr;

#define RNNFAST_TABLE(isa)                                                                 \
  namespace isa {                                                                          \
  extern const IntegerKernels integer_kernels;                                             \
  extern const PairKernels pair_kernels;                                                   \
  extern const Kernels<float> kernels_float;                                               \
  extern const Kernels<double> kernels_double;                                             \
  const KernelTable table = {.name = #isa, .f32 = &kernels_float, .f64 = &kernels_double}; \
  }

RNNFAST_TABLE(baseline)
#ifdef RNNFAST_HAS_avx2
RNNFAST_TABLE(avx2)
namespace avxvnni {
extern const IntegerKernels integer_kernels;
}
#endif
#ifdef RNNFAST_HAS_avx512
RNNFAST_TABLE(avx512)
namespace avx512vnni {
extern const IntegerKernels integer_kernels;
}
namespace avx512bf16 {
extern const PairKernels pair_kernels;
}
#endif

const IntegerKernels* integer_kernels = nullptr;
const PairKernels* pair_kernels = nullptr;

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

#ifdef RNNFAST_HAS_avx2
bool has_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif

// Intel's processors bring weights from the second level too late for the multiply-adds unless they are asked for
// ahead; others need it for what lies beyond that level, and beyond 1 MB.
CacheSizes cache_sizes(Index second_level) {
#if defined(RNNFAST_HAS_avx2) || defined(RNNFAST_HAS_avx512)
  if (__builtin_cpu_is("intel")) return {.near = second_level, .far = second_level / 8};
#endif
  return {.near = second_level, .far = std::max(second_level, Index(1) << 20)};
}

// The one of some tables that an environment variable names, or the last.
template <class Table>
const Table& chosen(const char* variable, const std::vector<const Table*>& available) {
  const char* wanted = std::getenv(variable);
  if (!wanted || !*wanted) return *available.back();
  std::string names;
  for (const Table* table : available) {
    if (wanted == std::string(table->name)) return *table;
    names += (names.empty() ? "" : ", ") + std::string(table->name);
  }
  throw std::runtime_error(std::string(variable) + ": expected one of " + names +
                           " (what this machine supports), got '" + wanted + "'");
}

}  // namespace

std::vector<const KernelTable*> available_kernels() {
  static const std::vector<const KernelTable*> available = find_available();
  return available;
}

std::vector<const IntegerKernels*> available_integers(const KernelTable& table) {
#ifdef RNNFAST_HAS_avx512
  if (&table == &avx512::table) {
    if (__builtin_cpu_supports("avx512vnni")) return {&avx512::integer_kernels, &avx512vnni::integer_kernels};
    return {&avx512::integer_kernels};
  }
#endif
#ifdef RNNFAST_HAS_avx2
  if (&table == &avx2::table) {
    if (has_avxvnni()) return {&avx2::integer_kernels, &avxvnni::integer_kernels};
    return {&avx2::integer_kernels};
  }
#endif
  (void)table;
  return {&baseline::integer_kernels};
}

const PairKernels* pairs_of(const KernelTable& table, bool emulates) {
#ifdef RNNFAST_HAS_avx512
  if (&table == &avx512::table) {
    if (emulates) return &avx512::pair_kernels;
    return __builtin_cpu_supports("avx512bf16") ? &avx512bf16::pair_kernels : nullptr;
  }
#endif
#ifdef RNNFAST_HAS_avx2
  if (&table == &avx2::table) return emulates ? &avx2::pair_kernels : nullptr;
#endif
  (void)table;
  return emulates ? &baseline::pair_kernels : nullptr;
}

// Whether RNNFAST_BF16 asks for emulation.
bool emulates_pairs() {
  const char* wanted = std::getenv("RNNFAST_BF16");
  if (!wanted || !*wanted) return false;
  if (wanted != std::string("emulate"))
    throw std::runtime_error("RNNFAST_BF16: expected 'emulate', got '" + std::string(wanted) + "'");
  return true;
}

const KernelTable& choose_kernels() {
  const auto available = available_kernels();
  if (const Index bytes = second_cache_level())
    for (const KernelTable* table : available) {
      table->f32->set_cache_sizes(cache_sizes(bytes));
      table->f64->set_cache_sizes(cache_sizes(bytes));
    }
  const KernelTable& table = chosen("RNNFAST_ISA", available);
  for (const KernelTable* one : available) one->f32->set_integers(*available_integers(*one).back());
  integer_kernels = &chosen("RNNFAST_INTEGERS", available_integers(table));
  table.f32->set_integers(*integer_kernels);
  pair_kernels = pairs_of(table, emulates_pairs());
  if (pair_kernels) table.f32->set_pairs(*pair_kernels);
  return table;
}

}  // namespace rnnfast
