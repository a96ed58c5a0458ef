// Which targets a test loops over.
#pragma once

#include <string>
#include <vector>

#include "tenon/gpu/runtime.h"

namespace tenon::test {

// Targets of this build whose memory the host can read and whose kernels run right here.
inline std::vector<Target> host_targets() {
  std::vector<Target> found;
  for (Target each : built_targets())
    if (is_host(each)) found.push_back(each);
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
    if (count && *count > 0) found.push_back(each);
  }
  return found;
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
