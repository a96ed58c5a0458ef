#include "tenon/runtime/scheduler.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <string>

namespace tenon {
namespace {

Status refuse(std::string why) { return Status::error(Code::kInvalidArgument, std::move(why)); }

}  // namespace

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
  if (sampling.prompt_logprobs >= 0 && sampling.prompt_logprobs_from >= prompt)
    return refuse("prompt_logprobs_from is " + std::to_string(sampling.prompt_logprobs_from) +
                  "; a prompt of " + std::to_string(prompt) + " tokens accepts 0 to " +
                  std::to_string(prompt - 1));
  const int whole = prompt + max_tokens(prompt, sampling);
  if (caches_->can_ever_fit(whole)) return Status::ok();
  return refuse("the request needs cache for " + std::to_string(whole) +
                " tokens, more than the whole cache holds");
}

Status Scheduler::add(RequestId id, std::vector<std::int32_t> prompt,
                      const SamplingParams& sampling, int computed,
                      std::span<const std::int32_t> ends,
                      std::unique_ptr<TokenConstraint> constraint) {
  TENON_TRY(check(prompt.size(), sampling));
  Sequence sequence;
  sequence.id = id;
  sequence.tokens = std::move(prompt);
  sequence.prompt_tokens = static_cast<int>(sequence.tokens.size());
  TENON_CHECK(computed >= 0 && computed < sequence.prompt_tokens);
  sequence.made = computed;
  sequence.sampling = sampling;
  sequence.max_tokens = max_tokens(sequence.prompt_tokens, sampling);
  sequence.tokens.reserve(static_cast<std::size_t>(sequence.prompt_tokens + sequence.max_tokens));
  sequence.edits = TokenEdits::make(sampling, ends, sequence.prompt(), sequence.max_tokens);
  sequence.constraint = std::move(constraint);
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
  full_ = false;
  const auto is_it = [&](const Sequence& each) { return each.id == id; };
  running_.remove_if(is_it);
  waiting_.remove_if(is_it);
}

int Scheduler::num_edits() const {
  int sum = 0;
  for (const Sequence& each : running_) sum += each.num_edits();
  return sum;
}

// The one that has drawn least, the later of two; never the first, which is its answer where there
// is no other.
Scheduler::Sequences::iterator Scheduler::cheapest(bool with_edits) {
  const auto drawn = [](const Sequence& each) { return each.length() - each.prompt_tokens; };
  auto found = running_.begin();
  for (auto each = std::next(found); each != running_.end(); ++each) {
    if (with_edits && !each->edits) continue;
    if (found == running_.begin() || drawn(*each) <= drawn(*found)) found = each;
  }
  return found;
}

// Every sequence that decodes gets cache for its next token, if need be that of others.
void Scheduler::make_room() {
  for (auto at = running_.begin(); at != running_.end();) {
    if (caches_->grow(at->lease, at->computed + 1)) {
      ++at;
      continue;
    }
    const auto victim = cheapest(false);
    TENON_CHECK(victim != running_.begin());  // alone, a sequence that was accepted has room
    if (victim == at) ++at;
    preempt(victim);
  }
  while (num_edits() > limits_.max_edits) {
    const auto victim = cheapest(true);
    TENON_CHECK(victim != running_.begin());
    preempt(victim);
  }
}

void Scheduler::preempt(Sequences::iterator victim) {
  victim->lease = CacheLease();
  victim->computed = 0;
  ++victim->preemptions;
  ++num_preemptions_;
  const auto later = [&](const Sequence& each) { return each.id > victim->id; };
  waiting_.splice(std::ranges::find_if(waiting_, later), running_, victim);
}

