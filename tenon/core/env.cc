#include "tenon/core/env.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <mutex>
#include <optional>

#include "tenon/core/guard.h"

extern char** environ;

namespace tenon {
namespace {

struct KnobSpec {
  std::string_view name, text;
  Status (*parse)(std::string_view value, Env& env);
  std::string (*print)(const Env& env);
};

Status refuse(std::string_view value, std::string_view accepted) {
  return Status::error(Code::kInvalidArgument,
                       "is \"" + std::string(value) + "\" but must be " + std::string(accepted));
}

template <class T>
Status parse_number(std::string_view value, T low, T high, std::string_view accepted, T& out) {
  T parsed{};
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), parsed);
  if (error != std::errc() || end != value.data() + value.size() || parsed < low || parsed > high)
    return refuse(value, accepted);
  out = parsed;
  return Status::ok();
}

constexpr std::string_view kLevelNames[] = {"error", "warning", "info", "debug"};

Status parse_log(std::string_view value, Env& env) {
  for (std::size_t i = 0; i < std::size(kLevelNames); ++i) {
    if (kLevelNames[i] != value) continue;
    env.log = static_cast<LogLevel>(i);
    return Status::ok();
  }
  return refuse(value, "error, warning, info or debug");
}

Status parse_variant(std::string_view value, Env& env) {
  const auto colon = value.find(':');
  if (colon == 0 || colon == std::string_view::npos || colon + 1 == value.size())
    return refuse(value, "op:variant");
  env.force_variant = value;
  return Status::ok();
}

Status parse_library(std::string_view value, Env& env) {
  if (value.find(".so") == std::string_view::npos)
    return refuse(value, "the file name or path of a shared library (…/libnccl.so.2)");
  env.ccl_library = value;
  return Status::ok();
}

Status parse_path(std::string_view value, std::string& out) {
  if (value.empty()) return refuse(value, "the path of a file");
  out = value;
  return Status::ok();
}

Status parse_secret(std::string_view value, Env& env) {
  constexpr std::size_t kLeast = 16;
  if (value.size() < kLeast)  // and never says what it is
    return Status::error(Code::kInvalidArgument, "has " + std::to_string(value.size()) +
                                                     " characters but must have 16 or more");
  env.secret = value;
  return Status::ok();
}

Status parse_milliseconds(std::string_view value, std::chrono::milliseconds& out) {
  std::int64_t ms = 0;
  TENON_TRY(parse_number<std::int64_t>(value, 1, 86'400'000, "1 to 86400000", ms));
  out = std::chrono::milliseconds(ms);
  return Status::ok();
}

Status parse_flag(std::string_view value, bool& out) {
  int on = 0;
  TENON_TRY(parse_number(value, 0, 1, "0 or 1", on));
  out = on != 0;
  return Status::ok();
}
std::string flag_text(bool flag) { return flag ? "1" : "0"; }

