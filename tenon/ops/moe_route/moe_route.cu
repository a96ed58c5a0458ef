// Routing: one block. A wave per token chooses; then each thread sorts the pairs of its experts.
#include "tenon/ops/moe_route/moe_route.h"

#include "tenon/device/device.cuh"
#include "tenon/device/math.cuh"
#include "tenon/device/reduce.cuh"
#include "tenon/device/variant.h"

namespace tenon::TENON_TARGET::moe_route {
namespace {

using Args = tenon::moe_route::Args;
using tenon::moe_route::kMaxExperts;

inline constexpr int kThreads = kWave == 1 ? 1 : 256;
inline constexpr int kOwn = kMaxExperts / kWave;  // experts of a lane: lane, lane + kWave, …

struct Route {
  const void* logits = nullptr;
  float* weights = nullptr;
  std::int32_t* slot = nullptr;
  std::int32_t* offsets = nullptr;
  std::int32_t* token_of = nullptr;
  std::int64_t logits_stride = 0;  // elements
  std::int32_t tokens = 0, experts = 0, top_k = 0, first_expert = 0, local_experts = 0;
  bool logits_are_f32 = false;
};

TENON_DEVICE float logit_at(const Route& route, std::int64_t token, int expert) {
  const std::int64_t at = token * route.logits_stride + expert;
  return route.logits_are_f32 ? static_cast<const float*>(route.logits)[at]
                              : to_float(static_cast<const bf16*>(route.logits)[at]);
}

// The sum of a value per expert in an order that no wave width changes: slot s of 64 adds experts
// s, s + 64, … in order; then the upper half of the slots is added to the lower half, six times.
TENON_DEVICE float sum_over_experts(const float (&value)[kOwn], int num_own) {
  constexpr int kSlots = 64;
  constexpr int kOwnSlots = kSlots / kWave;
  float sum[kOwnSlots] = {};
  for (int j = 0; j < num_own; ++j) sum[j % kOwnSlots] = sum[j % kOwnSlots] + value[j];
  TENON_UNROLL
  for (int half = kSlots / 2; half > 0; half /= 2) {
    if (half >= kWave) {
      for (int j = 0; j < half / kWave; ++j) sum[j] = sum[j] + sum[j + half / kWave];
    } else {
      sum[0] = sum[0] + shuffle_xor(sum[0], half);
    }
  }
  return sum[0];
}

// p of the lane's experts; −1 past the last expert.
TENON_DEVICE void softmax(const Route& route, std::int64_t token, float (&p)[kOwn], int num_own) {
  float largest = -kInfinity;
  for (int j = 0; j < num_own; ++j) {
    const int expert = lane_id() + j * kWave;
    p[j] = expert < route.experts ? logit_at(route, token, expert) : -kInfinity;
    largest = max_f(largest, p[j]);
  }
  largest = wave_max(largest);
  for (int j = 0; j < num_own; ++j) {
    const int expert = lane_id() + j * kWave;
    p[j] = expert < route.experts ? exp_f(p[j] - largest) : 0.0f;
  }
  const float sum = sum_over_experts(p, num_own);
  for (int j = 0; j < num_own; ++j)
    p[j] = lane_id() + j * kWave < route.experts ? p[j] / sum : -2.0f;
}

struct Choice {
  float key;  // p; −1 for a NaN, −2 for an expert that is taken or does not exist
  std::int32_t expert;
};

TENON_DEVICE Choice better(Choice a, Choice b) {
  return a.key > b.key || (a.key == b.key && a.expert < b.expert) ? a : b;
}

// The wave's best remaining expert; every lane gets it.
TENON_DEVICE Choice choose_expert(const float (&p)[kOwn], int num_own) {
  Choice best{-3.0f, 0};
  for (int j = 0; j < num_own; ++j)
    best = better(best, Choice{is_nan(p[j]) ? -1.0f : p[j], lane_id() + j * kWave});
  TENON_UNROLL
  for (int mask = 1; mask < kWave; mask *= 2)
    best = better(best, Choice{shuffle_xor(best.key, mask), shuffle_xor(best.expert, mask)});
  return best;
}

// Weights of one token, and its experts in `slot`: −2 − local expert, or −1 when it is not local.
TENON_DEVICE void choose_experts(const Route& route, std::int64_t token) {
  const int num_own = (route.experts + kWave - 1) / kWave;
  float p[kOwn];
  softmax(route, token, p, num_own);
  float* weights = route.weights + token * route.top_k;
  std::int32_t* slot = route.slot + token * route.top_k;
  float sum = 0.0f;
  for (int choice = 0; choice < route.top_k; ++choice) {
    const Choice best = choose_expert(p, num_own);
    const float found = best.key < 0.0f ? bits_float(0x7fc00000u) : best.key;
    sum = sum + found;
    if (best.expert % kWave == lane_id()) p[best.expert / kWave] = -2.0f;
    if (lane_id() == 0) {
      const int local = best.expert - route.first_expert;
      weights[choice] = found;
      slot[choice] = local >= 0 && local < route.local_experts ? -2 - local : -1;
    }
  }
  if (lane_id() == 0)
    for (int choice = 0; choice < route.top_k; ++choice) weights[choice] = weights[choice] / sum;
}

// A stable counting sort. Each thread owns a range of experts and walks all pairs; a pair's slot is
// written by the owner of its expert only, and neither its old nor its new value concerns others.
TENON_DEVICE void sort_pairs(const Route& route) {
  TENON_SHARED(std::int32_t, count, kMaxExperts);
  TENON_SHARED(std::int32_t, next, kMaxExperts);
  const int num_pairs = route.tokens * route.top_k;
  const int share = (route.local_experts + block_threads() - 1) / block_threads();
  const int begin = share * thread_id();
  const int end = begin + share < route.local_experts ? begin + share : route.local_experts;

  // Phase 1: pairs of each expert.
  for (int e = begin; e < end; ++e) count[e] = 0;
  for (int pair = 0; pair < num_pairs; ++pair) {
    const int e = -2 - route.slot[pair];
    if (e >= begin && e < end) count[e] += 1;
  }
  sync_block();

  // Phase 2: where each expert begins.
  if (begin < end) {
    std::int32_t row = 0;
    for (int e = 0; e < begin; ++e) row += count[e];
    for (int e = begin; e < end; ++e) {
      next[e] = row;
      route.offsets[e] = row;
      row += count[e];
    }
    if (end == route.local_experts) route.offsets[end] = row;
  }

  // Phase 3: rows in the order of the pairs.
  for (int pair = 0; pair < num_pairs; ++pair) {
    const int e = -2 - route.slot[pair];
    if (e < begin || e >= end) continue;
    const std::int32_t row = next[e]++;
    route.slot[pair] = row;
    route.token_of[row] = pair / route.top_k;
  }
  sync_block();
  for (int i = route.offsets[route.local_experts] + thread_id(); i < num_pairs;
       i += block_threads())
    route.token_of[i] = 0;
}

TENON_KERNEL route_kernel(Route route) {
  const int num_waves = block_threads() / kWave;
  for (int token = wave_id(); token < route.tokens; token += num_waves)
    choose_experts(route, token);
  sync_block();
  sort_pairs(route);
}

Status supports_block(const Args&, const PlanContext&, Recipe* recipe) {
  LaunchShape shape;
  shape.blocks = 1;
  shape.threads = kThreads;
  recipe->launch("route_kernel", shape);
  return Status::ok();
}

Status launch_block(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  Route route;
  route.logits = args.logits.data;
  route.weights = args.weights.as<float>();
  route.slot = args.slot.as<std::int32_t>();
  route.offsets = args.offsets.as<std::int32_t>();
  route.token_of = args.token_of.as<std::int32_t>();
  route.logits_stride = args.logits.stride[0];
  route.tokens = static_cast<std::int32_t>(args.logits.shape[0]);
  route.experts = static_cast<std::int32_t>(args.logits.shape[1]);
  route.top_k = args.top_k;
  route.first_expert = args.first_expert;
  route.local_experts = args.local_experts;
  route.logits_are_f32 = args.logits.dtype == DType::kF32;
  return tenon::launch(stream, recipe.launches.front().shape, route_kernel, route);
}

}  // namespace

TENON_DEFINE_VARIANT(one_block, Args, supports_block, launch_block);

}  // namespace tenon::TENON_TARGET::moe_route
