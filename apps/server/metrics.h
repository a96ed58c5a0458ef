// What the server counts, as Prometheus reads it. Names that begin with vllm: mean what they mean
// there, so that dashboards find them; the others are our own. Any thread.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "apps/server/http.h"
#include "tenon/serve/request.h"
#include "tenon/serve/request_queue.h"

namespace tenon::server {

// Observed seconds, in buckets.
class Histogram {
 public:
  void observe(double seconds, std::uint64_t times = 1);
  // The lines of one metric with its help.
  std::string text(const std::string& name, const char* help, const std::string& labels) const;

 private:
  static constexpr std::array kBounds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,  0.075,
                                         0.1,   0.25,   0.5,   0.75, 1.0,   2.5,   5.0,
                                         10.0,  20.0,   40.0,  80.0, 160.0, 640.0, 2560.0};
  std::array<std::uint64_t, kBounds.size() + 1> counts_ = {};
  std::uint64_t count_ = 0;
  double sum_ = 0;
};

class Metrics {
 public:
  // What is true at the moment of asking.
  struct Now {
    serve::QueueCounts queue;
    HttpCounts http;
    double stalled_seconds = 0;
    bool healthy = false;
    int max_batch = 0;
    std::optional<EngineStats> engine = {};  // of a moment ago
  };

  // `runs`: it goes to the engine, and ends by ended() or left().
  void began(std::int64_t prompt_tokens, bool runs = true);
  void took(std::int64_t tokens);
  // Between two parts of an answer that together brought `tokens`.
  void between(double seconds, std::int64_t tokens);
  // `held_tokens`: those of its prompt, and those that were taken of its answer.
  void ended(const serve::Outcome& outcome, std::int64_t held_tokens);
  void left(std::int64_t held_tokens);  // a client, before the end of an answer
  void answered(const std::string& path, int status);

  // Tokens of prompts and answers of requests that have not ended.
  std::int64_t held_tokens() const;

  std::string text(const std::string& model, const Now& now) const;

 private:
  mutable std::mutex mutex_;
  std::uint64_t prompt_tokens_ = 0, generated_tokens_ = 0;
  std::int64_t held_tokens_ = 0;
  std::map<std::string, std::uint64_t> ends_;
  std::map<std::pair<std::string, int>, std::uint64_t> answers_;
  Histogram first_token_, between_, whole_, queued_, prefill_, decode_;
};

}  // namespace tenon::server
