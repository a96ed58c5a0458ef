#include "apps/config_file.h"

#include <CLI/CLI.hpp>
#include <filesystem>
#include <string>

namespace tenon::apps {
namespace {

[[noreturn]] void refuse(const std::string& file, const std::string& why) {
  throw CLI::ConfigError("--config \"" + file + "\": " + why);
}

void read_config(CLI::App& verb, const std::string& file) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(file, ignored)) refuse(file, "there is no such file");
  CLI::ConfigTOML format;
  for (const CLI::ConfigItem& item : format.from_file(file)) {
    if (!item.parents.empty())
      refuse(file, "there is a section \"" + item.parents.front() + "\"; accepted is name = value");
    CLI::Option* option = verb.get_option_no_throw("--" + item.name);
    if (option == nullptr || !option->get_configurable())
      refuse(file, "there is no option \"" + item.name +
                       "\" that a file can set; accepted are those of tenon " + verb.get_name() +
                       " --help, without their dashes");
    if (!option->empty()) continue;  // the command line wins
    if (option->get_expected_max() == 0) {
      const bool is_known = item.inputs.size() == 1 &&
                            (item.inputs.front() == "true" || item.inputs.front() == "false");
      if (!is_known)
        refuse(file, "\"" + item.name + "\" is \"" + format.to_flag(item) +
                         "\"; accepted are true and false");
      option->add_result(option->get_flag_value(item.name, item.inputs.front()));
      continue;
    }
    option->add_result(item.inputs);
  }
}

}  // namespace

void add_config_option(CLI::App& verb) {
  verb.add_option_function<std::string>(
          "--config", [&verb](const std::string& file) { read_config(verb, file); },
          "take options that are not named here from a file: lines like max-batch = 64")
      ->configurable(false)
      ->type_name("FILE");
  verb.get_help_ptr()->configurable(false);
}

}  // namespace tenon::apps
