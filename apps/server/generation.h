// One request for answers, from its parsed form to the bytes that its client gets: prompts are
// encoded and asked, answers read, taken apart and written in the words of the request's API.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/server/api.h"
#include "apps/server/format.h"
#include "apps/server/http.h"
#include "apps/server/metrics.h"
#include "tenon/serve/language_model.h"
#include "tenon/serve/request_queue.h"

namespace tenon::server {

// What exchanges share. Outlives them.
struct Engines {
  const serve::LanguageModel& model;
  serve::RequestQueue& queue;
  Metrics& metrics;
  std::int64_t max_untaken_tokens = 4096;   // of a streamed answer
  std::atomic<std::uint64_t> next_seed{0};  // of requests without one
};

// A request whose prompts are token ids.
struct PreparedRequest {
  ApiRequest request;
  std::vector<std::vector<std::int32_t>> prompts;
  serve::AnswerRule rule = {};
};

// Renders and encodes the prompts, and says whether they can be answered at all. An effort that the
// template refuses is replaced by the nearest one that it takes. The rule is still without its
// grammar.
ApiResult<PreparedRequest> prepare(const serve::LanguageModel& model, ApiRequest request);

bool needs_grammar(const PreparedRequest& prepared);
// Compiles the grammar of the rule, which may take seconds. Errors as GrammarCompiler::compile().
Status compile_grammar(const serve::LanguageModel& model, PreparedRequest& prepared,
                       const GrammarWork& work);

std::unique_ptr<HttpExchange> make_generation(Engines& engines, PreparedRequest prepared,
                                              AnswerHead head);

// What a request gets that comes when the server is about to end.
ApiError draining_error();
// The field's own fault, but for a lack of memory.
ApiError field_error(const Status& why, const std::string& field);
// An answer that is an error.
std::unique_ptr<HttpExchange> answer_with_error(Dialect dialect, const ApiError& error,
                                                const std::string& request_id);

}  // namespace tenon::server