// Whether a sequence that runs will soon keep a state from which this one could go on. One that is
// about to compute what both have in common is made to keep the state behind it.
bool Scheduler::waits_for_prefix(const Sequence& sequence) {
  if (!limits_.keeps_prefixes || sequence.made > 0) return false;
  const std::span<const std::int32_t> prompt = sequence.lookup();
  const int least = limits_.least_kept_tokens;
  int kept = -1;  // looked up where it is asked for
  for (Sequence& each : running_) {
    if (each.made > 0 || each.computed >= each.prompt_tokens) continue;
    const auto apart = std::ranges::mismatch(prompt, each.prompt()).in1 - prompt.begin();
    const int most = std::min(static_cast<int>(prompt.size()), each.prompt_tokens) - 2;
    const int fork = std::min(static_cast<int>(apart), most) / kPrefillQuantum * kPrefillQuantum;
    if (fork - each.computed < kPrefillQuantum) continue;
    if (kept < 0) kept = caches_->kept_tokens(prompt);
    for (const int place : {each.fork_at, each.end_at})
      if (place > each.computed && place <= fork && place - kept >= least) return true;
    if (fork - std::max(kept, each.kept_at) < least || each.fork_at > each.computed) continue;
    each.fork_at = fork;
    if (each.end_at - fork < least) each.end_at = 0;
    return true;
  }
  return false;
}

// Gives a sequence what it needs to begin. False when there is no room now.
bool Scheduler::begin(Sequence& sequence) {
  if (sequence.edits && num_edits() + sequence.num_edits() > limits_.max_edits) return false;
  CacheRequest request;
  const bool keeps = limits_.keeps_prefixes && sequence.made == 0;
  if (keeps) request.prompt = sequence.lookup();
  request.counts = sequence.preemptions == 0;
  request.tokens = sequence.length();
  request.most_tokens = sequence.prompt_tokens + sequence.max_tokens;
  // One block for each that will need more: who begins should not be preempted at once.
  const auto grows = [&](const Sequence& each, int holds) {
    return caches_->blocks_for(each.prompt_tokens + each.max_tokens) > holds ? 1 : 0;
  };
  for (const Sequence& each : running_)
    request.spare_blocks += grows(each, static_cast<int>(each.lease.blocks().size()));
  if (!running_.empty())
    request.spare_blocks += grows(sequence, caches_->blocks_for(request.tokens));
  sequence.lease = caches_->lease(request);
  if (!sequence.lease) return false;
  sequence.computed = sequence.kept_at = std::max(sequence.lease.begin(), sequence.made);
  if (sequence.preemptions == 0) sequence.cached_tokens = sequence.lease.begin();
  sequence.fork_at = sequence.end_at = 0;
  if (!keeps) return true;
  const int last = (sequence.prompt_tokens - kEndTokens) / kPrefillQuantum * kPrefillQuantum;
  const int fork = sequence.lease.branch(), least = limits_.least_kept_tokens;
  if (fork - sequence.computed >= least) sequence.fork_at = fork;
  if (last - std::max(sequence.fork_at, sequence.computed) >= least) sequence.end_at = last;
  return true;
}

void Scheduler::admit() {
  while (!waiting_.empty() && static_cast<int>(running_.size()) < limits_.max_sequences) {
    Sequence& first = waiting_.front();
    if (waits_for_prefix(first) || !begin(first)) return;  // in order: nobody overtakes
    const auto later = [&](const Sequence& each) { return each.id > first.id; };
    running_.splice(std::ranges::find_if(running_, later), waiting_, waiting_.begin());
  }
}

// Where the next piece of a prompt ends, as a position; not behind where it begins: no piece fits.
int Scheduler::end_of_piece(const Sequence& sequence, int budget) const {
  int end = sequence.prompt_tokens;
  if (end - sequence.computed > budget)
    end = (sequence.computed + budget) / kPrefillQuantum * kPrefillQuantum;
  for (const int place : {sequence.fork_at, sequence.end_at})
    if (place > sequence.computed) end = std::min(end, place);
  if (sequence.prompt_tokens - end == 1) end -= kPrefillQuantum;  // nobody's last token comes alone
  return end;
}

