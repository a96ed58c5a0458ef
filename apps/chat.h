// A conversation on a terminal: turns in the checkpoint's chat template, and a few commands.
#pragma once

#include <string>
#include <vector>

#include "apps/session.h"

namespace tenon::apps {

struct ChatSettings {
  SamplingParams sampling;
  std::vector<std::string> stops;
  std::string system;  // empty: no system prompt
  bool quiet = false;  // answers alone
};

// Reads messages from standard input and answers on standard output until /exit, the end of the
// input, or a signal at the prompt. A signal during an answer stops that answer.
Status chat(Session& session, ChatSettings settings);

}  // namespace tenon::apps
