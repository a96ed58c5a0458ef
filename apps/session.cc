#include "apps/session.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <tuple>

#include "apps/options.h"
#include "apps/team.h"
#include "tenon/comm/bootstrap.h"
#include "tenon/core/env.h"

namespace tenon::apps {
namespace {

constexpr int kMixedStages = 4;  // what models take for "one stage per site in turn"

Result<int> stage_of(const std::string& text) {
  if (text == "auto") return 0;
  if (text == "mixed") return kMixedStages;
  if (text == "1" || text == "2" || text == "3") return text[0] - '0';
  return Status::error(Code::kInvalidArgument,
                       "--force-stage is \"" + text + "\"; accepted are auto, 1, 2, 3 and mixed");
}

// A line that keeps saying how far the load is, on a terminal only.
void show_progress(std::int64_t done, std::int64_t total) {
  if (isatty(STDERR_FILENO) == 0) return;
  const double percent =
      total == 0 ? 100.0 : 100.0 * static_cast<double>(done) / static_cast<double>(total);
  std::fprintf(stderr, "\rloading %3.0f%% of %.1f MB", percent, static_cast<double>(total) / 1e6);
  if (done >= total) std::fprintf(stderr, "\r%40s\r", "");
  std::fflush(stderr);
}

Status check_directory(const std::string& path) {
  std::error_code failed;
  const auto found = std::filesystem::status(path, failed);
  if (std::filesystem::is_directory(found)) return Status::ok();
  std::string why = "no such directory";
  if (std::filesystem::exists(found)) why = "is a file; accepted is the directory it lies in";
  if (failed && found.type() != std::filesystem::file_type::not_found) why = failed.message();
  return Status::error(Code::kIo, "--model \"" + path + "\": " + why);
}

Result<EngineOptions> engine_options(const SessionOptions& options) {
  EngineOptions out;
  out.model = options.model;
  out.tp = options.tp;
  if (options.tp < 1 || options.tp > kMaxRanks)
    return Status::error(Code::kInvalidArgument, "--tp is " + std::to_string(options.tp) +
                                                     "; accepted are 1 to " +
                                                     std::to_string(kMaxRanks));
  const auto target = target_named(options.device);
  if (!target)
    return Status::error(
        Code::kInvalidArgument,
        "--device is \"" + options.device + "\"; accepted are cuda, hip, cpu, emu32 and emu64");
  out.target = *target;
  out.max_context = options.max_context;
  out.max_batch = options.max_batch;
  out.max_tokens_per_step = std::max(out.max_tokens_per_step, kPrefillQuantum + options.max_batch);
  TENON_ASSIGN(out.force_stage, stage_of(options.force_stage));
  out.max_stage = options.max_stage;
  out.force_variant = options.variant;
  out.transport = options.transport;
  out.deadline =
      options.deadline_ms > 0 ? std::chrono::milliseconds(options.deadline_ms) : env().deadline;
  out.progress = show_progress;
  TENON_TRY(Engine::check(out));
  TENON_TRY(check_directory(options.model));
  return out;
}

}  // namespace

Status check(const SessionOptions& options) { return engine_options(options).status(); }

void add_session_options(CLI::App& app, SessionOptions& options) {
  app.add_option("--model", options.model, "directory of a Qwen3.5 checkpoint")
      ->capture_default_str();
  app.add_option("--tp", options.tp, "tensor-parallel ranks, 1 to 8")->capture_default_str();
  app.add_option("--device", options.device, "target: see tenon env")->capture_default_str();
  app.add_option("--max-context", options.max_context, "prompt and answer of one sequence")
      ->capture_default_str()
      ->check(whole_number(1, kMaxContext));
  app.add_option("--max-batch", options.max_batch,
                 "sequences that run together; long contexts may leave memory for fewer")
      ->capture_default_str()
      ->check(whole_number(1, kMaxTokensPerStep - kPrefillQuantum));
  app.add_option("--force-stage", options.force_stage,
                 "every boundary's stage: auto, 1, 2, 3, or mixed")
      ->capture_default_str();
  app.add_option("--max-stage", options.max_stage, "the most fused stage allowed: 1, 2 or 3")
      ->capture_default_str();
  app.add_option("--variant", options.variant,
                 "of stage 1: one_shot or two_shot, or the same with _packed");
  app.add_option("--transport", options.transport, "auto, threads, ipc, shm or ccl")
      ->capture_default_str();
  app.add_option("--deadline-ms", options.deadline_ms,
                 "the longest any wait for a rank may last; 0: TENON_DEADLINE_MS")
      ->capture_default_str()
      ->check(whole_number(0, 86'400'000));
  app.add_flag("--processes", options.processes, "ranks as processes instead of threads");
}

Session::Session() = default;
Session::~Session() = default;  // the engine goes first and tells the team to end

Result<std::unique_ptr<Session>> Session::open(const SessionOptions& options) {
  TENON_ASSIGN(EngineOptions wanted, engine_options(options));
  std::unique_ptr<Session> session(new Session);
  TENON_ASSIGN(Tokenizer tokenizer, Tokenizer::load(options.model));
  wanted.num_tokens = tokenizer.num_tokens();
  if (options.chat && tokenizer.eos_id() >= 0) wanted.eos_ids = {tokenizer.eos_id()};
  session->tokenizer_.emplace(std::move(tokenizer));
  if (options.chat) {
    TENON_ASSIGN(ChatTemplate chat, ChatTemplate::load(options.model));
    session->chat_template_.emplace(std::move(chat));
  }
  const auto variable = [](const char* name) { return std::getenv(name); };
  const bool launched = was_launched(variable);
  if (options.processes && !launched && options.tp > 1) {
    TENON_ASSIGN(session->team_, Team::start(options.tp));
  }
  if (launched || session->team_ != nullptr) {
    TENON_ASSIGN(const Launch launch, read_launch(variable));
    TENON_ASSIGN(wanted.bootstrap, socket_bootstrap(launch, wanted.deadline));
  }
  TENON_ASSIGN(session->engine_, Engine::open(wanted));
  if (!session->engine_->leads()) {
    TENON_TRY(session->engine_->follow());
    return std::unique_ptr<Session>();
  }
  return session;
}

Result<std::vector<std::int32_t>> Session::prompt(const std::string& text) const {
  if (!chat_template_) return tokenizer_->encode(text);
  ChatMessage message;
  message.role = "user";
  message.content = text;
  TENON_ASSIGN(const std::string rendered, chat_template_->render({message}));
  return tokenizer_->encode(rendered);
}

std::vector<BoundaryUse> summarize(const std::vector<BoundaryUse>& uses) {
  std::map<std::tuple<std::size_t, int, Stage, std::string, std::string>, BoundaryUse> merged;
  std::vector<std::string> sites;  // in the order in which the model names them
  for (const BoundaryUse& use : uses) {
    const auto found = std::find(sites.begin(), sites.end(), use.site);
    const auto order = static_cast<std::size_t>(found - sites.begin());
    if (found == sites.end()) sites.push_back(use.site);
    if (use.count == 0) continue;
    const auto key = std::make_tuple(order, use.max_rows, use.stage, use.variant, use.reason);
    const auto [entry, fresh] = merged.try_emplace(key, use);
    if (!fresh) entry->second.count += use.count;
  }
  std::vector<BoundaryUse> out;
  out.reserve(merged.size());
  for (auto& [key, use] : merged) out.push_back(std::move(use));
  return out;
}

std::string hex(std::uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace tenon::apps