const BatchPlan& Scheduler::next() {
  const std::int64_t preempted = num_preemptions_;
  full_ = false;
  make_room();
  if (num_preemptions_ == preempted) {
    admit();
    full_ = !waiting_.empty();
  }
  BatchPlan& plan = plan_;
  plan.entries.clear();
  plan.num_tokens = plan.max_tokens_per_sequence = 0;
  const auto take = [&](Sequence& sequence, int count) {
    plan.entries.push_back({&sequence, sequence.computed, count});
    plan.num_tokens += count;
    plan.max_tokens_per_sequence = std::max(plan.max_tokens_per_sequence, count);
  };
  for (Sequence& each : running_)
    if (each.decodes()) take(each, 1);
  for (Sequence& each : running_) {
    if (each.decodes()) continue;
    const int end = end_of_piece(each, limits_.max_tokens_per_step - plan.num_tokens);
    if (end <= each.computed) break;
    take(each, end - each.computed);
  }
  return plan;
}

// Whether the token that it draws can only be its last by being an id that ends its sequence, and
// whether the one behind it can be drawn without knowing it.
bool Scheduler::goes_on(const BatchEntry& entry) const {
  const Sequence* sequence = entry.sequence;
  if (sequence == nullptr || sequence->cancelled || sequence->edits || sequence->constraint)
    return false;
  const int made = entry.first + 2 - sequence->prompt_tokens;  // with that token
  return entry.count == 1 && entry.draws() && made < sequence->max_tokens;
}

const BatchPlan& Scheduler::ahead(const BatchPlan& plan) {
  BatchPlan& ahead = ahead_;
  ahead.entries.clear();
  ahead.num_tokens = ahead.max_tokens_per_sequence = 0;
  if (!waiting_.empty() && !full_) return ahead;
  if (running_.size() != plan.entries.size()) return ahead;
  const auto stays = [this](const BatchEntry& entry) { return goes_on(entry); };
  if (!std::ranges::all_of(plan.entries, stays)) return ahead;
  for (const BatchEntry& entry : plan.entries)
    if (!caches_->grow(entry.sequence->lease, entry.first + 2)) return ahead;
  for (const BatchEntry& entry : plan.entries) {
    caches_->state_was_read(entry.sequence->lease);  // by the step that runs
    ahead.entries.push_back({entry.sequence, entry.first + 1, 1, 1});
  }
  ahead.num_tokens = static_cast<int>(ahead.entries.size());
  ahead.max_tokens_per_sequence = 1;
  return ahead;
}

// Keeps what the last step has made of a prompt.
void Scheduler::keep(Sequence& sequence) {
  const int computed = sequence.computed;
  caches_->keep_blocks(sequence.lease, sequence.prompt(), computed);
  if (computed >= sequence.prompt_tokens) return;
  const StatePlace place = computed == sequence.fork_at  ? StatePlace::kFork
                           : computed == sequence.end_at ? StatePlace::kEnd
                                                         : StatePlace::kCut;
  const int further = computed - sequence.kept_at;
  if (place == StatePlace::kCut && further < limits_.least_kept_tokens) return;
  if (caches_->keep_state(sequence.lease, computed, place)) sequence.kept_at = computed;
}

void Scheduler::apply(const BatchPlan& plan, std::span<const std::int32_t> drawn) {
  TENON_CHECK(drawn.size() == plan.entries.size());
  for (std::size_t i = 0; i < plan.entries.size(); ++i) {
    const BatchEntry& entry = plan.entries[i];
    if (entry.sequence == nullptr) continue;
    Sequence& sequence = *entry.sequence;
    const bool draws = entry.draws();
    sequence.computed = entry.first + entry.count;
    caches_->state_was_read(sequence.lease);
    if (drawn[i] < 0) continue;
    const bool prompt = entry.first < sequence.prompt_tokens;
    if (!prompt && !draws) ++num_replayed_tokens_;
    if (prompt && limits_.keeps_prefixes && sequence.made == 0) keep(sequence);
    if (!draws) continue;
    sequence.tokens.push_back(drawn[i]);
    if (sequence.edits) sequence.edits->drew(drawn[i]);
    if (sequence.constraint) sequence.constraint->drew(drawn[i]);
  }
}

}  // namespace tenon
