// How each API writes its answers: whole, and as events while they come. Pure: what is said is
// decided by generation.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "apps/server/api.h"

namespace tenon::server {

struct Usage {
  std::int64_t prompt_tokens = 0, completion_tokens = 0;
  std::int64_t cached_tokens = 0;                     // of the prompts, known at the end
  std::optional<std::int64_t> reasoning_tokens = {};  // where the answers may have thoughts

  std::int64_t tokens() const { return prompt_tokens + completion_tokens; }
};

// How a choice ended.
struct Ending {
  enum class Reason : std::uint8_t { kStop, kLength, kCalls };
  Reason reason = Reason::kStop;
  std::string stop = {};  // the stop string, where one was found
};

// One token, drawn or of the prompt, with natural logarithms of probabilities.
struct ToldToken {
  struct Likely {
    std::int32_t id = 0;
    std::string bytes = {};
    float logprob = 0;
  };
  std::int32_t id = 0;
  std::string bytes = {};
  std::optional<float> logprob = {};  // none: of a prompt's first token that is told
  std::int32_t rank = 0;              // of a token of a prompt: 1 is the likeliest; 0: not known
  std::vector<Likely> likeliest = {};
};

// What is new of one choice, or all of it.
struct ChoicePart {
  std::size_t index = 0;
  std::vector<AnswerPiece> pieces = {};
  std::vector<std::int32_t> tokens = {};
  std::vector<ToldToken> told = {};  // of the same tokens, where log probabilities were asked for
  std::vector<ToldToken> prompt_told = {};  // of the prompt, all at once
  std::optional<Ending> end = {};
  Usage usage = {};  // of this choice, so far
  double seconds = 0;
};

// What every answer says of its request.
struct AnswerHead {
  std::string id = {};     // of the request
  std::string model = {};  // as it is served
  std::int64_t created = 0;
  bool include_usage = false, continuous_usage = false, return_ids = false, is_list = false;
  std::vector<std::vector<std::int32_t>> prompts = {};  // where return_ids
  int n = 1;
  // As ApiRequest has them; told_likeliest: how many of the likeliest an answer's tokens have.
  bool echo = false, shows_prompt_logprobs = false, shows_token_texts = false;
  int prompt_likeliest = 0, told_likeliest = -1;
};

// A format has the memory of one streamed answer.
class Format {
 public:
  virtual ~Format() = default;
  // Events for what is new; nothing where nothing of it can be seen. Called with the parts of all
  // choices, as they come.
  virtual std::string part(const ChoicePart& part) = 0;
  // The events behind the last part.
  virtual std::string end(const Usage& usage) = 0;
  // The event that ends a stream that was broken off.
  virtual std::string broken(const ApiError& error) = 0;
  // The whole answer. The pieces of each choice are all it has.
  virtual std::string whole(const std::vector<ChoicePart>& choices, const Usage& usage) = 0;
};

std::unique_ptr<Format> make_format(Dialect dialect, AnswerHead head);
std::unique_ptr<Format> make_openai_format(Dialect dialect, AnswerHead head);
std::unique_ptr<Format> make_messages_format(AnswerHead head);
std::unique_ptr<Format> make_generate_format(AnswerHead head);

// The body of an error, in the dialect's words.
std::string error_body(Dialect dialect, const ApiError& error, const std::string& request_id);

// JSON has no infinity.
inline float finite(float logprob) { return std::max(logprob, -9999.0f); }

// "call_ID_CHOICE_CALL": letters, digits, '-' and '_'.
std::string call_id(std::string_view prefix, const std::string& request_id, std::size_t choice,
                    int call);

}  // namespace tenon::server
