// Lists of whole numbers as the command line spells them, and the shapes that a bench takes when
// nobody names any.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "apps/bench/boundary.h"

namespace tenon::apps {

struct Shape {
  int rows, hidden;
};

// "1,3,16..512": numbers, and ranges that stand for the powers of two in them. With `around`, the
// numbers beside each power of two as well. Sorted, each once. `option` names it in errors.
Result<std::vector<int>> parse_numbers(std::string_view option, std::string_view text,
                                       bool around = false);

// Fills what the caller left open, and says what cannot be.
Status complete(BoundaryBench& options);

// The mode that rows run in: graph or eager.
Mode mode_of(const BoundaryBench& options, int rows);

}  // namespace tenon::apps
