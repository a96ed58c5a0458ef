#include "apps/eval/problems.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "apps/input_text.h"
#include "tenon/core/json.h"

namespace tenon::apps {
namespace {

Result<Problem> parse_problem(const std::string& line, const std::string& where) {
  const auto parsed = parse_json(line);
  const auto bad = [&](const std::string& why) {
    return Status::error(Code::kIo,
                         where + " " + why +
                             "; accepted is an object with \"question\" and \"final\" or "
                             "an \"answer\" that ends in \"#### N\"");
  };
  if (!parsed) return bad(std::string(parsed.status().message()));
  const nlohmann::json& json = *parsed;
  if (!json.is_object()) return bad("is no JSON object");
  if (!json.contains("question") || !json["question"].is_string()) return bad("has no question");
  Problem problem{json["question"], {}, {}};
  if (json.contains("answer") && json["answer"].is_string()) problem.answer = json["answer"];
  if (json.contains("final") && json["final"].is_string()) problem.final = json["final"];
  if (json.contains("final") && json["final"].is_number_integer())
    problem.final = std::to_string(json["final"].get<std::int64_t>());
  if (problem.final.empty()) problem.final = final_number(problem.answer);
  if (problem.final.empty()) return bad("has no final number");
  return problem;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool is_digit_at(std::string_view text, std::size_t at) {
  return at < text.size() && is_digit(text[at]);
}

}  // namespace

std::string final_number(const std::string& text) {
  const auto mark = text.rfind("####");
  if (mark == std::string::npos) return {};
  std::string number;
  for (std::size_t i = mark + 4; i < text.size(); ++i) {
    const char each = text[i];
    if (each == ',' || (each == ' ' && number.empty())) continue;
    if (!is_digit(each) && each != '-' && each != '.') break;
    number += each;
  }
  while (!number.empty() && number.back() == '.') number.pop_back();
  return number;
}

std::string last_number(std::string_view text) {
  std::string last;
  for (std::size_t i = 0; i < text.size();) {
    if (!is_digit(text[i])) {
      ++i;
      continue;
    }
    // A minus behind a number or a word takes something away.
    const bool negative = i > 0 && text[i - 1] == '-' &&
                          (i == 1 || (!is_digit(text[i - 2]) &&
                                      std::isalpha(static_cast<unsigned char>(text[i - 2])) == 0));
    std::string digits;
    bool point = false;
    for (; i < text.size(); ++i) {
      const char each = text[i];
      if (each == ',' && is_digit_at(text, i + 1)) continue;
      if (each == '.' && !point && is_digit_at(text, i + 1)) {
        point = true;
      } else if (!is_digit(each)) {
        break;
      }
      digits += each;
    }
    if (point) {
      while (digits.back() == '0') digits.pop_back();
      if (digits.back() == '.') digits.pop_back();
    }
    const std::size_t first = digits.find_first_not_of('0');
    if (first == std::string::npos) {
      last = "0";
      continue;
    }
    digits.erase(0, digits[first] == '.' ? first - 1 : first);
    last = (negative ? "-" : "") + digits;
  }
  return last;
}

std::pair<double, double> wilson_interval(int successes, int tries) {
  if (tries == 0) return {0, 1};
  constexpr double kZ = 1.959963984540054;  // of 95 %
  const double n = tries, share = successes / n;
  const double middle = share + kZ * kZ / (2 * n);
  const double half = kZ * std::sqrt(share * (1 - share) / n + kZ * kZ / (4 * n * n));
  const double scale = 1 + kZ * kZ / n;
  return {std::max(0.0, (middle - half) / scale), std::min(1.0, (middle + half) / scale)};
}

Result<std::vector<Problem>> read_problems(const std::string& path, int limit) {
  TENON_ASSIGN(const std::string text, read_all(path, "the problems"));
  std::istringstream file(text);
  std::vector<Problem> problems;
  int number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (limit > 0 && static_cast<int>(problems.size()) == limit) break;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    TENON_ASSIGN(auto problem,
                 parse_problem(line, "line " + std::to_string(number) + " of \"" + path + "\""));
    problems.push_back(std::move(problem));
  }
  if (problems.empty()) return Status::error(Code::kIo, "\"" + path + "\" has no problems");
  return problems;
}

}  // namespace tenon::apps
