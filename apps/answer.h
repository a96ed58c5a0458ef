// One request from its tokens to its text: streamed, stopped at an end-of-sequence token, a stop
// string, a limit or a signal, and measured. Not here: several requests at a time (eval.cc).
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "apps/session.h"

namespace tenon::apps {

// Holds back what may be the beginning of a stop string.
class StopStrings {
 public:
  explicit StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {}
  // The part of the text so far that is certainly in front of every stop string.
  std::string push(std::string_view part);
  // What is still held back, where the text ends without a stop string.
  std::string rest();
  // The stop string that was found, or empty. Nothing is pushed after it.
  const std::string& found() const { return found_; }

 private:
  std::vector<std::string> stops_;
  std::string held_, found_;
};

struct Answer {
  std::string text;  // without the stop string
  std::vector<std::int32_t> tokens;
  // "stop", "stop_string", "max_new_tokens", "context" or "interrupted"
  std::string finish;
  std::string stop_string;
  std::int64_t prompt_tokens = 0;
  double first_token_seconds = 0, total_seconds = 0;
  double prefill_rate = 0, decode_rate = 0;  // tokens a second; 0 where there were none
};

// Runs one request to its end. `show` gets the text as it becomes known. A signal (interrupt.h)
// cancels the request and is no error.
Result<Answer> answer(Session& session, std::vector<std::int32_t> prompt,
                      const SamplingParams& sampling, const std::vector<std::string>& stops,
                      const std::function<void(std::string_view)>& show);

// "prompt 12 tokens, first token after 30.1 ms (400.0 tokens/s); 40 tokens (stop), decode 700.0
// tokens/s; 0.09 s in all"
std::string numbers_of(const Answer& answer);

// Tokens a second of the steps where every sequence decodes.
double decode_rate(const EngineStats& stats);

}  // namespace tenon::apps
