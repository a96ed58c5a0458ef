// What a boundary gave beside what it must give, as a sentence.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tenon/reference/boundary.h"

namespace tenon::reference {

// The first difference, or nothing. NaNs of any bits are equal.
std::string difference(const BoundaryCase& shape, const BoundaryOutputs& expected,
                       const BoundaryOutputs& found);

// The same for one tensor of 16-bit rows; `what` names it.
std::string difference16(const char* what, const BoundaryCase& shape,
                         const std::vector<std::uint16_t>& expected,
                         const std::vector<std::uint16_t>& found);

}  // namespace tenon::reference
