// PartialRows: one rank's addend. It has no meaning until a boundary has summed it over the ranks,
// and its own type so that it cannot be passed where rows are wanted.
#pragma once

#include "tenon/core/tensor.h"

namespace tenon {

struct PartialRows {
  TensorView addend;  // [rows, hidden] of the element type: ordinary device memory, never exported
};

}  // namespace tenon
