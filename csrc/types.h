// The vocabulary of the library: one letter, one meaning, everywhere.
//
//   T time steps   B batch   I input size   H hidden size   P size of h   G gates   D directions   V vocabulary size
//
// P is H, or less where h is a projection of what the cell makes.
//
// Everything here is a plain aggregate without member functions, because this header is compiled once per
// instruction set and must not leave a function behind that the linker could share between them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rnnfast {

using Index = std::ptrdiff_t;

// What a cell has at most: states (h first), gates, slots (vectors that products fill for a row and a unit block),
// phases.
constexpr int most_states = 4, most_gates = 4, most_slots = 8, most_phases = 2, most_parameters = 4;

// One recurrent product: it fills `slots` slots from `slot` on; the gates from `gate` on of packed w_hh take part in
// it, `gates` of them, with h' (or r h') as operand.
struct Phase {
  int slot, slots, gate, gates;
  bool reset_h;
};

// What a cell has beside w_ih, w_hh, b_ih, b_hh: a parameter [count·H], so many vectors of units.
struct UnitVectors {
  const char* name;
  int count;
  bool is_bias = false;  // it may be null, like b_ih and b_hh
};

// A cell's names and numbers: all that the loops, and those who call them, know of it. Made from the cell's own file,
// kernels/cells/, whose words these are.
struct CellShape {
  const char* name;
  const char* gates;                // their letters, in the order of w_ih and w_hh; "" where they have no names
  const char* held;                 // letters of those that can be held at a value
  const char* states[most_states];  // their names
  UnitVectors parameters[most_parameters];
  int index;  // in the list of all cells
  int gate_count, slot_count, state_count, phase_count, parameter_count;
  int vector_count;              // of all parameters together
  int value_count, stage_count;  // where rows of slots are normalised: what it keeps beside them; its pointwise parts
  Phase phases[most_phases];
  int input_gates[most_gates], recurrent_gates[most_gates];
  bool keeps_gates, leaves_dh;
  bool has_heads, projects;  // w_hh can be block-diagonal; h can be a projection
  bool has_candidate;        // part of which can be dropped before it meets the state
  bool has_bounded_h;        // by 1, from an initial state that is
  bool reads_before[most_states], reads_after[most_states];
};

// The place of an operand, in two bytes: lists of them are read at every step, mostly from beyond the second cache
// level.
using Column = std::uint16_t;

enum class Activation { sigmoid, tanh };

// What x is: rows of numbers, or tokens. One-hot tokens stand for rows of I = V numbers, one of which is 1; embedded
// ones for rows of an embedding [V,I].
enum class InputKind { dense, one_hot, embedded };

// What the matrices are made of: numbers of the dtype, or of fewer bits, for forwards in float that keep no tape. Of
// these a word of 32 bits holds 2 or 4 numbers of a row, the first in its lowest bits; rows of words begin anew, and
// what a last word lacks is zero.
enum class Format { real, bfloat16, int8 };

// Steps [first, last).
struct Steps {
  Index first, last;
};

// Rows are (t, b) pairs in ascending order. Where sequences end early they are ordered by descending length, so that a
// step has the first of them, and B is the number that has the first step.
struct Problem {
  Index T, B, I, H, P, D;
  const CellShape* cell;
  InputKind input;
  Index U;               // different tokens that occur
  Index head;            // elements of h' that a unit reads: P, or where w_hh [G·H,head] is block-diagonal its head's
  Steps run = {};        // of the T steps, those to compute
  bool reverse = false;  // of a single direction: it runs backwards in time
  unsigned zoned = 0;    // bit k stands for state k: some of its units keep their value in a step
  // Null where all T steps have B rows.
  const Index* first_row = nullptr;   // of each step, and the number of all rows; [T+1]
  const Index* first_step = nullptr;  // of each chunk, and T; made by `cut`
  Index chunks = 0;
  const unsigned char* starts[2] = {};  // of a row: a direction's state before it is the start's; null: of none
  int masks = 0;  // of h' in the products of all steps: none, one for all gates, or one for each of the G
  bool keeps_by_sequence = false;  // which candidates are kept is said of each sequence, for all its steps
  Format format = Format::real;    // of w_ih, w_hh and w_hr
  bool skips_zeros = false;        // of w_ih and w_hh, once they are packed
  bool rounded = false;            // to bfloat16, both factors of all products
};

