#include "tenon/serve/reply.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "tenon/serve/request_record.h"

namespace tenon::serve {

Reply& Reply::operator=(Reply&& other) noexcept {
  if (this == &other) return *this;
  if (record_ != nullptr) record_->leave();
  record_ = std::move(other.record_);
  return *this;
}

Reply::~Reply() {
  if (record_ != nullptr) record_->leave();
}

RequestNumber Reply::number() const { return record_->number(); }
RequestState Reply::state() const { return record_->state(); }
std::int64_t Reply::prompt_tokens() const { return record_->prompt_tokens(); }
ReplyPart Reply::take() { return record_->take(); }
ReplyPart Reply::wait() { return record_->wait(nullptr); }
ReplyPart Reply::wait_for(std::chrono::milliseconds budget) { return record_->wait(&budget); }
void Reply::cancel() { record_->cancel(); }

Completion Reply::complete() {
  Completion whole;
  for (;;) {
    ReplyPart part = wait();
    if (part.empty()) return whole;  // the outcome had been taken before
    whole.text += part.text;
    whole.tokens.insert(whole.tokens.end(), part.tokens.begin(), part.tokens.end());
    std::ranges::move(part.logprobs, std::back_inserter(whole.logprobs));
    std::ranges::move(part.prompt_logprobs, std::back_inserter(whole.prompt_logprobs));
    if (!part.outcome) continue;
    whole.outcome = *std::move(part.outcome);
    return whole;
  }
}

}  // namespace tenon::serve
