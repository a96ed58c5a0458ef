#include "tenon/runtime/memory_plan.h"

#include <algorithm>
#include <cmath>

namespace tenon {

std::string memory_text(double bytes) {
  if (bytes >= 1e10) return std::to_string(std::llround(bytes / 1e9)) + " GB";
  return std::to_string(std::llround(bytes / 1e6)) + " MB";
}

std::int64_t MemoryPlan::without_caches() const {
  return model.weights + model.scratch + model.boundaries + steps;
}

std::int64_t MemoryPlan::total() const { return without_caches() + blocks + states + kept_states; }

std::int64_t MemoryPlan::left(double fraction) const {
  const auto most = static_cast<std::int64_t>(fraction * static_cast<double>(device));
  return std::max<std::int64_t>(most - without_caches(), 0);
}

std::vector<MemoryPlan::Part> MemoryPlan::parts() const {
  return {{"weights", model.weights},
          {"scratch", model.scratch},
          {"boundaries", model.boundaries},
          {"steps", steps},
          {"kv cache", blocks},
          {"states", states},
          {"kept states", kept_states}};
}

std::string MemoryPlan::text() const {
  const auto in_words = [](std::int64_t bytes) { return memory_text(static_cast<double>(bytes)); };
  std::string text = "memory of " + in_words(device) + ": ";
  for (const Part& each : parts())
    text += std::string(each.name) + " " + in_words(each.bytes) + ", ";
  return text + in_words(std::max<std::int64_t>(device - total(), 0)) + " are left";
}

}  // namespace tenon
