#include "apps/bench/engine_bench.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <random>

#include "apps/interrupt.h"
#include "apps/options.h"
#include "apps/rank_threads.h"
#include "apps/version.h"
#include "tenon/core/clock.h"

namespace tenon::apps {
namespace {

using Clock = std::chrono::steady_clock;

// A team that lives for this question.
Result<Rates> measure_team(Target target, int size) {
  const auto bootstraps = local_bootstrap(size);
  TENON_ASSIGN(const auto found, on_rank_threads<Rates>(size, [&](int rank) -> Result<Rates> {
                 const auto& bootstrap = bootstraps[static_cast<std::size_t>(rank)];
                 TENON_ASSIGN(const Device device, nth_device(target, rank));
                 CommOptions options;
                 options.rank = rank;
                 options.size = size;
                 options.bootstrap = bootstrap;
                 TENON_ASSIGN(const auto comm, Communicator::create(options, device));
                 TENON_ASSIGN(Stream stream, Stream::create(device));
                 TENON_ASSIGN(Gate gate, Gate::make(bootstrap, *comm, stream));
                 auto rates = measure_rates({}, *comm, gate, stream);
                 if (!rates) comm->abort(rates.status().message());
                 return rates;
               }));
  return found.front();
}

}  // namespace

bool EngineBench::on_host() const {
  const auto target = target_named(session.device);
  return !target || is_host(*target);
}

void add_engine_bench_options(CLI::App& app, EngineBench& options) {
  add_model_options(app, options.session);
  app.parse_complete_callback([&app, &options] {
    if (app.count("--load-format") == 0 && !has_weights(options.session.model))
      options.session.weights.format = LoadFormat::kDummy;
  });
  add_rank_options(app, options.session);
  add_stage_limits(app, options.session);
  add_list_option(app, "--stages", options.stages,
                  "what is compared: stage policies of the boundaries, as tenon run --force-stage "
                  "spells them",
                  CLI::IsMember(kStageNames))
      ->default_str("auto,3")
      ->group("Boundaries");
  const char* method = "Method";
  app.add_option("--repeats", options.repeats, "turns of every stage policy")
      ->check(whole_number(1, kMaxCount))
      ->group(method);
  app.add_option("--step-tokens", options.step_tokens,
                 "the most tokens of one step; 8192 on devices, else 256, and more where the "
                 "sequences need it")
      ->check(whole_number(kPrefillQuantum + 1, kMaxTokensPerStep))
      ->group(method);
  app.add_option("--seed", options.seed, "of prompts and draws")
      ->capture_default_str()
      ->check(whole_number(0, UINT64_MAX))
      ->group(method);
  add_report_options(app, options, "Output");
}

Result<BenchedEngine> BenchedEngine::open(const EngineBench& asked, int max_context,
                                          int max_batch) {
  BenchedEngine made;
  made.options_ = asked;
  EngineBench& options = made.options_;
  options.session.max_context = max_context;
  options.session.max_batch = max_batch;
  options.session.prefix_states = 0;  // turns repeat their prompts, which must be computed again
  options.session.force_stage = options.stages.front();
  options.session.quiet = options.json_to_stdout;
  TENON_ASSIGN(EngineOptions wanted, engine_options(options.session));
  for (std::size_t arm = 1; arm < options.stages.size(); ++arm)
    wanted.more_stages.push_back(stage_policy_of(options.stages[arm]));
  const int free_tokens = options.on_host() ? 256 : kMaxTokensPerStep;
  const int tokens = options.step_tokens > 0 ? options.step_tokens : free_tokens;
  wanted.max_tokens_per_step =
      std::min(std::max(tokens, kPrefillQuantum + max_batch), kMaxTokensPerStep);
  wanted.time_steps = true;
  TENON_TRY(Engine::check(wanted));
  TENON_ASSIGN(const Device device, nth_device(wanted.target, 0));
  TENON_ASSIGN(made.device_, properties(device));
  TENON_ASSIGN(made.num_ids_, vocabulary_of(options.session.model));
  TENON_ASSIGN(made.rates_, measure_team(wanted.target, wanted.tp));
  const auto begin = Clock::now();
  TENON_ASSIGN(made.engine_, Engine::open(wanted));
  made.load_seconds_ = seconds_since(begin);
  return made;
}

std::vector<std::int32_t> BenchedEngine::prompt(int sequence, int tokens) const {
  std::mt19937_64 random(options_.seed ^ (static_cast<std::uint64_t>(sequence) << 32));
  std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
  for (std::int32_t& each : ids)
    each = static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(num_ids_));
  return ids;
}

