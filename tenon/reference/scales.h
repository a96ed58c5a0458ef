// Where the scale of a group lies, by the layouts of docs/boundary.md. Padding is 0.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "tenon/reference/boundary.h"

namespace tenon::reference {

struct ScaleSink {
  const BoundaryCase& shape;
  std::vector<std::uint8_t> bytes;
  std::int64_t padded;

  explicit ScaleSink(const BoundaryCase& of) : shape(of), padded((of.rows + 3) / 4 * 4) {
    if (!of.want_fp8) return;
    const auto extents = scale_shape(of.layout, of.rows, of.hidden, of.group);
    bytes.assign(static_cast<std::size_t>(extents[0] * extents[1] * 4), 0);
  }
  void put(int row, int group, float scale) {
    const int groups = shape.hidden / shape.group;
    const std::int64_t at = shape.layout == ScaleLayout::kRow ? std::int64_t{row} * groups + group
                                                              : std::int64_t{group} * padded + row;
    std::memcpy(bytes.data() + at * 4, &scale, 4);
  }
  void put_exponent(int row, int group, unsigned biased) {
    const std::int64_t word = std::int64_t{group / 4} * padded + row;
    bytes[static_cast<std::size_t>(word * 4 + group % 4)] = static_cast<std::uint8_t>(biased);
  }
};

}  // namespace tenon::reference
