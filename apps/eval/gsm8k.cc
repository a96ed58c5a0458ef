// tenon eval gsm8k: grade-school mathematics after a few worked examples, as text to be continued;
// the last number of an answer counts. docs/measure.md says how.
#include "apps/eval/gsm8k.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>

#include "apps/bench/calls.h"
#include "apps/bench/report.h"
#include "apps/eval/answers.h"
#include "apps/eval/problems.h"
#include "apps/interrupt.h"
#include "apps/options.h"
#include "apps/table.h"
#include "apps/version.h"
#include "tenon/core/clock.h"
#include "tenon/core/env.h"
#include "tenon/core/file.h"
#include "tenon/core/hash.h"
#include "tenon/core/json.h"

namespace tenon::apps {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  SessionOptions session;
  ClientOptions client;
  std::string data, shots_data, log_path;
  int shots = 5, limit = 0, parallel = 16, max_new_tokens = 512;
  bool json = false;
};

constexpr std::uint64_t kMaxLogBytes = std::uint64_t{1} << 30;
const std::vector<std::string> kStops{"Question", "Assistant:", "<|separator|>"};

std::string example_of(const Problem& problem, bool answered) {
  std::string text = "Question: " + problem.question + "\nAnswer:";
  if (answered) text += " " + problem.answer + "\n\n";
  return text;
}

// What is known of one problem.
struct Mark {
  bool done = false;
  std::string found;  // empty: no number
  std::int64_t tokens = 0;
  double seconds = 0;
};

struct Asked {
  std::vector<std::string> prompts, expected;
  std::vector<Mark> marks;
  std::string model;
  int failed = 0;
  std::string first_error;
  double seconds = 0;           // of this run
  std::int64_t run_tokens = 0;  // likewise
};

// Of what an answer depends on: a log line of another one is of another run.
std::string key_of(const Options& options, const Asked& asked, std::size_t at) {
  const std::string text =
      asked.model + "\n" + std::to_string(options.max_new_tokens) + "\n" + asked.prompts[at];
  return hex(fnv1a(text));
}

Result<Asked> prompts_of(const Options& options) {
  TENON_ASSIGN(std::vector<Problem> problems,
               read_problems(options.data, options.shots_data.empty() && options.limit > 0
                                               ? options.shots + options.limit
                                               : options.limit));
  std::vector<Problem> examples;
  const auto shots = static_cast<std::ptrdiff_t>(options.shots);
  if (options.shots_data.empty()) {
    if (static_cast<std::ptrdiff_t>(problems.size()) <= shots)
      return Status::error(Code::kInvalidArgument,
                           "\"" + options.data + "\" has " + std::to_string(problems.size()) +
                               " problems, of which the first " + std::to_string(options.shots) +
                               " are examples; accepted are more, or --shots-data");
    examples.assign(problems.begin(), problems.begin() + shots);
    problems.erase(problems.begin(), problems.begin() + shots);
  } else if (shots > 0) {
    TENON_ASSIGN(examples, read_problems(options.shots_data, options.shots));
    if (static_cast<std::ptrdiff_t>(examples.size()) < shots)
      return Status::error(Code::kInvalidArgument, "\"" + options.shots_data + "\" has only " +
                                                       std::to_string(examples.size()) +
                                                       " problems for " +
                                                       std::to_string(options.shots) + " examples");
  }
  std::string front;
  for (const Problem& each : examples) front += example_of(each, true);
  Asked asked;
  for (const Problem& each : problems) {
    asked.prompts.push_back(front + example_of(each, false));
    asked.expected.push_back(last_number(each.final));
  }
  asked.marks.resize(problems.size());
  return asked;
}

// Takes over what the log has. It may lack a last line's end, where a run was killed.
Status take_over(const std::string& log, const Options& options, Asked& asked) {
  std::istringstream file(log);
  std::size_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    const bool whole = !file.eof();
    const auto parsed = parse_json(line);
    const auto refuse = [&](const std::string& why) {
      return Status::error(Code::kInvalidArgument, "line " + std::to_string(number) + " of \"" +
                                                       options.log_path + "\" " + why);
    };
    if (!parsed || !parsed->is_object()) {
      if (!whole) break;
      return refuse("is no line of such a log");
    }
    try {
      const std::size_t at = parsed->at("problem").get<std::size_t>() - 1;
      if (at >= asked.prompts.size()) continue;  // of a run with a higher --limit
      if (parsed->at("key") != key_of(options, asked, at))
        return refuse(
            "is of another model, prompt or --max-new-tokens; accepted is a log of this "
            "run, or a new file");
      asked.marks[at] = {true, parsed->at("found"), parsed->at("tokens"), parsed->at("seconds")};
    } catch (const nlohmann::json::exception&) {
      return refuse("lacks what a line of such a log has");
    }
  }
  return Status::ok();
}

