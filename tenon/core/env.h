// Every knob of the environment as one documented field, parsed strictly, and the log.
// A knob is read once, at the first call of env(). Not here: command-line options (apps/).
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/core/status.h"

namespace tenon {

enum class LogLevel : std::uint8_t { kError, kWarning, kInfo, kDebug };

struct Env {
  LogLevel log = LogLevel::kWarning;  // TENON_LOG: error | warning | info | debug
  int force_stage = 0;                // TENON_FORCE_STAGE: 1 | 2 | 3; 0 leaves the choice
  int max_stage = 1;                  // TENON_MAX_STAGE: most fused stage allowed: 1 | 2 | 3
  std::string force_variant;          // TENON_FORCE_VARIANT: op:variant
  bool early = true;          // TENON_EARLY: 0 keeps kernels from starting before earlier work ends
  bool graphs = true;         // TENON_GRAPHS: 0 keeps decode steps from being recorded and replayed
  bool run_ahead = true;      // TENON_RUN_AHEAD: 0 keeps steps from being launched one ahead
  bool check_caches = false;  // TENON_CHECK_CACHES: 1 looks at the books of the caches every step
  std::chrono::milliseconds deadline{30'000};  // TENON_DEADLINE_MS: longest any wait may last
  int cpu_threads = 0;                         // TENON_CPU_THREADS: per rank; 0 shares the cores
  std::uint64_t emu_seed = 0;                  // TENON_EMU_SEED: order of emulated threads
  std::string tuned_file;                      // TENON_TUNED_FILE: measurements over those built in
  std::string ccl_library;  // TENON_CCL_LIBRARY: a file instead of libnccl.so.2 or librccl.so.1
  // TENON_LOAD_DEADLINE_MS: longest wait for a rank that is alive and loads
  std::chrono::milliseconds load_deadline{1'800'000};
  // TENON_SECRET, TENON_LISTEN_ALL: how ranks that are processes meet (read_launch,
  // comm/bootstrap/bootstrap.h)
  std::string secret;
  bool listen_all = false;
};

// One knob as `tenon env` prints it.
struct Knob {
  std::string_view name, text;
  std::string value;
};

// Parses the process environment. Errors name the variable, its value and what is accepted; unknown
// TENON_ variables become warnings with the nearest known name.
Result<Env> parse_env(const std::vector<std::string>& variables,
                      std::vector<std::string>* warnings);

// The parsed environment of this process. A malformed knob is fatal in main(), which calls
// env_status() first; a library user who skips that sees the defaults for malformed knobs.
const Env& env();
Status env_status();
std::vector<Knob> knobs();

// One line per event, rank in front when one is set for this thread: on standard error as TENON_LOG
// says, or to the sink.
void log(LogLevel level, std::string_view message);
// An error line, "<doing>: <why>", from where threads go on or end with it. Where there is no
// memory for it, a shorter one.
void log_failure(std::string_view doing, const Status& why) noexcept;
// Who gets the lines up to `most` instead, without their ends: from any thread, by one at a time.
// It must not log, and throws nothing. Null: standard error again. The sink before has ended its
// last call when this returns.
using LogSink = void (*)(void* context, LogLevel level, const char* line);
void set_log_sink(LogSink sink, void* context, LogLevel most);
void set_log_rank(int rank);

}  // namespace tenon
