// Stop strings over text that arrives in parts: what may be the beginning of one is held back until
// more text decides. Not here: tokens (text_stream.h).
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace tenon::serve {

// The match that ends first wins; of several that end at the same byte, the longest. So what comes
// out depends on the text alone, not on where it was cut into parts.
class StopMatcher {
 public:
  // An empty stop string never matches.
  explicit StopMatcher(const std::vector<std::string>& stops);

  // The text that is certainly in front of every stop string, of this part and of what was held
  // back. After a match nothing more comes out.
  std::string push(std::string_view part);
  // What is still held back, where the text ends without a match. Call once at the end.
  std::string finish();
  // The stop string that was found; empty as long as there is none.
  const std::string& found() const { return found_; }

 private:
  struct Pattern {
    std::string text;
    std::vector<std::size_t> border;  // [i]: longest proper prefix that ends text[0 … i]
    std::size_t matched = 0;          // bytes of `text` that the text so far ends with
  };
  // Takes one byte. True when the whole pattern is matched.
  static bool advance(Pattern& pattern, char byte);

  std::vector<Pattern> patterns_;
  std::string held_, found_;
};

}  // namespace tenon::serve
