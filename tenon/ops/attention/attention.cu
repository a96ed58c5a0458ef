// The attention kernel: one block per kv head and tile of rows, where the rows of a sequence are
// its (token, q head of that kv head) pairs. A block makes all partials of its rows, one after the
// other. Not here: the arithmetic of a tile (tile.cuh), a split of long contexts over blocks,
// tensor cores.
#include "tenon/ops/attention/attention.h"

#include "tenon/core/fp8.h"
#include "tenon/device/device.cuh"
#include "tenon/device/math.cuh"
#include "tenon/device/variant.h"
#include "tenon/ops/attention/tile.cuh"
#include "tenon/ops/common/quantize.cuh"
#include "tenon/ops/common/simd.cuh"

namespace tenon::TENON_TARGET::attention {
namespace {

using Args = tenon::attention::Args;
static_assert(kMaxHeadDim == tenon::attention::kMaxHeadDim);
static_assert(kTile == tenon::attention::kTileTokens);
static_assert(kPartial == tenon::attention::kPartialTokens);
inline constexpr int kRows = 8;       // rows of a block: they share each load of k and v
inline constexpr int kThreads = 128;  // on targets with waves

struct KernelArgs {
  const bf16 *q, *gate;  // gate may be null
  const bf16 *k_cache, *v_cache;
  const std::int32_t *block_table, *starts, *lengths;
  bf16* out;  // null where nobody wants bf16 rows
  std::int64_t gate_token_stride, gate_head_stride, out_stride;
  QuantSpec quant;
  float scale;
  int tokens, sequences, q_heads, kv_heads, head_dim;
  int num_blocks, block_tokens, max_blocks;
};

// Up to kRows rows of one sequence that share a kv head. Row r is pair first + r: its token is
// begin + pair / group, its q head kv_head · group + pair % group.
struct RowTile {
  int sequence = -1;  // −1: rows of no sequence, which become zero
  int begin = 0, end = 0, first = 0, count = 0;
};

// Tile number `index`, counted over the sequences in order and then the rows behind them.
TENON_DEVICE RowTile find_rows(const KernelArgs& args, int index) {
  const int group = args.q_heads / args.kv_heads;
  for (int s = 0; s <= args.sequences; ++s) {
    const bool behind = s == args.sequences;
    const int begin = args.starts[s];
    const int end = behind ? args.tokens : args.starts[s + 1];
    const int rows = end > begin ? (end - begin) * group : 0;
    const int tiles = (rows + kRows - 1) / kRows;
    if (index < tiles) {
      const int left = rows - index * kRows;
      return {behind ? -1 : s, begin, end, index * kRows, left < kRows ? left : kRows};
    }
    index -= tiles;
  }
  return {};
}

TENON_DEVICE const bf16* cache_row(const KernelArgs& args, const bf16* cache, int sequence,
                                   int kv_head, int position) {
  const int column = position / args.block_tokens;
  if (column >= args.max_blocks) return nullptr;
  const std::int32_t block = args.block_table[std::int64_t{sequence} * args.max_blocks + column];
  if (block < 0 || block >= args.num_blocks) return nullptr;
  const std::int64_t token = std::int64_t{block} * args.block_tokens + position % args.block_tokens;
  return cache + (token * args.kv_heads + kv_head) * args.head_dim;
}

// Positions [first, last) of a cache in fp32. A position without a block reads as zeros.
TENON_DEVICE FloatTile load_piece(const KernelArgs& args, const bf16* cache, int sequence,
                                  int kv_head, int first, int last, float* tile) {
  const int padded = round_up_to_slots(args.head_dim);
  for (int position = first; position < last; ++position) {
    const bf16* row = cache_row(args, cache, sequence, kv_head, position);
    load_row(row, tile + (position - first) * kMaxHeadDim, row != nullptr ? args.head_dim : 0,
             padded);
  }
  return {tile};
}

// The same positions where they lie.
TENON_DEVICE CacheTile find_piece(const KernelArgs& args, const bf16* cache, int sequence,
                                  int kv_head, int first, int last, const bf16* zeros) {
  CacheTile tile;
  for (int position = first; position < last; ++position) {
    const bf16* row = cache_row(args, cache, sequence, kv_head, position);
    tile.rows[position - first] = row != nullptr ? row : zeros;
  }
  return tile;
}

// The codes and scales of one head of a token, whose rounded values `row` has. Every thread of the
// block calls it.
TENON_DEVICE void quantize_head(const KernelArgs& args, int token, int head, const float* row) {
  constexpr int kMaxSpan = kWave == 1 ? kMaxHeadDim / kVector : 2;
  const ThreadSpan span = own_span<kMaxSpan>(args.head_dim / kVector);
  Word4 held[kMaxSpan];
  for_vectors<kMaxSpan>(span.count, [&]<int kVectors>(int i) {
    float values[kVectors * kVector];
    for (int k = 0; k < kVectors * kVector; ++k) values[k] = row[(span.first + i) * kVector + k];
    round_pack<bf16, kVectors>(values, &held[i]);
  });
  quantize_to_tensors<bf16>(at_row(args.quant, token), head * args.head_dim, span, held);
  if (head == args.q_heads - 1) pad_scales(args.quant, token);
}

// rne(rne(sum / total) · sigmoid(gate)), in place; to bf16 rows and fp8 where they are wanted.
// Every thread of the block calls it.
TENON_DEVICE void finish_row(const KernelArgs& args, int token, int head, float total, float* row) {
  const int n = args.head_dim;
  const float inverse = 1.0f / total;
  const bf16* __restrict__ gate =
      args.gate == nullptr
          ? nullptr
          : args.gate + token * args.gate_token_stride + head * args.gate_head_stride;
  if (total == 0.0f) {  // the row sees nothing; its gate may be anything
    for (int i = thread_id(); i < n; i += block_threads()) row[i] = 0.0f;
  } else if (gate == nullptr) {
    for (int i = thread_id(); i < n; i += block_threads())
      row[i] = to_float(to_bf16(row[i] * inverse));
  } else {
    for (int i = thread_id(); i < n; i += block_threads())
      row[i] =
          to_float(to_bf16(to_float(to_bf16(row[i] * inverse)) * sigmoid_f(to_float(gate[i]))));
  }
  if (args.out != nullptr) {
    bf16* __restrict__ out = args.out + token * args.out_stride + head * n;
    for (int i = thread_id(); i < n; i += block_threads()) out[i] = to_bf16(row[i]);
  }
  if (args.quant.codes == nullptr) return;
  sync_block();  // the row is whole
  quantize_head(args, token, head, row);
}

// What a block shares: queries and sums of its rows, and a piece of k or v.
struct Shared {
  float *queries, *sums, *whole;  // [kRows, kMaxHeadDim], padded with zeros to whole slots
  float* piece;                   // [kPiece, kMaxHeadDim]
  float* scores;                  // [kRows, kTile]
  Running* running;               // [kRows]
  const bf16* zeros;              // [kMaxHeadDim], where k and v are read in place
};

// Positions [from, to) of k or v, ready to be used: where they lie, or copied by the whole block.
template <bool kInPlace>
TENON_DEVICE auto read_piece(const KernelArgs& args, const Shared& block, const bf16* cache,
                             int sequence, int kv_head, int from, int to) {
  if constexpr (kInPlace) {
    return find_piece(args, cache, sequence, kv_head, from, to, block.zeros);
  } else {
    sync_block();  // the readers of the previous piece are done
    const FloatTile piece = load_piece(args, cache, sequence, kv_head, from, to, block.piece);
    sync_block();
    return piece;
  }
}

// All partials of a context for the block's rows.
template <bool kInPlace>
TENON_DEVICE void run_context(const KernelArgs& args, const RowTile& rows, int kv_head, int context,
                              int n, const Shared& block) {
  const auto read = [&](const bf16* cache, int from, int to) {
    return read_piece<kInPlace>(args, block, cache, rows.sequence, kv_head, from, to);
  };
  for (int first = 0; first < context; first += kTile) {
    const int last = first + kTile < context ? first + kTile : context;
    const auto end_of = [&](int from) { return from + kPiece < last ? from + kPiece : last; };
    for (int from = first; from < last; from += kPiece)
      score_piece(block.queries, read(args.k_cache, from, end_of(from)), rows.count,
                  end_of(from) - from, n, args.scale, block.scores + (from - first));
    sync_block();
    for (int r = thread_id(); r < rows.count; r += block_threads())
      weigh_row(block.running[r], block.scores + r * kTile, first);
    for (int from = first; from < last; from += kPiece)
      add_piece(block.running, block.scores, read(args.v_cache, from, end_of(from)), rows.count,
                from - first, n, block.sums);

    if (last < context && last % kPartial != 0) continue;
    const int partial = first / kPartial * kPartial;
    sync_block();
    for (int r = thread_id(); r < rows.count; r += block_threads())
      join_row(block.running[r], partial);
    sync_block();
    for (int r = 0; r < rows.count; ++r)
      join_sums(block.running[r], partial, n, block.sums + r * kMaxHeadDim,
                block.whole + r * kMaxHeadDim);
  }
  sync_block();
}

TENON_KERNEL_MAX(kThreads) tiled_kernel(KernelArgs args) {
  TENON_SHARED(float, queries, kRows* kMaxHeadDim);
  TENON_SHARED(float, sums, kRows* kMaxHeadDim);
  TENON_SHARED(float, whole, kRows* kMaxHeadDim);
  TENON_SHARED(float, piece, kPiece* kMaxHeadDim);
  TENON_SHARED(float, scores, kRows* kTile);
  TENON_SHARED(Running, running, kRows);
  Shared block{queries, sums, whole, piece, scores, running, nullptr};

  const int kv_head = block_id() % args.kv_heads;
  const RowTile rows = find_rows(args, block_id() / args.kv_heads);
  if (rows.count == 0) return;
  const int group = args.q_heads / args.kv_heads;
  const int padded = round_up_to_slots(args.head_dim);
  const auto token_of = [&](int r) { return rows.begin + (rows.first + r) / group; };
  const auto head_of = [&](int r) { return kv_head * group + (rows.first + r) % group; };
  const auto context_of = [&](int r) {  // the token's position, itself included
    return rows.sequence < 0 ? 0 : args.lengths[rows.sequence] - (rows.end - token_of(r)) + 1;
  };

  // Phase 1: queries in fp32, empty sums.
  for (int r = 0; r < rows.count; ++r) {
    const bf16* q =
        args.q + (std::int64_t{token_of(r)} * args.q_heads + head_of(r)) * args.head_dim;
    load_row(q, queries + r * kMaxHeadDim, args.head_dim, padded);
    for (int i = thread_id(); i < padded; i += block_threads()) sums[r * kMaxHeadDim + i] = 0.0f;
  }
  for (int r = thread_id(); r < rows.count; r += block_threads())
    running[r] = {-kInfinity, 0.0f, 1.0f, context_of(r), 0, -kInfinity, 0.0f, 1.0f, 0.0f};
  for (int at = thread_id(); at < kRows * kTile; at += block_threads()) scores[at] = 0.0f;

  // Phase 2: context positions up to what the last row sees. Copies do not pay on one thread with
  // few rows.
  const int context = context_of(rows.count - 1);
  if (kWave == 1 && rows.count <= 2 && args.head_dim % kSlots == 0) {
    const bf16 zeros[kMaxHeadDim] = {};
    block.zeros = zeros;
    run_context<true>(args, rows, kv_head, context, args.head_dim, block);
  } else {
    run_context<false>(args, rows, kv_head, context, padded, block);
  }

  // Phase 3: divide, gate, store.
  for (int r = 0; r < rows.count; ++r)
    finish_row(args, token_of(r), head_of(r), running[r].whole_total, whole + r * kMaxHeadDim);
}

Status supports(const Args& args, const PlanContext&, Recipe* recipe) {
  if (args.heads)
    return Status::error(Code::kUnsupported, "it takes heads that rope has normed and rotated");
  // Each sequence, and the rows behind them, rounds up to whole tiles; surplus blocks do nothing.
  const std::int64_t tokens = args.q.shape[0], sequences = args.block_table.shape[0];
  const std::int64_t kv_heads = args.k_cache.shape[2], group = args.q.shape[1] / kv_heads;
  const std::int64_t tiles = tokens * group / kRows + sequences + 1;
  LaunchShape shape;
  shape.blocks = tokens == 0 ? 0 : static_cast<int>(tiles * kv_heads);
  shape.threads = kWave == 1 ? 1 : kThreads;
  recipe->launch("tiled_kernel", shape);
  return Status::ok();
}

Status launch(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  KernelArgs to{};
  to.q = args.q.as<const bf16>();
  if (args.gate) {
    to.gate = args.gate->as<const bf16>();
    to.gate_token_stride = args.gate->stride[0];
    to.gate_head_stride = args.gate->stride[1];
  }
  to.k_cache = args.k_cache.as<const bf16>();
  to.v_cache = args.v_cache.as<const bf16>();
  to.block_table = args.block_table.as<const std::int32_t>();
  to.starts = args.sequence_starts.as<const std::int32_t>();
  to.lengths = args.sequence_lengths.as<const std::int32_t>();
  if (args.out.bf16) {
    to.out = args.out.bf16->as<bf16>();
    to.out_stride = args.out.bf16->stride[0];
  }
  to.quant = quant_spec(args.out.fp8);
  to.scale = args.scale;
  to.tokens = static_cast<int>(args.q.shape[0]);
  to.sequences = static_cast<int>(args.block_table.shape[0]);
  to.q_heads = static_cast<int>(args.q.shape[1]);
  to.kv_heads = static_cast<int>(args.k_cache.shape[2]);
  to.head_dim = static_cast<int>(args.q.shape[2]);
  to.num_blocks = static_cast<int>(args.k_cache.shape[0]);
  to.block_tokens = static_cast<int>(args.k_cache.shape[1]);
  to.max_blocks = static_cast<int>(args.block_table.shape[1]);
  return tenon::launch(stream, recipe.launches.front().shape, tiled_kernel, to);
}

}  // namespace

TENON_DEFINE_VARIANT(tiled, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::attention
