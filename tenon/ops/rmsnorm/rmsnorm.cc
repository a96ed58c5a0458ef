#include "tenon/ops/rmsnorm/rmsnorm.h"

#include "tenon/ops/common/normed_rows.h"

namespace tenon::rmsnorm {

Status check(const Args& args) {
  const Device device = args.y.device;
  const DType dtype = args.y.dtype;
  Dims dims;
  TENON_TRY(match("y", args.y, {DType::kBF16, DType::kF16}, {"rows", "hidden"}, dims), "rmsnorm");
  TENON_TRY(check_wide_rows("y", args.y, device), "rmsnorm");
  TENON_TRY(match("residual", args.residual, {dtype}, {"rows", "hidden"}, dims), "rmsnorm");
  TENON_TRY(check_wide_rows("residual", args.residual, device), "rmsnorm");
  TENON_TRY(match("weight", args.weight, {dtype, DType::kF32}, {"hidden"}, dims), "rmsnorm");
  TENON_TRY(check_wide_rows("weight", args.weight, device), "rmsnorm");
  TENON_TRY(check_normed_rows(args.out, dtype, device, dims), "rmsnorm");
  return check_extents(dims, kMaxNormedRows, kMaxNormedHidden).with("rmsnorm");
}

Result<Plan> plan(const Args& args, const Situation& where, std::string_view forced) {
  TENON_TRY(check(args));
  return choose(Op::rmsnorm, &args, where, forced);
}

Status run(const Plan& plan, const Args& args, Stream& stream) {
  return launch(plan, &args, nullptr, stream);
}

Traffic traffic(const Args& args) {
  Traffic cost;
  const double elements = static_cast<double>(args.y.size());
  cost.flops = 10 * elements;
  cost.memory_bytes = elements * (args.fresh_residual ? 4 : 6) +
                      static_cast<double>(args.weight.bytes()) + bytes_of(args.out);
  return cost;
}

}  // namespace tenon::rmsnorm
