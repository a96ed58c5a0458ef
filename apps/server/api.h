// What the APIs of the server have in common, as values: a request that was understood, an error
// that its client can act on. Not here: how each API writes them (requests.h, format.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "tenon/serve/request.h"
#include "tenon/text/answer_grammar.h"
#include "tenon/text/answer_parser.h"

namespace tenon::server {

// Who asks in which words.
enum class Dialect : std::uint8_t {
  kChat,        // /v1/chat/completions
  kCompletion,  // /v1/completions
  kMessages,    // /v1/messages, as Anthropic's
  kGenerate,    // /generate, as SGLang's
};

struct ApiError {
  int status = 400;        // of HTTP
  std::string message;     // what was asked, found, accepted
  std::string param = {};  // the field that is to blame, or empty
  std::string code = {};   // for programs: "context_length_exceeded", …, or empty
};

// What requests get that do not say.
struct ApiDefaults {
  SamplingParams sampling;  // its temperature, top_p and top_k
};

struct ApiRequest {
  Dialect dialect = Dialect::kChat;
  std::string model = {};  // as asked; empty: any
  std::vector<serve::Prompt> prompts = {};
  bool is_batch = false;  // the prompts came as a list of prompts
  // The fields that errors name which only a model finds.
  std::string prompt_field = "messages", bias_field = "logit_bias", n_field = "n";
  int n = 1;  // answers to each prompt; the seeds are seed, seed + 1, …
  SamplingParams sampling = {};
  std::optional<int> max_tokens = {};  // none: to the end of the context
  std::optional<std::uint64_t> seed = {};
  std::vector<std::string> stops = {};
  std::vector<std::int32_t> stop_ids = {};
  bool skip_special = true;
  bool stream = false, include_usage = false, continuous_usage = false;
  bool echo = false, return_ids = false;
  bool shows_prompt_logprobs = false;  // in a field of that name
  int prompt_likeliest = 0;            // how many of the likeliest ids that field lists
  bool shows_token_texts = false;      // beside the ids in the lists of /generate
  // How an answer is taken apart. in_reasoning is known when the prompt is rendered.
  AnswerForm form = {false, false, false, {}, 0};
  // What the answer must be, and the field that asked for it; empty: anything.
  AnswerGrammar grammar = {};
  std::string grammar_field = {};
  std::optional<std::int64_t> thinking_budget = {};
  // As the client named it: "low", "medium", "high", …; a template may know other names.
  std::string effort = {};

  std::size_t choices() const { return prompts.size() * static_cast<std::size_t>(n); }
};

template <class T>
using ApiResult = std::variant<T, ApiError>;

}  // namespace tenon::server
