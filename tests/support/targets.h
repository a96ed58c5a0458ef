// Which targets a test loops over.
#pragma once

#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/device/runtime.h"

namespace tenon::test {

// Whether TEST_TARGETS, names between commas, leaves a target in. Where it is not set, all are.
inline bool is_wanted(Target target) {
  const char* const wanted = std::getenv("TEST_TARGETS");
  if (wanted == nullptr) return true;
  std::string_view left = wanted;
  while (true) {
    const std::size_t end = left.find(',');
    if (left.substr(0, end) == name(target)) return true;
    if (end == std::string_view::npos) return false;
    left.remove_prefix(end + 1);
  }
}

// Targets of this build whose memory the host can read and whose kernels run right here.
inline std::vector<Target> host_targets() {
  std::vector<Target> found;
  for (Target each : built_targets())
    if (is_host(each) && is_wanted(each)) found.push_back(each);
  return found;
}

// Targets of this build that have a device on this machine: the host ones, and GPUs where there
// are.
inline std::vector<Target> usable_targets() {
  std::vector<Target> found;
  for (Target each : built_targets()) {
    const auto held = backend(each);
    if (!held) continue;
    const auto count = (*held)->num_devices();
    if (count && *count > 0 && is_wanted(each)) found.push_back(each);
  }
  return found;
}

// Those of them that are GPUs.
inline std::vector<Target> device_targets() {
  std::vector<Target> found;
  for (Target each : usable_targets())
    if (!is_host(each)) found.push_back(each);
  return found;
}
inline constexpr const char* kNoDevice =
    "this machine has no device of a GPU target, or this build has no such target";

// What a rank that is a process runs on: CHILD_TARGET (cpu where it is not set), and of its devices
// the one that LOCAL_RANK says.
inline Result<Device> child_device() {
  const char* target = std::getenv("CHILD_TARGET");
  const char* place = std::getenv("LOCAL_RANK");
  return nth_device(target_named(target == nullptr ? "cpu" : target).value_or(Target::kCpu),
                    place == nullptr ? 0 : std::atoi(place));
}

// For SCOPED_TRACE and names of parameterised tests.
inline std::string to_string(Target target) { return std::string(name(target)); }

inline int wave_of(Target target) {
  switch (target) {
#define TENON_TARGET_ENTRY(enumerator, space, folder, wave) \
  case Target::k##enumerator:                               \
    return wave;
#include "tenon/core/targets.def"
#undef TENON_TARGET_ENTRY
  }
  return 1;
}

}  // namespace tenon::test