// `kept`: what it has. Where a killed run left half a line, that is cut off.
Result<std::ofstream> open_log(const std::string& path, std::string kept) {
  if (!kept.empty() && kept.back() != '\n') {
    kept.resize(kept.find_last_of('\n') + 1);
    std::ofstream(path, std::ios::binary | std::ios::trunc) << kept;
  }
  std::ofstream log(path, std::ios::binary | std::ios::app);
  if (!log) return Status::error(Code::kIo, "cannot write the log \"" + path + "\"");
  return log;
}

class Asking {
 public:
  Asking(const Options& options, Asked& asked) : options_(options), asked_(asked) {}

  // Before run(), and before a model is loaded: a wrong log is told of at once. `asked.model` is
  // known by then.
  Status take_log() {
    if (options_.log_path.empty()) return Status::ok();
    std::string kept;
    std::error_code ignored;
    if (std::filesystem::exists(options_.log_path, ignored)) {
      TENON_ASSIGN(kept, read_text(options_.log_path, kMaxLogBytes), "--log");
    }
    TENON_TRY(take_over(kept, options_, asked_));
    TENON_ASSIGN(log_, open_log(options_.log_path, std::move(kept)));
    return Status::ok();
  }

  Status run(Session* session, ModelClient* client) {
    std::vector<Question> questions;
    std::vector<std::size_t> places;
    for (std::size_t i = 0; i < asked_.prompts.size(); ++i) {
      if (asked_.marks[i].done) continue;
      places.push_back(i);
      questions.push_back({asked_.prompts[i], options_.max_new_tokens, kStops});
    }
    if (questions.empty()) return Status::ok();
    const auto begin = std::chrono::steady_clock::now();
    std::size_t ended = asked_.prompts.size() - questions.size();
    const auto told = [&](std::size_t question, const Answered& answered) {
      if (!options_.session.quiet) show_progress("eval gsm8k", ++ended, asked_.prompts.size());
      return mark(places[question], answered);
    };
    const Status done = client != nullptr
                            ? answer_over_http(*client, questions, options_.parallel, told)
                            : answer_in_process(*session, questions, options_.parallel, told);
    asked_.seconds = seconds_since(begin);
    return done;
  }

 private:
  // A question without an answer is not in the log: the next run asks it again.
  Status mark(std::size_t at, const Answered& answered) {
    if (!answered.error.empty()) {
      ++asked_.failed;
      if (asked_.first_error.empty()) asked_.first_error = answered.error;
      return Status::ok();
    }
    Mark& mark = asked_.marks[at];
    mark = {true, last_number(answered.text), answered.num_tokens, answered.seconds};
    asked_.run_tokens += answered.num_tokens;
    if (!log_.is_open()) return Status::ok();
    const Json line{{"problem", at + 1},
                    {"key", key_of(options_, asked_, at)},
                    {"expected", asked_.expected[at]},
                    {"found", mark.found},
                    {"correct", mark.found == asked_.expected[at]},
                    {"tokens", mark.tokens},
                    {"seconds", mark.seconds},
                    {"finish", answered.finish},
                    {"text", answered.text}};
    log_ << line.dump(-1, ' ', false, Json::error_handler_t::replace) << std::endl;
    if (!log_)
      return Status::error(Code::kIo, "could not write to the log \"" + options_.log_path + "\"");
    return Status::ok();
  }

  const Options& options_;
  Asked& asked_;
  std::ofstream log_;  // open where there is one
};

Json result_of(const Options& options, const Asked& asked) {
  int correct = 0, finished = 0, invalid = 0;
  std::vector<double> seconds;
  Json answers = Json::array();
  for (std::size_t i = 0; i < asked.marks.size(); ++i) {
    const Mark& mark = asked.marks[i];
    answers.push_back(mark.found);
    if (!mark.done) continue;
    ++finished;
    correct += mark.found == asked.expected[i] ? 1 : 0;
    invalid += mark.found.empty() ? 1 : 0;
    seconds.push_back(mark.seconds);
  }
  const auto share = [&](int count) {
    return finished > 0 ? static_cast<double>(count) / finished : 0.0;
  };
  const auto [low, high] = wilson_interval(correct, finished);
  return {{"correct", correct},
          {"finished", finished},
          {"total", asked.marks.size()},
          {"failed", asked.failed},
          {"accuracy", share(correct)},
          {"wilson_low", low},
          {"wilson_high", high},
          {"invalid_rate", share(invalid)},
          {"latency_median_s", seconds.empty() ? 0 : quantile(seconds, 0.5)},
          {"latency_p90_s", seconds.empty() ? 0 : quantile(seconds, 0.9)},
          {"seconds", asked.seconds},
          {"tokens_per_s",
           asked.seconds > 0 ? static_cast<double>(asked.run_tokens) / asked.seconds : 0},
          {"answers", std::move(answers)},
          {"model", asked.model},
          {"shots", options.shots},
          {"parallel", options.parallel},
          {"max_new_tokens", options.max_new_tokens},
          {"date", date_now()},
          {"version", version_name()}};
}

