#include "tenon/ops/fused_allreduce_rmsnorm_quant/tuned.h"

namespace tenon::fused_allreduce_rmsnorm_quant {
namespace {

struct Line {
  std::string_view device;
  int team_size;
  std::int64_t up_to_bytes;
  std::string_view choice;
};

constexpr Line kLines[] = {
#define TENON_TUNED(device, team_size, up_to_bytes, choice) \
  {device, team_size, up_to_bytes, choice},
#include "tenon/ops/fused_allreduce_rmsnorm_quant/tuned.def"
#undef TENON_TUNED
};

}  // namespace

std::string_view fastest(std::string_view device, int team_size, std::int64_t bytes) {
  for (const Line& each : kLines)
    if (each.device == device && each.team_size == team_size && bytes <= each.up_to_bytes)
      return each.choice;
  return {};
}

}  // namespace tenon::fused_allreduce_rmsnorm_quant
