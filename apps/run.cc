// tenon run: one prompt, its answer streamed, and how every boundary ran.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "apps/commands.h"
#include "apps/options.h"
#include "apps/session.h"
#include "apps/table.h"

namespace tenon::apps {
namespace {

// Answered as a chat where no prompt is given.
constexpr const char* kQuestion =
    "Tom has 3 boxes of 12 pencils. He gives 8 to his sister. How many pencils are left?";

struct Options {
  SessionOptions session;
  SamplingParams sampling;
  std::optional<std::string> prompt;
  bool json = false;
};

struct Answer {
  std::string text;
  std::vector<std::int32_t> tokens;
  Finish finish = Finish::kNone;
  double first_token_ms = 0;
};

Result<Answer> generate(Session& session, const Options& options) {
  const std::string& text = *options.prompt;
  TENON_ASSIGN(auto prompt, session.prompt(text));
  const auto begin = std::chrono::steady_clock::now();
  TENON_TRY(session.engine().submit(std::move(prompt), options.sampling));
  if (!options.json) std::printf("%s%s", text.c_str(), options.session.chat ? "\n\n" : "");
  StreamingDetokenizer detokenizer(session.tokenizer());
  Answer answer;
  const auto show = [&](const std::string& part) {
    answer.text += part;
    if (options.json) return;
    std::fwrite(part.data(), 1, part.size(), stdout);
    std::fflush(stdout);
  };
  while (!session.engine().idle()) {
    const auto events = session.engine().step();
    if (!events) {
      if (!options.json) std::printf("\n");  // ends the line that has begun
      return events.status();
    }
    for (const TokenEvent& event : *events) {
      if (!event.why && !options.json) std::printf("\n");
      TENON_TRY(Status(event.why));
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

Status run(Options options) {
  if (!options.prompt) {
    options.prompt = kQuestion;
    options.session.chat = true;
  }
  TENON_TRY(check(options.sampling));
  TENON_ASSIGN(auto session, Session::open(options.session));
  if (session == nullptr) return Status::ok();  // a follower: the leader has spoken
  TENON_ASSIGN(const Answer answer, generate(*session, options));
  const EngineStats stats = session->engine().stats();
  if (options.json) {
    print_json(answer, stats);
  } else {
    report(options, answer, stats);
  }
  return Status::ok();
}

}  // namespace

Command add_run(CLI::App& parent) {
  auto options = std::make_shared<Options>();
  CLI::App* app = parent.add_subcommand("run", "answer one prompt and say how every boundary ran");
  add_session_options(*app, options->session);
  app->add_option("--prompt", options->prompt,
                  "the text to continue, or with --chat to answer; default: a chat's word problem");
  app->add_flag("--chat", options->session.chat,
                "put the prompt into the checkpoint's chat template");
  app->add_option("--max-new-tokens", options->sampling.max_tokens)
      ->capture_default_str()
      ->check(whole_number(1, kMaxCount));
  app->add_option("--temperature", options->sampling.temperature, "0 is greedy")
      ->capture_default_str();
  app->add_option("--top-p", options->sampling.top_p)->capture_default_str();
  app->add_option("--top-k", options->sampling.top_k, "0 means all")
      ->capture_default_str()
      ->check(whole_number(0, kMaxCount));
  app->add_option("--seed", options->sampling.seed)
      ->capture_default_str()
      ->check(whole_number(0, UINT64_MAX));
  app->add_flag("--ignore-eos", options->sampling.ignore_eos, "go on to --max-new-tokens");
  app->add_flag("--json", options->json, "print one JSON object and nothing else");
  return {app, [options] { return run(*options); }};
}

}  // namespace tenon::apps
