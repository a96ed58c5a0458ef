// Ops and plans: how one of an op's variants is chosen for a call. Every op has the same five
// things: Args, check, plan, run, traffic. The walk over variants and the launch of the chosen one
// are written once, here, for the ops of tenon/ops and the collectives of tenon/comm.
// A Plan is a value. A refusal is not an error: it is a sentence in the plan.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/core/status.h"
#include "tenon/core/tensor.h"
#include "tenon/device/runtime.h"
#include "tenon/device/variant.h"

namespace tenon {

// What a call costs at least: the bench divides by it.
struct Traffic {
  double flops = 0, memory_bytes = 0, link_bytes = 0;
};

// One way of running an op on one target: a line of its variants.def.
struct Variant {
  std::string_view name;
  Target target = Target::kCpu;
  Promise promise;
  const VariantCode* code = nullptr;
};

// An op: its name and its variants, those of a target beside each other in order of preference.
// Each op's .cc defines one, called kOp (device/op_table.inc).
struct Op {
  std::string_view name;
  std::span<const Variant> variants;
};

// Empty when the target is not in this build, or has no variant of this op.
std::span<const Variant> variants(const Op& op, Target target);
bool has_variant(const Op& op, Target target, std::string_view name);

// The chosen variant and all that it will do. Pure data. A plan serves every call with as many rows
// and sequences as it was made for, or fewer: kernels take their bounds from Args, not from the
// grid.
struct Plan : Recipe {
  const Op* op = nullptr;  // null: the plan is empty
  const VariantCode* code = nullptr;
  Target target = Target::kCpu;
  std::string_view variant_name;  // "one_shot"
  Promise promise;
  // What it was made for, where run() of its op compares that with the call. Zeros elsewhere.
  std::int64_t rows = 0, hidden = 0;
  DType dtype{};
  int team_size = 0;
  std::vector<std::string> refusals;  // "one_shot: 4096 rows is over the limit of 512"
};

// Fills the properties of `device`, for an op that does not communicate.
Result<PlanContext> plan_context(Device device);

// The variant that TENON_FORCE_VARIANT names for this op, or nothing.
std::string_view forced_by_env(const Op& op);

// Walks the variants in order, takes the first that says yes and keeps each refusal. A variant
// named by `forced`, or else by TENON_FORCE_VARIANT=op:variant, is the only one tried: if it
// refuses, that is an error. Allocates nothing where none is forced and the first says yes.
Result<Plan> choose(const Op& op, const void* args, const PlanContext& where,
                    std::string_view forced = {});

// Runs the plan's variant. Launches only.
inline Status launch(const Plan& plan, const void* args, const ChannelView* team, Stream& stream) {
  TENON_CHECK(plan.code != nullptr);
  return plan.code->launch(plan, args, team, stream);
}

// "reference bits" or "own bits (host_fp32)".
std::string describe(const Promise& promise);

// "rope on cuda: head, reference bits; head_kernel 96 x 64; no workspace", then settings and
// refusals where there are any. One line.
std::string describe(const Plan& plan);

}  // namespace tenon
