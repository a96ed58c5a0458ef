// tenon: one binary. Parses the command line, runs the chosen subcommand, prints its error.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "apps/commands.h"
#include "tenon/core/env.h"

int main(int argc, char** argv) {
  CLI::App cli("tenon: fused tensor-parallel boundaries, and Qwen3.5-FP8 served through them");
  cli.require_subcommand(1);
  const tenon::apps::Command commands[] = {tenon::apps::add_run(cli), tenon::apps::add_eval(cli),
                                           tenon::apps::add_bench(cli), tenon::apps::add_env(cli)};
  CLI11_PARSE(cli, argc, argv);
  tenon::Status status = tenon::env_status();
  if (status) {
    for (const auto& command : commands)
      if (command.app->parsed()) status = command.run();
  }
  if (status) return 0;
  std::fflush(stdout);
  std::fprintf(stderr, "tenon: %s\n", status.to_string().c_str());
  return 1;
}
