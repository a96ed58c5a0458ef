// A row-parallel product of this example's own: what product.cu is compiled to for each target.
#pragma once

#include "tenon/core/fp8.h"
#include "tenon/device/runtime.h"

namespace own {

// addend[row, column] = the sum over this rank's `depth` inputs of x · weight, in fp32 with one
// rounding for each step, in order; rounded once to bf16.
struct ProductArgs {
  const tenon::bf16* x;       // [rows, depth]
  const tenon::bf16* weight;  // [hidden, depth]
  tenon::bf16* addend;        // [rows, hidden]
  int rows, depth, hidden;
};

// Launches only.
struct Product {
  tenon::Status (*run)(const ProductArgs&, bool may_start_early, tenon::Stream&);
};

// Of a target that the installed library was built for; null for others.
const Product* product_of(tenon::Target target);

}  // namespace own
