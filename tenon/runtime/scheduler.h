// What runs in the next step: decisions as values. Pure host code: no device, no clock.
//
// Policy: first come, first served. Every sequence that decodes gets its one token in every step;
// what is left of the step's token budget goes to prompts in order of arrival. A sequence is
// admitted when there is cache for its prompt; it gets more, block by block, as it grows. Where no
// more can be had, a sequence is preempted: the one that has drawn least, never the one that came
// first, so somebody always comes to the end. It waits again, loses its caches and later runs
// again what it had: its prompt as a prompt, its drawn tokens one by one.
//
// A prompt is cut at positions of its sequence that are multiples of kPrefillQuantum, nowhere else,
// and never so that one token is left (alone it would run as a decode step does). So the delta
// net's chunks lie at the same positions whoever else is in the batch, each token meets the same
// form of every op, and the bits of every logit depend on its sequence alone (docs/exactness.md).
//
// Blocks of prompts are kept for prompts that begin alike, and so are states at places where a
// prompt is cut: wanted ones, for which it is cut on purpose (near its end, and the place where it
// goes apart from an earlier one or from one that waits), and those of other cuts, which take free
// slots only. What was drawn is never kept: a prompt that repeats it would have other bits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "tenon/core/status.h"
#include "tenon/runtime/cache.h"
#include "tenon/runtime/sampling_params.h"
#include "tenon/runtime/token_constraint.h"
#include "tenon/runtime/token_edits.h"

namespace tenon {

inline constexpr int kPrefillQuantum = 64;  // as gated_delta_net::kChunkTokens
static_assert(kPrefillQuantum == kStateTokens);
// Tokens behind the last place where a prompt's state is kept, at least. Chat templates end a
// prompt with words that the next turn does not repeat: of Qwen3.5 up to 4
// ("<think>\n\n</think>\n\n"), in vocabularies without a token for two newlines 6.
inline constexpr int kEndTokens = 8;
inline constexpr int kMaxContext = 1 << 20;     // as far as Qwen stretches its positions
inline constexpr int kMaxTokensPerStep = 8192;  // the most rows of a boundary

// Edited logits that a step has room for: those of any one sequence, and of many in practice.
constexpr int edits_per_step(int max_context) {
  return std::max(1 << 16, max_context) + 2 * kMaxLogitBias;
}

enum class RequestId : std::uint64_t {};

// One request on its way. Positions: tokens[0 … computed) are in the caches.
struct Sequence {
  RequestId id{};
  std::vector<std::int32_t> tokens;  // prompt, then what was drawn
  int prompt_tokens = 0;
  int computed = 0;
  int made = 0;  // of the prompt, over caches that were made, not computed; nothing of it is kept
  SamplingParams sampling;
  int max_tokens = 0;  // sampling.max_tokens, or fewer where the context ends first
  CacheLease lease;
  std::optional<TokenEdits> edits;              // of the logits its next token is drawn from
  std::unique_ptr<TokenConstraint> constraint;  // of its next token, or none
  bool cancelled = false;
  int cached_tokens = 0;  // of the prompt, that a kept prefix had when it was admitted first
  int preemptions = 0;
  // Where its prompt is cut to keep the state: where it goes apart from another one, and near its
  // end, behind that; 0: nowhere. And where it was kept last.
  int fork_at = 0, end_at = 0;
  int kept_at = 0;
  // Of prompt tokens [sampling.prompt_logprobs_from + 1, … + num_told]; those that nobody has taken
  // so far.
  std::vector<TokenLogprobs> prompt_logprobs;
  int num_told = 0;

