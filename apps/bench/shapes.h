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

// "1,3,16..500": numbers, and ranges, which stand for both their ends and the powers of two between
// these: 16, 32, 64, 128, 256 and 500. With `around`, the numbers beside each power of two as well.
// Sorted, each once. `option` names it in errors.
Result<std::vector<int>> parse_numbers(std::string_view option, std::string_view text,
                                       bool around = false);
// The same of how many sequences are in a step together.
Result<std::vector<int>> parse_sequences(std::string_view option, std::string_view text);

// Fills what the caller left open, and says what cannot be.
Status complete(BoundaryBench& options);

// The mode that rows run in: graph or eager.
Mode mode_of(const BoundaryBench& options, int rows);

}  // namespace tenon::apps
