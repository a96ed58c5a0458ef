#include "tests/support/fused_run.h"

#include <algorithm>

#include "tenon/comm/plan_context.h"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/mailbox_layout.h"
#include "tenon/reference/compare.h"
#include "tests/support/targets.h"

namespace tenon::test {

namespace fused = fused_allreduce_rmsnorm_quant;

fused::Args fused_args(const FusedCase& call, const BoundaryTensors& tensors) {
  fused::Args args;
  args.partial.addend = tensors.addend;
  args.residual = tensors.residual;
  args.weight = tensors.weight;
  args.eps = call.shape.eps;
  args.offset = call.shape.offset;
  args.fresh_residual = call.shape.fresh_residual;
  args.spread_residual = call.spread_residual;
  args.out = tensors.out;
  return args;
}

std::vector<std::string_view> variants_of(const reference::BoundaryCase& shape, Target target,
                                          int max_blocks) {
  const int wave = test::wave_of(target), vectors = shape.hidden / 8;
  const int most_threads = target == Target::kCuda ? 1024 : 512;
  const bool fills_waves =
      wave == 1 || (vectors % wave == 0 && vectors >= 64 && vectors <= most_threads);
  if (shape.dtype != DType::kBF16 || !fills_waves) return {"one_shot", "two_shot"};
  std::vector<std::string_view> variants{"one_shot", "one_shot_packed", "two_shot",
                                         "two_shot_packed"};
  const bool splits = has_clusters(target) && fused::split_of(shape.hidden, std::max(shape.rows, 1),
                                                              max_blocks, is_host(target)) > 0;
  if (splits && shape.team > 1) variants.emplace_back("one_shot_split");
  return variants;
}

bool has_clusters(Target target) { return has_variant(fused::kOp, target, "one_shot_split"); }

Result<Plan> plan_of(const fused::Args& args, const Communicator& comm, std::string_view variant) {
  TENON_ASSIGN(const PlanContext where, plan_context(comm));
  return fused::plan(args, where, variant);
}

std::string run_fused(const FusedCase& call, const BoundaryTensors& tensors,
                      const reference::BoundaryOutputs& expected, std::string_view variant,
                      Launch how, const Communicator& comm, const ChannelView& team,
                      Stream& stream) {
  const fused::Args args = fused_args(call, tensors);
  if (Status checked = fused::check(args); !checked) return checked.to_string();
  auto plan = plan_of(args, comm, variant);
  if (!plan) return plan.status().to_string();
  if (plan->variant_name != variant) return "planned " + std::string(plan->variant_name);
  const auto launch = [&]() -> Status {
    if (how == Launch::kEager) return fused::run(*plan, args, team, stream);
    TENON_TRY(Graph::begin(stream));
    TENON_TRY(fused::run(*plan, args, team, stream));
    TENON_ASSIGN(Graph graph, Graph::end(stream));
    TENON_TRY(graph.replay(stream));
    return stream.synchronize();  // the graph ends here
  };
  if (Status ran = launch(); !ran) return ran.to_string();
  if (Status done = stream.synchronize(); !done) return done.to_string();
  return compare_fused(call, tensors, expected, variant, team.rank, stream);
}

std::string compare_fused(const FusedCase& call, const BoundaryTensors& tensors,
                          const reference::BoundaryOutputs& expected, std::string_view variant,
                          int rank, Stream& stream) {
  std::string damage;
  reference::BoundaryOutputs found = tensors.read(stream, damage);
  if (!damage.empty()) return damage;
  const reference::BoundaryCase& shape = call.shape;
  for (int row = 0; row < shape.rows && !call.spread_residual; ++row) {
    const int owner = fused::residual_owner(variant, row, shape.rows, shape.team);
    if (owner < 0 || owner == rank) continue;
    const long begin = static_cast<long>(row) * shape.hidden;
    std::copy_n(expected.residual.begin() + begin, shape.hidden, found.residual.begin() + begin);
  }
  return difference(shape, expected, found);
}

}  // namespace tenon::test