  // The first position whose logits tell of a prompt token that was not told so far.
  int tells_from() const { return sampling.prompt_logprobs_from + num_told; }
  // What of the prompt may be found among kept prefixes: nothing that is still to be told.
  std::span<const std::int32_t> lookup() const {
    const bool tells = sampling.prompt_logprobs >= 0;
    const int most = tells ? std::min(tells_from() + 2, prompt_tokens) : prompt_tokens;
    return prompt().first(static_cast<std::size_t>(most));
  }
  int num_edits() const { return edits ? static_cast<int>(edits->list().size()) : 0; }
  int length() const { return static_cast<int>(tokens.size()); }
  std::span<const std::int32_t> prompt() const {
    return std::span(tokens).first(static_cast<std::size_t>(prompt_tokens));
  }
  // Its next token runs alone, as a drawn one does.
  bool decodes() const { return computed >= prompt_tokens || prompt_tokens == 1; }
};

// One sequence's share of a step: tokens [first, first + count) of it. Tokens that were drawn
// before the sequence was preempted run again without a draw.
struct BatchEntry {
  Sequence* sequence = nullptr;  // null: it has gone since the step was launched
  int first = 0, count = 0;
  int unread = 0;  // 1: its token is what the step before draws, which nobody has read yet
  // The last token of the entry is the last one that there is: its logits decide the next token.
  bool draws() const { return first + count == sequence->length() + unread; }
  // Positions [told_from(), … + num_told()) of it have logits that tell of the prompt's next token.
  int told_from() const { return std::max(first, sequence->tells_from()); }
  int num_told() const {
    if (sequence->sampling.prompt_logprobs < 0) return 0;
    return std::max(std::min(first + count, sequence->prompt_tokens - 1) - told_from(), 0);
  }
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
    bool keeps_prefixes = false;
    // A state is kept where it saves at least so many tokens over the one before: each costs a
    // slot, and a wanted one a step.
    int least_kept_tokens = 2 * kPrefillQuantum;
    // Edited logits of all sequences together, at least those of one: where they get more, a
    // sequence is preempted.
    int max_edits = edits_per_step(kMaxContext);
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
  // prompt has, count as being in the caches. `ends`: ids that end every answer.
  Status add(RequestId id, std::vector<std::int32_t> prompt, const SamplingParams& sampling,
             int computed = 0, std::span<const std::int32_t> ends = {},
             std::unique_ptr<TokenConstraint> constraint = {});
  // Marks it for cancelled(). False when there is no such request.
  bool cancel(RequestId id);
  // The next step. Empty when nothing can run. Valid until the next call of any function.
  const BatchPlan& next();
  // The step behind `plan`, which runs, before its tokens are known: the same sequences, each with
  // the token that it is about to draw. Empty where next() might say something else, whatever those
  // tokens are but for one that ends its sequence: then the step is run for nothing where that
  // sequence is concerned. Valid until the next call of this function.
  const BatchPlan& ahead(const BatchPlan& plan);
  // Records that the step ran; drawn[i] belongs to entry i and counts where it draws(). Below 0:
  // its logits hold no number, and nothing of the sequence is kept; it is to be removed.
  void apply(const BatchPlan& plan, std::span<const std::int32_t> drawn);
  // Removes a sequence; its caches are free at once.
  void remove(RequestId id);
  std::vector<RequestId> cancelled() const;
  bool idle() const { return waiting_.empty() && running_.empty(); }
  const Sequence* find(RequestId id) const;
  std::int64_t num_preemptions() const { return num_preemptions_; }
  // Drawn tokens that ran again because their sequence had been preempted.
  std::int64_t num_replayed_tokens() const { return num_replayed_tokens_; }

 private:
  using Sequences = std::list<Sequence>;
  void make_room();
  int num_edits() const;
  Sequences::iterator cheapest(bool with_edits);
  void preempt(Sequences::iterator victim);
  void admit();
  bool goes_on(const BatchEntry& entry) const;
  bool begin(Sequence& sequence);
  bool waits_for_prefix(const Sequence& sequence);
  int end_of_piece(const Sequence& sequence, int budget) const;
  void keep(Sequence& sequence);
  // The most tokens that a sequence makes.
  int max_tokens(int prompt_tokens, const SamplingParams& sampling) const {
    return std::min(sampling.max_tokens, limits_.max_context - prompt_tokens);
  }
  Limits limits_;
  CachePool* caches_;
  Sequences running_, waiting_;  // in order of arrival; entries point into running_
  BatchPlan plan_, ahead_;       // of next() and ahead(): kept so that a step allocates nothing
  bool full_ = false;  // who waits could not begin in the last step, and nobody has left since
  std::int64_t num_preemptions_ = 0, num_replayed_tokens_ = 0;
};

}  // namespace tenon
