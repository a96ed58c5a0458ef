// Token ids to the text of an answer, one by one: whole characters only, and never a part of a stop
// string. Not here: what ends a request other than a stop string (request_queue.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tenon/serve/stop_matcher.h"
#include "tenon/text/tokenizer.h"

namespace tenon::serve {

class TextStream {
 public:
  // `tokenizer` must outlive this object.
  TextStream(const Tokenizer& tokenizer, const std::vector<std::string>& stops, bool skip_special)
      : detokenizer_(tokenizer, skip_special), matcher_(stops) {}

  // The text that `id` makes certain: valid UTF-8, often empty.
  std::string push(std::int32_t id) { return matcher_.push(detokenizer_.push(id)); }
  // What was held back: an incomplete character as U+FFFD, the beginning of a stop string that did
  // not come. Empty after a match. Call once at the end.
  std::string finish() {
    std::string text = matcher_.push(detokenizer_.finish());
    return text += matcher_.finish();
  }
  // The stop string that was found, also by finish(); empty where there is none.
  const std::string& stopped_by() const { return matcher_.found(); }

 private:
  StreamingDetokenizer detokenizer_;
  StopMatcher matcher_;
};

}  // namespace tenon::serve
