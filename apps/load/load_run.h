// Drives a load: so many requests at a time, or at the moments of a Poisson process; and what came
// of it in numbers.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/load/model_client.h"

namespace tenon::apps {

struct Pace {
  int concurrency = 0;               // the most that run at a time; 0: no limit
  std::vector<double> moments = {};  // of the calls, in seconds; empty: at once
};

struct LoadRun {
  std::vector<ModelReply> replies;  // in the order of calls; asked_s < 0 where it did not end
  double seconds = 0;               // from the first call to the last end
  bool complete = true;             // false: a signal came first
};

// Makes all calls. `told` hears of every end, with the number of the call.
Result<LoadRun> run_load(ModelClient& client, const std::vector<ModelCall>& calls, const Pace& pace,
                         const std::function<void(std::size_t call, const ModelReply&)>& told);

// The numbers of a run under their keys, in this order: completed, failed, duration_s, tokens of
// prompts and answers, rates, and mean, median, p90 and p99 of
//   ttft: from the call to the first tokens
//   tpot: (end of the last token - first one) / (tokens - 1), of answers of two tokens and more
//   itl:  between two arrivals, shared among the tokens of the later one
//   e2e:  from the call to the end of the answer
// in milliseconds. 0 where there is nothing to be measured. Failed requests only count as such.
nlohmann::ordered_json summary_of(const LoadRun& run);

// "http 429": 3, …
std::map<std::string, int> errors_of(const LoadRun& run);

// Of what was answered, by ids where there are some, else by text, in the order of calls.
std::uint64_t hash_of(const LoadRun& run);

}  // namespace tenon::apps
