// tenon eval words: exact match on word problems whose answers end in "#### N".
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "apps/commands.h"
#include "apps/options.h"
#include "apps/session.h"
#include "apps/table.h"
#include "tenon/core/env.h"
#include "tenon/core/json.h"

namespace tenon::apps {
namespace {

struct Options {
  SessionOptions session;
  std::string file;  // empty: eval.jsonl of the model
  int limit = 0;     // 0: all
  int max_new_tokens = 256;
  bool json = false;
};

struct Problem {
  std::string question, final;
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
    if (line.empty()) continue;
    TENON_ASSIGN(auto problem,
                 parse_problem(line, "line " + std::to_string(number) + " of \"" + path + "\""));
    problems.push_back(std::move(problem));
  }
  if (problems.empty()) return Status::error(Code::kIo, "\"" + path + "\" has no problems");
  return problems;
}

// Drawn tokens in the order of the problems, without the end-of-sequence token.
Result<std::vector<std::vector<std::int32_t>>> answer_all(Session& session,
                                                          const std::vector<Problem>& problems,
                                                          const Options& options) {
  std::map<RequestId, std::size_t> place;
  std::vector<std::vector<std::int32_t>> tokens(problems.size());
  SamplingParams sampling;
  sampling.max_tokens = options.max_new_tokens;
  for (std::size_t i = 0; i < problems.size(); ++i) {
    TENON_ASSIGN(auto prompt, session.prompt(problems[i].question));
    TENON_ASSIGN(const RequestId id, session.engine().submit(std::move(prompt), sampling));
    place[id] = i;
  }
  std::size_t done = 0;
  while (!session.engine().idle()) {
    TENON_ASSIGN(const auto events, session.engine().step());
    for (const TokenEvent& event : events) {
      const std::size_t at = place.at(event.id);
      if (!event.why)  // no answer is a wrong one
        log(LogLevel::kWarning, "problem " + std::to_string(at + 1) + ": " + event.why.to_string());
      if (event.token >= 0 && event.finish != Finish::kStop) tokens[at].push_back(event.token);
      if (event.finish == Finish::kNone) continue;
      ++done;
      if (isatty(STDERR_FILENO) != 0)
        std::fprintf(stderr, "\reval words: %zu of %zu", done, problems.size());
    }
  }
  if (isatty(STDERR_FILENO) != 0) std::fprintf(stderr, "\r%40s\r", "");
  return tokens;
}

Status run(const Options& options) {
  TENON_TRY(check(options.session));
  const std::string path =
      options.file.empty() ? options.session.model + "/eval.jsonl" : options.file;
  TENON_ASSIGN(const auto problems, read_problems(path, options.limit), "eval words");
  TENON_ASSIGN(auto session, Session::open(options.session));
  if (session == nullptr) return Status::ok();  // a follower
  TENON_ASSIGN(const auto tokens, answer_all(*session, problems, options));
  int correct = 0;
  nlohmann::json answers = nlohmann::json::array();
  for (std::size_t i = 0; i < problems.size(); ++i) {
    const std::string found = final_number(session->tokenizer().decode(tokens[i]));
    correct += found == problems[i].final ? 1 : 0;
    answers.push_back(found);
  }
  const auto total = static_cast<int>(problems.size());
  const EngineStats stats = session->engine().stats();
  if (options.json) {
    const nlohmann::json out{
        {"correct", correct}, {"total", total}, {"answers", answers}, {"tokens", tokens}};
    std::printf("%s\n", out.dump(2).c_str());
    return Status::ok();
  }
  Table table({"model", "tp", "correct", "total", "exact match", "decode tokens/s"});
  table.add({options.session.model, std::to_string(options.session.tp), std::to_string(correct),
             std::to_string(total), fixed(100.0 * correct / total, 1) + "%",
             fixed(stats.decode_seconds > 0
                       ? static_cast<double>(stats.decode_tokens) / stats.decode_seconds
                       : 0.0,
                   1)});
  std::printf("%s", table.text().c_str());
  return Status::ok();
}

}  // namespace

Command add_eval(CLI::App& parent) {
  auto options = std::make_shared<Options>();
  options->session.chat = true;
  CLI::App* eval = parent.add_subcommand("eval", "score a model");
  eval->require_subcommand(1);
  CLI::App* app = eval->add_subcommand("words", "exact match on held-out word problems, greedy");
  add_session_options(*app, options->session);
  app->add_option("--file", options->file,
                  "problems, one JSON object a line; default: the model's");
  app->add_option("--limit", options->limit, "only the first so many; 0 means all")
      ->capture_default_str()
      ->check(whole_number(0, kMaxCount));
  app->add_option("--max-new-tokens", options->max_new_tokens)
      ->capture_default_str()
      ->check(whole_number(1, kMaxCount));
  app->add_flag("--json", options->json, "print one JSON object and nothing else");
  return {eval, [options] { return run(*options); }};
}

}  // namespace tenon::apps
