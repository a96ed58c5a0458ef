// docs/boundary.md written a second time, in another way than tenon/reference, so that neither is
// believed alone: every fp32 operation in double and rounded once (exact by the width of double), a
// recursive tree, formats as bits and tables.
#pragma once

#include "tenon/reference/boundary.h"

namespace tenon::test {

reference::BoundaryOutputs second_oracle(const reference::BoundaryCase& shape,
                                         const reference::BoundaryInputs& inputs);

}  // namespace tenon::test
