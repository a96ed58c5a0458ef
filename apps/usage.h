// How the command line explains itself: help, refusals with the nearest name, and the same options
// as a man page and as shell completion (completion.cc). Everything is read from the CLI::App.
#pragma once

#include <string>
#include <vector>

#include "tenon/core/status.h"

namespace CLI {
class App;
class Option;
class ParseError;
}  // namespace CLI

namespace tenon::apps {

// Help with one option in two columns, its default behind its text.
void set_help_format(CLI::App& cli);

// One sentence on a command line that was refused: by whom, what, the nearest name.
std::string refusal(const CLI::App& cli, const CLI::ParseError& error);

// What help, man page and completion say of one option.
struct OptionText {
  std::vector<std::string> names;    // "--top-k"
  std::string value;                 // "N", "TEXT", …; empty for flags
  std::vector<std::string> choices;  // the only accepted values, where they are listed
  std::string range;                 // "1 or more", or empty
  std::string text;                  // with range and default
};
OptionText text_of(const CLI::Option& option);

// Subcommands and options that help shows, in order of definition.
std::vector<const CLI::App*> shown_verbs(const CLI::App& app);
std::vector<const CLI::Option*> shown_options(const CLI::App& app);

// "tenon eval words"
std::string full_name(const CLI::App& app);

// The candidate that differs from `word` in the fewest letters, or empty when none is near.
std::string nearest(const std::string& word, const std::vector<std::string>& candidates);

}  // namespace tenon::apps
