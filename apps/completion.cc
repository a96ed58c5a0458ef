// tenon completion SHELL and tenon man: what help says, for shells and for man(1). Both read the
// verbs and options from the parser itself, so that they cannot fall behind it.
#include <CLI/CLI.hpp>
#include <cctype>
#include <cstdio>
#include <functional>

#include "apps/commands.h"
#include "apps/usage.h"
#include "apps/version.h"

namespace tenon::apps {
namespace {

const CLI::App& root_of(const CLI::App& app) {
  return app.get_parent() == nullptr ? app : root_of(*app.get_parent());
}

// The program's verbs with those below them, the program itself first.
void walk(const CLI::App& app, const std::function<void(const CLI::App&)>& visit) {
  visit(app);
  for (const CLI::App* each : shown_verbs(app)) walk(*each, visit);
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
  return text;
}

// Within single quotes of a POSIX shell; fish reads a backslash there as well.
std::string quoted(const std::string& text) { return "'" + replaced(text, "'", "'\\''") + "'"; }
std::string fish_quoted(const std::string& text) {
  return "'" + replaced(replaced(text, "\\", "\\\\"), "'", "\\'") + "'";
}

// Those that are words to complete.
std::vector<const CLI::Option*> named_options(const CLI::App& app) {
  std::vector<const CLI::Option*> out;
  for (const CLI::Option* each : shown_options(app))
    if (!each->get_positional()) out.push_back(each);
  return out;
}

std::string verbs_of(const CLI::App& app) {
  std::string out;
  for (const CLI::App* each : shown_verbs(app)) out += (out.empty() ? "" : " ") + each->get_name();
  return out;
}

std::string with_options(const CLI::App& app) {
  std::string out = verbs_of(app);
  for (const CLI::Option* each : named_options(app))
    for (const std::string& name : text_of(*each).names) out += (out.empty() ? "" : " ") + name;
  return out;
}

// Numbers are typed; whatever else has no list may be a path.
bool may_be_path(const OptionText& text) {
  return text.choices.empty() && text.value != "N" && text.value != "NUMBER";
}

std::string join(const std::vector<std::string>& words, const std::string& between) {
  std::string out;
  for (const std::string& each : words) out += (out.empty() ? "" : between) + each;
  return out;
}

// The verbs that stand in front of the word to complete become one string: "tenon eval words".
std::string bash(const CLI::App& root) {
  std::string known, words, values;
  walk(root, [&](const CLI::App& app) {
    const std::string name = full_name(app);
    known += (known.empty() ? "" : " | ") + quoted(name);
    words += "    " + quoted(name) + ") words=" + quoted(with_options(app)) + " ;;\n";
    for (const CLI::Option* each : named_options(app)) {
      const OptionText text = text_of(*each);
      if (text.value.empty()) continue;
      for (const std::string& option : text.names)
        values += "    " + quoted(name + " " + option) + ") " +
                  (may_be_path(text) ? "files=yes" : "words=" + quoted(join(text.choices, " "))) +
                  " ;;\n";
    }
  });
  return "# bash completion of tenon: source <(tenon completion bash)\n"
         "_tenon() {\n"
         "  local verbs=tenon word words= files= i\n"
         "  local current=${COMP_WORDS[COMP_CWORD]}\n"
         "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
         "    word=\"$verbs ${COMP_WORDS[i]}\"\n"
         "    case $word in " +
         known +
         ") verbs=$word ;; esac\n"
         "  done\n"
         "  case \"$verbs ${COMP_WORDS[COMP_CWORD - 1]}\" in\n" +
         values + "    *) case $verbs in\n" + words +
         "    esac ;;\n"
         "  esac\n"
         "  if [[ -n $files ]]; then\n"
         "    compopt -o filenames\n"
         "    COMPREPLY=($(compgen -f -- \"$current\"))\n"
         "  else\n"
         "    COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
         "  fi\n"
         "}\n"
         "complete -F _tenon tenon\n";
}

std::string zsh_item(const std::string& name, const std::string& text) {
  return "      " + quoted(replaced(name, ":", "\\:") + ":" + text) + "\n";
}

std::string zsh(const CLI::App& root) {
  std::string known, words, values;
  walk(root, [&](const CLI::App& app) {
    const std::string name = full_name(app);
    known += (known.empty() ? "" : " | ") + quoted(name);
    words += "    " + quoted(name) + ") items=(\n";
    for (const CLI::App* each : shown_verbs(app))
      words += zsh_item(each->get_name(), each->get_description());
    for (const CLI::Option* each : named_options(app)) {
      const OptionText text = text_of(*each);
      for (const std::string& option : text.names) {
        words += zsh_item(option, text.text);
        if (text.value.empty()) continue;
        values += "    " + quoted(name + " " + option) + ") " +
                  (may_be_path(text) ? "_files" : "compadd -- " + join(text.choices, " ")) +
                  "; return ;;\n";
      }
    }
    words += "    ) ;;\n";
  });
  return "#compdef tenon\n"
         "# zsh completion of tenon: tenon completion zsh >DIR/_tenon, with DIR in $fpath\n"
         "_tenon() {\n"
         "  local verbs=tenon word i\n"
         "  local -a items\n"
         "  for ((i = 2; i < CURRENT; i++)); do\n"
         "    word=\"$verbs ${words[i]}\"\n"
         "    case $word in (" +
         known +
         ") verbs=$word ;; esac\n"
         "  done\n"
         "  case \"$verbs ${words[CURRENT-1]}\" in\n" +
         values +
         "  esac\n"
         "  case $verbs in\n" +
         words +
         "  esac\n"
         "  _describe tenon items\n"
         "}\n"
         "_tenon \"$@\"\n";
}

std::string fish(const CLI::App& root) {
  // __tenon_at VERB...: whether the command line has exactly these verbs in front.
  std::string known, out;
  walk(root, [&](const CLI::App& app) {
    const std::string name = full_name(app);
    known += " " + fish_quoted(name);
    const std::string at = "complete -c tenon -n " + fish_quoted("__tenon_at " + name);
    for (const CLI::App* each : shown_verbs(app))
      out +=
          at + " -f -a " + each->get_name() + " -d " + fish_quoted(each->get_description()) + "\n";
    for (const CLI::Option* each : named_options(app)) {
      const OptionText text = text_of(*each);
      out += at;
      for (const std::string& option : text.names)
        out += option.starts_with("--") ? " -l " + option.substr(2) : " -s " + option.substr(1);
      if (!text.value.empty())
        out += may_be_path(text) ? " -rF" : " -xa " + fish_quoted(join(text.choices, " "));
      out += " -d " + fish_quoted(text.text) + "\n";
    }
  });
  return "# fish completion of tenon: tenon completion fish | source\n"
         "function __tenon_at\n"
         "  set -l verbs tenon\n"
         "  for word in (commandline -opc)[2..-1]\n"
         "    contains -- \"$verbs $word\"" +
         known +
         "; and set verbs \"$verbs $word\"\n"
         "  end\n"
         "  test \"$verbs\" = \"$argv\"\n"
         "end\n" +
         out;
}

// Text in roff: a backslash and a dot at the beginning of a line mean something there.
std::string roff(const std::string& text) {
  std::string out = replaced(replaced(text, "\\", "\\e"), "-", "\\-");
  if (out.starts_with(".") || out.starts_with("'")) out = "\\&" + out;
  return replaced(out, "\n.", "\n\\&.");
}

std::string man(const CLI::App& root) {
  std::string out = ".TH TENON 1 \"\" \"tenon " + std::string(kBuildInfo.version) +
                    "\"\n.SH NAME\ntenon \\- fused tensor\\-parallel boundaries, and Qwen3.5\\-FP8 "
                    "served through them\n.SH SYNOPSIS\n.B tenon\n.I VERB\n.RI [ options ]\n";
  walk(root, [&](const CLI::App& app) {
    std::string title = full_name(app);
    for (char& each : title)
      each = static_cast<char>(std::toupper(static_cast<unsigned char>(each)));
    out += ".SH " + (app.get_parent() == nullptr ? std::string("OPTIONS") : roff(title)) + "\n";
    if (app.get_parent() != nullptr) out += roff(app.get_description()) + ".\n";
    for (const CLI::Option* each : shown_options(app)) {
      const OptionText text = text_of(*each);
      out += ".TP\n\\fB" + roff(join(text.names, ", ")) + "\\fR";
      if (!text.value.empty()) out += " \\fI" + roff(text.value) + "\\fR";
      out += "\n" + roff(text.text) + "\n";
    }
    if (app.get_parent() != nullptr && !app.get_footer().empty())
      out += ".PP\n.nf\n" + roff(app.get_footer()) + "\n.fi\n";
  });
  return out +
         ".SH EXIT STATUS\n0: it worked. 1: it failed. 2: the command line is wrong. "
         "A signal ends it as ever.\n"
         ".SH ENVIRONMENT\n\\fBtenon env\\fR lists the variables, their values and meaning.\n";
}

}  // namespace

Command add_completion(CLI::App& parent) {
  auto shell = std::make_shared<std::string>();
  CLI::App* app = parent.add_subcommand("completion", "print completion for a shell");
  app->group("");
  app->add_option("SHELL", *shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  return {app, [app, shell] {
            const CLI::App& root = root_of(*app);
            const std::string text = *shell == "bash"  ? bash(root)
                                     : *shell == "zsh" ? zsh(root)
                                                       : fish(root);
            std::fputs(text.c_str(), stdout);
            return Status::ok();
          }};
}

Command add_man(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("man", "print a man page: tenon man | man -l -");
  app->group("");
  return {app, [app] {
            std::fputs(man(root_of(*app)).c_str(), stdout);
            return Status::ok();
          }};
}

}  // namespace tenon::apps
