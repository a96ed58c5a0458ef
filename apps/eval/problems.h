// Problems whose answers are numbers, how an answer is read, and what a score is worth.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tenon/core/status.h"

namespace tenon::apps {

struct Problem {
  std::string question, answer, final;  // answer: worked, with "#### N" at its end; may be empty
};

// One JSON object a line, with "question" and "final" or an "answer" that ends in "#### N". Of
// these the first `limit`; 0: all.
Result<std::vector<Problem>> read_problems(const std::string& path, int limit);

// The number after the last "####", without commas and blanks; empty when there is none.
std::string final_number(const std::string& text);

// The last number of a text in its shortest form: no commas between digits, no zeros that say
// nothing. Empty where there is none. "costs $1,250.50." gives "1250.5".
std::string last_number(std::string_view text);

// The 95 % interval of Wilson (1927) for the share of successes; {0, 1} where nothing was tried.
std::pair<double, double> wilson_interval(int successes, int tries);

}  // namespace tenon::apps
