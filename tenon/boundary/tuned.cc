#include "tenon/boundary/tuned.h"

namespace tenon {
namespace {

constexpr TunedEntry kEntries[] = {
#define TENON_TUNED(device, team_size, up_to_bytes, choice, date, other_device) \
  {device, team_size, up_to_bytes, choice, date, other_device},
#include "tenon/boundary/tuned.def"
#undef TENON_TUNED
};

}  // namespace

TunedEntry fastest(std::string_view device, int team_size, std::int64_t bytes) {
  for (const TunedEntry& each : kEntries)
    if (each.device == device && each.team_size == team_size && bytes <= each.up_to_bytes)
      return each;
  return {};
}

std::string claim(const TunedEntry& tuned) {
  if (tuned.choice.empty()) return "is taken to be faster";
  const std::string date(tuned.date);
  if (tuned.other_device.empty()) return "was measured to be faster (" + date + ")";
  return "is taken to be faster, as it was measured to be on " + std::string(tuned.other_device) +
         " (" + date + ")";
}

void prefer_measured(PlanContext& where, std::int64_t rows, std::int64_t hidden) {
  const TunedEntry tuned = fastest(where.properties.name, where.team_size, rows * hidden * 2);
  where.preferred = tuned.choice;
  where.why_preferred = tuned.choice.empty() ? std::string() : claim(tuned);
}

}  // namespace tenon
