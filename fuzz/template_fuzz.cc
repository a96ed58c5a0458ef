// A chat template and the JSON of its messages, with a NUL between them: parsed and rendered within
// small limits. Whatever comes, it comes soon and as a Result.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "tenon/text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using tenon::jinja::Value;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t end = std::min(input.find('\0'), input.size());
  const auto made = tenon::ChatTemplate::parse(input.substr(0, end));
  Value messages = Value::list({Value::dict({{"role", "user"}, {"content", "Hi \xC3\xA9"}})});
  if (end < input.size()) {
    const auto parsed = tenon::jinja::parse_json(input.substr(end + 1));
    if (parsed) {
      (void)tenon::jinja::to_json(*parsed);
      if (parsed->is_list()) messages = *parsed;
    }
  }
  if (!made) return 0;
  tenon::ChatOptions options;
  options.render.limits.max_work = 200'000;
  options.render.limits.max_output_bytes = 1 << 20;
  options.render.now = 1'790'000'000;
  const auto text = made->render_values(messages, Value(), options);
  if (text && text->size() > options.render.limits.max_output_bytes) std::abort();
  return 0;
}
