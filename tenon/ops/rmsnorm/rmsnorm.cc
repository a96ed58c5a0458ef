#include "tenon/ops/rmsnorm/rmsnorm.h"

#include "tenon/ops/common/normed_rows.h"

namespace tenon::rmsnorm {

static NormTensors tensors_of(const Args& args) {
  return {"y", args.y, args.residual, args.weight, args.out};
}

Status check(const Args& args) { return check_norm(tensors_of(args)).with("rmsnorm"); }

Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced) {
  TENON_TRY(check(args));
  TENON_ASSIGN(Plan made, choose(kOp, &args, where, forced));
  made.rows = args.y.shape[0];
  made.hidden = args.y.shape[1];
  made.dtype = args.y.dtype;
  made.team_size = 1;
  return made;
}

Status run(const Plan& plan, const Args& args, Stream& stream) {
  TENON_TRY(check(args));
  TENON_TRY(check_apart(tensors_of(args)), "rmsnorm");
  TENON_TRY(check_plan(plan, kOp, args.y, 1, stream), "rmsnorm");
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

#define TENON_OP_NAME rmsnorm
#define TENON_OP_VARIANTS "tenon/ops/rmsnorm/built_variants.def"
#include "tenon/device/op_table.inc"
