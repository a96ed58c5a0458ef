// tenon bench serve: a load on servers of OpenAI's API, one server or configuration after the
// other. docs/measure.md says what is measured and how.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <set>
#include <thread>

#include "apps/bench/calls.h"
#include "apps/bench/engine_bench.h"
#include "apps/bench/shapes.h"
#include "apps/interrupt.h"
#include "apps/load/child_server.h"
#include "apps/load/load_run.h"
#include "apps/load/workload.h"
#include "apps/options.h"
#include "apps/progress.h"
#include "apps/table.h"
#include "apps/version.h"

namespace tenon::apps {
namespace {

using Json = nlohmann::ordered_json;

struct Options : ReportOptions {
  std::vector<std::string> urls, compare, stages;
  std::string serve, backend = "openai";
  ClientOptions client;
  WorkloadOptions work;
  std::string concurrency = "16";
  bool limited = false;  // --concurrency was given
  double rate = 0;
  double temperature = 0;
  bool stop_at_eos = false;
  int warm_up = 2, repeats = 1;
};

// One server, or one way of starting one.
struct Arm {
  std::string name, url;           // a server that runs already
  std::vector<std::string> words;  // else how it is started
};

// One pace on one arm.
struct Cell {
  std::vector<Json> turns;            // summaries
  std::vector<std::uint64_t> hashes;  // of the answers, by turn
  std::map<std::string, int> errors;
};

struct Found {
  std::vector<std::vector<Cell>> cells;  // [arm][pace]
  std::string model, first_error;
  bool complete = true;
};

std::vector<Arm> arms_of(const Options& options) {
  std::vector<Arm> arms;
  for (const std::string& url : options.urls) arms.push_back({url, url, {}});
  if (!arms.empty()) return arms;
  const auto add = [&](const std::string& name, const std::string& more) {
    Arm arm{name, {}, words_of(options.serve)};
    for (std::string& word : words_of(more)) arm.words.push_back(std::move(word));
    arms.push_back(std::move(arm));
  };
  for (const std::string& stage : options.stages) add("stages " + stage, "--force-stage " + stage);
  for (const std::string& more : options.compare) add(more.empty() ? "as it is" : more, more);
  if (arms.empty()) add("tenon serve", "");
  return arms;
}

Result<std::vector<int>> paces_of(const Options& options) {
  if (options.rate > 0 && !options.limited) return std::vector<int>{0};
  return parse_numbers("--concurrency", options.concurrency);
}

Result<std::vector<ModelCall>> calls_of(const Options& options, ModelClient& client,
                                        const WorkloadOptions& work, std::uint64_t round) {
  std::vector<WorkItem> items = make_workload(work, round);
  std::vector<ModelCall> calls(items.size());
  std::vector<std::string> texts;
  if (options.client.chat) {
    std::vector<std::vector<std::int32_t>> ids;
    for (const WorkItem& each : items) ids.push_back(each.prompt);
    TENON_ASSIGN(texts, client.texts_of(ids));
  }
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (options.client.chat) {
      calls[i].prompt = std::move(texts[i]);
    } else {
      calls[i].prompt = std::move(items[i].prompt);
    }
    calls[i].max_tokens = items[i].output_tokens;
    calls[i].temperature = options.temperature;
    calls[i].seed = options.work.seed + i;
    calls[i].ignore_eos = !options.stop_at_eos;
  }
  return calls;
}

// Prompts of no measured round.
constexpr std::uint64_t kWarmUpRound = std::uint64_t{1} << 40;

class Bench {
 public:
  Bench(const Options& options, std::vector<Arm> arms, std::vector<int> paces)
      : options_(options), arms_(std::move(arms)), paces_(std::move(paces)) {
    found_.cells.assign(arms_.size(), std::vector<Cell>(paces_.size()));
  }

  // Arms take turns, so that what changes with time meets all alike.
  Result<Found> run() {
    for (int turn = 0; turn < options_.repeats; ++turn)
      for (std::size_t arm = 0; arm < arms_.size() && interrupted_by() == 0; ++arm) {
        const Status done = visit(arm, turn);
        if (!done && interrupted_by() == 0) return Status(done).with(arms_[arm].name);
      }
    found_.complete = interrupted_by() == 0;
    return std::move(found_);
  }

