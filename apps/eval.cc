// tenon eval words: exact match on word problems whose answers end in "#### N".
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "apps/answer.h"
#include "apps/commands.h"
#include "apps/interrupt.h"
#include "apps/options.h"
#include "apps/session.h"
#include "apps/table.h"
#include "apps/version.h"
#include "tenon/core/env.h"
#include "tenon/core/json.h"
#include "tenon/serve/ready_list.h"

namespace tenon::apps {
namespace {

struct Options {
  SessionOptions session;
  std::string file;  // empty: eval.jsonl of the model
  int limit = 0;     // 0: all
  int max_new_tokens = 256;
  bool json = false, verbose = false;
};

struct Problem {
  std::string question, final;
};

struct Outcome {
  std::string text;
  std::vector<std::int32_t> tokens;  // without the end-of-sequence token
  bool finished = false;             // false where a signal came first
};

// The number after the last "####", without commas and blanks; empty when there is none.
std::string final_number(const std::string& text) {
  const auto mark = text.rfind("####");
  if (mark == std::string::npos) return {};
  std::string number;
  for (std::size_t i = mark + 4; i < text.size(); ++i) {
    const char each = text[i];
    if (each == ',' || (each == ' ' && number.empty())) continue;
    if ((each < '0' || each > '9') && each != '-' && each != '.') break;
    number += each;
  }
  while (!number.empty() && number.back() == '.') number.pop_back();
  return number;
}

Result<Problem> parse_problem(const std::string& line, const std::string& where) {
  const auto parsed = parse_json(line);
  const auto bad = [&](const std::string& why) {
    return Status::error(Code::kIo,
                         where + " " + why +
                             "; accepted is an object with \"question\" and \"final\" or "
                             "an \"answer\" that ends in \"#### N\"");
  };
  if (!parsed) return bad(std::string(parsed.status().message()));
  const nlohmann::json& json = *parsed;
  if (!json.is_object()) return bad("is no JSON object");
  if (!json.contains("question") || !json["question"].is_string()) return bad("has no question");
  Problem problem{json["question"], {}};
  if (json.contains("final") && json["final"].is_string()) problem.final = json["final"];
  if (json.contains("final") && json["final"].is_number_integer())
    problem.final = std::to_string(json["final"].get<std::int64_t>());
  if (problem.final.empty() && json.contains("answer") && json["answer"].is_string())
    problem.final = final_number(json["answer"]);
  if (problem.final.empty()) return bad("has no final number");
  return problem;
}

Result<std::vector<Problem>> read_problems(const std::string& path, int limit) {
  std::ifstream file(path);
  if (!file) return Status::error(Code::kIo, "cannot read the problems in \"" + path + "\"");
  std::vector<Problem> problems;
  int number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (limit > 0 && static_cast<int>(problems.size()) == limit) break;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    TENON_ASSIGN(auto problem,
                 parse_problem(line, "line " + std::to_string(number) + " of \"" + path + "\""));
    problems.push_back(std::move(problem));
  }
  if (problems.empty()) return Status::error(Code::kIo, "\"" + path + "\" has no problems");
  return problems;
}

// One line on a terminal; elsewhere a line for every tenth, so that logs show that it is alive.
void show_progress(std::size_t done, std::size_t total) {
  const bool screen = isatty(STDERR_FILENO) != 0;
  if (!screen && done * 10 / total == (done - 1) * 10 / total) return;
  std::fprintf(stderr, "%seval words: %zu of %zu%s", screen ? "\r" : "", done, total,
               screen ? "" : "\n");
  if (screen && done == total) std::fprintf(stderr, "\r%40s\r", "");
}

// In the order of the problems. A signal ends it early.
Result<std::vector<Outcome>> answer_all(Session& session, const std::vector<Problem>& problems,
                                        const Options& options) {
  TENON_ASSIGN(const auto ready, serve::ReadyList::open());
  std::vector<serve::Reply> replies;
  for (std::size_t i = 0; i < problems.size(); ++i) {
    serve::Request request;
    request.prompt = session.prompt(problems[i].question);
    request.sampling.max_tokens = options.max_new_tokens;
    request.on_ready = ready->bell(i);
    serve::Submission made = session.queue().submit(std::move(request));
    TENON_TRY(Status(made.why));
    replies.push_back(std::move(made.reply));
  }
  std::vector<Outcome> outcomes(problems.size());
  for (std::size_t done = 0; done < problems.size() && wait_for_input(ready->fd());) {
    for (const std::size_t at : ready->take()) {
      const serve::ReplyPart part = replies[at].take();
      Outcome& outcome = outcomes[at];
      outcome.text += part.text;
      outcome.tokens.insert(outcome.tokens.end(), part.tokens.begin(), part.tokens.end());
      if (!part.outcome) continue;
      TENON_TRY(session.queue().health());
      if (!part.outcome->why)  // no answer is a wrong one
        log(LogLevel::kWarning,
            "problem " + std::to_string(at + 1) + ": " + part.outcome->why.to_string());
      if (part.outcome->reason == serve::FinishReason::kStop) outcome.tokens.pop_back();
      outcome.finished = true;
      ++done;
      if (!options.session.quiet) show_progress(done, problems.size());
    }
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

void print_table(const Options& options, const Score& score, const EngineStats& stats) {
  Table table({"model", "tp", "correct", "total", "exact match", "decode tokens/s"});
  const int total = score.finished;
  table.add({options.session.model, std::to_string(options.session.tp),
             std::to_string(score.correct), std::to_string(total),
             total == 0 ? "none" : fixed(100.0 * score.correct / total, 1) + "%",
             fixed(decode_rate(stats), 1)});
  std::printf("%s", table.text().c_str());
  if (const std::string note = note_of(options.session.weights); !note.empty())
    std::fprintf(stderr, "%s\n", note.c_str());
}

Status run(Options options) {
  TENON_TRY(check(options.session));
  const std::string path =
      options.file.empty() ? options.session.model + "/eval.jsonl" : options.file;
  TENON_ASSIGN(const auto problems, read_problems(path, options.limit), "eval words");
  options.session.queue.max_queued = static_cast<int>(problems.size());
  TENON_ASSIGN(auto session, Session::open(options.session));
  if (session == nullptr) return Status::ok();  // a follower
  const Interruptible interruptible;
  TENON_ASSIGN(const auto outcomes, answer_all(*session, problems, options));
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
  add_session_options(*app, options->session);
  app->add_flag("--json", options->json, "print one JSON object, in one line, instead of a table")
      ->group("Output");
  app->add_flag("--verbose", options->verbose, "list the wrong answers")->group("Output");
  app->add_flag("--quiet", options->session.quiet, "no progress")->group("Output");
  app->footer(
      "Ctrl-C ends it with the score of the problems that are finished.\n\n"
      "  tenon eval words --limit 50 --verbose");
  return {eval, [options] { return run(*options); }};
}

}  // namespace tenon::apps
