// What the collectives ask of tensors before they launch anything.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string_view>

#include "tenon/core/status.h"
#include "tenon/core/tensor.h"
#include "tenon/device/runtime.h"

namespace tenon::collectives {

// Kernels and copies of `stream` reach both. `out` may be `in` itself, where that is said to be
// allowed, but not lie across it.
Status check_place(std::string_view what, const TensorView& in, const TensorView& out,
                   bool in_place, Device device, const Stream& stream);

// What of a mailbox's bytes `chunk` takes for a rank, and how many peers share them.
inline std::size_t whole_vectors(std::size_t bytes) {
  return std::max<std::size_t>((bytes + 15) / 16, 1) * 16;
}
inline std::size_t num_peers(int team_size) {
  return static_cast<std::size_t>(std::max(team_size - 1, 1));
}

}  // namespace tenon::collectives
