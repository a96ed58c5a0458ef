// Variant "tiles": chunks by tensor cores. Four launches: the convolution; sequences of one token
// together with what of each chunk does not depend on S; S from chunk to chunk; the outputs.
#include "tenon/device/variant.h"
#include "tenon/ops/gated_delta_net/call.cuh"
#include "tenon/ops/gated_delta_net/decode.cuh"
#include "tenon/ops/gated_delta_net/gated_delta_net.h"
#include "tenon/ops/gated_delta_net/tiles.cuh"
#include "tenon/ops/gated_delta_net/tiles_rows.cuh"
#include "tenon/ops/gated_delta_net/tiles_state.cuh"

namespace tenon::TENON_TARGET::gated_delta_net {
namespace {

static_assert(kWave == 32 && kTile == tenon::gated_delta_net::kChunkTokens);
static_assert(kTileThreads == kDim);
static_assert((kSquares + 2 * kFactors) == tenon::gated_delta_net::kTileColumns);

// Rows of S that a sequence of one token holds here: with more, fewer chunks would run at a time.
inline constexpr int kHeldBeside = kHeldRows / 2;
using FormBeside = HeadForm<1, kHeldBeside>;
inline constexpr std::size_t kFirstShared = kPrepareShared > decode_shared(kHeldBeside)
                                                ? kPrepareShared
                                                : decode_shared(kHeldBeside);

// One block per (sequence, v head): its one token, if it has no more. Then one per (chunk, v head).
TENON_KERNEL_RESIDENT(kTileThreads, 4) prepare_kernel(TENON_ARGS(KernelArgs) args) {
  wait_for_previous();
  let_next_start();
  const int v_head = block_id() % args.v_heads, at = block_id() / args.v_heads;
  if (at < args.sequences) {
    const Channels channels = channels_of(args, v_head);
    Ahead<FormBeside> ahead;
    load_constants(args, v_head, ahead);
    load_state(args, at, v_head, channels, ahead);
    if (ahead.decodes) decode_head(args, v_head, channels, load_weights(args, channels), ahead);
    return;
  }
  TENON_DYNAMIC_SHARED(std::byte, memory);
  const TileChunk chunk = chunk_at(args, at - args.sequences);
  if (chunk.count > 0) prepare_tiles(args, chunk, v_head, memory);
}

// One block per (sequence, v head, kStateColumns columns).
TENON_KERNEL_MAX(kStateThreads) state_kernel(TENON_ARGS(KernelArgs) args) {
  wait_for_previous();
  let_next_start();
  constexpr int kParts = kDim / kStateColumns;
  const int index = block_id() / kParts / args.v_heads;
  if (index >= args.sequences) return;  // the plan was made for more
  const Sequence sequence = sequence_at(args, index);
  if (sequence.end - sequence.begin <= 1) return;
  const Chain chain{sequence.begin, sequence.end, block_id() / kParts % args.v_heads,
                    block_id() % kParts * kStateColumns};
  TENON_DYNAMIC_SHARED(std::byte, memory);
  if (thread_id() < kTileThreads) {
    run_state(args, sequence, chain, memory);
  } else {
    run_outputs(args, chain, memory);
  }
}

// Layouts with padding are left to the kernel of the other variants.
bool writes_by_waves(const Args& args) {
  return !args.out.fp8 || args.out.fp8->layout == ScaleLayout::kRow;
}

Status supports_tiles(const Args& args, const PlanContext& where, Recipe* recipe) {
  if (args.max_tokens_per_sequence <= 1)
    return Status::error(Code::kUnsupported, "every sequence has one token: there is no chunk");
  if (where.properties.max_shared_bytes < kStateShared)
    return Status::error(Code::kUnsupported, "a block takes " + std::to_string(kStateShared) +
                                                 " bytes of shared memory and the device has " +
                                                 std::to_string(where.properties.max_shared_bytes));
  const auto starts_at = [](const TensorView& rows, std::int64_t elements) {
    return reinterpret_cast<std::uintptr_t>(rows.data) % (elements * sizeof(bf16)) == 0 &&
           rows.stride[0] % elements == 0;
  };
  if (!starts_at(args.qkv, 2) || !starts_at(args.z, 4) || !starts_at(args.scratch, 8))
    return Status::error(
        Code::kUnsupported,
        "rows of qkv must start at multiples of 4 bytes, of z at 8, of scratch at 16");
  const std::int64_t tokens = args.qkv.shape[0], sequences = args.state_from.shape[0];
  const std::int64_t chunks = tokens / kTile + sequences;
  const std::int64_t runs = (args.qkv.shape[1] + kConvChannels - 1) / kConvChannels;
  recipe->launch("convolve_kernel", shape_of(where, chunks * runs, kTileThreads));
  LaunchShape first = shape_of(where, (sequences + chunks) * args.v_heads, kTileThreads);
  first.shared_bytes = kFirstShared;
  recipe->launch("prepare_kernel", first);
  LaunchShape second =
      shape_of(where, sequences * args.v_heads * (kDim / kStateColumns), kStateThreads);
  second.shared_bytes = kStateShared;
  recipe->launch("state_kernel", second);
  if (writes_by_waves(args)) {
    const std::int64_t tasks = tokens * wave_tasks(args.v_heads), waves = kTileThreads / kWave;
    recipe->launch(
        "outputs_kernel",
        shape_of(where, (tasks + waves - 1) / waves + sequences * conv_runs(args), kTileThreads));
  } else {
    add_finish(args, where, recipe);
  }
  return Status::ok();
}
Status launch_tiles(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  KernelArgs to = kernel_args(args);
  to.decodes_apart = true;
  TENON_TRY(tenon::launch(stream, recipe.launches[0].shape, convolve_kernel, to));
  TENON_TRY(tenon::launch(stream, recipe.launches[1].shape, prepare_kernel, to));
  TENON_TRY(tenon::launch(stream, recipe.launches[2].shape, state_kernel, to));
  return tenon::launch(stream, recipe.launches[3].shape,
                       writes_by_waves(args) ? outputs_kernel : finish_kernel, to);
}

}  // namespace

TENON_DEFINE_VARIANT(tiles, Args, supports_tiles, launch_tiles);

}  // namespace tenon::TENON_TARGET::gated_delta_net
