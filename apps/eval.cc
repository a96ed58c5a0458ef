// tenon eval words: exact match on word problems whose answers end in "#### N"; tenon eval.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "apps/answer.h"
#include "apps/commands.h"
#include "apps/eval/answers.h"
#include "apps/eval/gsm8k.h"
#include "apps/eval/problems.h"
#include "apps/interrupt.h"
#include "apps/options.h"
#include "apps/session.h"
#include "apps/table.h"
#include "apps/version.h"
#include "tenon/core/env.h"

namespace tenon::apps {
namespace {

struct Options {
  SessionOptions session;
  std::string file;  // empty: eval.jsonl of the model
  int limit = 0;     // 0: all
  int max_new_tokens = 256;
  ClientOptions client{.chat = true};
  int parallel = 16;  // at a server
  bool json = false, verbose = false;
};

struct Outcome {
  std::string text;
  std::vector<std::int32_t> tokens;  // without the end-of-sequence token
  bool finished = false;             // false where a signal came first
};

// In the order of the problems. A signal ends it early.
Result<std::vector<Outcome>> answer_all(Session* session, ModelClient* client,
                                        const std::vector<Problem>& problems,
                                        const Options& options) {
  std::vector<Question> questions;
  for (const Problem& each : problems)
    questions.push_back({each.question, options.max_new_tokens, {}});
  std::vector<Outcome> outcomes(problems.size());
  std::size_t done = 0;
  const auto told = [&](std::size_t at, Answered answered) {
    if (!answered.error.empty())  // no answer is a wrong one
      log(LogLevel::kWarning, "problem " + std::to_string(at + 1) + ": " + answered.error);
    outcomes[at] = {std::move(answered.text), std::move(answered.tokens), true};
    if (!options.session.quiet) show_progress("eval words", ++done, problems.size());
    return Status::ok();
  };
  if (client != nullptr) {
    TENON_TRY(answer_over_http(*client, questions, options.parallel, told));
  } else {
    TENON_TRY(answer_in_process(*session, questions, static_cast<int>(questions.size()), told));
  }
  if (interrupted_by() != 0 && isatty(STDERR_FILENO) != 0) std::fputs("\n", stderr);
  return outcomes;
}

struct Score {
  int correct = 0, finished = 0;
  std::vector<std::string> answers;  // the final numbers; empty where there is none
  std::vector<std::size_t> wrong;    // which of the finished ones
};

Score score(const std::vector<Problem>& problems, const std::vector<Outcome>& outcomes) {
  Score out;
  for (std::size_t i = 0; i < problems.size(); ++i) {
    out.answers.push_back(final_number(outcomes[i].text));
    if (!outcomes[i].finished) continue;
    ++out.finished;
    if (out.answers[i] == problems[i].final) {
      ++out.correct;
    } else {
      out.wrong.push_back(i);
    }
  }
  return out;
}

void print_json(const Options& options, const Session& session, const Score& score,
                const std::vector<Outcome>& outcomes, const EngineStats& stats) {
  nlohmann::ordered_json tokens = nlohmann::ordered_json::array();
  for (const Outcome& each : outcomes) tokens.push_back(each.tokens);
  const nlohmann::ordered_json out{
      {"correct", score.correct},         {"total", outcomes.size()},
      {"finished", score.finished},       {"finish", interrupted_by() != 0 ? "interrupted" : "all"},
      {"answers", score.answers},         {"tokens", tokens},
      {"load_s", session.load_seconds()}, {"decode_tokens_per_s", decode_rate(stats)},
      {"model", options.session.model},   {"weights", name(options.session.weights.format)},
      {"tp", options.session.tp},         {"target", options.session.device},
      {"transport", stats.transport},     {"version", version_name()}};
  std::printf("%s\n",
              out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
}

void print_wrong(const std::vector<Problem>& problems, const Score& score) {
  for (const std::size_t i : score.wrong)
    std::printf("wrong: problem %zu, expected %s, found %s: %s\n", i + 1, problems[i].final.c_str(),
                score.answers[i].empty() ? "no number" : score.answers[i].c_str(),
                problems[i].question.c_str());
  if (!score.wrong.empty()) std::printf("\n");
}

std::string percent_text(const Score& score) {
  if (score.finished == 0) return "none";
  return fixed(100.0 * score.correct / score.finished, 1) + "%";
}

void print_table(const Options& options, const Score& score, const EngineStats& stats) {
  Table table({"model", "tp", "correct", "total", "exact match", "decode tokens/s"});
  table.add({options.session.model, std::to_string(options.session.tp),
             std::to_string(score.correct), std::to_string(score.finished), percent_text(score),
             fixed(decode_rate(stats), 1)});
  std::printf("%s", table.text().c_str());
  if (const std::string note = note_of(options.session.weights); !note.empty())
    std::fprintf(stderr, "%s\n", note.c_str());
}

// What a server answers. It says nothing of its ranks and weights.
Status run_over_http(const Options& options, const std::vector<Problem>& problems) {
  const Interruptible interruptible;
  TENON_ASSIGN(ModelClient client, ModelClient::open(options.client));
  TENON_ASSIGN(const auto outcomes, answer_all(nullptr, &client, problems, options));
  const Score found = score(problems, outcomes);
  if (options.json) {
    nlohmann::ordered_json tokens = nlohmann::ordered_json::array();
    for (const Outcome& each : outcomes) tokens.push_back(each.tokens);
    const nlohmann::ordered_json out{{"correct", found.correct},   {"total", outcomes.size()},
                                     {"finished", found.finished}, {"answers", found.answers},
                                     {"tokens", tokens},           {"model", client.model()},
                                     {"url", options.client.url},  {"version", version_name()}};
    std::printf("%s\n",
                out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
    return Status::ok();
  }
  if (options.verbose) print_wrong(problems, found);
  Table table({"model", "correct", "total", "exact match"});
  table.add({client.model(), std::to_string(found.correct), std::to_string(found.finished),
             percent_text(found)});
  std::printf("%s", table.text().c_str());
  return Status::ok();
}

Status run(Options options) {
  if (options.client.url.empty()) {
    TENON_TRY(check(options.session));
  }
  const std::string path =
      options.file.empty() ? options.session.model + "/eval.jsonl" : options.file;
  TENON_ASSIGN(const auto problems, read_problems(path, options.limit), "eval words");
  if (!options.client.url.empty()) return run_over_http(options, problems);
  options.session.queue.max_queued = static_cast<int>(problems.size());
  TENON_ASSIGN(auto session, Session::open(options.session));
  if (session == nullptr) return Status::ok();  // a follower
  const Interruptible interruptible;
  TENON_ASSIGN(const auto outcomes, answer_all(session.get(), nullptr, problems, options));
  const Score found = score(problems, outcomes);
  TENON_ASSIGN(const EngineStats stats, session->queue().engine_stats());
  if (options.json) {
    print_json(options, *session, found, outcomes, stats);
    return Status::ok();
  }
  if (options.verbose) print_wrong(problems, found);
  print_table(options, found, stats);
  if (interrupted_by() != 0)
    std::fprintf(stderr, "interrupted: %d of %zu problems are finished\n", found.finished,
                 problems.size());
  return Status::ok();
}

}  // namespace

Command add_eval(CLI::App& parent) {
  auto options = std::make_shared<Options>();
  options->session.chat = Chat::kOn;
  CLI::App* eval = parent.add_subcommand("eval", "score a model");
  eval->require_subcommand(1);
  CLI::App* app = eval->add_subcommand("words", "exact match on held-out word problems, greedy");
  app->add_option("--file", options->file,
                  "problems, one JSON object a line; default: eval.jsonl of the model")
      ->type_name("FILE")
      ->group("Problems");
  app->add_option("--limit", options->limit, "only the first so many; 0: all")
      ->capture_default_str()
      ->check(whole_number(0, kMaxCount))
      ->group("Problems");
  app->add_option("--max-new-tokens", options->max_new_tokens, "the longest answer")
      ->capture_default_str()
      ->check(whole_number(1, kMaxCount))
      ->group("Problems");
  app->add_option("--url", options->client.url,
                  "asks this server, as http://127.0.0.1:8000, instead of a model in this process")
      ->type_name("URL")
      ->group("Server");
  app->add_option("--parallel", options->parallel, "how many the server is asked at a time")
      ->capture_default_str()
      ->check(whole_number(1, 65536))
      ->group("Server");
  add_client_options(*app, options->client, "Server");
  add_session_options(*app, options->session);
  app->add_flag("--json", options->json, "print one JSON object, in one line, instead of a table")
      ->group("Output");
  app->add_flag("--verbose", options->verbose, "list the wrong answers")->group("Output");
  app->add_flag("--quiet", options->session.quiet, "no progress")->group("Output");
  app->footer(
      "Ctrl-C ends it with the score of the problems that are finished.\n\n"
      "  tenon eval words --limit 50 --verbose");
  const Command gsm8k = add_eval_gsm8k(*eval);
  return {eval, [options, gsm8k] { return gsm8k.app->parsed() ? gsm8k.run() : run(*options); }};
}

}  // namespace tenon::apps
