#include "apps/session.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <optional>
#include <tuple>

#include "apps/interrupt.h"
#include "apps/options.h"
#include "apps/progress.h"
#include "apps/table.h"
#include "apps/team.h"
#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/core/clock.h"
#include "tenon/core/env.h"

namespace tenon::apps {

StagePolicy stage_policy_of(const std::string& stage_name) {
  if (stage_name == "auto") return StagePolicy::kFree;
  return stage_name == "mixed" ? StagePolicy::kMixed
                               : static_cast<StagePolicy>(stage_name[0] - '0');
}

namespace {

// Where the command line leaves the choice.
constexpr int kHostContext = 2048;
constexpr int kHostStepTokens = 256, kDeviceStepTokens = kMaxTokensPerStep;

// On devices all that the model allows, for the caches take the memory that there is.
int free_context(const std::string& model, bool on_host) {
  const auto allowed = context_of(model);
  if (!allowed) return kHostContext;  // who opens the model says why
  return std::min(*allowed, on_host ? kHostContext : kMaxContext);
}

}  // namespace

Result<EngineOptions> engine_options(const SessionOptions& options) {
  EngineOptions out;
  out.model = options.model;
  out.weights = options.weights;
  out.tp = options.tp;
  const auto target = target_named(options.device);
  TENON_CHECK(target.has_value());  // the command line has asked for one of the list
  out.target = *target;
  const bool on_host = is_host(out.target);
  out.fits_context = options.max_context == kLeftOpen;
  out.max_context = out.fits_context ? free_context(options.model, on_host) : options.max_context;
  out.max_batch = options.max_batch != kLeftOpen ? options.max_batch : on_host ? 16 : 64;
  out.cache_tokens = options.cache_tokens;
  out.memory_fraction = options.memory_fraction;
  out.prefix_states = options.prefix_states;
  out.run_ahead = options.run_ahead ? RunAhead::kOnDevices : RunAhead::kNever;
  const int least = kPrefillQuantum + out.max_batch;
  if (options.step_tokens != kLeftOpen && options.step_tokens < least)
    return Status::error(Code::kInvalidArgument,
                         "--step-tokens is " + std::to_string(options.step_tokens) +
                             "; with --max-batch " + std::to_string(out.max_batch) +
                             " accepted are " + std::to_string(least) + " to " +
                             std::to_string(kMaxTokensPerStep));
  out.max_tokens_per_step = options.step_tokens != kLeftOpen
                                ? options.step_tokens
                                : std::max(on_host ? kHostStepTokens : kDeviceStepTokens, least);
  out.force_stage = stage_policy_of(options.force_stage);
  out.max_stage = options.max_stage;
  out.force_variant = options.variant;
  out.transport = options.transport;
  out.deadline =
      options.deadline_ms > 0 ? std::chrono::milliseconds(options.deadline_ms) : env().deadline;
  if (!options.quiet)
    out.progress = [line = std::make_shared<Progress>("loading", "loaded")](
                       std::int64_t done, std::int64_t total, std::string_view limit) {
      line->update(static_cast<double>(done), static_cast<double>(total), limit);
    };
  TENON_TRY(Engine::check(out));
  TENON_TRY(check_weights(options.weights));
  TENON_TRY(check_checkpoint(options.model, options.weights.format));
  TENON_TRY(check_team(options.model, options.tp));
  return out;
}

namespace {

Result<serve::TextCodec> load_text(const SessionOptions& options) {
  using serve::TemplateUse;
  const TemplateUse use = options.chat == Chat::kOn    ? TemplateUse::kRequired
                          : options.chat == Chat::kOff ? TemplateUse::kNone
                                                       : TemplateUse::kIfThere;
  const std::string directory = checkpoint_directory(options.model);
  if (!has_tokenizer(directory)) {  // weights are made, or check_checkpoint() had refused
    if (use == TemplateUse::kRequired)
      return Status::error(Code::kInvalidArgument,
                           "\"" + options.model +
                               "\" has no tokenizer.json to read texts with; accepted are token "
                               "ids: tenon run --prompt-ids");
    return serve::TextCodec::without_text();
  }
  auto text = serve::TextCodec::load(directory, use);
  const bool can_be_left_out = use == TemplateUse::kIfThere && !text &&
                               serve::TextCodec::load(directory, TemplateUse::kNone);
  if (can_be_left_out) return text.status().with("--raw leaves the chat template out");
  return text;
}

}  // namespace

Status check(const SessionOptions& options) { return engine_options(options).status(); }

void add_model_options(CLI::App& app, SessionOptions& options) {
  app.add_option("--model", options.model,
                 "a checkpoint's directory: config.json, tokenizer.json, *.safetensors")
      ->type_name("DIR")
      ->default_str(kDefaultModel)
      ->group("Model");
  add_weights_options(app, options.weights);
}

void add_rank_options(CLI::App& app, SessionOptions& options) {
  app.add_option("--tp", options.tp, "tensor-parallel ranks, as far as they divide the model")
      ->capture_default_str()
      ->check(whole_number(1, kMaxRanks))
      ->group("Ranks");
  app.add_option("--target,--device", options.device, "target; tenon env says which are here")
      ->capture_default_str()
      ->check(CLI::IsMember(target_names()))
      ->group("Ranks");
  std::vector<std::string> transports = transport_names();
  transports.insert(transports.begin(), "auto");
  app.add_option("--transport", options.transport, "how ranks see each other")
      ->capture_default_str()
      ->check(CLI::IsMember(transports))
      ->group("Ranks");
  app.add_option("--deadline-ms", options.deadline_ms,
                 "the longest any wait for a rank may last; 0: TENON_DEADLINE_MS")
      ->capture_default_str()
      ->check(whole_number(0, 86'400'000))
      ->group("Ranks");
}

void add_stage_limits(CLI::App& app, SessionOptions& options) {
  app.add_option("--max-stage", options.max_stage, "the most fused stage allowed")
      ->capture_default_str()
      ->check(whole_number(1, 3))
      ->group("Boundaries");
  app.add_option(
         "--variant", options.variant,
         "of stage 1: one_shot, one_shot_packed, one_shot_split, two_shot or two_shot_packed")
      ->group("Boundaries");
}

namespace {

// A number, or "auto", which becomes `free`.
CLI::Validator number_or_auto(std::int64_t low, std::uint64_t high, std::int64_t free) {
  const CLI::Validator number = whole_number(low, high);
  return CLI::Validator(
      [number, free](std::string& text) {
        if (text != "auto") {
          const std::string wrong = number(text);
          return wrong.empty() ? wrong : wrong + ", or auto";
        }
        text = std::to_string(free);
        return std::string();
      },
      "auto or " + number.get_description());
}

}  // namespace

void add_session_options(CLI::App& app, SessionOptions& options) {
  add_model_options(app, options);
  app.add_option(
         "--max-context", options.max_context,
         "the most tokens of one sequence, prompt and answer together; auto: on devices what "
         "the model allows and the kv cache holds, on hosts 2048")
      ->default_str("auto")
      ->transform(number_or_auto(1, kMaxContext, kLeftOpen))
      ->group("Model");
  app.add_option("--max-batch", options.max_batch,
                 "the most sequences that run together; auto: 64 on devices, 16 on hosts")
      ->default_str("auto")
      ->transform(number_or_auto(1, kMaxTokensPerStep - kPrefillQuantum, kLeftOpen))
      ->group("Model");
  app.add_option("--step-tokens", options.step_tokens,
                 "tokens that one step computes: with more a prompt is read sooner, with fewer the "
                 "answers of others go on more evenly meanwhile; auto: " +
                     std::to_string(kDeviceStepTokens) + " on devices, " +
                     std::to_string(kHostStepTokens) + " on hosts")
      ->default_str("auto")
      ->transform(number_or_auto(kPrefillQuantum + 1, kMaxTokensPerStep, kLeftOpen))
      ->group("Model");
  app.add_option("--cache-tokens", options.cache_tokens,
                 "tokens that the kv cache holds, of all sequences and kept prompts together; 0: "
                 "max-batch times max-context; auto: that on hosts, on devices all that "
                 "--memory-fraction has room for")
      ->default_str("auto")
      ->transform(number_or_auto(0, INT32_MAX - kBlockTokens, kAutoCacheTokens))
      ->group("Model");
  app.add_option("--memory-fraction", options.memory_fraction,
                 "of a device's memory, what --cache-tokens auto may fill in all, weights included")
      ->capture_default_str()
      ->check(number(0.01, 1))
      ->group("Model");
  app.add_option(
         "--prefix-states", options.prefix_states,
         "states that are kept of prompts, for prompts that begin alike: one for each conversation "
         "that goes on and two more are enough; 0: none")
      ->capture_default_str()
      ->check(whole_number(0, kMaxTokensPerStep))
      ->group("Model");
  add_rank_options(app, options);
  app.add_flag("--processes", options.processes, "ranks as processes instead of threads")
      ->group("Ranks");
  app.add_option("--force-stage", options.force_stage,
                 "every boundary's stage; mixed: one per site in turn")
      ->capture_default_str()
      ->check(CLI::IsMember(kStageNames))
      ->group("Boundaries");
  add_stage_limits(app, options);
}

Session::Session(const SessionOptions& options) : options_(options) {}
Session::~Session() = default;  // queue, then engine, which tells the team to end

Result<EngineOptions> Session::gather() {
  TENON_ASSIGN(EngineOptions wanted, engine_options(options_));
  const auto variable = [](const char* name) { return std::getenv(name); };
  if (options_.processes && options_.tp > 1 && (team_ != nullptr || !was_launched(variable))) {
    team_ = nullptr;  // one that is dead ends before the next begins
    TENON_ASSIGN(team_, Team::start(options_.tp));
  }
  if (team_ != nullptr || was_launched(variable)) {
    TENON_ASSIGN(Launch launch, read_launch(variable));
    if (team_ != nullptr) launch.given_up = [team = team_.get()] { return team->complete(); };
    Team::name_follower(launch.rank, launch.size);
    TENON_ASSIGN(wanted.bootstrap, socket_bootstrap(launch, wanted.deadline));
  }
  return wanted;
}

Status Session::restart() {
  model_->close();
  TENON_ASSIGN(EngineOptions wanted, gather());
  TENON_TRY(model_->reopen(std::move(wanted)));
  queue_->revive();
  return Status::ok();
}

Result<std::unique_ptr<Session>> Session::open(const SessionOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  TENON_TRY(check(options));  // before anything is read
  std::unique_ptr<Session> session(new Session(options));
  TENON_ASSIGN(serve::TextCodec text, load_text(options));
  TENON_ASSIGN(EngineOptions wanted, session->gather());
  TENON_ASSIGN(session->model_, serve::LanguageModel::open(std::move(text), std::move(wanted)));
  if (!session->model_->leads()) {
    // A launcher's signal reaches all ranks: this one goes on while its leader ends what runs.
    std::optional<Interruptible> patient;
    if (!Team::has_leader()) patient.emplace();
    TENON_TRY(session->model_->follow());
    return std::unique_ptr<Session>();
  }
  TENON_ASSIGN(session->queue_, serve::RequestQueue::start(*session->model_, options.queue));
  session->load_seconds_ = seconds_since(begin);
  return session;
}

serve::Prompt Session::prompt(std::string text) const {
  if (!chats()) return text;
  return serve::ChatPrompt{{message_of("user", std::move(text))}};
}

Result<int> Session::num_ids() const {
  if (reads_text()) return static_cast<int>(model_->text().tokenizer().num_tokens());
  return vocabulary_of(options_.model);
}

std::string memory_table(const MemoryPlan& plan) {
  Table table({"memory of a rank", "bytes", "about"});
  const auto add = [&](std::string_view what, std::int64_t bytes) {
    table.add({std::string(what), std::to_string(bytes), bytes_text(static_cast<double>(bytes))});
  };
  for (const MemoryPlan::Part& each : plan.parts()) add(each.name, each.bytes);
  add("all of these", plan.total());
  add("there are", plan.device);
  return table.text() + "the kv cache holds " + std::to_string(plan.cache_tokens) + " tokens\n";
}

std::string note_of(const WeightsFrom& weights) {
  if (weights.format != LoadFormat::kDummy) return {};
  return "weights: dummy, made from the config with seed " + std::to_string(weights.seed) +
         "; the answers mean nothing";
}

bool follows_a_leader() {
  const auto variable = [](const char* name) { return std::getenv(name); };
  if (!was_launched(variable)) return false;
  const auto launch = read_launch(variable);
  return launch && launch->rank != 0;
}

ChatMessage message_of(std::string role, std::string content) {
  ChatMessage message;
  message.role = std::move(role);
  message.content = std::move(content);
  return message;
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