 private:
  Status visit(std::size_t arm, int turn) {
    std::unique_ptr<ChildServer> server;
    ClientOptions to = options_.client;
    to.url = arms_[arm].url;
    if (to.url.empty()) {
      progress_.update(done_, all(), "starting " + arms_[arm].name);
      TENON_ASSIGN(server, ChildServer::start(arms_[arm].words));
      to.url = server->url();
    }
    TENON_ASSIGN(ModelClient client, ModelClient::open(to));
    found_.model = client.model();
    WorkloadOptions work = options_.work;
    if (work.num_ids == 0) {
      TENON_ASSIGN(work.num_ids, client.vocabulary());
    }
    if (work.num_ids == 0)
      return Status::error(Code::kInvalidArgument,
                           "the server does not say how many token ids it has; --num-ids does");
    for (std::size_t pace = 0; pace < paces_.size() && interrupted_by() == 0; ++pace) {
      if (options_.warm_up > 0) {
        WorkloadOptions few = work;
        few.prompts = options_.warm_up;
        TENON_TRY(load(client, few, kWarmUpRound + round(turn, pace), paces_[pace], nullptr));
      }
      TENON_TRY(load(client, work, round(turn, pace), paces_[pace], &found_.cells[arm][pace]));
    }
    return Status::ok();
  }

  // The same prompts for every arm, others for every turn and pace.
  std::uint64_t round(int turn, std::size_t pace) const {
    return static_cast<std::uint64_t>(turn) * paces_.size() + pace;
  }

  // Counts for nothing where there is no cell.
  Status load(ModelClient& client, const WorkloadOptions& work, std::uint64_t round,
              int concurrency, Cell* cell) {
    TENON_ASSIGN(const auto calls, calls_of(options_, client, work, round));
    Pace pace{concurrency, {}};
    if (options_.rate > 0)
      pace.moments = poisson_moments(work.prompts, options_.rate, options_.work.seed + round);
    TENON_ASSIGN(const LoadRun run,
                 run_load(client, calls, pace, [&](std::size_t, const ModelReply& reply) {
                   if (!reply.ok() && found_.first_error.empty())
                     found_.first_error = reply.error + ": " + reply.why;
                   if (cell != nullptr) progress_.update(++done_, all(), "requests");
                 }));
    if (cell == nullptr || !run.complete) return Status::ok();
    cell->turns.push_back(summary_of(run));
    cell->hashes.push_back(hash_of(run));
    for (const auto& [kind, count] : errors_of(run)) cell->errors[kind] += count;
    return Status::ok();
  }

  double all() const {
    return static_cast<double>(arms_.size() * paces_.size()) * options_.repeats *
           options_.work.prompts;
  }

