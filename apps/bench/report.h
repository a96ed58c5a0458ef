// What a bench of an engine found, as rows of named values, and its forms: a table for people, CSV,
// JSON and a plot. And what every report of a bench says of itself.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/bench/plot.h"
#include "apps/bench/result_files.h"

namespace CLI {
class App;
}

namespace tenon::apps {

// Where the results of a bench go.
struct ReportOptions {
  std::string csv_path, json_path, svg_path;  // empty: not wanted
  bool json_to_stdout = false;

  std::vector<ResultFiles::Wanted> files() const;
};

// --csv, --json-file, --svg and --json, in this group of the help.
void add_report_options(CLI::App& app, ReportOptions& options, const std::string& group);

// A column of the table for people. CSV and JSON have every value of a row, under its key.
struct Column {
  std::string key, title;
  int decimals = 0;  // of numbers that are not whole
};

struct Report {
  std::string heading;           // one line
  nlohmann::ordered_json about;  // device, date, options, …
  std::vector<Column> columns;
  std::vector<nlohmann::ordered_json> rows;  // objects of strings and numbers, with equal keys
  std::vector<std::string> notes;            // lines below the table
  Plot plot;
};

// Prints the table, or with `json_to_stdout` the JSON, and writes --csv, --json-file and --svg as
// far as they are wanted. The first file that could not be written is the error.
Status write(const Report& report, ResultFiles& files, bool json_to_stdout);

// Opens the files, lets `fill` measure and writes what it found. A signal ends `fill` early: what
// there is by then is written, and the process ends by the signal.
Status make_report(const ReportOptions& options, const std::function<Status(Report&)>& fill);

// The present moment as "2026-11-23T14:05:09Z", and this process's command line, in which absolute
// paths are cut down to names.
std::string date_now();
std::string own_command();
// As text that is UTF-8 whatever a path held.
template <class Json>
std::string text_of(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace tenon::apps
