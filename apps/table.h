// Tables for people: columns as wide as their widest cell, numbers to the right.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tenon/core/status.h"

namespace tenon::apps {

class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string text() const;  // with a rule under the header and a newline at the end
  std::string csv() const;   // the same cells, quoted where needed

 private:
  std::vector<std::vector<std::string>> rows_;
};

// 12.345 with the given number of decimals.
std::string fixed(double value, int decimals);

// Writes the whole text to a file, or says why not.
Status write_file(const std::string& path, std::string_view text);

}  // namespace tenon::apps