// The tokens of a call, numbered by those that occur; absent where x is dense.
struct Tokens {
  const Index* number;           // of row (t, b), less than U; [T·B]
  const Index* token;            // of a number, in ascending order; [U]
  const Index *earlier, *later;  // the nearest row with the same token, else -1 and T·B; [T·B], for backward only
};

// A matrix with contiguous rows, `stride` elements apart. [T,B,*] arrays are seen as T·B rows.
template <class Real>
struct View {
  Real* data;
  Index stride;
};

// w_ih [G·H,I], w_hh [G·H,head], b_ih and b_hh [G·H] as torch stores them; a bias may be null. Also their gradients, of
// which those of the vectors of units may be null: not wanted.
template <class Real>
struct Parameters {
  Real *w_ih, *w_hh, *b_ih, *b_hh;
  Real* vectors[most_parameters];  // of each of the cell's own parameters, [count·H]
  Real* w_hr = nullptr;            // [P,H], the projection; null where there is none
  const float* scales[3] = {};     // of int8 matrices, w_ih, w_hh and w_hr: what each row is multiplied by
};

// What a training forward keeps for its backward, beside x and y. Null where the cell needs nothing.
template <class Real>
struct Tape {
  Real* gates;                     // activated gates, [chunk of time][unit block][row][slot x lanes]; where rows are
                                   // normalised, what `kept_size` counts of each chunk
  View<Real> states[most_states];  // after each step, [T·B,H]; h is y, so the first one is what h is a projection of
  Real* reset_h;                   // what a second phase multiplies, such as r * h_{t-1}, [T·B,H]
  View<Real> made[most_states];    // states before zoneout, where backward reads them, [T·B,H]
};

template <class Real>
struct ForwardDirection {
  Parameters<const Real> parameters;
  const Real* packed;                     // the same from `pack`, for all directions or none; null: packed into scratch
  View<const Real> initial[most_states];  // states before the first step, [B,H], of h [B,P]; null: zeros
  View<const Real> start[most_states];    // states from which rows start anew, of the same shape
  View<Real> y;                           // h after each step, [T·B,P]
  View<Real> last[most_states];           // states after the last step, too; may be the arrays of the initial ones
  Tape<Real> tape;
  // Of states that are zoned, a bit for each unit that has its new value, [T·B,ceil(H/8)], the lowest bit first; null:
  // every unit has a part of it.
  View<const unsigned char> renewed[most_states];
  View<const Real> factors = {};  // what h' is multiplied by before w_hh, [B,masks·H]; null: there are no masks
  // A bit for each candidate that is kept, [T·B,ceil(H/8)], of sequences [B,ceil(H/8)]; null: all are, as they are.
  View<const unsigned char> kept = {};
};

// Gates that are held at a value instead of being computed, by their slots; bit k of `slots` stands for slot k.
template <class Real>
struct Held {
  unsigned slots;
  Real value[most_slots];
};

template <class Real>
struct ForwardArgs {
  Problem problem;
  View<const Real> x;  // [T·B,I]; of tokens the embedding [V,I], or null
  ForwardDirection<Real> directions[2];
  Real* scratch;
  Tokens tokens = {};
  Held<Real> held = {};
  const void* layout = nullptr;  // made by `lay_out`; null: it is found by the call
  bool turned = false;  // odd steps go through the weights forwards, the others backwards, instead of the reverse
  Real zoneout[most_states] = {};  // the part of the old value in a state that is zoned, where there are no bits
  Real candidate_scale = 1;        // of candidates that are kept, where some are not
  Real eps = 0;                    // added to the variances by which rows are normalised
};

