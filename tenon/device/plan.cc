#include "tenon/device/plan.h"

#include <algorithm>
#include <optional>

#include "tenon/core/env.h"

namespace tenon {
namespace {

constexpr std::string_view kOpNames[] = {
#define TENON_OP(name, folder) #name,
#include "tenon/core/ops.def"
#undef TENON_OP
};

std::string_view op_of_knob() {
  const std::string_view knob = env().force_variant;
  return knob.substr(0, std::min(knob.find(':'), knob.size()));
}

// TENON_FORCE_VARIANT that names no op would have no effect at all.
Status check_knob() {
  const std::string_view wanted = op_of_knob();
  if (wanted.empty() || std::ranges::find(kOpNames, wanted) != std::end(kOpNames))
    return Status::ok();
  std::string names;
  for (const std::string_view each : kOpNames)
    names += (names.empty() ? "" : ", ") + std::string(each);
  return Status::error(
      Code::kInvalidArgument,
      "TENON_FORCE_VARIANT names the op \"" + std::string(wanted) + "\"; accepted are: " + names);
}

std::string list_names(std::span<const Variant> variants) {
  std::string text;
  for (const Variant& each : variants) text += (text.empty() ? "" : ", ") + std::string(each.name);
  return text;
}

}  // namespace

std::span<const Variant> variants(const Op& op, Target target) {
  const auto is_of_target = [&](const Variant& each) { return each.target == target; };
  const auto first = std::ranges::find_if(op.variants, is_of_target);
  const auto last = std::find_if_not(first, op.variants.end(), is_of_target);
  return {first, last};
}

bool has_variant(const Op& op, Target target, std::string_view name) {
  return std::ranges::any_of(variants(op, target),
                             [&](const Variant& each) { return each.name == name; });
}

std::string_view forced_by_env(const Op& op) {
  const std::string_view knob = env().force_variant;
  return op_of_knob() == op.name ? knob.substr(knob.find(':') + 1) : std::string_view();
}

Result<PlanContext> plan_context(Device device) {
  PlanContext where;
  where.device = device;
  TENON_ASSIGN(where.properties, properties(device));
  where.may_start_early = env().early;
  return where;
}

Result<Plan> choose(const Op& op, const void* args, const PlanContext& where,
                    std::string_view forced) {
  const std::span<const Variant> all = variants(op, where.device.target);
  const auto who = [&] {
    return std::string(op.name) + " on " + std::string(name(where.device.target));
  };
  if (all.empty())
    return Status::error(
        Code::kUnsupported,
        who() + ": the target is not part of this build, or the op has no variant for it");
  TENON_TRY(check_knob());
  if (forced.empty()) forced = forced_by_env(op);
  std::optional<PlanContext> alone;  // a copy, and copies allocate, only where one is forced
  if (!forced.empty()) alone.emplace(where).forced = true;
  const PlanContext& here = alone ? *alone : where;
  Plan plan;
  plan.op = &op;
  plan.target = where.device.target;
  bool named = false;
  for (const Variant& each : all) {
    if (!forced.empty() && each.name != forced) continue;
    named = true;
    Recipe recipe;
    const Status answer = each.code->supports(args, here, &recipe);
    if (!answer) {
      plan.refusals.push_back(std::string(each.name) + ": " + std::string(answer.message()));
      continue;
    }
    static_cast<Recipe&>(plan) = recipe;
    plan.code = each.code;
    plan.variant_name = each.name;
    plan.promise = each.promise;
    return plan;
  }
  if (!named)
    return Status::error(Code::kInvalidArgument, who() + ": no variant is called \"" +
                                                     std::string(forced) + "\"; there are " +
                                                     list_names(all));
  std::string reasons = who() + ": no variant applies";
  for (const std::string& each : plan.refusals) reasons += "; " + each;
  return Status::error(Code::kUnsupported, reasons);
}

std::string describe(const Promise& promise) {
  if (promise.bits == Bits::kReference) return "reference bits";
  return "own bits (" + std::string(promise.name) + ")";
}

std::string describe(const Plan& plan) {
  if (plan.op == nullptr) return "an empty plan";
  std::string text = std::string(plan.op->name) + " on " + std::string(name(plan.target)) + ": " +
                     std::string(plan.variant_name) + ", " + describe(plan.promise);
  for (const KernelLaunch& each : plan.launches) {
    text += "; " + std::string(each.kernel) + " " + std::to_string(each.shape.blocks) + " x " +
            std::to_string(each.shape.threads);
    if (each.shape.shared_bytes > 0)
      text += " with " + std::to_string(each.shape.shared_bytes) + " shared bytes";
    if (each.shape.cluster > 1) text += ", in clusters of " + std::to_string(each.shape.cluster);
    if (each.shape.cooperative) text += ", cooperative";
    if (each.shape.early) text += ", early";
  }
  text += plan.workspace_bytes == 0
              ? "; no workspace"
              : "; " + std::to_string(plan.workspace_bytes) + " bytes of workspace";
  for (const Setting& each : plan.settings)
    text += "; " + std::string(each.name) + " " + std::to_string(each.value);
  for (const std::string& each : plan.refusals) text += "; not " + each;
  return text;
}

}  // namespace tenon
