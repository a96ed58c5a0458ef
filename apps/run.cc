// tenon run: one prompt, its answer streamed, and how every boundary ran.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "apps/commands.h"
#include "apps/session.h"
#include "apps/table.h"

namespace tenon::apps {
namespace {

struct Options {
  SessionOptions session;
  SamplingParams sampling;
  std::string prompt = "The capital of France is";
  bool chat = false, json = false;
};

struct Answer {
  std::string text;
  std::vector<std::int32_t> tokens;
  Finish finish = Finish::kNone;
  double first_token_ms = 0;
};

Result<Answer> generate(Session& session, const Options& options) {
  TENON_ASSIGN(auto prompt, session.prompt(options.prompt, options.chat));
  const auto begin = std::chrono::steady_clock::now();
  TENON_TRY(session.engine().submit(std::move(prompt), options.sampling));
  if (!options.json) std::printf("%s%s", options.prompt.c_str(), options.chat ? "\n\n" : "");
  StreamingDetokenizer detokenizer(session.tokenizer());
  Answer answer;
  const auto show = [&](const std::string& part) {
    answer.text += part;
    if (options.json) return;
    std::fwrite(part.data(), 1, part.size(), stdout);
    std::fflush(stdout);
  };
  while (!session.engine().idle()) {
    TENON_ASSIGN(const auto events, session.engine().step());
    for (const TokenEvent& event : events) {
      if (answer.tokens.empty()) {
        const std::chrono::duration<double, std::milli> passed =
            std::chrono::steady_clock::now() - begin;
        answer.first_token_ms = passed.count();
      }
      answer.tokens.push_back(event.token);
      answer.finish = event.finish;
      if (event.finish != Finish::kStop) show(detokenizer.push(event.token));
    }
  }
  show(detokenizer.finish());
  return answer;
}

double decode_rate(const EngineStats& stats) {
  return stats.decode_seconds > 0 ? static_cast<double>(stats.decode_tokens) / stats.decode_seconds
                                  : 0.0;
}

void report(const Options& options, const Answer& answer, const EngineStats& stats) {
  Table table({"site", "rows up to", "stage", "variant", "count", "why not a more fused stage"});
  for (const BoundaryUse& use : summarize(stats.boundaries))
    table.add({use.site, std::to_string(use.max_rows),
               std::to_string(static_cast<int>(use.stage)) + " " + std::string(name(use.stage)),
               use.variant, std::to_string(use.count),
               use.reason.empty() ? "it is the most fused" : use.reason});
  std::printf("\n\n%s\n", table.text().c_str());
  std::printf("%d ranks on %s over %s, %.1f MB of weights on each\n", options.session.tp,
              options.session.device.c_str(), stats.transport.c_str(),
              static_cast<double>(stats.weight_bytes) / 1e6);
  std::printf(
      "prompt %lld tokens, first token after %.1f ms; %zu tokens (%s), decode %.1f tokens/s\n",
      static_cast<long long>(stats.prompt_tokens), answer.first_token_ms, answer.tokens.size(),
      std::string(name(answer.finish)).c_str(), decode_rate(stats));
  std::printf("last logits %s\n", hex(stats.logits_fingerprint).c_str());
}

void print_json(const Answer& answer, const EngineStats& stats) {
  nlohmann::json boundaries = nlohmann::json::array();
  for (const BoundaryUse& use : summarize(stats.boundaries))
    boundaries.push_back({{"site", use.site},
                          {"rows", use.max_rows},
                          {"stage", static_cast<int>(use.stage)},
                          {"variant", use.variant},
                          {"reason", use.reason},
                          {"count", use.count}});
  const nlohmann::json out{{"text", answer.text},
                           {"tokens", answer.tokens},
                           {"finish", name(answer.finish)},
                           {"boundaries", boundaries},
                           {"prompt_tokens", stats.prompt_tokens},
                           {"first_token_ms", answer.first_token_ms},
                           {"decode_tokens_per_s", decode_rate(stats)},
                           {"logits_fingerprint", hex(stats.logits_fingerprint)}};
  std::printf("%s\n", out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

Status run(const Options& options) {
  TENON_ASSIGN(auto session, Session::open(options.session));
  if (session == nullptr) return Status::ok();  // a follower: the leader has spoken
  auto answer = generate(*session, options);
  if (!answer) {
    if (!options.json) std::printf("\n");
    return answer.status();
  }
  const EngineStats stats = session->engine().stats();
  if (options.json) {
    print_json(*answer, stats);
  } else {
    report(options, *answer, stats);
  }
  return Status::ok();
}

}  // namespace

Command add_run(CLI::App& parent) {
  auto options = std::make_shared<Options>();
  CLI::App* app = parent.add_subcommand("run", "answer one prompt and say how every boundary ran");
  add_session_options(*app, options->session);
  app->add_option("--prompt", options->prompt, "the text to continue, or with --chat to answer");
  app->add_flag("--chat", options->chat, "put the prompt into the checkpoint's chat template");
  app->add_option("--max-new-tokens", options->sampling.max_tokens)->capture_default_str();
  app->add_option("--temperature", options->sampling.temperature, "0 is greedy")
      ->capture_default_str();
  app->add_option("--top-p", options->sampling.top_p)->capture_default_str();
  app->add_option("--top-k", options->sampling.top_k, "0 means all")->capture_default_str();
  app->add_option("--seed", options->sampling.seed)->capture_default_str();
  app->add_flag("--ignore-eos", options->sampling.ignore_eos, "go on to --max-new-tokens");
  app->add_flag("--json", options->json, "print one JSON object and nothing else");
  return {app, [options] { return run(*options); }};
}

}  // namespace tenon::apps
