#include "tenon/runtime/graph_cache.h"

#include <string>

#include "tenon/core/env.h"

namespace tenon {

bool GraphCache::begin(Stream& stream) {
  const Status begun = Graph::begin(stream);
  if (!begun) give_up(begun);
  return static_cast<bool>(begun);
}

void GraphCache::end(Stream& stream, const Status& enqueued, Entry& entry) {
  auto ended = Graph::end(stream);
  if (!enqueued) return;  // the step fails for a reason of its own
  if (ended) {
    entry.graph = *std::move(ended);
  } else {
    give_up(ended.status());
  }
}

void GraphCache::give_up(const Status& why) {
  enabled_ = false;
  log(LogLevel::kWarning, "decode steps are not recorded: " + std::string(why.message()));
}

}  // namespace tenon
