// The text of a table of kernel choices, any at all. What is accepted comes back from its own text.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "tenon/boundary/tuned_json.h"

namespace {

void check(bool good) {
  if (!good) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto read = tenon::parse_tuned({reinterpret_cast<const char*>(data), size});
  if (!read) {
    check(!read.status().message().empty());
    return 0;
  }
  const std::string text = tenon::text_of(*read);
  const auto again = tenon::parse_tuned(text);
  check(static_cast<bool>(again));
  check(tenon::text_of(*again) == text);
  return 0;
}
