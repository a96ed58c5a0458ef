// What `tenon bench decode`, `tenon bench prefill` and `tenon profile` share: an engine whose steps
// take one of several stage policies (the arms), so that these are compared in turns in one process
// over one copy of the weights. Not here: what a turn is.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "apps/bench/rates.h"
#include "apps/bench/report.h"
#include "apps/commands.h"
#include "apps/session.h"
#include "tenon/core/hash.h"
#include "tenon/runtime/engine.h"

namespace tenon::apps {

struct EngineBench : ReportOptions {
  SessionOptions session;
  std::vector<std::string> stages{"auto", "3"};  // the arms, as --force-stage spells them
  int repeats = 0;                               // of every arm; 0: what suits the target
  int step_tokens = 0;                           // of the largest step; 0: what suits the target
  std::uint64_t seed = 0;                        // of prompts and draws

  bool on_host() const;
};

// The options above. Where --load-format is not given and the model has no weights, they are made.
void add_engine_bench_options(CLI::App& app, EngineBench& options);

// What one turn gave: some steps of one arm.
struct Turn {
  double seconds = 0;         // by the wall clock, of the steps that count
  double device_seconds = 0;  // of the same steps, on the device of rank 0
  Fnv1a tokens;               // what was drawn, in order, steps that do not count too
};

class BenchedEngine {
 public:
  // Measures what memory gives, then opens. `max_context`, `max_batch`: of the engine.
  static Result<BenchedEngine> open(const EngineBench& options, int max_context, int max_batch);

  Engine& engine() const { return *engine_; }
  const Rates& rates() const { return rates_; }
  int num_arms() const { return static_cast<int>(options_.stages.size()); }
  // Random prompts of this many tokens, the same each time, with draws at temperature 1: sequences
  // go ways of their own, and choose experts of their own.
  std::vector<std::int32_t> prompt(int sequence, int tokens) const;
  SamplingParams sampling(int sequence, int max_tokens) const;
  // One step of the engine, hashed into `tokens`. A sequence that failed is the error.
  Status step(Fnv1a* tokens) const;

  // What every report says of the engine. "results" is missing.
  nlohmann::ordered_json about() const;
  // "Qwen3.5-27B-FP8, dummy weights, 2 ranks of NVIDIA H100 80GB HBM3, 2026-11-27"
  std::string heading() const;

 private:
  EngineBench options_;
  DeviceProperties device_;
  Rates rates_;
  int num_ids_ = 0;
  double load_seconds_ = 0;
  std::unique_ptr<Engine> engine_;
};

// Turns of all arms, `repeats` of each, one after the other: drift meets all alike. All arms must
// draw the same tokens, or the first that differs is the error. By arm. Fewer turns, perhaps none,
// where a signal came; `tell` hears of each turn before it begins.
Result<std::vector<std::vector<Turn>>> take_turns(const BenchedEngine& engine, int repeats,
                                                  const std::function<Result<Turn>()>& turn,
                                                  const std::function<void(int done)>& tell);

// Median, and where a tenth of the turns lie below and above, of seconds in milliseconds per
// `count`.
struct Spread {
  double median = 0, p10 = 0, p90 = 0;
};
Spread spread_of(const std::vector<Turn>& turns, double Turn::*seconds, double count);

Command add_bench_decode(CLI::App& bench);
Command add_bench_prefill(CLI::App& bench);
Command add_bench_ops(CLI::App& bench);
Command add_bench_serve(CLI::App& bench);

}  // namespace tenon::apps
