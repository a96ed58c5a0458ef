#include "tests/c/oracle.h"

#include <algorithm>
#include <cstdio>

#include "tenon/reference/boundary.h"
#include "tenon/reference/compare.h"
#include "tenon/reference/inputs.h"

namespace {

tenon::reference::BoundaryCase case_of(const oracle_case& shape) {
  tenon::reference::BoundaryCase found;
  found.rows = shape.rows;
  found.hidden = shape.hidden;
  found.team = shape.team;
  found.group = shape.group;
  found.layout = static_cast<tenon::ScaleLayout>(shape.layout);
  found.fresh_residual = shape.fresh_residual != 0;
  found.eps = shape.eps;
  found.offset = shape.offset;
  return found;
}

}  // namespace

void oracle_inputs(const oracle_case* shape, int rank, uint16_t* addend, uint16_t* residual,
                   uint16_t* weight) {
  const auto inputs = tenon::reference::make_inputs(case_of(*shape), shape->seed);
  std::ranges::copy(inputs.addends[static_cast<std::size_t>(rank)], addend);
  std::ranges::copy(inputs.residual, residual);
  std::ranges::transform(inputs.weight, weight,
                         [](std::uint32_t bits) { return static_cast<std::uint16_t>(bits); });
}

int oracle_judge(const oracle_case* shape, const uint16_t* residual, const uint16_t* rows,
                 const uint8_t* codes, const uint8_t* scales, uint64_t scale_bytes, char why[512]) {
  const auto as = case_of(*shape);
  const auto expected =
      tenon::reference::boundary(as, tenon::reference::make_inputs(as, shape->seed));
  const std::size_t elements =
      static_cast<std::size_t>(shape->rows) * static_cast<std::size_t>(shape->hidden);
  tenon::reference::BoundaryOutputs found;
  found.residual.assign(residual, residual + elements);
  found.norm.assign(rows, rows + elements);
  found.codes.assign(codes, codes + elements);
  found.scales.assign(scales, scales + scale_bytes);
  const std::string text = expected.scales.size() != scale_bytes
                               ? "the scales have another number of bytes"
                               : tenon::reference::difference(as, expected, found);
  std::snprintf(why, 512, "%s", text.c_str());
  return text.empty() ? 0 : 1;
}
