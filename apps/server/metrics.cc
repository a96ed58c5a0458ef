#include "apps/server/metrics.h"

#include <cstdio>

namespace tenon::server {
namespace {

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

std::string head(const std::string& name, const char* kind, const char* help) {
  return "# HELP " + name + " " + help + "\n# TYPE " + name + " " + kind + "\n";
}

std::string line(const std::string& name, const std::string& labels, const std::string& value) {
  return name + "{" + labels + "} " + value + "\n";
}

// A label's value.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '\n') {
      out += "\\n";
      continue;
    }
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

double seconds(serve::Clock::time_point from, serve::Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// As vLLM calls the ends of requests; those it has no name for have ours.
std::string reason_of(serve::FinishReason reason) {
  switch (reason) {
    case serve::FinishReason::kStop:
    case serve::FinishReason::kStopString: return "stop";
    case serve::FinishReason::kLength:
    case serve::FinishReason::kContext: return "length";
    case serve::FinishReason::kCancelled: return "abort";
    case serve::FinishReason::kFailed:
    case serve::FinishReason::kReaderBehind:
    case serve::FinishReason::kStopped: break;
  }
  return std::string(name(reason));
}

// What the engine counts of itself.
std::string engine_text(const EngineStats& stats, const std::string& labels) {
  std::string out;
  const auto one = [&](const std::string& name, const char* kind, const char* help, double value) {
    out += head(name, kind, help) + line(name, labels, number(value));
  };
  one("tenon_engine_steps_total", "counter", "Steps that ended.", static_cast<double>(stats.steps));
  one("tenon_engine_replayed_steps_total", "counter", "Steps that ran from a recording.",
      static_cast<double>(stats.replayed_steps));
  one("tenon_engine_prompt_tokens_total", "counter", "Tokens of prompts that were computed.",
      static_cast<double>(stats.prompt_tokens));
  one("tenon_engine_decode_tokens_total", "counter", "Tokens of steps in which all drew.",
      static_cast<double>(stats.decode_tokens));
  one("tenon_engine_ahead_tokens_total", "counter",
      "Tokens of steps that were launched before those of the step in front were known.",
      static_cast<double>(stats.tokens_ahead));
  one("tenon_engine_decode_seconds_total", "counter", "Time of those steps.", stats.decode_seconds);
  one("tenon_engine_weight_bytes", "gauge", "Weights on rank 0.",
      static_cast<double>(stats.weight_bytes));
  one("vllm:kv_cache_usage_perc", "gauge",
      "Part of the kv cache's blocks that requests use, from 0 to 1.", stats.kv_cache_use);
  one("tenon_state_slots_used", "gauge", "Delta-net states that requests use.",
      static_cast<double>(stats.state_slots_used));
  const PrefixStats& kept = stats.prefixes;
  const auto many = [&](const std::string& name, const char* kind, const char* help,
                        std::int64_t value) { one(name, kind, help, static_cast<double>(value)); };
  many("vllm:prefix_cache_queries_total", "counter", "Tokens of prompts that were looked up.",
       kept.looked_up_tokens);
  many("vllm:prefix_cache_hits_total", "counter", "Of them, tokens that were not computed again.",
       kept.matched_tokens);
  many("vllm:num_preemptions_total", "counter", "Sequences that lost their caches.",
       stats.preemptions);
  many("tenon_prefix_lookups_total", "counter", "Prompts that were looked up.", kept.lookups);
  many("tenon_prefix_hits_total", "counter", "Of them, prompts that went on from a kept state.",
       kept.hits);
  out += head("tenon_prefix_lost_tokens_total", "counter",
              "Tokens that were computed again though their blocks were kept, by why.");
  for (const auto& [why, tokens] : {std::pair{"never_kept", kept.lost_never_kept},
                                    {"evicted", kept.lost_evicted},
                                    {"at_end", kept.lost_at_end}})
    out += line("tenon_prefix_lost_tokens_total", labels + ",why=" + quoted(why),
                std::to_string(tokens));
  many("tenon_prefix_evicted_blocks_total", "counter", "Kept blocks that gave way.",
       kept.evicted_blocks);
  many("tenon_prefix_evicted_states_total", "counter", "Kept states that gave way.",
       kept.evicted_states);
  many("tenon_prefix_blocks", "gauge", "Blocks of 64 tokens that are kept now.", kept.blocks);
  many("tenon_prefix_states", "gauge", "States that are kept now.", kept.states);
  many("tenon_engine_replayed_tokens_total", "counter", "Tokens that ran again after a preemption.",
       stats.replayed_tokens);
  std::map<std::string, std::uint64_t> calls;
  for (const BoundaryUse& use : stats.boundaries)
    calls["site=" + quoted(use.site) + ",stage=" + quoted(std::string(name(use.stage))) +
          ",variant=" + quoted(use.variant)] += use.count;
  out +=
      head("tenon_boundary_calls_total", "counter", "Boundaries that ran outside of recordings.");
  for (const auto& [what, count] : calls)
    out += line("tenon_boundary_calls_total", labels + "," + what, std::to_string(count));
  return out;
}

}  // namespace

void Histogram::observe(double seconds, std::uint64_t times) {
  std::size_t bucket = 0;
  while (bucket < kBounds.size() && seconds > kBounds[bucket]) ++bucket;
  counts_[bucket] += times;
  count_ += times;
  sum_ += seconds * static_cast<double>(times);
}

std::string Histogram::text(const std::string& name, const char* help,
                            const std::string& labels) const {
  std::string out = head(name, "histogram", help);
  std::uint64_t below = 0;
  for (std::size_t i = 0; i < counts_.size(); ++i) {
    below += counts_[i];
    const std::string bound = i < kBounds.size() ? number(kBounds[i]) : "+Inf";
    out += line(name + "_bucket", labels + ",le=\"" + bound + "\"", std::to_string(below));
  }
  return out + line(name + "_sum", labels, number(sum_)) +
         line(name + "_count", labels, std::to_string(count_));
}

void Metrics::began(std::int64_t prompt_tokens, bool runs) {
  const std::scoped_lock lock(mutex_);
  if (runs) held_tokens_ += prompt_tokens;
  prompt_tokens_ += static_cast<std::uint64_t>(prompt_tokens);
}

void Metrics::took(std::int64_t tokens) {
  const std::scoped_lock lock(mutex_);
  generated_tokens_ += static_cast<std::uint64_t>(tokens);
  held_tokens_ += tokens;
}

void Metrics::between(double seconds, std::int64_t tokens) {
  if (tokens <= 0) return;
  const std::scoped_lock lock(mutex_);
  between_.observe(seconds / static_cast<double>(tokens), static_cast<std::uint64_t>(tokens));
}

void Metrics::ended(const serve::Outcome& outcome, std::int64_t held_tokens) {
  const serve::TimeMarks& times = outcome.times;
  const std::scoped_lock lock(mutex_);
  held_tokens_ -= held_tokens;
  ++ends_[reason_of(outcome.reason)];
  whole_.observe(seconds(times.queued, times.ended));
  if (times.started) queued_.observe(seconds(times.queued, *times.started));
  if (!times.first_token || !times.started) return;
  first_token_.observe(seconds(times.queued, *times.first_token));
  prefill_.observe(seconds(*times.started, *times.first_token));
  if (times.last_token) decode_.observe(seconds(*times.first_token, *times.last_token));
}

void Metrics::left(std::int64_t held_tokens) {
  const std::scoped_lock lock(mutex_);
  held_tokens_ -= held_tokens;
  ++ends_[reason_of(serve::FinishReason::kCancelled)];
}

std::int64_t Metrics::held_tokens() const {
  const std::scoped_lock lock(mutex_);
  return held_tokens_;
}

void Metrics::answered(const std::string& path, int status) {
  const std::scoped_lock lock(mutex_);
  ++answers_[{path, status}];
}

std::string Metrics::text(const std::string& model, const Now& now) const {
  const std::string labels = "model_name=" + quoted(model);
  std::string out;
  const auto one = [&](const std::string& name, const char* kind, const char* help, double value) {
    out += head(name, kind, help) + line(name, labels, number(value));
  };
  const std::scoped_lock lock(mutex_);
  one("vllm:num_requests_running", "gauge", "Requests that run.",
      static_cast<double>(now.queue.running));
  one("vllm:num_requests_waiting", "gauge", "Requests that wait for their turn.",
      static_cast<double>(now.queue.queued));
  one("vllm:prompt_tokens_total", "counter", "Tokens of prompts that were accepted.",
      static_cast<double>(prompt_tokens_));
  one("vllm:generation_tokens_total", "counter", "Tokens that were drawn.",
      static_cast<double>(generated_tokens_));
  out += head("vllm:request_success_total", "counter", "Requests that ended, by how.");
  for (const auto& [reason, count] : ends_)
    out += line("vllm:request_success_total", labels + ",finished_reason=" + quoted(reason),
                std::to_string(count));
  out += first_token_.text("vllm:time_to_first_token_seconds", "From acceptance to a first token.",
                           labels);
  out += between_.text("vllm:inter_token_latency_seconds", "Between tokens of an answer.", labels);
  out += whole_.text("vllm:e2e_request_latency_seconds", "From acceptance to the end.", labels);
  out += queued_.text("vllm:request_queue_time_seconds", "Until its turn.", labels);
  out +=
      prefill_.text("vllm:request_prefill_time_seconds", "From its turn to a first token.", labels);
  out +=
      decode_.text("vllm:request_decode_time_seconds", "From the first to the last token.", labels);
  one("tenon_held_tokens", "gauge", "Tokens of prompts and answers that have not ended.",
      static_cast<double>(held_tokens_));
  one("tenon_max_batch", "gauge", "Requests that may run together.", now.max_batch);
  one("tenon_engine_restarts_total", "counter", "Engines that were made for one that died.",
      static_cast<double>(now.queue.revivals));
  one("tenon_healthy", "gauge", "1 where /health answers 200.", now.healthy ? 1 : 0);
  one("tenon_stalled_seconds", "gauge", "Since when there was work and no step ended.",
      now.stalled_seconds);
  one("tenon_http_connections", "gauge", "Open connections.",
      static_cast<double>(now.http.connections));
  one("tenon_http_connections_refused_total", "counter", "Connections that were one too many.",
      static_cast<double>(now.http.refused));
  one("tenon_http_requests_in_progress", "gauge", "Requests without their whole answer.",
      static_cast<double>(now.http.exchanges));
  out += head("tenon_http_requests_total", "counter", "Answered requests, by path and status.");
  for (const auto& [what, count] : answers_)
    out += line(
        "tenon_http_requests_total",
        labels + ",path=" + quoted(what.first) + ",status=\"" + std::to_string(what.second) + "\"",
        std::to_string(count));
  if (now.engine) out += engine_text(*now.engine, labels);
  return out;
}

}  // namespace tenon::server
