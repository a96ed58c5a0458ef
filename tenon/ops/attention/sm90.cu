// The variant of Hopper: what it serves, its kernels and their launch.
#include <algorithm>

#include "tenon/device/variant.h"
#include "tenon/ops/attention/attention.h"
#include "tenon/ops/attention/sm90_join.cuh"
#include "tenon/ops/attention/sm90_prefill.cuh"
#include "tenon/ops/attention/sm90_stream.cuh"

namespace tenon::TENON_TARGET::attention {
namespace {

using Args = tenon::attention::Args;
static_assert(kTile == tenon::attention::kTileTokens);
static_assert(kPartial == tenon::attention::kPartialTokens);
using tenon::attention::rows_of_rank;
using tenon::attention::slot_bytes;

constexpr int kMostGroup = 16;
// Measured on an H100 (ADR 0043): so few sequences, times kv heads, are served sooner by a cluster
// for each partial, more of them by a block for each.
constexpr std::int64_t kMostInClusters = 4;
constexpr std::int64_t kMostBlocks = 1 << 30;  // of a launch

std::string text(std::int64_t number) { return std::to_string(number); }

int group_of(const Args& args) { return static_cast<int>(args.q.shape[1] / args.k_cache.shape[2]); }

std::int64_t slots_of(const Args& args) {
  return static_cast<std::int64_t>(args.workspace->bytes()) /
         slot_bytes(rows_of_rank(group_of(args)));
}

// The kernel that decodes: its blocks are as many as can be resident, or as have work.
KernelLaunch decoding(const Args& args, const PlanContext& where) {
  const std::int64_t sequences = args.block_table.shape[0], kv_heads = args.k_cache.shape[2];
  const std::int64_t context = args.block_table.shape[1] * args.k_cache.shape[1];
  const std::int64_t parts =
      std::max<std::int64_t>(sequences * kv_heads * (context / kPartial + 1), 1);
  const bool two_rows = rows_of_rank(group_of(args)) == 2;
  const bool streams =
      sequences * kv_heads > kMostInClusters && sequences * kv_heads <= slots_of(args);
  const int units = where.properties.num_units;
  LaunchShape shape;
  shape.threads = kDecodeThreads;
  shape.early = where.may_start_early;
  if (streams) {
    shape.blocks = static_cast<int>(std::min<std::int64_t>(parts, units));
    shape.shared_bytes = two_rows ? sizeof(StreamShared<2>) : sizeof(StreamShared<4>);
  } else {
    shape.cluster = tenon::attention::kClusterRanks;
    shape.blocks = static_cast<int>(std::min<std::int64_t>(parts, units / 2)) * shape.cluster;
    shape.shared_bytes = two_rows ? sizeof(DecodeShared<2>) : sizeof(DecodeShared<4>);
  }
  if (args.q.shape[0] == 0) shape.blocks = 0;
  return {streams ? "stream_kernel" : "decode_kernel", shape};
}

// Nothing that differs from row to row or from step to step: the bits of a row must not change.
Status check_model(const Args& args, const PlanContext& where) {
  const auto no = [](std::string why) { return Status::error(Code::kUnsupported, std::move(why)); };
  const int found = where.properties.cuda_capability;
  if (found != 90)
    return no("the device has compute capability " + text(found / 10) + "." + text(found % 10) +
              "; its instructions are those of 9.0");
  if (args.q.shape[2] != kHeadDim)
    return no("head_dim is " + text(args.q.shape[2]) + "; it is for " + text(kHeadDim));
  if (args.k_cache.shape[1] % kTile != 0)
    return no("blocks of the cache have " + text(args.k_cache.shape[1]) + " tokens; multiples of " +
              text(kTile) + " can be copied as tiles");
  if (group_of(args) > kMostGroup)
    return no(text(group_of(args)) + " q heads share a kv head; at most " + text(kMostGroup) +
              " can");
  if (!(args.scale > 0)) return no("scale is not positive");
  if (args.gate && (args.gate->stride[0] % 2 != 0 || args.gate->stride[1] % 2 != 0))
    return no("the strides of gate are odd; it reads two elements at once");
  if (args.out.fp8 && (args.out.fp8->layout != ScaleLayout::kRow || args.out.fp8->group != 128 ||
                       args.out.fp8->data.dtype != DType::kE4M3))
    return no("fp8 rows are wanted in another form than e4m3 in groups of 128 with scales by rows");
  if (args.heads && args.heads->cos_sin.shape[1] != kRotaryDim)
    return no("rotary_dim is " + text(args.heads->cos_sin.shape[1]) + "; with heads it is for " +
              text(kRotaryDim));
  if (!args.workspace) return no("it needs a workspace");
  return Status::ok();
}

Status supports(const Args& args, const PlanContext& where, Recipe* recipe) {
  TENON_TRY(check_model(args, where));
  const auto no = [](std::string why) { return Status::error(Code::kUnsupported, std::move(why)); };
  const std::int64_t tokens = args.q.shape[0], sequences = args.block_table.shape[0];
  const std::int64_t kv_heads = args.k_cache.shape[2];
  const int group = group_of(args), rows = rows_of_rank(group);
  if (sequences > kMostSequences)
    return no(text(sequences) + " sequences are over the limit of " + text(kMostSequences));
  if (static_cast<std::int64_t>(args.workspace->bytes()) < slot_bytes(rows))
    return no("the workspace has " + text(static_cast<std::int64_t>(args.workspace->bytes())) +
              " bytes; it needs at least " + text(slot_bytes(rows)));
  if (!args.decode_only) {
    const std::int64_t blocks = (tokens * group / kPromptRows + sequences) * kv_heads * 2;
    if (blocks > kMostBlocks) return no(text(blocks) + " blocks are too many");
    LaunchShape shape;
    shape.blocks = tokens < 2 ? 0 : static_cast<int>(blocks);
    shape.threads = kPrefillThreads;
    shape.shared_bytes = sizeof(PrefillShared);
    shape.early = where.may_start_early;
    recipe->launch("prefill_kernel", shape);
  }
  const KernelLaunch decode = decoding(args, where);
  recipe->launch(decode.kernel, decode.shape);
  LaunchShape shape;
  shape.blocks =
      tokens == 0
          ? 0
          : static_cast<int>((sequences * args.q.shape[1] * 2 + kJoinWarps - 1) / kJoinWarps);
  shape.threads = kJoinThreads;
  shape.early = where.may_start_early;
  const std::int64_t context = args.block_table.shape[1] * args.k_cache.shape[1];
  if (decode.kernel == "stream_kernel" || context > kPartial) recipe->launch("join_kernel", shape);
  return Status::ok();
}

using Kernel = void (*)(Sm90Call);
Kernel kernel_of(std::string_view name, int rows) {
  if (name == "prefill_kernel") return prefill_kernel;
  if (name == "join_kernel") return join_kernel;
  if (name == "stream_kernel") return rows == 2 ? stream_kernel<2> : stream_kernel<4>;
  return rows == 2 ? decode_kernel<2> : decode_kernel<4>;
}

NewHeads heads_of(const Args& args) {
  const tenon::attention::NewHeads& from = *args.heads;
  NewHeads to{};
  to.k = from.k.as<const bf16>();
  to.v = from.v.as<const bf16>();
  to.q_norm = from.q_norm.data;
  to.k_norm = from.k_norm.data;
  to.wide_norms = from.q_norm.dtype == DType::kF32;
  to.positions = from.positions.as<const std::int32_t>();
  to.slots = from.slot_mapping.as<const std::int32_t>();
  to.cos_sin = from.cos_sin.as<const float>();
  to.k_cache = args.k_cache.as<bf16>();
  to.v_cache = args.v_cache.as<bf16>();
  to.k_token_stride = from.k.stride[0];
  to.k_head_stride = from.k.stride[1];
  to.v_token_stride = from.v.stride[0];
  to.v_head_stride = from.v.stride[1];
  to.eps = from.eps;
  to.norm_offset = from.norm_offset;
  to.max_positions = static_cast<int>(from.cos_sin.shape[0]);
  return to;
}

Status launch(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  if (args.q.shape[0] == 0) return Status::ok();
  const int rows = rows_of_rank(group_of(args));
  Sm90Call call{};
  const std::int64_t positions = args.k_cache.shape[0] * args.k_cache.shape[1];
  const std::int64_t row_bytes = args.k_cache.shape[2] * kHeadDim * 2;
  TENON_ASSIGN(call.k,
               ::tenon::sm90::tile_map(args.k_cache.data, positions, row_bytes, row_bytes, kTile));
  TENON_ASSIGN(call.v,
               ::tenon::sm90::tile_map(args.v_cache.data, positions, row_bytes, row_bytes, kTile));
  call.q = args.q.as<const bf16>();
  call.q_token_stride = args.q.stride[0];
  call.q_head_stride = args.q.stride[1];
  if (args.heads) call.heads = heads_of(args);
  if (args.gate) {
    call.gate = args.gate->as<const bf16>();
    call.gate_token_stride = args.gate->stride[0];
    call.gate_head_stride = args.gate->stride[1];
  }
  call.block_table = args.block_table.as<const std::int32_t>();
  call.starts = args.sequence_starts.as<const std::int32_t>();
  call.lengths = args.sequence_lengths.as<const std::int32_t>();
  if (args.out.bf16) {
    call.out = args.out.bf16->as<bf16>();
    call.out_stride = args.out.bf16->stride[0];
  }
  call.quant = quant_spec(args.out.fp8);
  call.slots = args.workspace->as<std::byte>();
  call.num_slots = static_cast<int>(slots_of(args));
  call.scale = args.scale * 0x1.715476p0f;  // log2 e
  call.tokens = static_cast<int>(args.q.shape[0]);
  call.sequences = static_cast<int>(args.block_table.shape[0]);
  call.q_heads = static_cast<int>(args.q.shape[1]);
  call.kv_heads = static_cast<int>(args.k_cache.shape[2]);
  call.group = group_of(args);
  call.num_blocks = static_cast<int>(args.k_cache.shape[0]);
  call.block_tokens = static_cast<int>(args.k_cache.shape[1]);
  call.max_blocks = static_cast<int>(args.block_table.shape[1]);
  for (const KernelLaunch& each : recipe.launches) {
    call.streams = call.streams || each.kernel == "stream_kernel";
    TENON_TRY(tenon::launch(stream, each.shape, kernel_of(each.kernel, rows), call));
  }
  return Status::ok();
}

}  // namespace

TENON_DEFINE_VARIANT(sm90, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::attention
