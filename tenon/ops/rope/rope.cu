// Variant head: one block per (token, head), for q heads and then kv heads. Variant wave, where a
// wave has 32 lanes: a wave instead, with the elements of the head in registers.
#include "tenon/ops/rope/rope.h"

#include "tenon/core/fp8.h"
#include "tenon/device/device.cuh"
#include "tenon/device/math.cuh"
#include "tenon/device/reduce.cuh"
#include "tenon/device/variant.h"
#include "tenon/ops/common/rotary.cuh"
#include "tenon/ops/common/simd.cuh"

namespace tenon::TENON_TARGET::rope {
namespace {

using Args = tenon::rope::Args;
inline constexpr int kMaxHeadDim = tenon::rope::kMaxHeadDim;

// A bf16 tensor [tokens, heads, head_dim] with free strides, in elements.
struct Heads {
  const bf16* data;
  std::int64_t token_stride, head_stride;
};

struct KernelArgs {
  Heads q, k, v;
  const void *q_norm, *k_norm;  // bf16, or f32 if wide_norms
  const std::int32_t *positions, *slots;
  const float* cos_sin;  // [max_positions, rotary_dim]
  bf16 *q_out, *k_cache, *v_cache;
  std::int64_t num_slots;
  float eps, norm_offset;
  int tokens, q_heads, kv_heads, head_dim, rotary_dim, max_positions;
  bool wide_norms;
};

TENON_DEVICE const bf16* head_at(const Heads& heads, std::int64_t token, int head) {
  return heads.data + token * heads.token_stride + head * heads.head_stride;
}

// Norm and rotation of one head into `out`. Every thread of the block must call it.
TENON_DEVICE void norm_and_rotate(const KernelArgs& args, const bf16* row, const void* weight,
                                  std::int32_t position, bf16* out) {
  TENON_SHARED(float, head, kMaxHeadDim);
  const int n = args.head_dim;

  // Phase 1: the head in fp32, padded with zeros, and its norm.
  load_row(row, head, n, round_up_to_slots(n));
  sync_block();
  const float squares = dot(head, head, round_up_to_slots(n));
  const float rstd = head_rstd(squares, n, args.eps);
  sync_block();

  // Phase 2: normalised values, rounded to bf16.
  for (int i = thread_id(); i < n; i += block_threads()) {
    const float stored = args.wide_norms ? static_cast<const float*>(weight)[i]
                                         : to_float(static_cast<const bf16*>(weight)[i]);
    head[i] = normed_component(head[i], rstd, args.norm_offset, stored);
  }
  sync_block();

  // Phase 3: pairs (i, i + half) are rotated, the rest passes through.
  const int half = args.rotary_dim / 2;
  const bool known = position >= 0 && position < args.max_positions;
  const float* cosines = args.cos_sin + std::int64_t{known ? position : 0} * args.rotary_dim;
  const float* sines = cosines + half;
  for (int i = thread_id(); i < half; i += block_threads()) {
    const RotatedPair pair = rotate_pair(head[i], head[i + half], cosines[i], sines[i]);
    out[i] = pair.first;
    out[i + half] = pair.second;
  }
  for (int i = args.rotary_dim + thread_id(); i < n; i += block_threads())
    out[i] = to_bf16(head[i]);
}

// What one task does: head `head` of a token, counted over q and kv heads. norm(row, weight,
// position, out) makes q or k of it; thread `lane` of the `lanes` that have the task copies its
// share of v.
template <class Norm>
TENON_DEVICE void run_head(const KernelArgs& args, int token, int head, int lane, int lanes,
                           Norm norm) {
  if (token >= args.tokens) return;  // the plan was made for more
  const std::int32_t position = args.positions[token];
  if (head < args.q_heads) {
    bf16* out = args.q_out + (std::int64_t{token} * args.q_heads + head) * args.head_dim;
    norm(head_at(args.q, token, head), args.q_norm, position, out);
    return;
  }
  const int kv_head = head - args.q_heads;
  const std::int32_t slot = args.slots[token];
  if (slot < 0 || slot >= args.num_slots) return;
  const std::int64_t at = (std::int64_t{slot} * args.kv_heads + kv_head) * args.head_dim;
  norm(head_at(args.k, token, kv_head), args.k_norm, position, args.k_cache + at);
  const bf16* v = head_at(args.v, token, kv_head);
  for (int i = lane; i < args.head_dim; i += lanes) args.v_cache[at + i] = v[i];
}

TENON_KERNEL_MAX(64) head_kernel(KernelArgs args) {
  wait_for_previous();
  let_next_start();
  const int heads = args.q_heads + args.kv_heads;
  run_head(args, block_id() / heads, block_id() % heads, thread_id(), block_threads(),
           [&](const bf16* row, const void* weight, std::int32_t position, bf16* out) {
             norm_and_rotate(args, row, weight, position, out);
           });
}

// --- a wave for each head ---------------------------------------------------------------------

inline constexpr int kHeadWaves = 4;       // of a block
inline constexpr int kWaveRotaryDim = 64;  // two elements of each lane, which are a pair
inline constexpr int kLaneElements = kMaxHeadDim / 32;

// Element lane + 32 · i is a lane's: as in dot(), whose order of sums this is.
TENON_DEVICE void norm_and_rotate_by_wave(const KernelArgs& args, const bf16* row,
                                          const void* weight, std::int32_t position, bf16* out) {
  const int n = args.head_dim / 32;
  float x[kLaneElements], squares = 0.0f;
  TENON_UNROLL
  for (int i = 0; i < kLaneElements; ++i) x[i] = i < n ? to_float(row[lane_id() + 32 * i]) : 0.0f;
  TENON_UNROLL
  for (int i = 0; i < kLaneElements; ++i)
    if (i < n) squares = squares + x[i] * x[i];
  TENON_UNROLL
  for (int half = 16; half > 0; half /= 2) squares = squares + shuffle_xor(squares, half);
  const float rstd = head_rstd(squares, args.head_dim, args.eps);
  TENON_UNROLL
  for (int i = 0; i < kLaneElements; ++i) {
    if (i >= n) break;
    const int at = lane_id() + 32 * i;
    const float stored = args.wide_norms ? static_cast<const float*>(weight)[at]
                                         : to_float(static_cast<const bf16*>(weight)[at]);
    x[i] = normed_component(x[i], rstd, args.norm_offset, stored);
  }
  const bool known = position >= 0 && position < args.max_positions;
  const float* table = args.cos_sin + std::int64_t{known ? position : 0} * kWaveRotaryDim;
  const RotatedPair pair = rotate_pair(x[0], x[1], table[lane_id()], table[lane_id() + 32]);
  out[lane_id()] = pair.first;
  out[lane_id() + 32] = pair.second;
  TENON_UNROLL
  for (int i = 2; i < kLaneElements; ++i)
    if (i < n) out[lane_id() + 32 * i] = to_bf16(x[i]);
}

TENON_KERNEL_MAX(kHeadWaves * 32) wave_kernel(KernelArgs args) {
  wait_for_previous();
  let_next_start();
  const int heads = args.q_heads + args.kv_heads;
  const int task = block_id() * kHeadWaves + wave_id();
  run_head(args, task / heads, task % heads, lane_id(), 32,
           [&](const bf16* row, const void* weight, std::int32_t position, bf16* out) {
             norm_and_rotate_by_wave(args, row, weight, position, out);
           });
}

// --- plans ------------------------------------------------------------------------------------

Heads heads_of(const TensorView& view) {
  return {view.as<const bf16>(), view.stride[0], view.stride[1]};
}

Status supports_head(const Args& args, const PlanContext& where, Recipe* recipe) {
  LaunchShape shape;
  shape.blocks = static_cast<int>(args.q.shape[0] * (args.q.shape[1] + args.k.shape[1]));
  shape.threads = kWave == 1 ? 1 : 64;
  shape.early = where.may_start_early;
  recipe->launch("head_kernel", shape);
  return Status::ok();
}

Status supports_wave(const Args& args, const PlanContext& where, Recipe* recipe) {
  const auto no = [](std::string why) { return Status::error(Code::kUnsupported, std::move(why)); };
  if constexpr (kWave != 32)
    return no("a wave has " + std::to_string(kWave) + " lanes; it is for 32");
  const std::int64_t dim = args.q.shape[2], rotary = args.cos_sin.shape[1];
  if (dim % 32 != 0) return no("head_dim is " + std::to_string(dim) + ", no multiple of 32");
  if (rotary != kWaveRotaryDim)
    return no("rotary_dim is " + std::to_string(rotary) + "; a lane has a pair of 64");
  const std::int64_t tasks = args.q.shape[0] * (args.q.shape[1] + args.k.shape[1]);
  LaunchShape shape;
  shape.blocks = static_cast<int>((tasks + kHeadWaves - 1) / kHeadWaves);
  shape.threads = kHeadWaves * 32;
  shape.early = where.may_start_early;
  recipe->launch("wave_kernel", shape);
  return Status::ok();
}

Status launch(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  KernelArgs to;
  to.q = heads_of(args.q);
  to.k = heads_of(args.k);
  to.v = heads_of(args.v);
  to.q_norm = args.q_norm.data;
  to.k_norm = args.k_norm.data;
  to.wide_norms = args.q_norm.dtype == DType::kF32;
  to.positions = args.positions.as<const std::int32_t>();
  to.slots = args.slot_mapping.as<const std::int32_t>();
  to.cos_sin = args.cos_sin.as<const float>();
  to.q_out = args.q_out.as<bf16>();
  to.k_cache = args.k_cache.as<bf16>();
  to.v_cache = args.v_cache.as<bf16>();
  to.num_slots = args.k_cache.shape[0] * args.k_cache.shape[1];
  to.eps = args.eps;
  to.norm_offset = args.norm_offset;
  to.tokens = static_cast<int>(args.q.shape[0]);
  to.q_heads = static_cast<int>(args.q.shape[1]);
  to.kv_heads = static_cast<int>(args.k.shape[1]);
  to.head_dim = static_cast<int>(args.q.shape[2]);
  to.rotary_dim = static_cast<int>(args.cos_sin.shape[1]);
  to.max_positions = static_cast<int>(args.cos_sin.shape[0]);
  const KernelLaunch& first = recipe.launches.front();
  return tenon::launch(stream, first.shape,
                       first.kernel == "wave_kernel" ? wave_kernel : head_kernel, to);
}

}  // namespace

TENON_DEFINE_VARIANT(wave, Args, supports_wave, launch);
TENON_DEFINE_VARIANT(head, Args, supports_head, launch);

}  // namespace tenon::TENON_TARGET::rope