SamplingParams BenchedEngine::sampling(int sequence, int max_tokens) const {
  SamplingParams params;
  params.temperature = 1;
  params.max_tokens = max_tokens;
  params.seed = options_.seed + static_cast<std::uint64_t>(sequence);
  params.ignore_eos = true;
  return params;
}

Status BenchedEngine::step(Fnv1a* tokens) const {
  TENON_ASSIGN(const auto events, engine_->step());
  for (const TokenEvent& each : events) {
    if (each.finish == Finish::kFailed) return each.why;
    tokens->add(static_cast<std::uint32_t>(each.token));
  }
  return Status::ok();
}

nlohmann::ordered_json BenchedEngine::about() const {
  const EngineStats stats = engine_->stats();
  nlohmann::ordered_json boundaries = nlohmann::ordered_json::array();
  for (const BoundaryUse& use : summarize(stats.boundaries))
    boundaries.push_back({{"site", use.site},
                          {"rows", use.max_rows},
                          {"stage", static_cast<int>(use.stage)},
                          {"variant", use.variant},
                          {"reason", use.reason},
                          {"count", use.count}});
  return {{"model", model_name(options_.session.model)},
          {"weights", name(options_.session.weights.format)},
          {"device", device_.name},
          {"target", options_.session.device},
          {"ranks", options_.session.tp},
          {"transport", stats.transport},
          {"date", date_now()},
          {"command", own_command()},
          {"version", version_name()},
          {"memory_gbs", rates_.memory_gbs},
          {"weight_bytes", stats.weight_bytes},
          {"load_s", load_seconds_},
          {"replayed_steps", stats.replayed_steps},
          {"boundaries", std::move(boundaries)}};
}

std::string BenchedEngine::heading() const {
  const bool made = options_.session.weights.format == LoadFormat::kDummy;
  return model_name(options_.session.model) + (made ? ", dummy weights, " : ", ") +
         std::to_string(options_.session.tp) + (options_.session.tp == 1 ? " rank" : " ranks") +
         " of " + device_.name + ", " + date_now().substr(0, 10);
}

Result<std::vector<std::vector<Turn>>> take_turns(const BenchedEngine& engine, int repeats,
                                                  const std::function<Result<Turn>()>& turn,
                                                  const std::function<void(int done)>& tell) {
  const int arms = engine.num_arms();
  std::vector<std::vector<Turn>> turns(static_cast<std::size_t>(arms));
  for (int at = 0; at < repeats * arms && interrupted_by() == 0; ++at) {
    const int arm = at % arms;
    tell(at);
    TENON_TRY(engine.engine().use_arm(arm));
    TENON_ASSIGN(const Turn found, turn());
    const Turn& first = at == 0 ? found : turns[0].front();
    if (found.tokens.value() != first.tokens.value())
      return Status::error(Code::kInternal,
                           "turn " + std::to_string(at / arms) + " of stage policy number " +
                               std::to_string(arm) +
                               " drew other tokens than the first turn of the first one");
    turns[static_cast<std::size_t>(arm)].push_back(found);
  }
  return turns;
}

Spread spread_of(const std::vector<Turn>& turns, double Turn::*seconds, double count) {
  std::vector<double> each;
  for (const Turn& turn : turns) each.push_back(1e3 * (turn.*seconds) / count);
  return {quantile(each, 0.5), quantile(each, 0.1), quantile(each, 0.9)};
}

}  // namespace tenon::apps
