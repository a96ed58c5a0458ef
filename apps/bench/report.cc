#include "apps/bench/report.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iterator>

#include "apps/interrupt.h"
#include "apps/options.h"
#include "apps/progress.h"
#include "apps/table.h"

namespace tenon::apps {
namespace {

// A cell as short as it can be without a loss; with `decimals` of at least 0, so many of them.
std::string cell_of(const nlohmann::ordered_json& value, int decimals) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_float() && decimals >= 0) return fixed(value.get<double>(), decimals);
  return value.dump();
}

Table table_of(const Report& report) {
  std::vector<std::string> titles;
  for (const Column& each : report.columns) titles.push_back(each.title);
  Table table(std::move(titles));
  for (const auto& row : report.rows) {
    std::vector<std::string> cells;
    for (const Column& each : report.columns)
      cells.push_back(cell_of(row.at(each.key), each.decimals));
    table.add(std::move(cells));
  }
  return table;
}

std::string csv_of(const Report& report) {
  if (report.rows.empty()) return {};
  std::vector<std::string> keys;
  for (const auto& [key, value] : report.rows.front().items()) keys.push_back(key);
  Table table(keys);
  for (const auto& row : report.rows) {
    std::vector<std::string> cells;
    for (const std::string& key : keys) cells.push_back(cell_of(row.at(key), -1));
    table.add(std::move(cells));
  }
  return table.csv();
}

}  // namespace

std::vector<ResultFiles::Wanted> ReportOptions::files() const {
  return {{"--csv", csv_path}, {"--json-file", json_path}, {"--svg", svg_path}};
}

void add_report_options(CLI::App& app, ReportOptions& options, const std::string& group) {
  add_file_option(app, "--csv", options.csv_path, "also write every number as CSV")->group(group);
  add_file_option(app, "--json-file", options.json_path, "also write the results as JSON")
      ->group(group);
  add_file_option(app, "--svg", options.svg_path, "also plot them")->group(group);
  app.add_flag("--json", options.json_to_stdout, "print one JSON object and nothing else")
      ->group(group);
}

Status write(const Report& report, ResultFiles& files, bool json_to_stdout) {
  nlohmann::ordered_json all = report.about;
  all["results"] = report.rows;
  const std::string json = text_of(all);
  if (json_to_stdout) {
    std::fputs(json.c_str(), stdout);
  } else {
    const std::string text = table_of(report).text(terminal_columns(STDOUT_FILENO), 2);
    std::printf("%s\n%s", report.heading.c_str(), text.c_str());
    for (const std::string& note : report.notes) std::printf("%s\n", note.c_str());
  }
  files.save("--csv", csv_of(report));
  files.save("--json-file", json);
  files.save("--svg", svg(report.plot));
  return files.saved();
}

Status make_report(const ReportOptions& options, const std::function<Status(Report&)>& fill) {
  TENON_ASSIGN(ResultFiles files, ResultFiles::open(options.files()));
  {
    const Interruptible interruptible;
    Report report;
    TENON_TRY(fill(report));
    TENON_TRY(write(report, files, options.json_to_stdout));
  }
  std::fflush(stdout);
  end_if_interrupted();
  return Status::ok();
}

std::string date_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

std::string own_command() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::string command;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\0', begin), text.size());
    std::string word = text.substr(begin, end - begin);
    const bool first = begin == 0;
    if (first || word.starts_with("/")) word = word.substr(word.find_last_of('/') + 1);
    command += (first ? "" : " ") + word;
    begin = end + 1;
  }
  return command;
}

}  // namespace tenon::apps
