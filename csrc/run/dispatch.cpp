#include "run/dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "run/processors.h"

#if defined(RNNFAST_HAS_avx2) || defined(RNNFAST_HAS_amx)
#include <cpuid.h>
#endif
#if defined(RNNFAST_HAS_amx) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
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
#ifdef RNNFAST_HAS_amx
namespace amx {
extern const PairKernels pair_kernels;
}
namespace amx_emulated {
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

#ifdef RNNFAST_HAS_amx
// Whether the processor has tile registers for bfloat16, the system saves them, and lets this process use them: Linux
// has to be asked for that, once for all threads.
bool has_amx() {
#if defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;  // XGETBV
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
  unsigned saved = 0, more = 0;
  asm volatile("xgetbv" : "=a"(saved), "=d"(more) : "c"(0));
  constexpr unsigned shapes = 17, registers = 18;
  constexpr long ask = 0x1023;  // ARCH_REQ_XCOMP_PERM
  return (saved >> shapes & 1) && (saved >> registers & 1) && syscall(SYS_arch_prctl, ask, long(registers)) == 0;
#else
  return false;
#endif
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

// The one of some tables that an environment variable names, or the best.
template <class Table>
const Table* chosen(const char* variable, const std::vector<const Table*>& available, const Table* best) {
  const char* wanted = std::getenv(variable);
  if (!wanted || !*wanted) return best;
  std::string names;
  for (const Table* table : available) {
    if (wanted == std::string(table->name)) return table;
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

std::vector<const PairKernels*> available_pairs(const KernelTable& table) {
#ifdef RNNFAST_HAS_avx512
  if (&table == &avx512::table) {
    std::vector<const PairKernels*> found = {&avx512::pair_kernels};
#ifdef RNNFAST_HAS_amx
    found.push_back(&amx_emulated::pair_kernels);
#endif
    if (__builtin_cpu_supports("avx512bf16")) found.push_back(&avx512bf16::pair_kernels);
#ifdef RNNFAST_HAS_amx
    static const bool finds_amx = __builtin_cpu_supports("avx512bf16") && has_amx();
    if (finds_amx) found.push_back(&amx::pair_kernels);
#endif
    return found;
  }
#endif
#ifdef RNNFAST_HAS_avx2
  if (&table == &avx2::table) return {&avx2::pair_kernels};
#endif
  (void)table;
  return {&baseline::pair_kernels};
}

const KernelTable& choose_kernels() {
  const auto available = available_kernels();
  if (const Index bytes = second_cache_level())
    for (const KernelTable* table : available) {
      table->f32->set_cache_sizes(cache_sizes(bytes));
      table->f64->set_cache_sizes(cache_sizes(bytes));
    }
  const KernelTable& table = *chosen("RNNFAST_ISA", available, available.back());
  for (const KernelTable* one : available) one->f32->set_integers(*available_integers(*one).back());
  const auto integers = available_integers(table);
  integer_kernels = chosen("RNNFAST_INTEGERS", integers, integers.back());
  table.f32->set_integers(*integer_kernels);
  const auto pairs = available_pairs(table);
  pair_kernels = chosen("RNNFAST_BF16", pairs, pairs.back()->emulates ? nullptr : pairs.back());
  if (pair_kernels) table.f32->set_pairs(*pair_kernels);
  return table;
}

}  // namespace rnnfast
