#include "tenon/boundary/tuned_json.h"

#include <algorithm>
#include <span>

#include "tenon/boundary/plain_json.h"
#include "tenon/comm/device/channel_view.h"

namespace tenon {
namespace {

using Json = PlainJson;
using Kind = PlainJson::Kind;

constexpr std::string_view kWhole = "whole";

Status refuse(const std::string& where, const std::string& why) {
  return Status::error(Code::kInvalidArgument, where + " " + why);
}

std::string list_of(std::span<const std::string_view> words) {
  std::string list;
  for (const std::string_view each : words) list += (list.empty() ? "" : ", ") + std::string(each);
  return list;
}

// An object that has these keys and no others; those behind `required` may be missing.
Status check_keys(const Json& object, std::span<const std::string_view> keys, std::size_t required,
                  const std::string& where) {
  const std::string accepted = list_of(keys);
  if (object.kind != Kind::kObject)
    return refuse(where, "is no object; accepted: one with " + accepted);
  for (const std::string& key : object.keys)
    if (std::find(keys.begin(), keys.end(), key) == keys.end())
      return refuse(where, "has \"" + key + "\"; accepted: " + accepted);
  for (std::size_t i = 0; i < required; ++i)
    if (object.find(keys[i]) == nullptr)
      return refuse(where, "has no \"" + std::string(keys[i]) + "\"");
  return Status::ok();
}

Result<std::string> read_text(const Json& object, const char* key, const std::string& where) {
  const Json& value = *object.find(key);
  if (value.kind != Kind::kText || value.text.empty())
    return refuse(where, "has \"" + std::string(key) + "\": " + value.describe() +
                             "; accepted: a text that is not empty");
  return value.text;
}

Result<std::int64_t> read_number(const Json& object, const char* key, std::int64_t low,
                                 std::int64_t high, const std::string& where) {
  const Json& value = *object.find(key);
  if (value.kind == Kind::kNumber && value.number >= low && value.number <= high)
    return value.number;
  return refuse(where, "has \"" + std::string(key) + "\": " + value.describe() +
                           "; accepted: " + std::to_string(low) + " to " + std::to_string(high));
}

Result<TunedLine> read_line(const Json& line, const std::string& where) {
  static constexpr std::string_view kKeys[] = {"choice", "up_to_rows"};
  TENON_TRY(check_keys(line, kKeys, 1, where));
  TunedLine read;
  TENON_ASSIGN(read.choice, read_text(line, "choice", where));
  if (std::ranges::find(kBoundaryChoices, read.choice) == std::end(kBoundaryChoices)) {
    return refuse(where,
                  "has the choice \"" + read.choice + "\"; accepted: " + list_of(kBoundaryChoices));
  }
  if (line.find("up_to_rows") != nullptr) {
    TENON_ASSIGN(read.up_to_rows, read_number(line, "up_to_rows", 1, TunedLine::kNoEnd - 1, where));
  }
  return read;
}

Result<TunedTable> read_table(const Json& table, const std::string& where) {
  static constexpr std::string_view kKeys[] = {"device", "ranks", "hidden",   "outputs",
                                               "date",   "lines", "link_gbs", "residual"};
  TENON_TRY(check_keys(table, kKeys, 6, where));
  TunedTable read;
  TENON_ASSIGN(read.device, read_text(table, "device", where));
  TENON_ASSIGN(read.outputs, read_text(table, "outputs", where));
  TENON_ASSIGN(read.date, read_text(table, "date", where));
  if (std::ranges::find(kBoundaryOutputs, read.outputs) == std::end(kBoundaryOutputs))
    return refuse(
        where, "has the outputs \"" + read.outputs + "\"; accepted: " + list_of(kBoundaryOutputs));
  TENON_ASSIGN(const std::int64_t ranks, read_number(table, "ranks", 2, kMaxRanks, where));
  TENON_ASSIGN(const std::int64_t hidden, read_number(table, "hidden", 1, 1 << 20, where));
  read.ranks = static_cast<int>(ranks);
  read.hidden = static_cast<int>(hidden);
  if (table.find("link_gbs") != nullptr) {
    TENON_ASSIGN(const std::int64_t gbs, read_number(table, "link_gbs", 0, 1'000'000, where));
    read.link_gbs = static_cast<int>(gbs);
  }
  if (table.find("residual") != nullptr) {
    TENON_ASSIGN(const std::string residual, read_text(table, "residual", where));
    if (residual != kWhole)
      return refuse(where, "has the residual \"" + residual +
                               "\"; accepted: whole, or none where it is sharded");
    read.whole_residual = true;
  }
  const Json& lines = *table.find("lines");
  if (lines.kind != Kind::kList || lines.items.empty())
    return refuse(where, "has no lines; accepted: a list of one or more");
  for (std::size_t i = 0; i < lines.items.size(); ++i) {
    const std::string line = where + ", line " + std::to_string(i + 1);
    TENON_ASSIGN(TunedLine next, read_line(lines.items[i], line));
    if (!read.lines.empty() && next.up_to_rows <= read.lines.back().up_to_rows)
      return refuse(line, "does not go beyond the line before; accepted: rows that rise");
    read.lines.push_back(std::move(next));
  }
  if (read.lines.back().up_to_rows != TunedLine::kNoEnd)
    return refuse(where, "ends at " + std::to_string(read.lines.back().up_to_rows) +
                             " rows; accepted: a last line without \"up_to_rows\"");
  return read;
}

Result<TunedTables::Alike> read_alike(const Json& alike, const std::string& where) {
  static constexpr std::string_view kKeys[] = {"device", "other"};
  TENON_TRY(check_keys(alike, kKeys, 2, where));
  TunedTables::Alike read;
  TENON_ASSIGN(read.device, read_text(alike, "device", where));
  TENON_ASSIGN(read.other, read_text(alike, "other", where));
  return read;
}

}  // namespace

Result<TunedTables> parse_tuned(std::string_view text) {
  static constexpr std::string_view kKeys[] = {"tables", "alike"};
  TENON_ASSIGN(const Json file, parse_plain_json(text));
  TENON_TRY(check_keys(file, kKeys, 1, "the file"));
  for (const std::string_view key : kKeys)
    if (file.find(key) != nullptr && file.find(key)->kind != Kind::kList)
      return refuse("\"" + std::string(key) + "\"", "is no list");
  TunedTables read;
  for (const Json& each : file.find("tables")->items) {
    const std::string where = "table " + std::to_string(read.tables.size() + 1);
    TENON_ASSIGN(TunedTable next, read_table(each, where));
    for (const TunedTable& other : read.tables)
      if (other.is_about(next))
        return refuse(where,
                      "is about the same device, links, ranks, width, outputs and residual as one "
                      "before");
    read.tables.push_back(std::move(next));
  }
  const Json* const alike = file.find("alike");
  if (alike == nullptr) return read;
  for (const Json& each : alike->items) {
    TENON_ASSIGN(TunedTables::Alike next,
                 read_alike(each, "\"alike\" number " + std::to_string(read.alike.size() + 1)));
    read.alike.push_back(std::move(next));
  }
  return read;
}

std::string text_of(const TunedTables& tables) {
  const auto list = [](const char* name, const std::vector<std::string>& entries) {
    std::string text = in_quotes(name) + ": [";
    for (std::size_t i = 0; i < entries.size(); ++i)
      text += (i == 0 ? "\n    " : ",\n    ") + entries[i];
    return text + "\n  ]";
  };
  std::vector<std::string> entries;
  for (const TunedTable& each : tables.tables) {
    std::string table = "{\"device\":" + in_quotes(each.device);
    if (each.link_gbs > 0) table += ",\"link_gbs\":" + std::to_string(each.link_gbs);
    table += ",\"ranks\":" + std::to_string(each.ranks) +
             ",\"hidden\":" + std::to_string(each.hidden) +
             ",\"outputs\":" + in_quotes(each.outputs);
    if (each.whole_residual) table += ",\"residual\":" + in_quotes(kWhole);
    table += ",\"date\":" + in_quotes(each.date) + ",\"lines\":[";
    for (std::size_t i = 0; i < each.lines.size(); ++i) {
      const TunedLine& line = each.lines[i];
      table += i == 0 ? "{" : ",{";
      if (line.up_to_rows != TunedLine::kNoEnd)
        table += "\"up_to_rows\":" + std::to_string(line.up_to_rows) + ",";
      table += "\"choice\":" + in_quotes(line.choice) + "}";
    }
    entries.push_back(table + "]}");
  }
  std::string text = "{\n  " + list("tables", entries);
  if (!tables.alike.empty()) {
    entries.clear();
    for (const TunedTables::Alike& each : tables.alike)
      entries.push_back("{\"device\":" + in_quotes(each.device) +
                        ",\"other\":" + in_quotes(each.other) + "}");
    text += ",\n  " + list("alike", entries);
  }
  return text + "\n}\n";
}

}  // namespace tenon