void print_table(const Json& result) {
  const auto percent = [&](const char* key) {
    return fixed(100 * result.at(key).get<double>(), 1);
  };
  Table table({"model", "correct", "finished", "accuracy", "95 % interval", "invalid", "latency, s",
               "p90", "tokens/s"});
  table.add({result["model"], result["correct"].dump(), result["finished"].dump(),
             percent("accuracy") + "%", percent("wilson_low") + " to " + percent("wilson_high"),
             percent("invalid_rate") + "%", fixed(result["latency_median_s"], 2),
             fixed(result["latency_p90_s"], 2), fixed(result["tokens_per_s"], 1)});
  std::printf("%s", table.text().c_str());
}

Status run(Options options) {
  TENON_ASSIGN(Asked asked, prompts_of(options), "eval gsm8k");
  Asking asking(options, asked);
  const auto told = [&] {
    const Json result = result_of(options, asked);
    if (options.json) {
      std::printf("%s\n", result.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    } else {
      print_table(result);
    }
    if (interrupted_by() != 0 || asked.failed == 0) return Status::ok();
    return Status::error(Code::kIo, "eval gsm8k: " + std::to_string(asked.failed) +
                                        " problems have no answer, the first one by " +
                                        asked.first_error);
  };
  if (!options.client.url.empty()) {
    const Interruptible interruptible;
    TENON_ASSIGN(ModelClient client, ModelClient::open(options.client));
    asked.model = client.model();
    TENON_TRY(asking.take_log());
    TENON_TRY(asking.run(nullptr, &client));
    return told();
  }
  TENON_TRY(check(options.session));
  options.session.chat = Chat::kOff;
  options.session.queue.max_queued = options.parallel;
  asked.model = options.session.model;
  if (!follows_a_leader()) TENON_TRY(asking.take_log());
  TENON_ASSIGN(auto session, Session::open(options.session));
  if (session == nullptr) return Status::ok();  // a follower
  const Interruptible interruptible;
  TENON_TRY(asking.run(session.get(), nullptr));
  return told();
}

}  // namespace

Command add_eval_gsm8k(CLI::App& eval) {
  auto options = std::make_shared<Options>();
  CLI::App* app =
      eval.add_subcommand("gsm8k", "grade-school mathematics after a few worked examples, greedy");
  const char* group = "Problems";
  app->add_option("--data", options->data,
                  "problems, one JSON object a line with \"question\" and \"answer\", which ends "
                  "in \"#### N\"")
      ->type_name("FILE")
      ->required()
      ->group(group);
  app->add_option("--shots", options->shots,
                  "worked examples in front of each problem: the first ones of --data, which are "
                  "not asked then")
      ->capture_default_str()
      ->check(whole_number(0, 100))
      ->group(group);
  app->add_option("--shots-data", options->shots_data, "takes the examples from here instead")
      ->type_name("FILE")
      ->group(group);
  app->add_option("--limit", options->limit, "only the first so many; 0: all")
      ->capture_default_str()
      ->check(whole_number(0, 1'000'000))
      ->group(group);
  app->add_option("--max-new-tokens", options->max_new_tokens, "the longest answer")
      ->capture_default_str()
      ->check(whole_number(1, kMaxCount))
      ->group(group);
  app->add_option("--parallel", options->parallel, "how many are asked at a time")
      ->capture_default_str()
      ->check(whole_number(1, 65536))
      ->group(group);
  app->add_option("--url", options->client.url,
                  "asks this server, as http://127.0.0.1:8000, instead of a model in this process")
      ->type_name("URL")
      ->group("Server");
  add_client_options(*app, options->client, "Server");
  add_session_options(*app, options->session);
  app->add_option("--log", options->log_path,
                  "a line of JSON for each answer; those that are there already are not asked "
                  "again")
      ->type_name("FILE")
      ->group("Output");
  app->add_flag("--json", options->json, "print one JSON object, in one line, instead of a table")
      ->group("Output");
  app->add_flag("--quiet", options->session.quiet, "no progress")->group("Output");
  app->footer(
      "Ends with 1 where a problem has no answer. Ctrl-C ends it with the score until then; with "
      "--log\nthe same command goes on from there.\n\n"
      "  tenon eval gsm8k --data gsm8k_test.jsonl --url http://127.0.0.1:8000 --log gsm8k.log");
  return {app, [options] { return run(*options); }};
}

}  // namespace tenon::apps