constexpr KnobSpec kKnobs[] = {
    {"TENON_LOG", "how much is logged: error, warning, info, debug", parse_log,
     [](const Env& e) { return std::string(kLevelNames[static_cast<std::size_t>(e.log)]); }},
    {"TENON_FORCE_STAGE", "stage of every boundary: 1, 2 or 3; 0 leaves the choice",
     [](std::string_view v, Env& e) {
       return parse_number(v, 0, 3, "0, 1, 2 or 3", e.force_stage);
     },
     [](const Env& e) { return std::to_string(e.force_stage); }},
    {"TENON_MAX_STAGE", "the most fused stage a boundary may use: 1, 2 or 3",
     [](std::string_view v, Env& e) { return parse_number(v, 1, 3, "1, 2 or 3", e.max_stage); },
     [](const Env& e) { return std::to_string(e.max_stage); }},
    {"TENON_FORCE_VARIANT", "op:variant, the one variant that op may use", parse_variant,
     [](const Env& e) { return e.force_variant; }},
    {"TENON_EARLY", "1: kernels may start before earlier work of their stream has ended; 0: never",
     [](std::string_view v, Env& e) { return parse_flag(v, e.early); },
     [](const Env& e) { return flag_text(e.early); }},
    {"TENON_GRAPHS", "1: decode steps are recorded and replayed; 0: never",
     [](std::string_view v, Env& e) { return parse_flag(v, e.graphs); },
     [](const Env& e) { return flag_text(e.graphs); }},
    {"TENON_RUN_AHEAD",
     "1: on devices a decode step is launched before the tokens of the one in front are known; 0: "
     "never",
     [](std::string_view v, Env& e) { return parse_flag(v, e.run_ahead); },
     [](const Env& e) { return flag_text(e.run_ahead); }},
    {"TENON_CHECK_CACHES",
     "1: the books of the caches are looked at after every step, and a wrong one ends the engine; "
     "for tests",
     [](std::string_view v, Env& e) { return parse_flag(v, e.check_caches); },
     [](const Env& e) { return flag_text(e.check_caches); }},
    {"TENON_DEADLINE_MS", "the longest any wait for a peer may last, in milliseconds",
     [](std::string_view v, Env& e) { return parse_milliseconds(v, e.deadline); },
     [](const Env& e) { return std::to_string(e.deadline.count()); }},
    {"TENON_CPU_THREADS", "threads per rank on the cpu target; 0 shares the cores among the ranks",
     [](std::string_view v, Env& e) {
       return parse_number(v, 0, 1024, "0 to 1024", e.cpu_threads);
     },
     [](const Env& e) { return std::to_string(e.cpu_threads); }},
    {"TENON_EMU_SEED", "order in which emulated threads run",
     [](std::string_view v, Env& e) {
       return parse_number<std::uint64_t>(v, 0, ~std::uint64_t{0}, "an unsigned integer",
                                          e.emu_seed);
     },
     [](const Env& e) { return std::to_string(e.emu_seed); }},
    {"TENON_TUNED_FILE",
     "a file of `tenon bench boundary --tune`, whose measurements take the place of those built "
     "in; "
     "the same on all ranks",
     [](std::string_view v, Env& e) { return parse_path(v, e.tuned_file); },
     [](const Env& e) { return e.tuned_file; }},
    {"TENON_CCL_LIBRARY", "the NCCL or RCCL that transport ccl loads; empty for the usual names",
     parse_library, [](const Env& e) { return e.ccl_library; }},
    {"TENON_LOAD_DEADLINE_MS",
     "the longest wait for a rank that is alive and loads, in milliseconds",
     [](std::string_view v, Env& e) { return parse_milliseconds(v, e.load_deadline); },
     [](const Env& e) { return std::to_string(e.load_deadline.count()); }},
    {"TENON_SECRET",
     "what proves that a process is a rank of this job, 16 characters or more, the same on all "
     "ranks; empty for the launcher's job id",
     parse_secret, [](const Env& e) { return std::string(e.secret.empty() ? "" : "(set)"); }},
    {"TENON_LISTEN_ALL", "1: rank 0 listens at all addresses of its host; 0: at MASTER_ADDR",
     [](std::string_view v, Env& e) { return parse_flag(v, e.listen_all); },
     [](const Env& e) { return flag_text(e.listen_all); }},
};

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

std::string_view nearest_knob(std::string_view wanted) {
  return std::min_element(std::begin(kKnobs), std::end(kKnobs),
                          [&](const KnobSpec& a, const KnobSpec& b) {
                            return edit_distance(a.name, wanted) < edit_distance(b.name, wanted);
                          })
      ->name;
}

struct Parsed {
  Env env;
  Status status;
};

struct Sink {
  std::mutex mutex;
  LogSink write = nullptr;
  void* context = nullptr;
  LogLevel most = LogLevel::kError;
};
// Never destroyed, as the knobs are not: threads may log while the process ends.
Sink& sink() {
  static Sink& once = *new Sink;
  return once;
}

