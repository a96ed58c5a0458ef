// JSON that is sent: keys in the order in which they are set, and always valid UTF-8.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace tenon::server {

using Json = nlohmann::ordered_json;

inline std::string to_text(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// One server-sent event without a name.
inline std::string data_event(const Json& json) { return "data: " + to_text(json) + "\n\n"; }

}  // namespace tenon::server
