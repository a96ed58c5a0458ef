// What the variants of moe_route have in common: pairs are sorted by counting. The tokens that
// chose an expert are bits of a mask, so a pair's place among its expert's is the number of bits
// before its own.
#pragma once

#include "tenon/device/device.cuh"
#include "tenon/device/reduce.cuh"
#include "tenon/device/variant.h"
#include "tenon/ops/moe_route/moe_route.h"

namespace tenon::TENON_TARGET::moe_route {

using Args = tenon::moe_route::Args;
using tenon::moe_route::kMaxExperts;

inline constexpr int kPart = 64;  // tokens whose masks a block holds
inline constexpr int kMaskWords = kPart / 32;
inline constexpr int kMostTogether = 16, kMostPairs = 1024;  // of a block that does all

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

// The code of an expert: its number on this rank, or −1 where it is another rank's.
TENON_DEVICE int code_of(const Route& route, int expert) {
  const int local = expert - route.first_expert;
  return local >= 0 && local < route.local_experts ? local : -1;
}

// --- order ------------------------------------------------------------------------------------

TENON_DEVICE int count_bits(std::uint32_t bits) {
  bits = bits - (bits >> 1 & 0x55555555u);
  bits = (bits & 0x33333333u) + (bits >> 2 & 0x33333333u);
  return static_cast<int>(((bits + (bits >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24);
}

// The sum over the threads before this one, by all threads of the block.
TENON_DEVICE int sum_before(int value) {
  if constexpr (kWave == 1) {
    return 0;
  } else {
    TENON_SHARED(std::int32_t, of_wave, kMaxWaves);
    int sum = value;
    TENON_UNROLL
    for (int by = 1; by < kWave; by *= 2) {
      const int other = shuffle_from(sum, lane_id() < by ? lane_id() : lane_id() - by);
      if (lane_id() >= by) sum += other;
    }
    if (lane_id() == kWave - 1) of_wave[wave_id()] = sum;
    sync_block();
    const int earlier = lane_id() < wave_id() ? of_wave[lane_id()] : 0;
    return sum - value + lanes_reduce<kWave>(earlier, [](int a, int b) { return a + b; });
  }
}

// The local experts of a thread: [begin, end).
struct Share {
  int begin, end;
};
TENON_DEVICE Share own_experts(const Route& route) {
  const int each = (route.local_experts + block_threads() - 1) / block_threads();
  const int begin = each * thread_id(), end = begin + each;
  return {begin < route.local_experts ? begin : route.local_experts,
          end < route.local_experts ? end : route.local_experts};
}

// Which tokens of a part chose an expert.
using Mask = std::uint32_t[kMaskWords];
TENON_DEVICE void set_bit(Mask* masks, int expert, int token) {
  atomic_add(&masks[expert][token / 32], 1u << token % 32);  // a token chooses an expert once
}
TENON_DEVICE int bits_before(const Mask& mask, int token) {
  int count = count_bits(mask[token / 32] & ((1u << token % 32) - 1u));
  for (int word = 0; word < token / 32; ++word) count += count_bits(mask[word]);
  return count;
}

// --- together ---------------------------------------------------------------------------------

// choose(put): put(token, choice, code) of every pair. Behind wait_for_previous().
template <class Choose>
TENON_DEVICE void route_together(const Route& route, Choose choose) {
  TENON_SHARED(Mask, masks, kMaxExperts);
  TENON_SHARED(std::int32_t, first, kMaxExperts);
  TENON_SHARED(std::int32_t, codes, kMostPairs);
  TENON_SHARED(std::int32_t, filled, 1);  // places
  const Share own = own_experts(route);
  for (int e = own.begin; e < own.end; ++e)
    for (int word = 0; word < kMaskWords; ++word) masks[e][word] = 0;
  if (thread_id() == 0) filled[0] = 0;  // where this rank has no experts
  sync_block();
  wait_for_previous();
  let_next_start();
  choose([&](int token, int choice, int code) {
    codes[token * route.top_k + choice] = code;
    if (code >= 0) set_bit(masks, code, token);
  });
  sync_block();
  int rows = 0;
  for (int e = own.begin; e < own.end; ++e)
    for (int word = 0; word < kMaskWords; ++word) rows += count_bits(masks[e][word]);
  int row = sum_before(rows);
  for (int e = own.begin; e < own.end; ++e) {
    first[e] = row;
    route.offsets[e] = row;
    for (int word = 0; word < kMaskWords; ++word) row += count_bits(masks[e][word]);
    if (e + 1 == route.local_experts) route.offsets[e + 1] = filled[0] = row;
  }
  sync_block();
  for (int pair = thread_id(); pair < route.tokens * route.top_k; pair += block_threads()) {
    const int e = codes[pair], token = pair / route.top_k;
    const std::int32_t at = e < 0 ? -1 : first[e] + bits_before(masks[e], token);
    route.slot[pair] = at;
    if (at >= 0) route.token_of[at] = token;
    if (pair >= filled[0]) route.token_of[pair] = 0;
  }
}

// --- plans ------------------------------------------------------------------------------------

inline Route route_of(const Args& args) {
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
  return route;
}

// Whether a block takes so many.
inline Status few_enough(const Args& args) {
  const std::int64_t tokens = args.logits.shape[0], pairs = tokens * args.top_k;
  if (tokens <= kMostTogether && pairs <= kMostPairs) return Status::ok();
  return Status::error(Code::kUnsupported,
                       std::to_string(tokens) + " tokens with " + std::to_string(args.top_k) +
                           " choices are over the limit of " + std::to_string(kMostTogether) +
                           " tokens and " + std::to_string(kMostPairs) + " pairs");
}

}  // namespace tenon::TENON_TARGET::moe_route