template <class Real>
struct BackwardDirection {
  Parameters<const Real> parameters;
  View<const Real> initial[most_states], start[most_states];  // as in forward
  View<const Real> y;                                         // [T·B,P]
  View<const Real> dsteps[most_states];                       // of the states after each of the run's steps: of h, dy;
                                                              // null: zeros
  Tape<const Real> tape;
  View<Real> dstate[most_states];  // [B,H], of h [B,P]; of the last states on entry, of the initial ones on return
  View<Real> dstart[most_states];  // of the same shape: the gradients of `start` are added to it; may be null
  View<Real> flow[most_states];    // all that reaches the states after each of the run's steps; null: not wanted
  Parameters<Real> gradients;
  View<const unsigned char> renewed[most_states];  // as in forward
  View<const Real> factors = {};                   // as in forward
  View<const unsigned char> kept = {};             // as in forward
};

// Truncated backpropagation through time, of one direction that goes through all steps: windows end at k1, 2·k1, ...
// and at T, go k2 steps back, and their gradients are summed up.
struct Windows {
  Index k1, k2;           // at most T; k1 = 0: there are no windows, but the whole
  Index most;             // windows that go through one step
  bool all_losses;        // each has the dy of all its steps; else of those that no earlier one has
  bool each_dy, each_dx;  // dy, dx of each window apart, as a layer between others has them: [T,most,B,*], of a step
                          // the windows that go through it, in ascending order
};

// A backward by parts, for calls that each are one of them, of one direction whose steps have B rows each. What they
// leave for each other is in scratch. First come the weights; then for each chunk of time, from the last to the first,
// its steps, in ranges of any length, the left operands of its sums, and the sums; then the gradients. Members may
// share each of them but the steps, and are to be done before the next one.
enum class BackwardPart { all, weights, steps, operands, sums, gradients };

template <class Real>
struct BackwardArgs {
  Problem problem;
  View<const Real> x;  // [T·B,I]; of tokens the embedding [V,I], or null
  View<Real> dx;       // of the run's rows; null: not computed. Of tokens like x: rows that do not occur are left alone
  BackwardDirection<Real> directions[2];
  bool accumulate;  // add to the gradients instead of overwriting them
  Real* scratch;
  Tokens tokens = {};
  Held<Real> held = {};
  Real clip = 0;                   // bounds the gradients that one step passes to the one before; 0: none
  Windows windows = {};            // the gradients of the last states are then zero
  Real zoneout[most_states] = {};  // as in forward
  Real candidate_scale = 1;        // as in forward
  bool need_dstate0 = true;        // false: what is left in dstate is of no use, and its last product is saved
  BackwardPart part = BackwardPart::all;
  Steps of_part = {};  // of the run, within a chunk: those to go through, or all of a chunk whose part it is
};

// y = x w^T + b, of N rows from I inputs to O outputs.
struct LinearSize {
  Index N, I, O;
};

template <class Real>
struct LinearArgs {
  LinearSize size;
  View<const Real> x;  // [N,I]
  const Real *w, *b;   // [O,I], [O]; b may be null
  View<Real> y;        // [N,O]
  Real* scratch;
};

template <class Real>
struct LinearBackwardArgs {
  LinearSize size;
  View<const Real> x, dy;  // [N,I], [N,O]
  const Real* w;           // [O,I]
  View<Real> dx;           // [N,I]; null: not computed
  Real *dw, *db;           // [O,I], [O]; db may be null
  bool accumulate;         // add to dw and db instead of overwriting them
  Real* scratch;
};

// Connections of blocks of units: slot j of a block holds the j-th of each of its units. What a unit lacks there has
// the weight 0 and leads to an operand that is zero.
template <class Real>
struct Connections {
  const Index* first;     // slot of each block, and the number of slots; [blocks+1]
  const Real* weights;    // [slot][units of a block]
  const Column* columns;  // [slot][units of a block], the operands
};

