#include "apps/table.h"

#include <algorithm>
#include <cstdio>

namespace tenon::apps {
namespace {

bool looks_numeric(std::string_view cell) {
  return !cell.empty() && cell.find_first_not_of("0123456789.,-+x%e") == std::string_view::npos;
}

// Columns on the screen: UTF-8 continuation bytes take none.
std::size_t width(std::string_view cell) {
  return static_cast<std::size_t>(
      std::count_if(cell.begin(), cell.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

}  // namespace

std::string Table::block(const std::vector<std::size_t>& columns,
                         const std::vector<std::size_t>& widths) const {
  std::string out;
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    std::string line;
    for (const std::size_t i : columns) {
      const std::string cell = i < rows_[r].size() ? rows_[r][i] : std::string();
      const std::string gap(widths[i] - width(cell), ' ');
      line += (line.empty() ? "" : "  ") + (r > 0 && looks_numeric(cell) ? gap + cell : cell + gap);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
    if (r > 0) continue;
    std::size_t total = 0;
    for (const std::size_t i : columns) total += widths[i] + 2;
    out += std::string(total < 2 ? 0 : total - 2, '-') + "\n";
  }
  return out;
}

std::string Table::text(std::size_t most_columns, std::size_t keys) const {
  std::vector<std::size_t> widths;
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width(row[i]));
  }
  std::string out;
  std::vector<std::size_t> columns;
  std::size_t taken = 0, begin = 0;
  for (std::size_t i = 0; i < widths.size(); ++i) {
    const std::size_t more = widths[i] + (columns.empty() ? 0 : 2);
    if (most_columns > 0 && taken + more > most_columns && columns.size() > begin) {
      out += block(columns, widths) + "\n";
      columns.resize(begin = std::min(keys, columns.size()));
      taken = 0;
      for (const std::size_t key : columns) taken += widths[key] + 2;
    }
    taken += widths[i] + (columns.empty() ? 0 : 2);
    columns.push_back(i);
    if (columns.size() <= keys) begin = columns.size();
  }
  return out + block(columns, widths);
}

std::string Table::csv() const {
  std::string out;
  for (const auto& row : rows_) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      const bool quote = row[i].find_first_of(",\"\n") != std::string::npos;
      std::string cell = row[i];
      for (std::size_t at = 0; quote && (at = cell.find('"', at)) != std::string::npos; at += 2)
        cell.insert(at, 1, '"');
      out += (i == 0 ? "" : ",") + (quote ? "\"" + cell + "\"" : cell);
    }
    out += "\n";
  }
  return out;
}

std::string fixed(double value, int decimals) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", decimals, value);
  return text;
}

}  // namespace tenon::apps
