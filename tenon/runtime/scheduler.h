// What runs in the next step: decisions as values. Pure host code: no device, no clock.
//
// Policy: first come, first served. Every sequence that decodes gets its one token in every step;
// what is left of the step's token budget goes to prompts in order of arrival. A sequence is
// admitted when its whole length (prompt and max_tokens) has cache, so nothing is ever taken back.
// A prompt is cut at positions of its sequence that are multiples of kPrefillQuantum, nowhere else,
// and never so that one token is left (alone it would run as a decode step does). So the delta
// net's chunks lie at the same positions whoever else is in the batch, each token meets the same
// form of every op, and the bits of every logit depend on its sequence alone (docs/exactness.md).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <list>
#include <span>
#include <vector>

#include "tenon/core/status.h"
#include "tenon/runtime/cache.h"

namespace tenon {

inline constexpr int kPrefillQuantum = 64;      // as gated_delta_net::kChunkTokens
inline constexpr int kMaxContext = 1 << 20;     // as far as Qwen stretches its positions
inline constexpr int kMaxTokensPerStep = 8192;  // the most rows of a boundary

struct SamplingParams {
  float temperature = 0;  // 0 is greedy
  float top_p = 1;        // (0, 1]; 1 means all
  int top_k = 0;          // 0 means all
  int max_tokens = 256;   // at least 1
  std::uint64_t seed = 0;
  bool ignore_eos = false;
};

// What can be said of them before there is an engine.
Status check(const SamplingParams& sampling);

enum class RequestId : std::uint64_t {};

// One request on its way. Positions: tokens[0 … computed) are in the caches.
struct Sequence {
  RequestId id{};
  std::vector<std::int32_t> tokens;  // prompt, then what was drawn
  int prompt_tokens = 0;
  int computed = 0;
  SamplingParams sampling;
  int max_tokens = 0;  // sampling.max_tokens, or fewer where the context ends first
  CacheLease lease;
  bool cancelled = false;

  int pending() const { return static_cast<int>(tokens.size()) - computed; }
};

// One sequence's share of a step: tokens [first, first + count) of it.
struct BatchEntry {
  Sequence* sequence = nullptr;
  int first = 0, count = 0;
  // The last token of the entry is the last known one: its logits decide the next token.
  bool draws() const { return first + count == static_cast<int>(sequence->tokens.size()); }
};

struct BatchPlan {
  std::vector<BatchEntry> entries;
  int num_tokens = 0;
  int max_tokens_per_sequence = 0;
  // Nobody prefills and everybody draws.
  bool decode_only() const;
};

class Scheduler {
 public:
  struct Limits {
    int max_sequences = 16;
    // At least kPrefillQuantum + max_sequences: when all others decode, the first prompt still has
    // kPrefillQuantum + 1, enough for the longest one that cannot be cut.
    int max_tokens_per_step = 256;
    int max_context = 4096;
  };
  // Refuses limits under which a prompt could starve or a number overflow.
  static Status check(const Limits& limits);
  // Cache blocks of the longest sequence.
  static int blocks_per_sequence(int max_context) {
    return (max_context + kBlockTokens - 1) / kBlockTokens;
  }
  Scheduler(const Limits& limits, CachePool& caches) : limits_(limits), caches_(&caches) {}

  // Whether such a request can ever run. Looks at nothing that changes.
  Status check(std::size_t prompt_tokens, const SamplingParams& sampling) const;
  // Queues a request, or says why it can never run. Its first `computed` tokens, fewer than the
  // prompt has, count as being in the caches.
  Status add(RequestId id, std::vector<std::int32_t> prompt, const SamplingParams& sampling,
             int computed = 0);
  // Marks it for cancelled(). False when there is no such request.
  bool cancel(RequestId id);
  // The next step. Empty when nothing can run. Valid until the next call of any function.
  const BatchPlan& next();
  // Records that the step ran; drawn[i] belongs to entry i and counts where it draws().
  void apply(const BatchPlan& plan, std::span<const std::int32_t> drawn);
  // Removes a sequence; its caches are free at once.
  void remove(RequestId id);
  std::vector<RequestId> cancelled() const;
  bool idle() const { return waiting_.empty() && running_.empty(); }
  const Sequence* find(RequestId id) const;

 private:
  void admit();
  // The most tokens that a sequence makes.
  int max_tokens(int prompt_tokens, const SamplingParams& sampling) const {
    return std::min(sampling.max_tokens, limits_.max_context - prompt_tokens);
  }
  Limits limits_;
  CachePool* caches_;
  std::list<Sequence> running_;  // in order of admission; entries point into it
  std::deque<Sequence> waiting_;
  BatchPlan plan_;  // of the next step: kept so that a step allocates nothing
};

}  // namespace tenon
