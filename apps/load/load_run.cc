#include "apps/load/load_run.h"

#include <algorithm>

#include "apps/bench/calls.h"
#include "apps/interrupt.h"
#include "tenon/core/hash.h"

namespace tenon::apps {
namespace {

// Calls wait for their moment and for a place.
class Driver {
 public:
  Driver(ModelClient& client, const std::vector<ModelCall>& calls, const Pace& pace,
         const std::function<void(std::size_t, const ModelReply&)>& told)
      : client_(client), calls_(calls), pace_(pace), told_(told), replies_(calls.size()) {
    for (ModelReply& each : replies_) each.asked_s = -1;
  }

  Result<LoadRun> run() {
    const double begin = client_.now_s();
    if (pace_.moments.empty()) due_ = calls_.size();
    for (const double moment : pace_.moments)
      client_.at(begin + moment, [this] {
        ++due_;
        start();
      });
    start();
    TENON_TRY(client_.run([] { return interrupted_by() != 0; }));
    LoadRun out;
    out.complete = ended_ == calls_.size();
    double last = begin;
    for (const ModelReply& each : replies_) last = std::max(last, each.ended_s);
    out.seconds = last - begin;
    out.replies = std::move(replies_);
    return out;
  }

 private:
  void start() {
    const auto places = static_cast<std::size_t>(pace_.concurrency);
    while (next_ < due_ && (places == 0 || next_ - ended_ < places)) {
      const std::size_t at = next_++;
      client_.ask(calls_[at], [this, at](ModelReply reply) {
        ++ended_;
        replies_[at] = std::move(reply);
        start();
        told_(at, replies_[at]);
      });
    }
  }

  ModelClient& client_;
  const std::vector<ModelCall>& calls_;
  const Pace& pace_;
  const std::function<void(std::size_t, const ModelReply&)>& told_;
  std::vector<ModelReply> replies_;
  std::size_t due_ = 0, next_ = 0, ended_ = 0;
};

void add_spread(nlohmann::ordered_json& out, const std::string& name, std::vector<double> seconds) {
  double sum = 0;
  for (const double each : seconds) sum += each;
  const double count = static_cast<double>(seconds.size());
  const auto at = [&](double share) {
    return seconds.empty() ? 0 : 1e3 * quantile(seconds, share);
  };
  out[name + "_mean_ms"] = seconds.empty() ? 0 : 1e3 * sum / count;
  out[name + "_median_ms"] = at(0.5);
  out[name + "_p90_ms"] = at(0.9);
  out[name + "_p99_ms"] = at(0.99);
}

}  // namespace

Result<LoadRun> run_load(ModelClient& client, const std::vector<ModelCall>& calls, const Pace& pace,
                         const std::function<void(std::size_t call, const ModelReply&)>& told) {
  return Driver(client, calls, pace, told).run();
}

nlohmann::ordered_json summary_of(const LoadRun& run) {
  int completed = 0, failed = 0;
  std::int64_t input = 0, output = 0;
  std::vector<double> ttft, tpot, itl, e2e;
  for (const ModelReply& each : run.replies) {
    if (each.asked_s < 0) continue;
    if (!each.ok()) {
      ++failed;
      continue;
    }
    ++completed;
    input += each.prompt_tokens;
    output += each.completion_tokens;
    e2e.push_back(each.ended_s - each.asked_s);
    if (each.arrivals.empty()) continue;
    ttft.push_back(each.arrivals.front().at_s - each.asked_s);
    if (each.completion_tokens > 1)
      tpot.push_back((each.arrivals.back().at_s - each.arrivals.front().at_s) /
                     static_cast<double>(each.completion_tokens - 1));
    for (std::size_t i = 1; i < each.arrivals.size(); ++i) {
      const auto tokens = static_cast<std::size_t>(each.arrivals[i].tokens);
      const double gap = each.arrivals[i].at_s - each.arrivals[i - 1].at_s;
      itl.insert(itl.end(), tokens, gap / static_cast<double>(tokens));
    }
  }
  const auto rate = [&](std::int64_t count) {
    return run.seconds > 0 ? static_cast<double>(count) / run.seconds : 0.0;
  };
  nlohmann::ordered_json out{{"completed", completed},
                             {"failed", failed},
                             {"duration_s", run.seconds},
                             {"input_tokens", input},
                             {"output_tokens", output},
                             {"requests_per_s", rate(completed)},
                             {"output_tokens_per_s", rate(output)},
                             {"total_tokens_per_s", rate(input + output)}};
  add_spread(out, "ttft", std::move(ttft));
  add_spread(out, "tpot", std::move(tpot));
  add_spread(out, "itl", std::move(itl));
  add_spread(out, "e2e", std::move(e2e));
  return out;
}

std::map<std::string, int> errors_of(const LoadRun& run) {
  std::map<std::string, int> counts;
  for (const ModelReply& each : run.replies)
    if (!each.ok()) ++counts[each.error];
  return counts;
}

std::uint64_t hash_of(const LoadRun& run) {
  Fnv1a hash;
  for (const ModelReply& each : run.replies) {
    for (const std::int32_t token : each.tokens) hash.add(static_cast<std::uint32_t>(token));
    if (each.tokens.empty()) hash.add_bytes(each.text);
    hash.add(1u << 31);
  }
  return hash.value();
}

}  // namespace tenon::apps
