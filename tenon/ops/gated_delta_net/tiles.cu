// Variant "tiles": chunks by tensor cores. Four launches: the convolution; sequences of one token
// together with what of each chunk does not depend on S; S from chunk to chunk; the outputs.
#include "tenon/device/variant.h"
#include "tenon/ops/gated_delta_net/call.cuh"
#include "tenon/ops/gated_delta_net/decode.cuh"
#include "tenon/ops/gated_delta_net/gated_delta_net.h"
#include "tenon/ops/gated_delta_net/tiles.cuh"
#include "tenon/ops/gated_delta_net/tiles_state.cuh"

namespace tenon::TENON_TARGET::gated_delta_net {
namespace {

static_assert(kWave == 32 && kTile == tenon::gated_delta_net::kChunkTokens);
static_assert(kTileThreads == kDecodeThreads);
static_assert((kSquares + 2 * kFactors) == tenon::gated_delta_net::kTileColumns);

inline constexpr std::size_t kFirstShared =
    kPrepareShared > kDecodeShared ? kPrepareShared : kDecodeShared;

// One block per (sequence, v head): its one token, if it has no more. Then one per (chunk, k head).
TENON_KERNEL_RESIDENT(kTileThreads, 3) prepare_kernel(TENON_ARGS(KernelArgs) args) {
  wait_for_previous();
  let_next_start();
  const int decodes = args.sequences * args.v_heads;
  if (block_id() < decodes) {
    const int v_head = block_id() % args.v_heads;
    const Sequence sequence = sequence_at(args, block_id() / args.v_heads);
    const Channels channels = channels_of(args, v_head);
    if (sequence.end - sequence.begin == 1)
      decode_head(args, sequence, v_head, channels, load_weights(args, channels));
    return;
  }
  TENON_DYNAMIC_SHARED(std::byte, memory);
  const int at = block_id() - decodes;
  const TileChunk chunk = chunk_at(args, at / args.k_heads);
  if (chunk.count > 0) prepare_tiles(args, chunk, at % args.k_heads, memory);
}

// One block per (sequence, v head, kStateColumns columns).
TENON_KERNEL_MAX(kTileThreads) state_kernel(TENON_ARGS(KernelArgs) args) {
  wait_for_previous();
  let_next_start();
  constexpr int kParts = kDim / kStateColumns;
  const int part = block_id() % kParts;
  const int v_head = block_id() / kParts % args.v_heads;
  const int index = block_id() / kParts / args.v_heads;
  if (index >= args.sequences) return;  // the plan was made for more
  const Sequence sequence = sequence_at(args, index);
  if (sequence.end - sequence.begin <= 1) return;
  TENON_DYNAMIC_SHARED(std::byte, memory);
  run_tiles(args, sequence, v_head, part * kStateColumns, memory);
}

Status supports_tiles(const Args& args, const PlanContext& where, Recipe* recipe) {
  if (args.max_tokens_per_sequence <= 1)
    return Status::error(Code::kUnsupported, "every sequence has one token: there is no chunk");
  if (where.properties.max_shared_bytes < kStateShared)
    return Status::error(Code::kUnsupported, "a block takes " + std::to_string(kStateShared) +
                                                 " bytes of shared memory and the device has " +
                                                 std::to_string(where.properties.max_shared_bytes));
  const std::int64_t tokens = args.qkv.shape[0], sequences = args.state_from.shape[0];
  const std::int64_t chunks = tokens / kTile + sequences;
  add_conv(args, where, recipe);
  LaunchShape first =
      shape_of(where, sequences * args.v_heads + chunks * args.k_heads, kTileThreads);
  first.shared_bytes = kFirstShared;
  recipe->launch("prepare_kernel", first);
  LaunchShape second =
      shape_of(where, sequences * args.v_heads * (kDim / kStateColumns), kTileThreads);
  second.shared_bytes = kStateShared;
  recipe->launch("state_kernel", second);
  add_finish(args, where, recipe);
  return Status::ok();
}
Status launch_tiles(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  KernelArgs to = kernel_args(args);
  to.decodes_apart = true;
  TENON_TRY(tenon::launch(stream, recipe.launches[0].shape, conv_kernel, to));
  TENON_TRY(tenon::launch(stream, recipe.launches[1].shape, prepare_kernel, to));
  TENON_TRY(tenon::launch(stream, recipe.launches[2].shape, state_kernel, to));
  return tenon::launch(stream, recipe.launches[3].shape, finish_kernel, to);
}

}  // namespace

TENON_DEFINE_VARIANT(tiles, Args, supports_tiles, launch_tiles);

}  // namespace tenon::TENON_TARGET::gated_delta_net
