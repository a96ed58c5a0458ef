#include "tenon/ops/fused_allreduce_rmsnorm_quant/tuned.h"

namespace tenon::fused_allreduce_rmsnorm_quant {
namespace {

constexpr Tuned kEntries[] = {
#define TENON_TUNED(device, team_size, up_to_bytes, choice, date, other_device) \
  {device, team_size, up_to_bytes, choice, date, other_device},
#include "tenon/ops/fused_allreduce_rmsnorm_quant/tuned.def"
#undef TENON_TUNED
};

}  // namespace

Tuned fastest(std::string_view device, int team_size, std::int64_t bytes) {
  for (const Tuned& each : kEntries)
    if (each.device == device && each.team_size == team_size && bytes <= each.up_to_bytes)
      return each;
  return {};
}

std::string claim(const Tuned& tuned) {
  if (tuned.choice.empty()) return "is taken to be faster";
  const std::string date(tuned.date);
  if (tuned.other_device.empty()) return "was measured to be faster (" + date + ")";
  return "is taken to be faster, as it was measured to be on " + std::string(tuned.other_device) +
         " (" + date + ")";
}

}  // namespace tenon::fused_allreduce_rmsnorm_quant
