#include "tenon/boundary/tuned.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <utility>

#include "tenon/boundary/tuned_json.h"
#include "tenon/core/env.h"

namespace tenon {
namespace {

// tuned.json, as CMake wrote it into a literal.
constexpr std::string_view kBuiltIn =
#include "tenon/boundary/tuned_json.inc"
    ;

Result<std::string> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file.good() && !file.eof())
    return Status::error(Code::kIo, "it cannot be read");
  return text;
}

std::string number_of(std::string_view text) {
  std::uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const char each : text) hash = (hash ^ static_cast<unsigned char>(each)) * 1099511628211u;
  return std::to_string(hash);
}

struct Loaded {
  TunedTables tables;
  Status status;
  std::string file_text = "no file";
};

Loaded load() {
  Loaded loaded;
  auto built_in = parse_tuned(kBuiltIn);
  if (built_in) loaded.tables = *std::move(built_in);
  if (!built_in) loaded.status = built_in.status().with("tuned.json, which is built in");
  const std::string& path = env().tuned_file;
  if (path.empty()) return loaded;
  const auto take = [&]() -> Status {
    TENON_ASSIGN(const std::string text, read_file(path));
    loaded.file_text = "contents " + number_of(text);
    TENON_ASSIGN(const TunedTables newer, parse_tuned(text));
    loaded.tables.put(newer);
    return Status::ok();
  };
  if (Status taken = take(); !taken) {
    loaded.status = std::move(taken).with("TENON_TUNED_FILE \"" + path + "\"");
    loaded.file_text = loaded.status.to_string();
  }
  return loaded;
}

const Loaded& loaded() {
  static const Loaded once = load();
  return once;
}

// Of the widths measured on a device, the nearest to `hidden` as a ratio; the smaller of two.
const TunedTable* nearest(const TunedTables& tables, std::string_view device, int link_gbs,
                          int ranks, std::int64_t hidden) {
  const TunedTable* best = nullptr;
  const auto ratio = [&](const TunedTable& table) {
    const auto a = static_cast<double>(table.hidden), b = static_cast<double>(hidden);
    return std::max(a, b) / std::min(a, b);
  };
  for (const TunedTable& each : tables.tables) {
    if (each.device != device || each.ranks != ranks || !is_like_link(each.link_gbs, link_gbs))
      continue;
    const bool is_nearer =
        best == nullptr || ratio(each) < ratio(*best) ||
        (ratio(each) == ratio(*best) && each.hidden < best->hidden);
    if (is_nearer) best = &each;
  }
  return best;
}

}  // namespace

bool is_like_link(int gbs, int other_gbs) {
  return gbs == 0 || other_gbs == 0 || (gbs <= 2 * other_gbs && other_gbs <= 2 * gbs);
}

bool TunedTable::is_about(const TunedTable& other) const {
  return device == other.device && ranks == other.ranks && hidden == other.hidden &&
         is_like_link(link_gbs, other.link_gbs);
}

void TunedTables::put(const TunedTables& newer) {
  for (const TunedTable& each : newer.tables) {
    std::erase_if(tables, [&](const TunedTable& old) { return old.is_about(each); });
    tables.push_back(each);
  }
  for (const Alike& each : newer.alike) {
    std::erase_if(alike, [&](const Alike& old) { return old.device == each.device; });
    alike.push_back(each);
  }
}

TunedChoice fastest(const TunedTables& tables, const TunedTeam& team, std::int64_t rows,
                    std::int64_t hidden) {
  TunedChoice found;
  const TunedTable* table = nearest(tables, team.device, team.link_gbs, team.ranks, hidden);
  for (const TunedTables::Alike& each : tables.alike) {
    if (table != nullptr || each.device != team.device) continue;
    table = nearest(tables, each.other, team.link_gbs, team.ranks, hidden);
    found.other_device = each.other;
  }
  if (table == nullptr) return {};
  found.date = table->date;
  for (const TunedLine& each : table->lines) {
    found.choice = each.choice;
    if (each.up_to_rows == TunedLine::kNoEnd || rows * hidden <= each.up_to_rows * table->hidden)
      break;
  }
  return found;
}

const TunedTables& tuned_tables() { return loaded().tables; }
const Status& tuned_status() { return loaded().status; }
const std::string& tuned_file_text() { return loaded().file_text; }

std::string claim(const TunedChoice& tuned) {
  if (tuned.choice.empty()) return "is taken to be faster";
  const std::string date(tuned.date);
  if (tuned.other_device.empty()) return "was measured to be faster (" + date + ")";
  return "is taken to be faster, as it was measured to be on " + std::string(tuned.other_device) +
         " (" + date + ")";
}

void prefer_measured(PlanContext& where, int link_gbs, std::int64_t rows, std::int64_t hidden) {
  const TunedTeam team{where.properties.name, link_gbs, where.team_size};
  const TunedChoice tuned = fastest(tuned_tables(), team, rows, hidden);
  where.preferred = tuned.choice;
  where.why_preferred = tuned.choice.empty() ? std::string() : claim(tuned);
}

}  // namespace tenon
