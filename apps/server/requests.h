// The bodies of requests to what they ask for: pure, without a model. Unknown fields are passed
// over; known ones that cannot be honoured are refused by name. Every error names its field.
#pragma once

#include <string_view>

#include "apps/server/api.h"
#include "apps/server/fields.h"

namespace tenon::server {

inline constexpr std::size_t kMaxChoices = 1024;  // prompts × n of one request
inline constexpr std::size_t kMaxStops = 64;
inline constexpr std::size_t kMaxStopIds = 256;
inline constexpr std::size_t kMaxChoiceTexts = 1024;  // of which an answer is one

// The body of a request in this dialect.
ApiResult<ApiRequest> parse_request(Dialect dialect, std::string_view body,
                                    const ApiDefaults& defaults);
// A body that must be a JSON object.
ApiResult<jinja::Value> parse_body(std::string_view body);

// `messages`, `tools` and what else decides how a conversation is rendered, as chat completions
// and /tokenize have them.
void read_conversation(const Fields& fields, ApiRequest& request);
// The same in the words of /v1/messages.
void read_messages_api(const Fields& fields, ApiRequest& request);
// `prompt` of completions, or the field called `name`: a text, token ids, or a list of either.
void read_prompts(const Fields& fields, const char* name, ApiRequest& request);

}  // namespace tenon::server
