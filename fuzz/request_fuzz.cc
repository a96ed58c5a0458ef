// The body of a request in every dialect, and as the text of an answer that is taken apart:
// whatever comes, it is understood or refused with a sentence, and parts give what the whole gives.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "apps/server/requests.h"
#include "tenon/text/answer_parser.h"

namespace {

using tenon::server::ApiError;
using tenon::server::ApiRequest;
using tenon::server::Dialect;

void check(bool holds) {
  if (!holds) std::abort();
}

void read(Dialect dialect, std::string_view body) {
  tenon::server::ApiDefaults defaults;
  defaults.sampling.temperature = 1;
  const auto parsed = parse_request(dialect, body, defaults);
  if (const auto* error = std::get_if<ApiError>(&parsed)) {
    check(error->status >= 400 && error->status < 500 && !error->message.empty());
    return;
  }
  const auto& request = std::get<ApiRequest>(parsed);
  check(!request.prompts.empty() && request.n >= 1);
  check(request.choices() <= tenon::server::kMaxChoices);
  check(request.stops.size() <= tenon::server::kMaxStops);
  check(!request.max_tokens || *request.max_tokens >= 0);
  check(request.sampling.temperature >= 0 && request.sampling.top_p > 0 &&
        request.sampling.top_p <= 1 && request.sampling.top_k >= 0);
  for (const std::string& each : request.stops) check(!each.empty());
}

std::string told(const std::vector<tenon::AnswerPiece>& pieces) {
  std::string all;
  for (const auto& each : pieces) all += each.text;
  return all;
}

void take_apart(std::string_view text) {
  tenon::AnswerForm form;
  form.in_reasoning = !text.empty() && text[0] == 'r';
  form.has_calls = true;
  tenon::AnswerParser whole(form), parts(form);
  std::string at_once = told(whole.push(text)), one_by_one;
  at_once += told(whole.finish());
  for (const char c : text) one_by_one += told(parts.push(std::string_view(&c, 1)));
  one_by_one += told(parts.finish());
  check(at_once == one_by_one && whole.calls() == parts.calls());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const Dialect each :
       {Dialect::kChat, Dialect::kCompletion, Dialect::kMessages, Dialect::kGenerate})
    read(each, text);
  take_apart(text);
  return 0;
}