// Where in a pair of vectors the operand of each unit is, for four slots, the first slot in the lowest bits.
template <class Real>
struct PickOf;
template <>
struct PickOf<double> {
  using Type = std::uint16_t;
  static constexpr int bits = 4;
};
template <>
struct PickOf<float> {
  using Type = std::uint32_t;
  static constexpr int bits = 8;
};

// Connections whose operands are picked out of pairs of vectors: that of the slot before, and the one at `second`.
// Before the first slot of a block are zeros. All blocks have whole groups of slots.
template <class Real>
struct Pairs {
  static constexpr Index group = 8;  // slots, after which a collected one follows, as long as there are some
  const Index* first;
  const Real* weights;
  const Column* second;                      // [slot]
  const typename PickOf<Real>::Type* picks;  // [slot / 4][units of a block]
};

// A reservoir of leaky units with few connections, packed by run/reservoir.h. Its units are ordered by descending
// number of connections and make blocks of so many as the kernels say. Operands are the units by their places [blocks ·
// units of a block], then the inputs [I]; `operand_at` says where they lie, and all other operands are zero.
template <class Real>
struct Reservoir {
  Index H, I, blocks;
  Connections<Real> all;        // of several sequences side by side
  Pairs<Real> pairs;            // of one by itself; none where the kernels have no pairs
  Connections<Real> collected;  // besides, of one by itself
  const Column* place;          // of a unit, in the order of places; [H]
  const Real *bias, *leak;      // by place, [blocks · units of a block]; leak may be null: all are 1
  bool is_relu;                 // f is relu, else tanh
};

// A vector of a pair ends with a zero. `lanes` is 0 where there are no pairs.
constexpr Index operand_at(Index place, int lanes) { return lanes ? place + place / (lanes - 1) : place; }

template <class Real>
struct ReservoirArgs {
  Reservoir<Real> reservoir;
  Index T, B;
  View<const Real> x, h;  // [T·B,I]; the states before the first step [B,H]
  View<Real> y;           // the states after each step [T·B,H]
  Real* scratch;          // for each member of the team
  bool gathers;           // operands are collected by the instruction for it, where there is one; no bit depends on it
};

constexpr Index no_class = -1;  // a row that has no target, no loss and no gradient

template <class Real>
struct CrossEntropyArgs {
  Index N, V;
  View<const Real> logits;  // [N,V]
  const Index* targets;     // [N]
  bool mean;                // over the rows that have a target; else the sum
  double* losses;           // [N], of the rows
  double* loss;
  Real* dlogits;  // [N,V]
};

// A batch of B sequences of logits [T,B,V] that are to spell labels.
template <class Real>
struct CtcArgs {
  Index T, B, V;
  View<const Real> logits;  // [T·B,V]
  const Index* lengths;     // [B], from 0 to T
  const Index* labels;      // of one sequence after the other; none is the blank
  const Index* ends;        // [B], where those of each end
  Index blank;
  bool mean;              // over the sequences, each loss divided by its labels
  double *losses, *loss;  // [B], of the sequences; of all
  Real* dlogits;          // [T·B,V]
  double* scratch;        // of each member of the team
  Index scratch_of_member;
};

// Elements whose squares are summed up before the sums are.
constexpr Index square_block = 4096;

// A parameter of n elements, its gradient, and what the optimizer carries; SGD has no m, and no v without momentum.
template <class Real>
struct OptimizerArgs {
  Index n;
  Real* p;
  const Real* g;
  Real *m, *v;
};

struct SgdOptions {
  double lr, momentum;
};

struct AdamOptions {
  double lr, b1, b2, eps, decay;  // decay: what of p is taken from it beside, 0 in Adam
};

// The threads that run one kernel call together, seen from one of them.
struct Team {
  Index rank, size;
  bool (*barrier)(const Team&);      // waits for all; false: the call was interrupted, return
  bool (*interrupted)(const Team&);  // the same question without waiting; the barriers that follow are still met
  void* context;
};

