// Whether a text, or the message of an error, has a part.
#pragma once

#include <string_view>

#include "tenon/core/status.h"

namespace tenon::test {

inline bool says(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}
inline bool says(const Status& status, std::string_view part) {
  return says(status.message(), part);
}

}  // namespace tenon::test