bool is_wanted(const Sink& to, LogLevel level, LogLevel most_on_standard_error) {
  return level <= (to.write != nullptr ? to.most : most_on_standard_error);
}

// Needs no memory.
void write_line(LogLevel level, LogLevel most_on_standard_error, const char* text) {
  Sink& to = sink();
  const std::lock_guard lock(to.mutex);
  if (!is_wanted(to, level, most_on_standard_error)) return;
  if (to.write != nullptr) {
    to.write(to.context, level, text);
  } else {
    std::fprintf(stderr, "tenon: %s\n", text);  // at once
  }
}

const Parsed& parsed() {
  static const Parsed& once = *new Parsed([] {
    std::vector<std::string> variables, warnings;
    for (char** at = environ; at != nullptr && *at != nullptr; ++at) variables.emplace_back(*at);
    Parsed out;
    auto result = parse_env(variables, &warnings);
    out.status = result.status();
    if (result) out.env = *result;
    for (const std::string& each : warnings)
      write_line(LogLevel::kWarning, LogLevel::kWarning, ("warning: " + each).c_str());
    return out;
  }());
  return once;
}

thread_local std::optional<int> log_rank;

}  // namespace

Result<Env> parse_env(const std::vector<std::string>& variables,
                      std::vector<std::string>* warnings) {
  Env env;
  for (const std::string& each : variables) {
    const std::string_view variable = each;
    if (!variable.starts_with("TENON_")) continue;
    const auto equals = variable.find('=');
    const std::string_view name = variable.substr(0, equals);
    const std::string_view value =
        equals == std::string_view::npos ? std::string_view() : variable.substr(equals + 1);
    const auto* spec = std::find_if(std::begin(kKnobs), std::end(kKnobs),
                                    [&](const KnobSpec& knob) { return knob.name == name; });
    if (spec == std::end(kKnobs)) {
      if (warnings != nullptr)
        warnings->push_back("unknown variable " + std::string(name) + "; did you mean " +
                            std::string(nearest_knob(name)) + "?");
      continue;
    }
    TENON_TRY(spec->parse(value, env), name);
  }
  return env;
}

const Env& env() { return parsed().env; }
Status env_status() { return parsed().status; }

std::vector<Knob> knobs() {
  std::vector<Knob> out;
  for (const KnobSpec& spec : kKnobs) out.push_back({spec.name, spec.text, spec.print(env())});
  return out;
}

void log(LogLevel level, std::string_view message) {
  const LogLevel most = env().log;
  {
    const std::lock_guard lock(sink().mutex);
    if (!is_wanted(sink(), level, most)) return;  // without making the line
  }
  const std::string rank = log_rank ? "rank " + std::to_string(*log_rank) + ": " : "";
  const std::string line = rank + std::string(kLevelNames[static_cast<std::size_t>(level)]) + ": " +
                           std::string(message);
  write_line(level, most, line.c_str());
}

void log_failure(std::string_view doing, const Status& why) noexcept {
  const Status logged =
      guarded([&] { log(LogLevel::kError, std::string(doing) + ": " + why.to_string()); });
  if (logged) return;
  const auto size = [](std::string_view text) { return static_cast<int>(text.size()); };
  const std::string_view code = name(why.code()), message = why.message();
  char rank[24] = "", line[512];
  if (log_rank) std::snprintf(rank, sizeof rank, "rank %d: ", *log_rank);
  std::snprintf(line, sizeof line, "%serror: %.*s: %.*s: %.*s", rank, size(doing), doing.data(),
                size(code), code.data(), size(message), message.data());
  write_line(LogLevel::kError, LogLevel::kError, line);
}

void set_log_sink(LogSink sink_to_use, void* context, LogLevel most) {
  Sink& to = sink();
  const std::lock_guard lock(to.mutex);
  to.write = sink_to_use;
  to.context = context;
  to.most = most;
}

void set_log_rank(int rank) { log_rank = rank; }

}  // namespace tenon
