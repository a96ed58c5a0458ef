// What a kernel file (.cu) needs of the op contract: what a variant is asked, and how it answers
// and launches. The choice among variants is made in device/plan.h.
//
// A .cu defines, for its target, the code of each variant that variants.def lists for it:
//   Status supports(const Args&, const PlanContext&, Recipe*);
//   Status launch(const Recipe&, const Args&, const ChannelView*, Stream&);
//   TENON_DEFINE_VARIANT(tiled, Args, supports, launch);
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "tenon/core/fixed_list.h"
#include "tenon/core/status.h"
#include "tenon/device/runtime.h"

namespace tenon {

struct ChannelView;

// What a caller may rely on. Either way a row's result depends on nothing but that row's inputs.
enum class Bits : std::uint8_t {
  kReference,  // those of the definition: tenon/reference for the boundary, the op's header else
  kOwn,        // other bits than that, but always the same ones
};
struct Promise {
  Bits bits = Bits::kOwn;
  std::string_view name;  // of own bits: variants with the same name give the same ones
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
  // The variant that the caller knows to be fastest, and how it knows, for the refusals of others:
  // "was measured to be faster (2026-11-26)". Empty: the op decides.
  std::string_view preferred;
  std::string why_preferred;
};

// One kernel of a plan.
struct KernelLaunch {
  std::string_view kernel;  // its name in the source: "two_shot_kernel"
  LaunchShape shape;
};

// A choice that a variant made for a call and that its name does not say: {"ranks", 2}.
struct Setting {
  std::string_view name;
  std::int64_t value = 0;
};

// How a variant runs a call: its answer to supports(), which launch() follows.
struct Recipe {
  FixedList<KernelLaunch, 4> launches;  // in order
  FixedList<Setting, 6> settings;
  std::size_t workspace_bytes = 0;  // of device memory, besides what Args hold

  void launch(std::string_view kernel, const LaunchShape& shape) {
    launches.push_back({kernel, shape});
  }
  void set(std::string_view name, std::int64_t value) { settings.push_back({name, value}); }
  // Of a setting that supports() has made.
  int setting(std::string_view name) const {
    for (const Setting& each : settings)
      if (each.name == name) return static_cast<int>(each.value);
    TENON_CHECK(false);
    return 0;
  }
};

// The code of one variant for one target. The functions get the op's Args behind const void*.
struct VariantCode {
  // Ok and fills the recipe, or the reason it does not apply (its code is ignored).
  Status (*supports)(const void* args, const PlanContext& where, Recipe* recipe);
  // Launches only. `team` is null for ops that do not communicate.
  Status (*launch)(const Recipe& recipe, const void* args, const ChannelView* team, Stream& stream);
  [[no_unique_address]] HostOnly host_only;
};

// Wraps typed functions of an op.
template <class Args, auto kSupports, auto kLaunch>
struct VariantOf {
  static Status supports(const void* args, const PlanContext& where, Recipe* recipe) {
    return kSupports(*static_cast<const Args*>(args), where, recipe);
  }
  static Status launch(const Recipe& recipe, const void* args, const ChannelView* team,
                       Stream& stream) {
    return kLaunch(recipe, *static_cast<const Args*>(args), team, stream);
  }
};

// In the op's namespace for a target: the code of variant `name`. A const object of a namespace is
// invisible to other files without the first line.
#define TENON_DEFINE_VARIANT(name, args, supports_call, launch_call)   \
  extern const ::tenon::VariantCode variant_##name;                    \
  const ::tenon::VariantCode variant_##name = {                        \
      &::tenon::VariantOf<args, supports_call, launch_call>::supports, \
      &::tenon::VariantOf<args, supports_call, launch_call>::launch, ::tenon::HostOnly{}}

}  // namespace tenon
