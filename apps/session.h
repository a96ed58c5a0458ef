// What run and eval share: the options that open a model and its queue, the team of processes
// behind
// --processes, and the report on how the boundaries ran.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "apps/checkpoint.h"
#include "tenon/core/status.h"
#include "tenon/runtime/engine.h"
#include "tenon/serve/language_model.h"
#include "tenon/serve/request_queue.h"
#include "tenon/text/chat_template.h"

namespace CLI {
class App;
}

namespace tenon::apps {

// Whether prompts go through the checkpoint's chat template. Auto: where it has one.
enum class Chat : std::uint8_t { kAuto, kOn, kOff };

// What the command line says as "auto": chosen by engine_options().
inline constexpr int kLeftOpen = 0;

struct SessionOptions {
  std::string model = default_model();
  WeightsFrom weights;
  int tp = 2;
  std::string device = "cpu";
  int max_context = kLeftOpen, max_batch = kLeftOpen;
  int step_tokens = kLeftOpen;                   // EngineOptions::max_tokens_per_step
  std::int64_t cache_tokens = kAutoCacheTokens;  // as in EngineOptions, and the next two
  double memory_fraction = EngineOptions().memory_fraction;
  int prefix_states = EngineOptions().prefix_states;
  bool run_ahead = true;             // as RunAhead::kOnDevices; else never
  std::string force_stage = "auto";  // auto, 1, 2, 3 or mixed (one stage per site in turn)
  int max_stage = 1;
  std::string variant;
  std::string transport = "auto";
  int deadline_ms = 0;  // 0: TENON_DEADLINE_MS
  bool processes = false;
  Chat chat = Chat::kAuto;
  serve::QueueOptions queue;
  bool quiet = false;  // no progress while loading
};

// Adds the options above but for chat, queue and quiet.
void add_session_options(CLI::App& app, SessionOptions& options);
// Those of them that say which model, and which ranks without --processes.
void add_model_options(CLI::App& app, SessionOptions& options);
void add_rank_options(CLI::App& app, SessionOptions& options);
// --max-stage and --variant.
void add_stage_limits(CLI::App& app, SessionOptions& options);

// What --force-stage may be, and the policy that one of these names.
inline const std::vector<std::string> kStageNames{"auto", "1", "2", "3", "mixed"};
StagePolicy stage_policy_of(const std::string& stage_name);

// The engine that they describe, or why there can be none.
Result<EngineOptions> engine_options(const SessionOptions& options);

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

  // After the death of the engine: ends what is left of it and its team, makes another one from the
  // checkpoint, and lets the queue take requests again. For the thread that called open().
  Status restart();

  serve::RequestQueue& queue() { return *queue_; }
  const serve::LanguageModel& model() const { return *model_; }
  double load_seconds() const { return load_seconds_; }  // of open(), model and team
  // False where the model has no tokenizer: prompts and answers are ids then.
  bool reads_text() const { return model_->text().reads_text(); }
  // Ids that a prompt may hold: 0 to this, exclusive.
  Result<int> num_ids() const;
  bool chats() const { return model_->text().chats(); }
  // The text as the user's turn of a chat, or as it is where the session does not chat.
  serve::Prompt prompt(std::string text) const;

 private:
  explicit Session(const SessionOptions& options);
  // The engine's options; with ranks that are processes, after starting those that are this
  // process's to start and with their rendezvous.
  Result<EngineOptions> gather();
  const SessionOptions options_;
  std::unique_ptr<Team> team_;
  std::unique_ptr<serve::LanguageModel> model_;
  std::unique_ptr<serve::RequestQueue> queue_;
  double load_seconds_ = 0;
};

// What a rank's device holds, part by part.
std::string memory_table(const MemoryPlan& plan);

// What reports say of weights that are made; empty of those of files.
std::string note_of(const WeightsFrom& weights);

// Whether this process is a rank that only does what another process's leader says.
bool follows_a_leader();

// A message with a role of its own, or of the user.
ChatMessage message_of(std::string role, std::string content);

// Uses with a count, those of equal site, bucket, stage and variant in one line, in order of site.
std::vector<BoundaryUse> summarize(const std::vector<BoundaryUse>& uses);

// "0123456789abcdef"
std::string hex(std::uint64_t value);

}  // namespace tenon::apps
