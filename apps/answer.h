// One request from its tokens to its text: streamed, stopped at an end-of-sequence token, a stop
// string, a limit or a signal, and measured. Not here: several requests at a time (eval.cc).
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "apps/session.h"

namespace tenon::apps {

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
Result<Answer> answer(Session& session, serve::Request request,
                      const std::function<void(std::string_view)>& show);

// "prompt 12 tokens, first token after 30.1 ms (400.0 tokens/s); 40 tokens (stop), decode 700.0
// tokens/s; 0.09 s in all"
std::string numbers_of(const Answer& answer);

// Tokens a second of the steps where every sequence decodes.
double decode_rate(const EngineStats& stats);

}  // namespace tenon::apps