  const Options& options_;
  const std::vector<Arm> arms_;
  const std::vector<int> paces_;
  Progress progress_{"bench serve:"};
  double done_ = 0;
  Found found_;
};

// The median of turns, key by key; failures add up.
Json row_of(const Options& options, const Arm& arm, int concurrency, const Cell& cell) {
  Json row{{"arm", arm.name},
           {"concurrency", concurrency},
           {"rate", options.rate},
           {"requests", options.work.prompts},
           {"turns", cell.turns.size()}};
  for (const auto& [key, value] : cell.turns.front().items()) {
    if (key == "failed") {
      int sum = 0;
      for (const Json& turn : cell.turns) sum += turn.at(key).get<int>();
      row[key] = sum;
      continue;
    }
    std::vector<double> each;
    for (const Json& turn : cell.turns) each.push_back(turn.at(key));
    const double median = quantile(each, 0.5);
    if (value.is_number_float()) {
      row[key] = median;
    } else {
      row[key] = static_cast<std::int64_t>(median);
    }
  }
  return row;
}

// What the first arm gains over another: (new - old) / old of rates, (old - new) / old of times.
Json gains_of(const Report& report, const std::vector<Arm>& arms) {
  Json all = Json::array();
  for (const Json& now : report.rows) {
    if (now.at("arm") != arms.front().name) continue;
    for (const Json& old : report.rows) {
      if (old.at("arm") == now.at("arm") || old.at("concurrency") != now.at("concurrency"))
        continue;
      Json gain{
          {"new", now.at("arm")}, {"old", old.at("arm")}, {"concurrency", now["concurrency"]}};
      for (const auto& [key, value] : now.items()) {
        const bool rate = key.ends_with("_per_s"), time = key.ends_with("_ms");
        if (!rate && !time) continue;
        const double before = old.at(key), after = value;
        if (before > 0) gain[key] = 100 * (rate ? after - before : before - after) / before;
      }
      all.push_back(std::move(gain));
    }
  }
  return all;
}

std::string gains_text(const Json& gains) {
  const std::pair<const char*, const char*> shown[] = {
      {"requests_per_s", "requests/s"},  {"output_tokens_per_s", "tokens/s"},
      {"ttft_median_ms", "TTFT median"}, {"ttft_p99_ms", "p99"},
      {"tpot_median_ms", "TPOT median"}, {"tpot_p99_ms", "p99"},
      {"e2e_median_ms", "E2E median"},   {"e2e_p99_ms", "p99"}};
  std::vector<std::string> titles{"better than", "concurrency"};
  for (const auto& each : shown) titles.emplace_back(each.second);
  Table table(std::move(titles));
  for (const Json& gain : gains) {
    std::vector<std::string> cells{gain["old"], gain["concurrency"].dump()};
    for (const auto& each : shown)
      cells.push_back(gain.contains(each.first) ? fixed(gain[each.first], 1) + "%" : "-");
    table.add(std::move(cells));
  }
  return table.text(terminal_columns(STDOUT_FILENO), 2);
}

std::vector<Column> columns() {
  return {{"arm", "server"},
          {"concurrency", "concurrency"},
          {"completed", "completed"},
          {"failed", "failed"},
          {"requests_per_s", "requests/s", 2},
          {"output_tokens_per_s", "tokens/s", 1},
          {"ttft_median_ms", "TTFT, ms", 2},
          {"ttft_p99_ms", "p99", 2},
          {"tpot_median_ms", "TPOT, ms", 3},
          {"tpot_p99_ms", "p99", 3},
          {"itl_median_ms", "ITL, ms", 3},
          {"itl_p99_ms", "p99", 3},
          {"e2e_median_ms", "E2E, ms", 1},
          {"e2e_p99_ms", "p99", 1}};
}

// A point at 0 has no place on a logarithmic axis.
Plot plot_of(const Report& report, const std::vector<Arm>& arms) {
  Plot plot;
  plot.title = report.heading;
  plot.x_label = "concurrency";
  plot.y_label = "ms, or tokens/s";
  const std::pair<const char*, const char*> panels[] = {{"output_tokens_per_s", "output tokens/s"},
                                                        {"tpot_median_ms", "TPOT, median, ms"},
                                                        {"ttft_median_ms", "TTFT, median, ms"}};
  for (const auto& [key, title] : panels) {
    Panel panel{title, {}};
    for (std::size_t arm = 0; arm < arms.size(); ++arm) {
      Line line{arms[arm].name, static_cast<int>(arm) + 1, false, {}};
      for (const Json& row : report.rows)
        if (row.at("arm") == arms[arm].name && row.at(key) > 0)
          line.points.push_back({std::max(1.0, row.at("concurrency").get<double>()), row.at(key)});
      if (!line.points.empty()) panel.lines.push_back(std::move(line));
    }
    if (!panel.lines.empty()) plot.panels.push_back(std::move(panel));
  }
  return plot;
}

std::string load_text(const Options& options) {
  const WorkloadOptions& work = options.work;
  std::string text = work.kind + ", " + std::to_string(work.prompts) + " requests, ";
  if (work.kind == "shared-prefix") text += std::to_string(work.prefix_tokens) + " + ";
  text += std::to_string(work.input_tokens) + " in, " + std::to_string(work.output_tokens) + " out";
  if (work.range_ratio < 1) text += ", lengths from " + fixed(work.range_ratio, 2) + " of that";
  if (options.rate > 0) text += ", " + fixed(options.rate, 2) + " requests/s";
  return text;
}

Report report_of(const Options& options, const std::vector<Arm>& arms,
                 const std::vector<int>& paces, const Found& found) {
  Report report;
  report.columns = columns();
  Json answers = Json::array(), errors = Json::object(), turns = Json::array();
  for (std::size_t pace = 0; pace < paces.size(); ++pace)
    for (std::size_t arm = 0; arm < arms.size(); ++arm) {
      const Cell& cell = found.cells[arm][pace];
      if (cell.turns.empty()) continue;
      report.rows.push_back(row_of(options, arms[arm], paces[pace], cell));
      Json hashes = Json::array();
      for (const std::uint64_t each : cell.hashes) hashes.push_back(hex(each));
      answers.push_back(std::move(hashes));
      turns.push_back(cell.turns);
      for (const auto& [kind, count] : cell.errors) {
        const int before = errors.contains(kind) ? errors[kind].get<int>() : 0;
        errors[kind] = before + count;
      }
    }
  const WorkloadOptions& work = options.work;
  report.heading = found.model + "; " + load_text(options) + "; " + date_now().substr(0, 10);
  report.about = {{"model", found.model},
                  {"backend", options.backend},
                  {"serve", options.serve},
                  {"load",
                   {{"prompts", work.kind},
                    {"num_prompts", work.prompts},
                    {"input_tokens", work.input_tokens},
                    {"output_tokens", work.output_tokens},
                    {"range_ratio", work.range_ratio},
                    {"prefix_tokens", work.kind == "shared-prefix" ? work.prefix_tokens : 0},
                    {"seed", work.seed},
                    {"rate", options.rate},
                    {"ignore_eos", !options.stop_at_eos},
                    {"temperature", options.temperature},
                    {"warm_up", options.warm_up}}},
                  {"date", date_now()},
                  {"command", own_command()},
                  {"version", version_name()},
                  {"complete", found.complete},
                  {"errors", std::move(errors)},
                  {"answers", std::move(answers)},
                  {"turns", std::move(turns)}};
  report.about["gains_percent"] = gains_of(report, arms);
  report.plot = plot_of(report, arms);
  return report;
}

// Stages of one model give one model's tokens.
Status check_answers(const Options& options, const Found& found) {
  if (options.stages.empty()) return Status::ok();
  for (std::size_t arm = 1; arm < found.cells.size(); ++arm)
    for (std::size_t pace = 0; pace < found.cells[arm].size(); ++pace) {
      const Cell &first = found.cells[0][pace], &other = found.cells[arm][pace];
      for (std::size_t turn = 0; turn < std::min(first.hashes.size(), other.hashes.size()); ++turn)
        if (first.hashes[turn] != other.hashes[turn] && first.errors.empty() &&
            other.errors.empty())
          return Status::error(Code::kInternal, "stages " + options.stages[arm] +
                                                    " gave other answers than stages " +
                                                    options.stages[0]);
    }
  return Status::ok();
}

Status check_options(Options& options) {
  const auto refuse = [](const std::string& why) {
    return Status::error(Code::kInvalidArgument, "bench serve: " + why);
  };
  const bool starts = !options.serve.empty() || !options.compare.empty() || !options.stages.empty();
  if (!options.urls.empty() && starts)
    return refuse("--url is a server that runs; --serve, --compare and --compare-stages start one");
  if (!options.compare.empty() && !options.stages.empty())
    return refuse("--compare and --compare-stages are both given; accepted is one of them");
  std::set<std::string> names;
  for (const Arm& each : arms_of(options))
    if (!names.insert(each.name).second) return refuse("\"" + each.name + "\" is given twice");
  options.client.chat = options.backend == "openai-chat";
  return Status::ok();
}

Status run(Options options) {
  TENON_TRY(check_options(options));
  const std::vector<Arm> arms = arms_of(options);
  TENON_ASSIGN(const std::vector<int> paces, paces_of(options));
  TENON_ASSIGN(ResultFiles files, ResultFiles::open(options.files()));
  int failed = 0;
  std::string why;
  {
    const Interruptible interruptible;
    TENON_ASSIGN(const Found found, Bench(options, arms, paces).run());
    TENON_TRY(check_answers(options, found));
    const Report report = report_of(options, arms, paces, found);
    TENON_TRY(write(report, files, options.json_to_stdout));
    const Json& gains = report.about["gains_percent"];
    if (!options.json_to_stdout && !gains.empty())
      std::printf("\nwhat %s gains\n%s", arms[0].name.c_str(), gains_text(gains).c_str());
    for (const Json& row : report.rows) failed += row.at("failed").get<int>();
    why = found.first_error;
  }
  std::fflush(stdout);
  end_if_interrupted();
  if (failed > 0)
    return Status::error(Code::kIo,
                         std::to_string(failed) + " requests failed, the first one by " + why);
  return Status::ok();
}

void add_servers(CLI::App& app, Options& options) {
  const char* group = "Servers";
  app.add_option("--url", options.urls,
                 "a server that runs, as http://127.0.0.1:8000; several are compared")
      ->type_name("URL")
      ->group(group);
  app.add_option("--serve", options.serve,
                 "without --url: options of the tenon serve that is started, in one word such as "
                 "\"--model M --tp 2\"")
      ->type_name("OPTIONS")
      ->group(group);
  app.add_option("--compare", options.compare,
                 "two servers or more, one after the other: further options of each; the first is "
                 "compared with the others")
      ->type_name("OPTIONS")
      ->expected(2, 8)
      ->group(group);
  add_list_option(app, "--compare-stages", options.stages,
                  "likewise, by stage policy of the boundaries: auto,3. All must give the same "
                  "answers",
                  CLI::IsMember(kStageNames))
      ->group(group);
  app.add_option("--backend", options.backend,
                 "openai: /v1/completions, prompts are token ids; openai-chat: "
                 "/v1/chat/completions, prompts are what /detokenize makes of them")
      ->capture_default_str()
      ->check(CLI::IsMember({"openai", "openai-chat"}))
      ->group(group);
  add_client_options(app, options.client, group);
}

void add_load(CLI::App& app, Options& options) {
  const char* group = "Load";
  WorkloadOptions& work = options.work;
  app.add_option("--prompts", work.kind,
                 "random ids; shared-prefix: groups of prompts that begin alike; sharegpt: lengths "
                 "spread as in conversations (log-normal)")
      ->capture_default_str()
      ->check(CLI::IsMember({"random", "shared-prefix", "sharegpt"}))
      ->group(group);
  const auto count = [&](const char* name, int& value, const char* help, std::uint64_t low) {
    app.add_option(name, value, help)
        ->capture_default_str()
        ->check(whole_number(low, 1'000'000))
        ->group(group);
  };
  count("--num-prompts", work.prompts, "requests of a turn", 1);
  count("--input-tokens", work.input_tokens, "of a prompt; sharegpt: their mean", 1);
  count("--output-tokens", work.output_tokens, "of an answer; sharegpt: their mean", 1);
  count("--prefix-tokens", work.prefix_tokens,
        "shared-prefix: what the prompts of a group share, in front of --input-tokens", 1);
  count("--groups", work.groups, "shared-prefix: groups", 1);
  app.add_option("--range-ratio", work.range_ratio,
                 "lengths are uniform between this share of the tokens and all of them")
      ->capture_default_str()
      ->check(number(0, 1, true))
      ->group(group);
  app.add_option("--num-ids", work.num_ids,
                 "ids of prompts are below this; by default what a tenon server says")
      ->check(whole_number(1, kMaxCount))
      ->group(group);
  app.add_option("--concurrency", options.concurrency,
                 "how many requests run at a time, as 1,16 or 1..64; with --rate no limit where it "
                 "is not given")
      ->capture_default_str()
      ->group(group);
  app.add_option("--rate", options.rate, "requests a second, at the moments of a Poisson process")
      ->check(number(0, 1e6, true))
      ->group(group);
  app.add_option("--seed", work.seed, "of prompts, lengths, moments and draws")
      ->capture_default_str()
      ->check(whole_number(0, INT64_MAX / 2))
      ->group(group);
  app.add_option("--temperature", options.temperature, "of draws")
      ->capture_default_str()
      ->check(number(0, 100))
      ->group(group);
  app.add_flag("--stop-at-eos", options.stop_at_eos,
               "let answers end by themselves, not after --output-tokens alone")
      ->group(group);
}

}  // namespace

Command add_bench_serve(CLI::App& bench) {
  auto options = std::make_shared<Options>();
  CLI::App* app = bench.add_subcommand("serve", "a load on a server over HTTP");
  add_servers(*app, *options);
  add_load(*app, *options);
  const char* method = "Method";
  app->add_option("--warm-up", options->warm_up, "requests before each turn that do not count")
      ->capture_default_str()
      ->check(whole_number(0, 100'000))
      ->group(method);
  app->add_option("--repeats", options->repeats, "turns of every server; the median counts")
      ->capture_default_str()
      ->check(whole_number(1, 1000))
      ->group(method);
  add_report_options(*app, *options, "Output");
  app->footer(
      "Ends with 1 where a request failed. Ctrl-C ends the run: turns that are whole are told.\n\n"
      "  tenon bench serve --serve \"--model M --tp 2 --target cuda\" --compare-stages auto,3");
  return {app, [app, options] {
            options->limited = app->count("--concurrency") > 0;
            return run(*options);
          }};
}

}  // namespace tenon::apps
