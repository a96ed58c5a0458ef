#include "apps/usage.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <numeric>

namespace tenon::apps {
namespace {

constexpr std::size_t kColumn = 30, kWidth = 100;

// Words of `text` on lines of kWidth, the second and later ones indented to kColumn.
std::string wrapped(const std::string& text, std::size_t column) {
  std::string out;
  std::size_t at = column;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (at > column && at + 1 + word.size() > kWidth) {
      out += "\n" + std::string(column, ' ');
      at = column;
    }
    const bool first = at == column;
    out += (first ? "" : " ") + word;
    at += word.size() + (first ? 0 : 1);
  }
  return out;
}

std::string two_columns(const std::string& left, const std::string& right) {
  std::string out = "  " + left;
  if (right.empty()) return out + "\n";
  out += out.size() + 1 < kColumn ? std::string(kColumn - out.size(), ' ')
                                  : "\n" + std::string(kColumn, ' ');
  return out + wrapped(right, kColumn) + "\n";
}

std::string joined(const std::vector<std::string>& words, const std::string& between) {
  std::string out;
  for (const std::string& each : words) out += (out.empty() ? "" : between) + each;
  return out;
}

class Format : public CLI::Formatter {
 public:
  std::string make_option(const CLI::Option* option, bool) const override {
    const OptionText found = text_of(*option);
    const std::string value = found.value.empty() ? "" : " " + found.value;
    return two_columns(joined(found.names, ", ") + value, found.text);
  }
  std::string make_subcommand(const CLI::App* verb) const override {
    return two_columns(verb->get_name(), verb->get_description());
  }
  std::string make_help(const CLI::App* app, std::string name,
                        CLI::AppFormatMode mode) const override {
    std::string text = CLI::Formatter::make_help(app, std::move(name), mode);
    for (std::size_t at; (at = text.find("\n\n\n")) != std::string::npos;) text.erase(at, 1);
    if (const auto at = text.find("\nSubcommands:"); at != std::string::npos)
      text.replace(at, 13, "\nVerbs:");
    return text;
  }
  std::string make_usage(const CLI::App* app, std::string) const override {
    std::string words;
    for (const CLI::Option* each : shown_options(*app))
      if (each->get_positional()) words += " " + each->get_name(true);
    const bool verbs = !shown_verbs(*app).empty();
    return "\nusage: " + full_name(*app) + (verbs ? " VERB" : "") + words + " [options]\n";
  }
};

// Letters to insert, remove, replace or swap with their neighbour.
std::size_t distance(const std::string& a, const std::string& b) {
  std::vector<std::vector<std::size_t>> cost(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
  for (std::size_t i = 0; i <= a.size(); ++i) cost[i][0] = i;
  std::iota(cost[0].begin(), cost[0].end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i)
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = cost[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      cost[i][j] = std::min({cost[i - 1][j] + 1, cost[i][j - 1] + 1, replaced});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        cost[i][j] = std::min(cost[i][j], cost[i - 2][j - 2] + 1);
    }
  return cost[a.size()][b.size()];
}

// The innermost verb of the command line.
const CLI::App& chosen(const CLI::App& cli) {
  const CLI::App* at = &cli;
  while (!at->get_subcommands().empty()) at = at->get_subcommands().front();
  return *at;
}

// "eval words: "; nothing for the program itself.
std::string in_front(const CLI::App& app) {
  if (app.get_parent() == nullptr) return "";
  const std::string name = full_name(app);
  return name.substr(name.find(' ') + 1) + ": ";
}

std::string see_help(const CLI::App& app) {
  return " (" + full_name(app) + " --help says what is accepted)";
}

// The parser's own sentences in the words of the others.
std::string plain(const std::string& text, bool values_mismatch) {
  const auto colon = text.find(": ");
  const std::string name = text.substr(0, colon);
  if (colon == std::string::npos) return text;
  const std::string rest = text.substr(colon + 2);
  if (values_mismatch && rest.starts_with("At Most"))
    return name + " has more than one value; accepted is one";
  if (values_mismatch) return name + " needs a value";
  // A validator of options.h has written a sentence.
  if (rest.starts_with("is ")) return name + " " + rest;
  if (const auto at = rest.find(" not in {"); at != std::string::npos && rest.ends_with("}")) {
    std::string accepted = rest.substr(at + 9, rest.size() - at - 10);
    for (std::size_t comma = 0; (comma = accepted.find(',', comma)) != std::string::npos;
         comma += 2)
      accepted.replace(comma, 1, ", ");
    return name + " is \"" + rest.substr(0, at) + "\"; accepted are " + accepted;
  }
  return text;
}

std::string unknown(const CLI::App& app, const std::string& word) {
  std::vector<std::string> known;
  const bool option = word.starts_with("-");
  if (option) {
    for (const CLI::Option* each : shown_options(app))
      for (const std::string& name : text_of(*each).names) known.push_back(name);
  } else {
    for (const CLI::App* each : shown_verbs(app)) known.push_back(each->get_name());
  }
  const std::string name = word.substr(0, word.find('='));
  if (!option && known.empty()) return "\"" + word + "\" is one word too many" + see_help(app);
  const std::string near = nearest(name, known);
  return "there is no " + std::string(option ? "option" : "verb") + " \"" + name + "\"" +
         (near.empty() ? "" : "; the nearest is " + near) + see_help(app);
}

}  // namespace

void set_help_format(CLI::App& cli) {
  const auto format = std::make_shared<Format>();
  format->label("Positionals", "Words");
  cli.formatter(format);
  cli.set_help_flag("-h,--help", "say this and do nothing else");
}

std::string nearest(const std::string& word, const std::vector<std::string>& candidates) {
  std::string best;
  std::size_t least = std::max<std::size_t>(2, word.size() / 3) + 1;
  for (const std::string& each : candidates) {
    const bool begins = word.size() > 2 && each.starts_with(word);
    const std::size_t found = begins ? 0 : distance(word, each);
    if (found >= std::min(least, each.size())) continue;
    least = found;
    best = each;
  }
  return best;
}

std::string full_name(const CLI::App& app) {
  const CLI::App* parent = app.get_parent();
  return (parent == nullptr ? "" : full_name(*parent) + " ") + app.get_name();
}

std::vector<const CLI::App*> shown_verbs(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App* each) { return !each->get_group().empty(); });
}

