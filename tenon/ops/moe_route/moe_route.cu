// Routing. A wave per token chooses. Pairs are then sorted by counting: the tokens that chose an
// expert are bits of a mask, so a pair's place among its expert's is the number of bits before its
// own. Variant together: few tokens, all of it in one block. Variant in_parts: a kernel chooses,
// one finds the places, a block for every kPart tokens, and one lists the tokens by place.
#include "tenon/ops/moe_route/moe_route.h"

#include "tenon/device/device.cuh"
#include "tenon/device/math.cuh"
#include "tenon/device/reduce.cuh"
#include "tenon/device/variant.h"
#include "tenon/ops/common/choice.cuh"

namespace tenon::TENON_TARGET::moe_route {
namespace {

using Args = tenon::moe_route::Args;
using tenon::moe_route::kMaxExperts;

inline constexpr int kThreads = kWave == 1 ? 1 : 256;  // of a block that chooses
inline constexpr int kPart = 64;                       // tokens whose masks a block holds
inline constexpr int kMaskWords = kPart / 32;
inline constexpr int kMostTogether = 16, kMostPairs = 1024;  // of the variant together
inline constexpr int kSortThreads = kKernelsAreOrdered ? 1024 : kThreads;  // emulated ones are slow

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

// --- choice -----------------------------------------------------------------------------------

TENON_DEVICE float logit_at(const Route& route, std::int64_t token, int expert) {
  const std::int64_t at = token * route.logits_stride + expert;
  return route.logits_are_f32 ? static_cast<const float*>(route.logits)[at]
                              : to_float(static_cast<const bf16*>(route.logits)[at]);
}

// kOwn: experts of a lane, lane, lane + kWave, …
template <int kOwn>
TENON_DEVICE int num_own(const Route& route) {
  return kWave == 1 ? route.experts : kOwn;  // constant where p should stay in registers
}

// The sum of a value per expert in an order that no wave width changes: slot s of 64 adds experts
// s, s + 64, … in order; then the upper half of the slots is added to the lower half, six times.
template <int kOwn>
TENON_DEVICE float sum_over_experts(const float (&value)[kOwn], int count) {
  constexpr int kSlots = 64;
  constexpr int kOwnSlots = kSlots / kWave;
  float sum[kOwnSlots] = {};
  TENON_UNROLL
  for (int j = 0; j < count; ++j) sum[j % kOwnSlots] = sum[j % kOwnSlots] + value[j];
  TENON_UNROLL
  for (int half = kSlots / 2; half > 0; half /= 2) {
    if (half >= kWave) {
      TENON_UNROLL
      for (int j = 0; j < half / kWave; ++j) sum[j] = sum[j] + sum[j + half / kWave];
    } else {
      sum[0] = sum[0] + shuffle_xor(sum[0], half);
    }
  }
  return sum[0];
}

template <int kOwn>
TENON_DEVICE void softmax(const Route& route, std::int64_t token, float (&p)[kOwn]) {
  const int count = num_own<kOwn>(route);
  float largest = -kInfinity;
  TENON_UNROLL
  for (int j = 0; j < count; ++j) {
    const int expert = lane_id() + j * kWave;
    p[j] = expert < route.experts ? logit_at(route, token, expert) : -kInfinity;
  }
  TENON_UNROLL
  for (int j = 0; j < count; ++j) largest = max_f(largest, p[j]);
  largest = wave_max(largest);
  TENON_UNROLL
  for (int j = 0; j < count; ++j) {
    const int expert = lane_id() + j * kWave;
    p[j] = expert < route.experts ? exp_f(p[j] - largest) : 0.0f;
  }
  const float sum = sum_over_experts(p, count);
  TENON_UNROLL
  for (int j = 0; j < count; ++j) p[j] = p[j] / sum;
}

struct Choice {
  float p;
  std::int32_t expert;
};

// The wave's best remaining expert, the lowest of equals; every lane gets it, and it is then taken.
template <int kOwn>
TENON_DEVICE Choice take_best(const Route& route, std::uint32_t (&keys)[kOwn]) {
  const int count = num_own<kOwn>(route);
  std::uint32_t best = 0;
  std::int32_t expert = 0;
  TENON_UNROLL
  for (int j = 0; j < count; ++j) {
    if (keys[j] > best) {
      best = keys[j];
      expert = lane_id() + j * kWave;
    }
  }
  const std::uint32_t most = max_lane(best);
  const auto found =
      static_cast<std::int32_t>(~max_lane(best == most ? ~static_cast<std::uint32_t>(expert) : 0u));
  if constexpr (kWave == 1) {
    keys[found] = 0;
  } else {
    TENON_UNROLL
    for (int j = 0; j < count; ++j)
      if (found == lane_id() + j * kWave) keys[j] = 0;
  }
  return {p_of(most), found};
}

// By a wave: weights of one token, and to put(choice, code), in one lane, the code of each choice:
// the local expert, or −1 where it is another rank's.
template <int kOwn, class Put>
TENON_DEVICE void choose(const Route& route, std::int64_t token, Put put) {
  float p[kOwn];
  softmax(route, token, p);
  std::uint32_t keys[kOwn];
  const int count = num_own<kOwn>(route);
  TENON_UNROLL
  for (int j = 0; j < count; ++j)
    keys[j] = lane_id() + j * kWave < route.experts ? key_of(p[j]) : 0u;
  float* const weights = route.weights + token * route.top_k;
  float sum = 0.0f, own = 0.0f;
  for (int choice = 0; choice < route.top_k; ++choice) {
    const Choice best = take_best(route, keys);
    sum = sum + best.p;
    if (choice % kWave == lane_id()) own = best.p;
    if (lane_id() == 0) {
      const int local = best.expert - route.first_expert;
      if (route.top_k > kWave) weights[choice] = best.p;
      put(choice, local >= 0 && local < route.local_experts ? local : -1);
    }
  }
  if (route.top_k <= kWave) {
    if (lane_id() < route.top_k) weights[lane_id()] = own / sum;
  } else if (lane_id() == 0) {
    for (int choice = 0; choice < route.top_k; ++choice) weights[choice] = weights[choice] / sum;
  }
}

// A kernel for each number of experts that a lane may have.
template <class Call>
auto with_own([[maybe_unused]] int experts, const Call& call) {
  if constexpr (kWave > 1) {
    if (experts <= 256) return call.template operator()<256 / kWave>();
    if (experts <= 512) return call.template operator()<512 / kWave>();
  }
  return call.template operator()<kMaxExperts / kWave>();
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

template <int kOwn>
TENON_KERNEL together_kernel(Route route) {
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
  for (int token = wave_id(); token < route.tokens; token += block_threads() / kWave)
    choose<kOwn>(route, token, [&](int choice, int code) {
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

// --- in parts ---------------------------------------------------------------------------------

// Codes stay in token_of until places are known.
template <int kOwn>
TENON_KERNEL_MAX(kThreads)
choose_kernel(Route route) {
  wait_for_previous();
  let_next_start();
  const int waves = block_threads() / kWave;
  for (int token = block_id() * waves + wave_id(); token < route.tokens;
       token += grid_blocks() * waves)
    choose<kOwn>(route, token, [&](int choice, int code) {
      route.token_of[std::int64_t{token} * route.top_k + choice] = code;
    });
}

// Every block counts all pairs by expert, and those of the parts before its own.
TENON_KERNEL_MAX(kSortThreads) place_kernel(Route route) {
  TENON_SHARED(Mask, masks, kMaxExperts);
  TENON_SHARED(std::uint32_t, total, kMaxExperts);
  TENON_SHARED(std::uint32_t, before, kMaxExperts);
  const Share own = own_experts(route);
  for (int e = own.begin; e < own.end; ++e) {
    for (int word = 0; word < kMaskWords; ++word) masks[e][word] = 0;
    total[e] = before[e] = 0;
  }
  sync_block();
  wait_for_previous();
  let_next_start();
  const int num_pairs = route.tokens * route.top_k;
  const int begin = block_id() * kPart * route.top_k, end = begin + kPart * route.top_k;
  if (begin >= num_pairs && block_id() > 0) return;  // the plan was made for more
  constexpr int kLoads = kWave == 1 ? 1 : 8;
  for (int at = thread_id(); at < num_pairs; at += kLoads * block_threads()) {
    std::int32_t code[kLoads];
    TENON_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const int pair = at + i * block_threads();
      code[i] = pair < num_pairs ? route.token_of[pair] : -1;
    }
    TENON_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const int pair = at + i * block_threads();
      if (code[i] < 0) continue;
      atomic_add(&total[code[i]], 1u);
      if (pair < begin) {
        atomic_add(&before[code[i]], 1u);
      } else if (pair < end) {
        set_bit(masks, code[i], (pair - begin) / route.top_k);
      }
    }
  }
  sync_block();
  int rows = 0;
  for (int e = own.begin; e < own.end; ++e) rows += static_cast<int>(total[e]);
  int row = sum_before(rows);
  for (int e = own.begin; e < own.end; ++e) {
    if (block_id() == 0) route.offsets[e] = row;
    before[e] += static_cast<std::uint32_t>(row);
    row += static_cast<int>(total[e]);
    if (block_id() == 0 && e + 1 == route.local_experts) route.offsets[e + 1] = row;
  }
  sync_block();
  for (int pair = begin + thread_id(); pair < end && pair < num_pairs; pair += block_threads()) {
    const int e = route.token_of[pair];
    route.slot[pair] = e < 0 ? -1
                             : static_cast<std::int32_t>(before[e]) +
                                   bits_before(masks[e], (pair - begin) / route.top_k);
  }
}

TENON_KERNEL_MAX(kThreads) list_kernel(Route route) {
  wait_for_previous();
  let_next_start();
  const int num_pairs = route.tokens * route.top_k, filled = route.offsets[route.local_experts];
  for (int pair = block_id() * block_threads() + thread_id(); pair < num_pairs;
       pair += grid_blocks() * block_threads()) {
    const std::int32_t at = route.slot[pair];
    if (at >= 0) route.token_of[at] = pair / route.top_k;
    if (pair >= filled) route.token_of[pair] = 0;
  }
}

// --- plans ------------------------------------------------------------------------------------

Route route_of(const Args& args) {
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

Status supports_together(const Args& args, const PlanContext& where, Recipe* recipe) {
  const std::int64_t tokens = args.logits.shape[0], pairs = tokens * args.top_k;
  if (tokens > kMostTogether || pairs > kMostPairs)
    return Status::error(Code::kUnsupported,
                         std::to_string(tokens) + " tokens with " + std::to_string(args.top_k) +
                             " choices are over the limit of " + std::to_string(kMostTogether) +
                             " tokens and " + std::to_string(kMostPairs) + " pairs");
  LaunchShape shape;
  shape.threads = kThreads;
  while (shape.threads < kSortThreads && shape.threads < tokens * kWave) shape.threads *= 2;
  shape.early = where.may_start_early;
  recipe->launch("together_kernel", shape);
  return Status::ok();
}

Status launch_together(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  const Route route = route_of(args);
  return with_own(route.experts, [&]<int kOwn>() {
    return tenon::launch(stream, recipe.launches.front().shape, together_kernel<kOwn>, route);
  });
}

Status supports_in_parts(const Args& args, const PlanContext& where, Recipe* recipe) {
  const std::int64_t tokens = args.logits.shape[0], pairs = tokens * args.top_k;
  const auto add = [&](const char* kernel, std::int64_t tasks, int of_block, int threads) {
    LaunchShape shape;
    const std::int64_t blocks = (tasks + of_block - 1) / of_block;
    shape.blocks = static_cast<int>(blocks < 1 ? 1 : blocks);
    shape.threads = threads;
    shape.early = where.may_start_early;
    recipe->launch(kernel, shape);
  };
  add("choose_kernel", tokens, kThreads / kWave, kThreads);
  add("place_kernel", tokens, kPart, kSortThreads);
  add("list_kernel", pairs, kThreads, kThreads);
  return Status::ok();
}

Status launch_in_parts(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  const Route route = route_of(args);
  TENON_TRY(with_own(route.experts, [&]<int kOwn>() {
    return tenon::launch(stream, recipe.launches[0].shape, choose_kernel<kOwn>, route);
  }));
  TENON_TRY(tenon::launch(stream, recipe.launches[1].shape, place_kernel, route));
  return tenon::launch(stream, recipe.launches[2].shape, list_kernel, route);
}

}  // namespace

TENON_DEFINE_VARIANT(together, Args, supports_together, launch_together);
TENON_DEFINE_VARIANT(in_parts, Args, supports_in_parts, launch_in_parts);

}  // namespace tenon::TENON_TARGET::moe_route
