#include "apps/bench/shapes.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <set>

#include "apps/bench/arms.h"
#include "tenon/runtime/scheduler.h"

namespace tenon::apps {
namespace {

constexpr int kMaxRows = 8192, kMaxHidden = 16384;
constexpr int kMaxGraphCalls = 1 << 16;

bool read_number(std::string_view text, int* value) {
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && stop == text.data() + text.size() && *value >= 1;
}

Status refuse(std::string why) {
  return Status::error(Code::kInvalidArgument, "bench: " + std::move(why));
}

// One piece between commas.
Status add_piece(std::string_view option, std::string_view piece, std::set<int>& found) {
  const auto bad = [&](std::string_view why) {
    return refuse(std::string(option) + " has \"" + std::string(piece) + "\"" + std::string(why) +
                  "; accepted are numbers and ranges, as in 1,3,16..512: both ends and the powers "
                  "of two between them");
  };
  const auto dots = piece.find("..");
  int low = 0, high = 0;
  if (dots == std::string_view::npos) {
    if (!read_number(piece, &low)) return bad("");
    found.insert(low);
    return Status::ok();
  }
  if (!read_number(piece.substr(0, dots), &low) || !read_number(piece.substr(dots + 2), &high))
    return bad("");
  if (low > high) return bad(", which ends before it begins");
  found.insert({low, high});
  for (std::int64_t power = 1; power < high; power *= 2)
    if (power > low) found.insert(static_cast<int>(power));
  return Status::ok();
}

}  // namespace

Result<std::vector<int>> parse_numbers(std::string_view option, std::string_view text,
                                       bool around) {
  std::set<int> found;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    TENON_TRY(add_piece(option, text.substr(begin, end - begin), found));
    begin = end + 1;
  }
  if (around) {
    const std::set<int> named = found;
    for (const int each : named) {
      if (!std::has_single_bit(static_cast<unsigned>(each))) continue;
      if (each > 1) found.insert(each - 1);
      if (each < kMaxRows) found.insert(each + 1);
    }
  }
  return std::vector<int>(found.begin(), found.end());
}

Result<std::vector<int>> parse_sequences(std::string_view option, std::string_view text) {
  constexpr int kMost = kMaxTokensPerStep - kPrefillQuantum;
  TENON_ASSIGN(std::vector<int> found, parse_numbers(option, text));
  if (found.back() > kMost)
    return refuse(std::string(option) + " has " + std::to_string(found.back()) +
                  "; accepted are 1 to " + std::to_string(kMost));
  return found;
}

Mode mode_of(const BoundaryBench& options, int rows) {
  if (options.mode != Mode::kAuto) return options.mode;
  return !is_host(options.target) && rows <= kMaxGraphRows ? Mode::kGraph : Mode::kEager;
}

Status complete(BoundaryBench& options) {
  const bool host = is_host(options.target);
  if (options.rows.empty()) {
    const char* rows = host ? "1..128" : options.mode == Mode::kEager ? "64..8192" : "1..512";
    TENON_ASSIGN(options.rows, parse_numbers("--rows", rows, options.around));
  }
  if (options.hidden.empty())
    options.hidden =
        host ? std::vector<int>{4096} : std::vector<int>{1024, 2048, 2560, 3072, 4096, 5120, 8192};
  for (const int rows : options.rows)
    if (rows < 1 || rows > kMaxRows)
      return refuse("--rows has " + std::to_string(rows) + "; accepted are 1 to " +
                    std::to_string(kMaxRows));
  for (const int hidden : options.hidden)
    if (hidden < kGroup || hidden > kMaxHidden || hidden % kGroup != 0)
      return refuse("--hidden has " + std::to_string(hidden) +
                    "; accepted are multiples of 128 up to " + std::to_string(kMaxHidden));
  if (!options.tune_path.empty()) options.sweep_variants = true;
  if (options.sweep_variants && (!options.arms.empty() || !options.variant.empty()))
    return refuse("--sweep-variants and --tune time every choice; --arms and --variant exclude it");
  if (options.sweep_variants && !options.baseline_path.empty())
    return refuse("--check compares arms, which --sweep-variants and --tune replace");
  if (options.iterations == 0) {
    options.iterations = host ? 30 : 64;
    options.adapt_iterations = !host;
  }
  const bool graphs = std::any_of(options.rows.begin(), options.rows.end(),
                                  [&](int rows) { return mode_of(options, rows) == Mode::kGraph; });
  if (graphs && options.iterations > kMaxGraphCalls)
    return refuse("--iterations is " + std::to_string(options.iterations) + "; accepted are 1 to " +
                  std::to_string(kMaxGraphCalls) + " in graphs, and more with --mode eager");
  if (options.repeats == 0) options.repeats = host ? 5 : 25;
  if (options.warm_up < 0) options.warm_up = host ? 10 : 2;
  return chosen_arms(options).status();
}

}  // namespace tenon::apps
