#include "tenon/boundary/tuned.h"

#include <algorithm>
#include <utility>

#include "tenon/boundary/tuned_json.h"
#include "tenon/core/env.h"
#include "tenon/core/file.h"
#include "tenon/core/hash.h"

namespace tenon {
namespace {

// tuned.json, as CMake wrote it into a literal.
constexpr std::string_view kBuiltIn =
#include "tenon/boundary/tuned_json.inc"
    ;

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
    TENON_ASSIGN(const std::string text, read_text(path));
    loaded.file_text = "contents " + std::to_string(fnv1a(text));
    TENON_ASSIGN(const TunedTables newer, parse_tuned(text), path);
    loaded.tables.put(newer);
    return Status::ok();
  };
  if (Status taken = take(); !taken) {
    loaded.status = std::move(taken).with("TENON_TUNED_FILE");
    loaded.file_text = loaded.status.to_string();
  }
  return loaded;
}

const Loaded& loaded() {
  static const Loaded once = load();
  return once;
}

// Of the widths measured on a device, the nearest to `hidden` as a ratio; the smaller of two.
const TunedTable* nearest(const TunedTables& tables, const TunedTeam& team,
                          std::string_view outputs, int hidden) {
  const TunedTable* best = nullptr;
  const auto ratio = [&](const TunedTable& table) {
    const double a = table.hidden, b = hidden;
    return std::max(a, b) / std::min(a, b);
  };
  for (const TunedTable& each : tables.tables) {
    if (each.device != team.device || each.ranks != team.ranks || each.outputs != outputs ||
        each.whole_residual != team.whole_residual || !is_like_link(each.link_gbs, team.link_gbs))
      continue;
    const bool is_nearer = best == nullptr || ratio(each) < ratio(*best) ||
                           (ratio(each) == ratio(*best) && each.hidden < best->hidden);
    if (is_nearer) best = &each;
  }
  return best;
}

TunedChoices taken_from(const TunedTable& table, int hidden, std::string why) {
  TunedChoices found{table.lines, std::move(why)};
  for (TunedLine& each : found.lines)
    if (each.up_to_rows != TunedLine::kNoEnd)
      each.up_to_rows = std::max(each.up_to_rows * table.hidden / hidden, std::int64_t{1});
  return found;
}

}  // namespace

bool is_like_link(int gbs, int other_gbs) {
  return gbs == 0 || other_gbs == 0 || (gbs <= 2 * other_gbs && other_gbs <= 2 * gbs);
}

bool TunedTable::is_about(const TunedTable& other) const {
  return device == other.device && ranks == other.ranks && hidden == other.hidden &&
         outputs == other.outputs && whole_residual == other.whole_residual &&
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

std::string_view TunedChoices::of(std::int64_t rows) const {
  for (const TunedLine& each : lines)
    if (rows <= each.up_to_rows) return *std::ranges::find(kBoundaryChoices, each.choice);
  return {};
}

TunedChoices choices_for(const TunedTables& tables, const TunedTeam& team, std::string_view outputs,
                         int hidden) {
  for (const std::string_view kind : {outputs, kBoundaryOutputs[1]}) {
    const TunedTable* const own = nearest(tables, team, kind, hidden);
    if (own != nullptr)
      return taken_from(*own, hidden, "was measured to be faster (" + own->date + ")");
    for (const TunedTables::Alike& each : tables.alike) {
      if (each.device != team.device) continue;
      const TunedTeam other{each.other, team.link_gbs, team.ranks, team.whole_residual};
      const TunedTable* const theirs = nearest(tables, other, kind, hidden);
      if (theirs != nullptr)
        return taken_from(*theirs, hidden,
                          "is taken to be faster, as it was measured to be on " + each.other +
                              " (" + theirs->date + ")");
    }
  }
  if (team.whole_residual)
    return choices_for(tables, {team.device, team.link_gbs, team.ranks}, outputs, hidden);
  return rule(team, hidden);
}

TunedChoices rule(const TunedTeam& team, int hidden) {
  if (team.ranks < 3 || team.link_gbs == 0) return {};
  constexpr double kSecondTripUs = 1.32, kPackingUs = 1.22;
  const double n = team.ranks, bytes_per_us = team.link_gbs * 1e3, row_bytes = 2.0 * hidden;
  const double one_shot = bytes_per_us * kSecondTripUs * n / ((n - 1) * (n - 2));
  const double plain = bytes_per_us * kPackingUs * 2 * n / (n - 1);
  const auto rows = [&](double bytes) {
    return std::max(static_cast<std::int64_t>(bytes / row_bytes), std::int64_t{1});
  };
  TunedChoices found;
  found.lines.push_back({rows(one_shot), std::string(kBoundaryChoices[0])});
  if (rows(plain) > rows(one_shot))
    found.lines.push_back({rows(plain), std::string(kBoundaryChoices[2])});
  found.lines.push_back({TunedLine::kNoEnd, std::string(kBoundaryChoices[3])});
  found.why = "is taken to be faster, by a rule from times of four H200s (2026-11-28)";
  return found;
}

std::vector<std::int64_t> row_ends(const TunedTables& tables, const TunedTeam& team, int hidden) {
  std::vector<std::int64_t> ends;
  for (const std::string_view outputs : kBoundaryOutputs)
    for (const TunedLine& each : choices_for(tables, team, outputs, hidden).lines)
      if (each.up_to_rows != TunedLine::kNoEnd) ends.push_back(each.up_to_rows);
  std::ranges::sort(ends);
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  return ends;
}

std::string_view boundary_outputs(bool fp8, bool bf16) {
  return kBoundaryOutputs[fp8 ? (bf16 ? 1 : 0) : 2];
}

const TunedTables& tuned_tables() { return loaded().tables; }
const Status& tuned_status() { return loaded().status; }
const std::string& tuned_file_text() { return loaded().file_text; }

void prefer_measured(PlanContext& where, int link_gbs, bool whole_residual,
                     std::string_view outputs, std::int64_t rows, int hidden) {
  const TunedTeam team{where.properties.name, link_gbs, where.team_size, whole_residual};
  const TunedChoices known = choices_for(tuned_tables(), team, outputs, hidden);
  where.preferred = known.of(rows);
  where.why_preferred = known.why;
}

}  // namespace tenon
