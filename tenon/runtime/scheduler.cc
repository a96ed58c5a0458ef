#include "tenon/runtime/scheduler.h"

#include <algorithm>
#include <limits>
#include <string>

namespace tenon {
namespace {

Status refuse(std::string why) { return Status::error(Code::kInvalidArgument, std::move(why)); }

}  // namespace

Status check(const SamplingParams& sampling) {
  if (!(sampling.temperature >= 0.0f) || sampling.temperature > 100.0f)
    return refuse("temperature is " + std::to_string(sampling.temperature) +
                  "; accepted: 0 to 100");
  if (!(sampling.top_p > 0.0f && sampling.top_p <= 1.0f))
    return refuse("top_p is " + std::to_string(sampling.top_p) + "; accepted: above 0, up to 1");
  if (sampling.top_k < 0)
    return refuse("top_k is " + std::to_string(sampling.top_k) + "; accepted: 0 (all) and more");
  if (sampling.max_tokens < 1)
    return refuse("max_tokens is " + std::to_string(sampling.max_tokens) +
                  "; at least 1 is needed");
  return Status::ok();
}

bool BatchPlan::decode_only() const {
  return std::all_of(entries.begin(), entries.end(),
                     [](const BatchEntry& each) { return each.count == 1 && each.draws(); });
}

Status Scheduler::check(const Limits& limits) {
  if (limits.max_sequences < 1 || limits.max_context < 1)
    return refuse("max_sequences is " + std::to_string(limits.max_sequences) + " and max_context " +
                  std::to_string(limits.max_context) + "; both must be at least 1");
  if (limits.max_context > kMaxContext)
    return refuse("max_context is " + std::to_string(limits.max_context) +
                  "; accepted are at most " + std::to_string(kMaxContext));
  if (limits.max_tokens_per_step > kMaxTokensPerStep)
    return refuse("max_tokens_per_step is " + std::to_string(limits.max_tokens_per_step) +
                  "; accepted are at most " + std::to_string(kMaxTokensPerStep));
  if (limits.max_sequences > kMaxTokensPerStep - kPrefillQuantum)
    return refuse("max_sequences is " + std::to_string(limits.max_sequences) +
                  "; accepted are at most " + std::to_string(kMaxTokensPerStep - kPrefillQuantum));
  // Steps name a token's place in the caches by an int32.
  const int sequence_tokens = blocks_per_sequence(limits.max_context) * kBlockTokens;
  const int most = std::numeric_limits<std::int32_t>::max() / sequence_tokens;
  if (limits.max_sequences > most)
    return refuse("max_sequences is " + std::to_string(limits.max_sequences) +
                  "; with a max_context of " + std::to_string(limits.max_context) +
                  " accepted are at most " + std::to_string(most));
  const int least = kPrefillQuantum + limits.max_sequences;
  if (limits.max_tokens_per_step < least)
    return refuse("max_tokens_per_step is " + std::to_string(limits.max_tokens_per_step) +
                  "; with " + std::to_string(limits.max_sequences) +
                  " sequences it must be at least " + std::to_string(least) +
                  ", or prompts would starve");
  return Status::ok();
}

Status Scheduler::check(std::size_t prompt_tokens, const SamplingParams& sampling) const {
  TENON_TRY(tenon::check(sampling));
  if (prompt_tokens == 0) return refuse("the prompt has no tokens; at least 1 is needed");
  if (prompt_tokens >= static_cast<std::size_t>(limits_.max_context))
    return refuse("the prompt has " + std::to_string(prompt_tokens) + " tokens; a context of " +
                  std::to_string(limits_.max_context) + " with room for one more takes at most " +
                  std::to_string(limits_.max_context - 1));
  const int prompt = static_cast<int>(prompt_tokens);
  const int whole = prompt + max_tokens(prompt, sampling);
  if (caches_->can_ever_fit(whole)) return Status::ok();
  return refuse("the request needs cache for " + std::to_string(whole) +
                " tokens, more than the whole cache holds");
}

Status Scheduler::add(RequestId id, std::vector<std::int32_t> prompt,
                      const SamplingParams& sampling, int computed) {
  TENON_TRY(check(prompt.size(), sampling));
  Sequence sequence;
  sequence.id = id;
  sequence.tokens = std::move(prompt);
  sequence.prompt_tokens = static_cast<int>(sequence.tokens.size());
  TENON_CHECK(computed >= 0 && computed < sequence.prompt_tokens);
  sequence.computed = computed;
  sequence.sampling = sampling;
  sequence.max_tokens = max_tokens(sequence.prompt_tokens, sampling);
  sequence.tokens.reserve(static_cast<std::size_t>(sequence.prompt_tokens + sequence.max_tokens));
  waiting_.push_back(std::move(sequence));
  return Status::ok();
}

bool Scheduler::cancel(RequestId id) {
  for (Sequence& each : running_)
    if (each.id == id) return each.cancelled = true;
  for (Sequence& each : waiting_)
    if (each.id == id) return each.cancelled = true;
  return false;
}

std::vector<RequestId> Scheduler::cancelled() const {
  std::vector<RequestId> found;
  for (const Sequence& each : running_)
    if (each.cancelled) found.push_back(each.id);
  for (const Sequence& each : waiting_)
    if (each.cancelled) found.push_back(each.id);
  return found;
}

const Sequence* Scheduler::find(RequestId id) const {
  for (const Sequence& each : running_)
    if (each.id == id) return &each;
  for (const Sequence& each : waiting_)
    if (each.id == id) return &each;
  return nullptr;
}

void Scheduler::remove(RequestId id) {
  running_.remove_if([&](const Sequence& each) { return each.id == id; });
  std::erase_if(waiting_, [&](const Sequence& each) { return each.id == id; });
}

void Scheduler::admit() {
  while (!waiting_.empty() && static_cast<int>(running_.size()) < limits_.max_sequences) {
    Sequence& first = waiting_.front();
    first.lease = caches_->lease(first.prompt_tokens + first.max_tokens);
    if (!first.lease) return;  // in order: nobody overtakes
    running_.push_back(std::move(first));
    waiting_.pop_front();
  }
}

const BatchPlan& Scheduler::next() {
  admit();
  BatchPlan& plan = plan_;
  plan.entries.clear();
  plan.num_tokens = plan.max_tokens_per_sequence = 0;
  const auto take = [&](Sequence& sequence, int count) {
    plan.entries.push_back({&sequence, sequence.computed, count});
    plan.num_tokens += count;
    plan.max_tokens_per_sequence = std::max(plan.max_tokens_per_sequence, count);
  };
  for (Sequence& each : running_)
    if (each.pending() == 1) take(each, 1);
  for (Sequence& each : running_) {
    const int pending = each.pending();
    if (pending == 1) continue;
    const int budget = limits_.max_tokens_per_step - plan.num_tokens;
    const int length = each.computed + pending;
    int end = length;  // of this step's share, as a position
    if (pending > budget) end = (each.computed + budget) / kPrefillQuantum * kPrefillQuantum;
    if (length - end == 1) end -= kPrefillQuantum;  // nobody's last token comes alone
    if (end <= each.computed) break;
    take(each, end - each.computed);
  }
  return plan;
}

void Scheduler::apply(const BatchPlan& plan, std::span<const std::int32_t> drawn) {
  TENON_CHECK(drawn.size() == plan.entries.size());
  for (std::size_t i = 0; i < plan.entries.size(); ++i) {
    const BatchEntry& entry = plan.entries[i];
    const bool draws = entry.draws();
    entry.sequence->computed = entry.first + entry.count;
    if (draws) entry.sequence->tokens.push_back(drawn[i]);
  }
}

}  // namespace tenon
