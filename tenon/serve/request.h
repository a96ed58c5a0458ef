// One request and what comes of it, as values: what is asked, how it ended, what it used and when.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "tenon/core/status.h"
#include "tenon/runtime/engine.h"
#include "tenon/serve/answer_constraint.h"
#include "tenon/serve/request_state.h"
#include "tenon/text/chat_template.h"

namespace tenon::serve {

using Clock = std::chrono::steady_clock;

// A conversation; rendered by the checkpoint's template.
struct ChatPrompt {
  std::vector<ChatMessage> messages;
  jinja::Value tools = {};  // a list of tool definitions, or none
  ChatOptions options = {};
};

// Token ids, a text to be continued as it is, or a conversation.
using Prompt = std::variant<std::vector<std::int32_t>, std::string, ChatPrompt>;

// n answers to one prompt are n requests with seeds of their own.
struct Request {
  Prompt prompt;
  SamplingParams sampling = {};
  // A text that ends the answer, which does not show it: valid UTF-8 of at least 1 byte each. The
  // match that ends first wins, the longest of those that end together.
  std::vector<std::string> stops = {};
  // Tokens that end the answer as an end-of-sequence token does, ignore_eos or not; not drawn
  // before sampling.min_tokens.
  std::vector<std::int32_t> stop_ids = {};
  // What its tokens must be. A grammar is ended by an end-of-sequence token: with one, ignore_eos
  // and min_tokens are refused.
  AnswerRule rule = {};
  // Leaves tokens that are marked special out of the text.
  bool skip_special = true;
  // A reader that leaves more tokens than this untaken is given up: the request is cancelled with
  // kReaderBehind. 0: as many as the request may make.
  std::int64_t max_untaken_tokens = 0;
  // Called when the Reply has something to take after it had nothing, and at the end. Called on the
  // engine's thread or on one that cancels, with no lock held; it must return at once: wake
  // somebody, take nothing here. It may still be running when the Reply's destructor returns, so
  // it should own what it uses. An exception from it becomes a line of the log.
  std::function<void()> on_ready = {};
};

// Why a request ended.
enum class FinishReason : std::uint8_t {
  kStop,          // finished: an end-of-sequence token or one of stop_ids
  kStopString,    // finished: one of stops
  kLength,        // finished: sampling.max_tokens
  kContext,       // finished: the model's max_context, before sampling.max_tokens
  kFailed,        // failed: Outcome::why
  kCancelled,     // cancelled: by its Reply
  kReaderBehind,  // cancelled: more than max_untaken_tokens were left untaken
  kStopped,       // cancelled: the queue ended before the request
};
std::string_view name(FinishReason reason);
RequestState state_of(FinishReason reason);

// When things happened to a request. A mark that was never reached is empty.
struct TimeMarks {
  Clock::time_point queued = {};  // accepted
  std::optional<Clock::time_point> started, first_token, last_token;
  Clock::time_point ended = {};
};

struct Outcome {
  FinishReason reason = FinishReason::kFailed;
  Status why = Status::ok();  // of kFailed
  std::string stop = {};      // of kStopString: which one
  std::int64_t prompt_tokens = 0;
  std::int64_t cached_tokens = 0;      // of the prompt, not computed: an earlier one began alike
  std::int64_t completion_tokens = 0;  // all that were drawn, with one that ended the answer
  TimeMarks times = {};
};

// From acceptance to the first token; empty where there was none.
std::optional<double> first_token_seconds(const Outcome& outcome);
// Between tokens after the first one, on the average; empty below two tokens.
std::optional<double> seconds_per_token(const Outcome& outcome);

}  // namespace tenon::serve