// What the order of the work asks of the machine, in bytes: a core's second cache level, and packed weights from which
// on they are fetched ahead. No result depends on them.
struct CacheSizes {
  Index near, far;
};

// Sizes in elements.
struct TapeSize {
  Index gates, states, reset_h;
};

// What a product multiplies: numbers; numbers by words of a panel that hold two in bfloat16; such words by such words,
// those of neighbours, or of two rows, where k has any stride.
enum class Factors { numbers, by_pairs, pairs, row_pairs };

constexpr unsigned all_lanes = ~0u;

// sum over blocks b < `blocks` and k < K of a[m, b, k] * panel[b, k, n].
template <class Real>
struct Operand {
  const Real* a;  // strides of rows, of k and of blocks of k
  Index a_row, a_k, a_block;
  const Real* panel;  // strides of unit blocks, of k and of blocks of k; the gates of a unit block are contiguous
  Index panel_unit, panel_k, panel_block;
  Index K, blocks;
  bool pairs = false;          // the panel has words that hold two k in bfloat16 each: panel_k is the stride of words,
  bool odd = false;            // of the first of which the second k comes first
  unsigned lanes = all_lanes;  // bits of those that it reaches, where a row is a vector in which gates lie side by side
};

// What a tile column reads next: `length` numbers of the panel of each unit block, whose panels are `unit` apart. Its
// rows ask for a share of them each, evenly over their k: asked for all at once, they would hold up the multiply-adds.
template <class Real>
struct Ahead {
  const Real* data;
  Index length, unit;
  Index row, k;  // numbers that a row asks for, and each k of a tile; 0: nothing is asked for
};

// A tile of M rows by NB unit blocks of some vectors each, their `slots`. Where a product has fewer gates than there
// are slots, the first operand fills the last ones and the second operand the first ones: the GRU's n keeps its
// recurrent part apart from its input part.
template <class Real>
struct Tile {
  Operand<Real> first, second;
  const Real* init;  // strides of rows and of unit blocks; 0 repeats a row; null: zeros
  Index init_row, init_unit;
  Real* out;
  Index out_row, out_unit;
  int valid;       // numbers that exist in memory, of a row that is a single vector
  bool far;        // the panels come from beyond the second cache level
  bool backwards;  // the next panel is the one before
  bool add;        // to what is in out; tile_rows sets this and the next for its later chains
  Ahead<Real> ahead;
};

// The tiles of one kind: NB unit blocks of `slots` vectors, of which a product's panels have `gates`.
template <class Real>
struct Tiles {
  int blocks, most;                                      // NB, and the rows of the highest tile
  bool takes_chains;                                     // whether that of one row cuts its operands itself
  void (*const* of_rows)(const Tile<Real>&, Index row);  // those of 1, 2, ..
};

// All tiles with so many slots and gates, by halvings of the widest vector and by NB = 1, 2, 4, 8. Narrower blocks come
// alone.
template <class Real>
struct TileKind {
  Tiles<Real> of[3][4];
};

// out = init + a panel, of rows of a with 8 bits a number by the panels of some unit blocks. Sums are exact, whatever
// the order: (float)sum * (scale of the row * scale of the column), which is added to init, depends on nothing else.
struct IntegerProduct {
  const std::uint32_t* a;  // words of 4 numbers, as `IntegerKernels` says
  Index a_row;
  const float* a_scales;  // of rows
  Index rows, words;      // words of a row that count
  const float* panel;     // [unit block][word][gate x lanes], words of 4 numbers with a sign
  Index panel_unit, panel_word;
  const float* scales;          // of columns, [unit block][gate x lanes]
  const std::int32_t* offsets;  // of columns, 128 times the sum of a column's numbers
  Index column_unit;
  const Column* places = nullptr;  // of the words of a that each vector's words meet, [word][vector]; null: all of them
  int blocks, gates, halvings, valid;  // of BlockRange, and the gates that take part
  const float* init;                   // strides of rows and of unit blocks as in Tile; null: zeros
  Index init_row, init_unit;
  float* out;
  Index out_row, out_unit;
};

