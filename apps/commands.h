// The subcommands of the one binary. Each file adds its options to the command line and leaves what
// to do in its Command. Not here: anything a library user could want (tenon/).
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "tenon/core/status.h"

namespace CLI {
class App;
}

namespace tenon::apps {

struct Command {
  CLI::App* app = nullptr;  // set by the parser when this one was chosen
  std::function<Status()> run;
  // What the program ends with where run() was ok; null: 0.
  std::shared_ptr<const int> exit_code = {};
};

Command add_run(CLI::App& parent);
Command add_serve(CLI::App& parent);
Command add_eval(CLI::App& parent);
Command add_bench(CLI::App& parent);
Command add_profile(CLI::App& parent);
Command add_env(CLI::App& parent);
Command add_inspect(CLI::App& parent);
// For shells and packagers; help does not list them.
Command add_completion(CLI::App& parent);
Command add_man(CLI::App& parent);

}  // namespace tenon::apps
