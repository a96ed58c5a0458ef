// tenon: one binary. Parses the command line, runs the chosen subcommand, prints its error.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>

#include "apps/commands.h"
#include "apps/interrupt.h"
#include "apps/server/needs_memory.h"
#include "apps/team.h"
#include "apps/usage.h"
#include "apps/version.h"
#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/core/env.h"
#include "tenon/core/guard.h"

namespace tenon::apps {
namespace {

// Before anything is opened, which would else take the place of a closed standard stream.
Status check_standard_streams() {
  const bool closed = fcntl(STDOUT_FILENO, F_GETFD) < 0;
  for (int next = ::open("/dev/null", O_RDWR); next >= 0; next = ::open("/dev/null", O_RDWR)) {
    if (next <= STDERR_FILENO) continue;
    ::close(next);
    break;
  }
  if (closed) return Status::error(Code::kIo, "standard output is closed");
  return Status::ok();
}

Status flush_output() {
  errno = 0;
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return Status::ok();
  const std::string why = errno == 0 ? "" : std::string(": ") + std::strerror(errno);
  return Status::error(Code::kIo, "could not write all of the standard output" + why);
}

// One line, with the rank in front where there are processes. Followers leave it to their leader.
void complain(const Status& status) {
  if (Team::has_leader()) return;
  std::string rank;
  const auto variable = [](const char* name) { return std::getenv(name); };
  if (was_launched(variable))
    if (const auto launch = read_launch(variable))
      rank = "rank " + std::to_string(launch->rank) + ": ";
  std::fprintf(stderr, "tenon: %s%s\n", rank.c_str(), status.to_string().c_str());
}

// 0: it did what was asked. 1: it failed. 2: what was asked cannot be.
constexpr int kFailed = 1, kUsage = 2;

int exit_code_of(const Status& status) {
  if (status) return 0;
  return status.code() == Code::kInvalidArgument ? kUsage : kFailed;
}

// The exit code of a command line that the parser ends (help, or a refusal), or 0 after the command
// ran.
Result<int> run(int argc, char** argv) {
  CLI::App cli("tenon: fused tensor-parallel boundaries, and Qwen3.5-FP8 served through them",
               "tenon");
  set_help_format(cli);
  cli.set_version_flag("--version", version_text, "say which build this is");
  cli.require_subcommand(1);
  const Command commands[] = {add_run(cli),     add_serve(cli),      add_eval(cli),
                              add_bench(cli),   add_profile(cli),    add_env(cli),
                              add_inspect(cli), add_completion(cli), add_man(cli)};
  // After the verbs, which would else end with it as well.
  cli.footer(
      "tenon VERB --help says more. Exit codes: 0 it worked, 1 it failed, 2 the command line is "
      "wrong;\na signal ends it as ever.");
  try {
    cli.parse(argc, argv);
  } catch (const CLI::ParseError& end) {
    if (end.get_exit_code() == 0) return cli.exit(end);
    std::fprintf(stderr, "tenon: %s\n", refusal(cli, end).c_str());
    return kUsage;
  }
  TENON_TRY(env_status());
  for (const Command& command : commands) {
    if (!command.app->parsed()) continue;
    TENON_TRY(command.run());
    if (command.exit_code != nullptr) return *command.exit_code;
  }
  return 0;
}

std::terminate_handler usual_end = nullptr;
// When this thread was refused memory last; what ends a second later has another reason.
thread_local std::chrono::steady_clock::time_point lacked_memory_at{};
constexpr std::chrono::seconds kLately{1};

// Several threads may come here: the first one speaks for all.
[[noreturn]] void end_without_memory() {
  static std::atomic_flag told;
  constexpr char kSentence[] = "tenon: out of memory: the host has no more memory\n";
  while (told.test_and_set()) pause();  // until the first one ends the process
  if (!Team::has_leader() && write(STDERR_FILENO, kSentence, sizeof kSentence - 1) < 0) _exit(2);
  _exit(1);
}

// Memory can also run out where no exception may pass: JSON values allocate in their destructors.
// Which exception that was is not always known.
[[noreturn]] void end_by_exception() {
  if (std::chrono::steady_clock::now() - lacked_memory_at < kLately) end_without_memory();
  try {
    if (const auto thrown = std::current_exception()) std::rethrow_exception(thrown);
  } catch (const std::bad_alloc&) {
    end_without_memory();
  } catch (...) {
  }
  usual_end();
  std::abort();
}

void answer_lack_of_memory() {
  lacked_memory_at = std::chrono::steady_clock::now();
  if (server::NeedsMemory::now()) end_without_memory();
  throw std::bad_alloc();
}

// In front of the constructors of objects, which need memory as well: those of CLI11's validators.
[[gnu::constructor(101)]] void prepare_for_lack_of_memory() {
  usual_end = std::set_terminate(end_by_exception);
  std::set_new_handler(answer_lack_of_memory);
}

int run_and_report(int argc, char** argv) {
  if (Team::has_leader()) leave_signals_to_leader();
  auto exit_code = guarded([&]() -> Result<int> {
    TENON_TRY(check_standard_streams());
    return run(argc, argv);
  });
  const Status flushed = flush_output();
  if (exit_code && *exit_code == 0 && !flushed) exit_code = flushed;
  if (!exit_code) complain(exit_code.status());
  end_if_interrupted();
  return exit_code ? *exit_code : exit_code_of(exit_code.status());
}

}  // namespace
}  // namespace tenon::apps

int main(int argc, char** argv) { return tenon::apps::run_and_report(argc, argv); }