// Products of numbers with 8 bits, for the vectors of one instruction set, some with further instructions of the
// processor. All have the same results.
struct IntegerKernels {
  const char* name;
  bool adds_128;  // whether 128 is added to the numbers of a, which makes them unsigned
  void (*multiply)(const IntegerProduct&);
};

// The tiles of products whose factors are both pairs of bfloat16: by what a cell's phases have, and backward.
constexpr int tile_kind_count = 5;

struct PairKernels {
  const char* name;
  bool emulates;                 // whether it computes slowly what an instruction would
  const TileKind<float>* tiles;  // of each kind
  const PairKernels* row_pairs;  // whose tiles are for pairs of rows
  void (*release)();             // gives back the processor's tile registers when a thread's call ends; may be null
};

// What is compiled for one instruction set and dtype.
template <class Real>
struct Kernels {
  const CellShape* cells;  // the same, in the same order, for all
  int cell_count;
  void (*set_cache_sizes)(const CacheSizes&);       // before anything else is called
  void (*set_integers)(const IntegerKernels&);      // before anything else is called, too
  void (*set_pairs)(const PairKernels&);            // before a problem is rounded
  Index (*cut)(const Problem&, Index* first_step);  // fills chunks + 1 entries, at most T + 1
  TapeSize (*tape_size)(const Problem&);
  Index (*packed_size)(const Problem&);  // of one direction
  void (*pack)(const Problem&, const Parameters<const Real>&, Real* packed);
  double (*speed_of_team)(const Problem&, Index threads);  // in forward, that of one being 1; roughly
  Index (*forward_scratch)(const Problem&, bool packed);
  Index layout_size;  // in bytes
  void (*lay_out)(const ForwardArgs<Real>&, void* layout);
  void (*forward)(const ForwardArgs<Real>&, const Team&);
  Index (*backward_scratch)(const Problem&, bool need_dx, const Windows&);
  void (*backward)(const BackwardArgs<Real>&, const Team&);
  void (*gate)(const Problem&, const Real* gates, int gate, const View<Real>& out);  // of a tape, out [T·B,H]
  void (*activate)(Activation, const Real* x, Real* y, Index n);
  Real (*multiply_adds)(Real a, Real b, Index n);
  Real (*read)(const Real* x, Index n, Index passes);
  Index (*linear_scratch)(const LinearSize&);
  void (*linear)(const LinearArgs<Real>&, const Team&);
  Index (*linear_backward_scratch)(const LinearSize&);
  void (*linear_backward)(const LinearBackwardArgs<Real>&, const Team&);
  int block_units, lanes;  // units of a reservoir's block; sequences of which a member takes several
  int pair_lanes;          // of a vector of operands in a pair; 0: there are no pairs
  bool has_gather;
  Index (*next_of_pair)(const std::uint32_t* units, Index vectors, std::uint32_t reached);
  Index (*reservoir_scratch)(const Reservoir<Real>&, Index members);
  void (*reservoir)(const ReservoirArgs<Real>&, const Team&);
  void (*draw_bits)(std::uint64_t key, const std::uint32_t (&row)[3], double rate, Index n, unsigned char* bits);
  void (*cross_entropy)(const CrossEntropyArgs<Real>&, const Team&);
  Index (*ctc_scratch)(Index T, Index U);  // in doubles
  void (*ctc)(const CtcArgs<Real>&, const Team&);
  void (*sum_of_squares)(const Real* x, Index n, double* sums, const Team&);
  void (*sgd)(const OptimizerArgs<Real>&, const SgdOptions&, const Team&);
  void (*adam)(const OptimizerArgs<Real>&, const AdamOptions&, const Team&);
};

struct KernelTable {
  const char* name;  // of the instruction set
  const Kernels<float>* f32;
  const Kernels<double>* f64;
};

}  // namespace rnnfast
