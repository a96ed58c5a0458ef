// Who answers the questions of an evaluation: a model in this process, or a server. Greedy.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "apps/load/model_client.h"
#include "apps/session.h"

namespace tenon::apps {

struct Question {
  std::string text;  // a chat's turn where the session or the client chats, else to be continued
  int max_tokens = 16;
  std::vector<std::string> stops = {};
};

struct Answered {
  std::string error = {};  // why there is no answer; empty where there is one
  std::string text = {}, finish = {};
  std::vector<std::int32_t> tokens = {};  // without an end-of-sequence token
  std::int64_t num_tokens = 0;            // with it
  double seconds = 0;                     // from the question to the end of the answer
};

// Hears of each end, in the order of ends. An error ends the evaluation.
using Told = std::function<Status(std::size_t question, Answered answered)>;

// At most `parallel` at a time. A signal ends it early, without an error; a dead engine is one.
Status answer_in_process(Session& session, const std::vector<Question>& questions, int parallel,
                         const Told& told);
Status answer_over_http(ModelClient& client, const std::vector<Question>& questions, int parallel,
                        const Told& told);

// So many of so many on standard error: one line on a terminal; elsewhere a line for every tenth,
// so that logs show that it is alive.
void show_progress(const char* doing, std::size_t done, std::size_t total);

}  // namespace tenon::apps