std::vector<const CLI::Option*> shown_options(const CLI::App& app) {
  return app.get_options([](const CLI::Option* each) { return !each->get_group().empty(); });
}

OptionText text_of(const CLI::Option& option) {
  OptionText out;
  for (const std::string& each : option.get_snames()) out.names.push_back("-" + each);
  for (const std::string& each : option.get_lnames()) out.names.push_back("--" + each);
  if (option.get_positional()) out.names.push_back(option.get_name(true));
  out.text = option.get_description();
  if (option.get_type_size() == 0) return out;
  const std::string type = option.get_type_name();  // "INT:1 to 8", "TEXT:{a,b}"
  const auto colon = type.find(':');
  const std::string kind = type.substr(0, colon);
  if (colon != std::string::npos) out.range = type.substr(colon + 1);
  out.value = option.get_positional()           ? ""
              : kind == "INT" || kind == "UINT" ? "N"
              : kind == "FLOAT"                 ? "NUMBER"
                                                : kind;
  if (out.range.starts_with("{") && out.range.ends_with("}")) {
    std::istringstream list(out.range.substr(1, out.range.size() - 2));
    for (std::string each; std::getline(list, each, ',');) out.choices.push_back(each);
    out.range = joined(out.choices, ", ");
    if (!out.value.empty()) out.value = "NAME";
  }
  std::vector<std::string> more;
  if (!out.range.empty()) more.push_back(out.range);
  if (!option.get_default_str().empty()) more.push_back("default: " + option.get_default_str());
  if (!more.empty()) out.text += " (" + joined(more, "; ") + ")";
  return out;
}

std::string refusal(const CLI::App& cli, const CLI::ParseError& error) {
  const auto is = [&](CLI::ExitCodes code) {
    return error.get_exit_code() == static_cast<int>(code);
  };
  const bool is_extra = is(CLI::ExitCodes::ExtrasError);
  for (const CLI::App* app = &cli;; app = app->get_subcommands().front()) {
    const bool last = app->get_subcommands().empty();
    const std::vector<std::string> extra = app->remaining();
    if (!extra.empty() && (is_extra || (last && !shown_verbs(*app).empty())))
      return in_front(*app) + unknown(*app, extra.front());
    if (last) break;
  }
  const CLI::App& verb = chosen(cli);
  const std::string text = error.what();
  if (is(CLI::ExitCodes::RequiredError) && !shown_verbs(verb).empty()) {
    std::vector<std::string> names;
    for (const CLI::App* each : shown_verbs(verb)) names.push_back(each->get_name());
    return in_front(verb) + "a verb is missing; accepted are " + joined(names, ", ") +
           see_help(verb);
  }
  return in_front(verb) + plain(text, is(CLI::ExitCodes::ArgumentMismatch)) + see_help(verb);
}

}  // namespace tenon::apps
