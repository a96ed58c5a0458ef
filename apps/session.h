// What run and eval share: the options that open an engine, the team of processes behind
// --processes, prompts as tokens, and the report on how the boundaries ran.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tenon/core/status.h"
#include "tenon/runtime/chat_template.h"
#include "tenon/runtime/engine.h"
#include "tenon/runtime/tokenizer.h"

namespace CLI {
class App;
}

namespace tenon::apps {

struct SessionOptions {
  std::string model = "models/tiny";
  int tp = 2;
  std::string device = "cpu";
  int max_context = 2048, max_batch = 16;
  std::string force_stage = "auto";  // auto, 1, 2, 3 or mixed (one stage per site in turn)
  int max_stage = 1;
  std::string variant;
  std::string transport = "auto";
  int deadline_ms = 0;  // 0: TENON_DEADLINE_MS
  bool processes = false;
  bool chat = false;  // prompts are the user's turn in the checkpoint's chat template
};

// Adds the options above but for chat.
void add_session_options(CLI::App& app, SessionOptions& options);

// What can be said of them before anything is started or read.
Status check(const SessionOptions& options);

// Processes started for --processes; ended, at the latest by force, when this dies.
class Team;

class Session {
 public:
  // Starts what the options ask for. A process that a launcher started as a follower runs the
  // leader's steps in here and returns null when they are over.
  static Result<std::unique_ptr<Session>> open(const SessionOptions& options);
  ~Session();

  Engine& engine() { return *engine_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  // Tokens of the text as it is, or as the user's turn of a chat with the answer about to begin.
  Result<std::vector<std::int32_t>> prompt(const std::string& text) const;

 private:
  Session();
  std::unique_ptr<Team> team_;
  std::unique_ptr<Engine> engine_;
  std::optional<Tokenizer> tokenizer_;
  std::optional<ChatTemplate> chat_template_;  // only for chats
};

// Uses with a count, those of equal site, bucket, stage and variant in one line, in order of site.
std::vector<BoundaryUse> summarize(const std::vector<BoundaryUse>& uses);

// "0123456789abcdef"
std::string hex(std::uint64_t value);

}  // namespace tenon::apps
