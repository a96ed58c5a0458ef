// Tables for people: columns as wide as their widest cell, numbers to the right.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace tenon::apps {

class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  // With a rule under the header and a newline at the end. A table that is wider than
  // `most_columns` (0: any width will do) becomes several, one below the other, each of which
  // begins with the first `keys` columns.
  std::string text(std::size_t most_columns = 0, std::size_t keys = 0) const;
  std::string csv() const;  // the same cells, quoted where needed

 private:
  std::string block(const std::vector<std::size_t>& columns,
                    const std::vector<std::size_t>& widths) const;

  std::vector<std::vector<std::string>> rows_;
};

// 12.345 with the given number of decimals.
std::string fixed(double value, int decimals);

}  // namespace tenon::apps
