// Variants of ops and how one is chosen. Every op has the same five things: Args, check, plan, run,
// traffic. The walk over variants and the jump through the table are written once, here.
// A Plan is a value. A refusal is not an error: it is a sentence in the plan.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/comm/channel.h"
#include "tenon/comm/communicator.h"
#include "tenon/core/status.h"
#include "tenon/core/tensor.h"
#include "tenon/device/runtime.h"

namespace tenon {

// Every op as a number: one line per op in ops.def.
enum class Op : std::uint16_t {
#define TENON_OP(op) op,
#include "tenon/ops/ops.def"
#undef TENON_OP
};
std::string_view name(Op op);
inline constexpr int kNumOps = 0
#define TENON_OP(op) +1
#include "tenon/ops/ops.def"
#undef TENON_OP
    ;

// What a call costs at least: the bench divides by it.
struct Traffic {
  double flops = 0, memory_bytes = 0, link_bytes = 0;
};

// What a plan may depend on besides Args. All of it is agreed by the ranks or equal by
// construction.
struct PlanContext {
  Device device{};
  DeviceProperties properties{};
  int team_size = 1;
  bool peer_pointers = false;
  bool may_start_early = true;  // Communicator::may_start_early()
  // Of the channel that calls will use; 0: not known. A call that goes through it in several
  // generations has no more blocks than all find work in each of them.
  std::size_t mailbox_bytes = 0;
  // choose() looks at this variant alone: what is faster does not matter.
  bool forced = false;
};
// Fills the properties of `device`, for an op that does not communicate.
Result<PlanContext> plan_context(Device device);
// Of one rank of a team: its device's properties, of which max_cooperative_blocks is agreed by all.
// What else plans of a communicating op depend on, BoundaryChannel makes equal.
Result<PlanContext> plan_context(const Communicator& comm);

// The chosen variant and its launch shape. Pure data. A plan serves every call with as many rows
// and sequences as it was made for, or fewer: kernels take their bounds from Args, not from the
// grid.
struct Plan {
  Op op{};
  std::int16_t variant = -1;  // index into the target's table
  Target target = Target::kCpu;
  std::string_view variant_name;  // "one_shot"
  LaunchShape shape;
  // What it was made for, where run() of its op compares that with the call. Zeros elsewhere.
  std::int64_t rows = 0, hidden = 0;
  DType dtype{};
  int team_size = 0;
  std::vector<std::string> refusals;  // "one_shot: 4096 rows is over the limit of 512"
};

// One way of running an op on one target. Functions get the op's Args behind const void*.
struct Variant {
  std::string_view name;
  // Ok and fills `shape`, or the reason it does not apply (its code is ignored).
  Status (*supports)(const void* args, const PlanContext& where, LaunchShape* shape);
  // Launches only. `team` is null for ops that do not communicate.
  Status (*launch)(const LaunchShape& shape, const void* args, const ChannelView* team,
                   Stream& stream);
};

// Wraps typed functions of an op:
//   Status supports(const Args&, const PlanContext&, LaunchShape*);
//   Status launch(const LaunchShape&, const Args&, const ChannelView*, Stream&);
template <class Args, auto kSupports, auto kLaunch>
constexpr Variant variant(std::string_view name) {
  return {name,
          [](const void* args, const PlanContext& where, LaunchShape* shape) {
            return kSupports(*static_cast<const Args*>(args), where, shape);
          },
          [](const LaunchShape& shape, const void* args, const ChannelView* team, Stream& stream) {
            return kLaunch(shape, *static_cast<const Args*>(args), team, stream);
          }};
}

// The table that tenon/ops/<op>/<op>.cu defines for its target, in order of preference:
//   namespace tenon::TENON_TARGET::<op> { const VariantTable table = …; }
struct VariantTable {
  std::span<const Variant> variants;
  [[no_unique_address]] HostOnly host_only = {};
};

// Null when the target is not in this build.
const VariantTable* variants(Op op, Target target);

// The variant that TENON_FORCE_VARIANT names for this op, or nothing.
std::string_view forced_by_env(Op op);

// Walks the variants in order, takes the first that says yes and keeps each refusal. A variant
// named by `forced`, or else by TENON_FORCE_VARIANT=op:variant, is the only one tried: if it
// refuses, that is an error.
Result<Plan> choose(Op op, const void* args, const PlanContext& where,
                    std::string_view forced = {});

// Runs the plan's variant. Launches only.
Status launch(const Plan& plan, const void* args, const ChannelView* team, Stream& stream);

}  // namespace tenon
