#include "tenon/ops/registry.h"

#include <algorithm>
#include <array>

#include "tenon/core/env.h"

namespace tenon {
namespace {

constexpr std::array<std::string_view, kNumOps> kOpNames{
#define TENON_OP(op) #op,
#include "tenon/ops/ops.def"
#undef TENON_OP
};

std::string_view op_of_knob() {
  const std::string_view knob = env().force_variant;
  return knob.substr(0, std::min(knob.find(':'), knob.size()));
}

// TENON_FORCE_VARIANT that names no op would have no effect at all.
Status check_knob() {
  const std::string_view wanted = op_of_knob();
  if (wanted.empty() || std::find(kOpNames.begin(), kOpNames.end(), wanted) != kOpNames.end())
    return Status::ok();
  std::string names;
  for (const std::string_view each : kOpNames)
    names += (names.empty() ? "" : ", ") + std::string(each);
  return Status::error(
      Code::kInvalidArgument,
      "TENON_FORCE_VARIANT names the op \"" + std::string(wanted) + "\"; accepted are: " + names);
}

std::string list_names(const VariantTable& table) {
  std::string text;
  for (const Variant& each : table.variants)
    text += (text.empty() ? "" : ", ") + std::string(each.name);
  return text;
}

}  // namespace

std::string_view name(Op op) { return kOpNames[static_cast<std::size_t>(op)]; }

std::string_view forced_by_env(Op op) {
  const std::string_view knob = env().force_variant;
  return op_of_knob() == name(op) ? knob.substr(knob.find(':') + 1) : std::string_view();
}

Result<PlanContext> plan_context(Device device) {
  PlanContext where;
  where.device = device;
  TENON_ASSIGN(where.properties, properties(device));
  where.may_start_early = env().early;
  return where;
}

Result<PlanContext> plan_context(const Communicator& comm) {
  TENON_ASSIGN(PlanContext where, plan_context(comm.device()));
  where.team_size = comm.size();
  where.peer_pointers = comm.can().peer_pointers;
  where.properties.max_cooperative_blocks = comm.max_blocks();
  where.may_start_early = comm.may_start_early();
  return where;
}

Result<Plan> choose(Op op, const void* args, const PlanContext& where, std::string_view forced) {
  const VariantTable* table = variants(op, where.device.target);
  const std::string who = std::string(name(op)) + " on " + std::string(name(where.device.target));
  if (table == nullptr)
    return Status::error(Code::kUnsupported, who + ": the target is not part of this build");
  TENON_TRY(check_knob());
  if (forced.empty()) forced = forced_by_env(op);
  PlanContext here = where;
  here.forced = !forced.empty();
  Plan plan;
  plan.op = op;
  plan.target = where.device.target;
  bool named = false;
  for (std::size_t i = 0; i < table->variants.size(); ++i) {
    const Variant& each = table->variants[i];
    if (!forced.empty() && each.name != forced) continue;
    named = true;
    LaunchShape shape;
    const Status answer = each.supports(args, here, &shape);
    if (!answer) {
      plan.refusals.push_back(std::string(each.name) + ": " + std::string(answer.message()));
      continue;
    }
    plan.variant = static_cast<std::int16_t>(i);
    plan.variant_name = each.name;
    plan.shape = shape;
    return plan;
  }
  if (!named)
    return Status::error(Code::kInvalidArgument, who + ": no variant is called \"" +
                                                     std::string(forced) + "\"; there are " +
                                                     list_names(*table));
  std::string reasons = who + ": no variant applies";
  for (const std::string& each : plan.refusals) reasons += "; " + each;
  return Status::error(Code::kUnsupported, reasons);
}

Status launch(const Plan& plan, const void* args, const ChannelView* team, Stream& stream) {
  const VariantTable* table = variants(plan.op, plan.target);
  TENON_CHECK(table != nullptr && plan.variant >= 0);
  return table->variants[static_cast<std::size_t>(plan.variant)].launch(plan.shape, args, team,
                                                                        stream);
}

}  // namespace tenon
