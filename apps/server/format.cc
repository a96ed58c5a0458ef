#include "apps/server/format.h"

#include "apps/server/json_text.h"

namespace tenon::server {
namespace {

const char* openai_type(int status) {
  switch (status) {
    case 401: return "authentication_error";
    case 404: return "not_found_error";
    case 429: return "rate_limit_error";
    case 503: return "service_unavailable_error";
    default: return status < 500 ? "invalid_request_error" : "server_error";
  }
}

const char* anthropic_type(int status) {
  switch (status) {
    case 401: return "authentication_error";
    case 404: return "not_found_error";
    case 413: return "request_too_large";
    case 429: return "rate_limit_error";
    case 503: return "overloaded_error";
    default: return status < 500 ? "invalid_request_error" : "api_error";
  }
}

Json or_null(const std::string& text) { return text.empty() ? Json() : Json(text); }

}  // namespace

std::string error_body(Dialect dialect, const ApiError& error, const std::string& request_id) {
  if (dialect == Dialect::kMessages)
    return to_text({{"type", "error"},
                    {"error", {{"type", anthropic_type(error.status)}, {"message", error.message}}},
                    {"request_id", request_id}});
  return to_text({{"error",
                   {{"message", error.message},
                    {"type", openai_type(error.status)},
                    {"param", or_null(error.param)},
                    {"code", or_null(error.code)}}}});
}

std::string call_id(std::string_view prefix, const std::string& request_id, std::size_t choice,
                    int call) {
  std::string id = std::string(prefix) + "_" + request_id + "_" + std::to_string(choice) + "_" +
                   std::to_string(call);
  for (char& c : id)
    if (c == '.' || c == ':') c = '_';
  return id;
}

std::unique_ptr<Format> make_format(Dialect dialect, AnswerHead head) {
  switch (dialect) {
    case Dialect::kMessages: return make_messages_format(std::move(head));
    case Dialect::kGenerate: return make_generate_format(std::move(head));
    case Dialect::kChat:
    case Dialect::kCompletion: break;
  }
  return make_openai_format(dialect, std::move(head));
}

}  // namespace tenon::server
