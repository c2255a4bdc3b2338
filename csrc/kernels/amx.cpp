// The tiles of products whose factors are both pairs of bfloat16, in the tile registers of AMX, for the unit blocks and
// panels of AVX-512: an instruction adds the products of 16 words of up to 16 rows and 16 words of 16 columns, which
// lie in a panel as it reads them. A row's sums are the same however many rows there are. This file is compiled for the
// instructions, and again for their emulation.
#include "kernels/products/gemm.h"
#include "kernels/products/tile_registers.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast {

namespace avx512 {
extern const PairKernels pair_kernels;
}
namespace avx512bf16 {
extern const PairKernels pair_kernels;
}

namespace RNNFAST_ISA {
namespace {

static_assert(Widest<float>::lanes == register_words);

// Registers 0 to 3 hold sums; then words of rows and of a panel, and what is left of both at the end.
constexpr int sum_count = 4, row_words = 4, panel_words = 5, last_row_words = 6, last_panel_words = 7;

// Of all of this thread's registers. No rows: they are released.
struct Shape {
  int rows, lanes, last;  // words at the end
};

thread_local Shape current = {};

bool fits(const Shape& s) {
  return current.rows == s.rows && current.lanes == s.lanes && (!s.last || current.last == s.last);
}

void shape(const Shape& s) {
  RegisterShapes shapes;
  const auto set = [&](int n, int rows, int words) {
    shapes.rows[n] = std::uint8_t(rows);
    shapes.row_bytes[n] = std::uint16_t(words * int(sizeof(float)));
  };
  for (int n = 0; n < sum_count; ++n) set(n, s.rows, s.lanes);
  set(row_words, s.rows, register_words), set(panel_words, register_words, s.lanes);
  if (s.last) set(last_row_words, s.rows, s.last), set(last_panel_words, s.last, s.lanes);
  shape_registers(shapes);
  current = s;
}

void release() {
  if (current.rows) release_registers(), current = {};
}

// f<n>() for the registers of the sums.
template <class F>
RNNFAST_INLINE void for_each_sum(int count, F&& f) {
  static_assert(sum_count == 4);
  f.template operator()<0>();
  if (count > 1) f.template operator()<1>();
  if (count > 2) f.template operator()<2>();
  if (count > 3) f.template operator()<3>();
}

// The words of an operand for M rows of a tile and `count` sums, the first of them of unit block `block`. It has the
// gates from slot `shift` on.
template <int slots, int gates, int shift>
void accumulate(const Operand<float>& o, int block, int count, int lanes) {
  const auto add = [&]<int a, int w>(const float* rows, const float* panel) {
    load_register<a>(rows, o.a_row);
    for_each_sum(count, [&]<int n> {
      constexpr int gate = n % slots - shift;
      if constexpr (gate >= 0 && gate < gates) {
        load_register<w>(panel + (block + n / slots) * o.panel_unit + gate * lanes, o.panel_k);
        add_register_products<n, a, w>();
      }
    });
  };
  for (Index i = 0; i < o.blocks; ++i) {
    const float *rows = o.a + i * o.a_block, *panel = o.panel + i * o.panel_block;
    Index k = o.K;
    for (; k >= register_words; k -= register_words, rows += register_words, panel += register_words * o.panel_k)
      add.template operator()<row_words, panel_words>(rows, panel);
    if (k > 0) add.template operator()<last_row_words, last_panel_words>(rows, panel);
  }
}

// A tile of M rows by NB unit blocks. Sums stay in their registers unless these change their shape between operands.
template <int slots, int gates>
__attribute__((noinline)) void multiply(const Tile<float>& t, Index row, int M, int NB, int lanes) {
  constexpr int at_once = sum_count / slots > 0 ? sum_count / slots : 1;
  // Only rows of single vectors end in the caller's memory; those of several slots are padded to full width.
  const int valid = slots == 1 && NB == 1 ? t.valid : lanes;
  for (int block = 0; block < NB; block += at_once) {
    const int count = int(min_index(at_once, NB - block)) * slots;
    float* const out = t.out + row * t.out_row;
    bool loaded = false;
    const auto load = [&](const float* from, Index from_row, Index from_unit) {
      for_each_sum(count, [&]<int n> {
        if (from)
          load_register<n>(from + (block + n / slots) * from_unit + n % slots * lanes, from_row);
        else
          clear_register<n>();
      });
      loaded = true;
    };
    const auto store = [&] {
      for_each_sum(count, [&]<int n> {
        store_register<n>(out + (block + n / slots) * t.out_unit + n % slots * lanes, t.out_row);
      });
    };
    const auto begin = [&](Index K) {
      const Shape needed = {.rows = M, .lanes = valid, .last = int(K % register_words)};
      const bool goes_on = loaded;
      if (!fits(needed)) {
        if (goes_on) store();
        shape(needed), loaded = false;
      }
      if (loaded) return;
      if (goes_on || t.add) return load(out, t.out_row, t.out_unit);
      load(t.init ? t.init + row * t.init_row : nullptr, t.init_row, t.init_unit);
    };
    const auto add = [&]<int shift>(const Operand<float>& o) {
      if (!o.blocks || !o.K) return;
      begin(o.K);
      accumulate<slots, gates, shift>(from_row(o, row), block, count, lanes);
    };
    add.template operator()<slots - gates>(t.first);
    add.template operator()<0>(t.second);
    if (!loaded) begin(0);
    store();
  }
}

template <int M, int NB, int slots, int gates, int lanes>
void tile_of(const Tile<float>& t, Index row) {
  multiply<slots, gates>(t, row, M, NB, lanes);
}

template <int NB, int slots, int gates, int lanes, class Rows>
struct RegisterTiles;
template <int NB, int slots, int gates, int lanes, int... i>
struct RegisterTiles<NB, slots, gates, lanes, Lanes<i...>> {
  static constexpr void (*of_rows[])(const Tile<float>&, Index) = {tile_of<i + 1, NB, slots, gates, lanes>...};
};

template <int slots, int gates, int halvings = 0, int log2_NB = 0>
constexpr void add_register_tiles(TileKind<float>& kind) {
  constexpr int NB = 1 << log2_NB, most = NB > unit_group(slots, false) ? 1 : register_rows;
  using Functions = RegisterTiles<NB, slots, gates, Width<float, halvings>::lanes, typename LanesTo<most>::type>;
  kind.of[halvings][log2_NB] = {.blocks = NB, .most = most, .takes_chains = false, .of_rows = Functions::of_rows};
  if constexpr (halvings == 0 && 2 * NB <= unit_group(slots, true))
    add_register_tiles<slots, gates, halvings, log2_NB + 1>(kind);
  else if constexpr (halvings + 1 < width_count)
    add_register_tiles<slots, gates, halvings + 1>(kind);
}

template <int slots, int gates>
constexpr TileKind<float> register_kind() {
  TileKind<float> kind = {};
  add_register_tiles<slots, gates>(kind);
  return kind;
}

// In the order of `tile_kinds`.
constexpr TileKind<float> register_kinds[tile_kind_count] = {
    register_kind<4, 3>(), register_kind<1, 1>(), register_kind<2, 2>(), register_kind<3, 3>(), register_kind<4, 4>()};

}  // namespace

extern const PairKernels pair_kernels;
const PairKernels pair_kernels = {.name = has_registers ? "amx" : "emulate-amx",
                                  .emulates = !has_registers,
                                  .tiles = register_kinds,
                                  .row_pairs = has_registers ? &avx512bf16::pair_kernels : &avx512::pair_kernels,
                                  .release = release};

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
