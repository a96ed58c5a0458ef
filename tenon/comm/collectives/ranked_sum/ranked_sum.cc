#include "tenon/comm/collectives/ranked_sum/ranked_sum.h"

#include <string>

#include "tenon/comm/device/channel_view.h"

namespace tenon::ranked_sum {

Status check(const Args& args) {
  const auto refuse = [](const std::string& why) {
    return Status::error(Code::kInvalidArgument, "ranked_sum: " + why);
  };
  if (args.dtype != DType::kBF16 && args.dtype != DType::kF16)
    return refuse("elements are " + std::string(name(args.dtype)) + "; accepted: bf16, f16");
  if (args.size < 1 || args.size > kMaxRanks)
    return refuse(std::to_string(args.size) + " ranks; accepted: 1 to " +
                  std::to_string(kMaxRanks));
  if (args.bytes % size_of(args.dtype) != 0)
    return refuse(std::to_string(args.bytes) + " bytes are no whole number of elements of " +
                  std::string(name(args.dtype)));
  return Status::ok();
}

Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced) {
  TENON_TRY(check(args));
  return choose(kOp, &args, where, forced);
}

Status run(const Plan& plan, const Args& args, Stream& stream) {
  TENON_TRY(check(args));
  return launch(plan, &args, nullptr, stream);
}

Traffic traffic(const Args& args) {
  const double bytes = static_cast<double>(args.bytes);
  Traffic cost;
  cost.flops = bytes / 2 * (args.size - 1);
  cost.memory_bytes = bytes * (args.size + 1);
  return cost;
}

}  // namespace tenon::ranked_sum

#define TENON_OP_NAME ranked_sum
#define TENON_OP_VARIANTS "tenon/comm/collectives/ranked_sum/built_variants.def"
#include "tenon/device/op_table.inc"
