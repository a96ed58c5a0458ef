#include "tenon/core/env.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/operator_new.h"

namespace tenon {
namespace {

Result<Env> parse(std::vector<std::string> variables,
                  std::vector<std::string>* warnings = nullptr) {
  return parse_env(variables, warnings);
}

TEST(Env, DefaultsWhenNothingIsSet) {
  std::vector<std::string> warnings;
  const auto env = parse({"HOME=/root", "PATH=/bin", "TENONLIKE=1"}, &warnings);
  ASSERT_TRUE(env);
  EXPECT_TRUE(warnings.empty());
  EXPECT_EQ(env->log, LogLevel::kWarning);
  EXPECT_EQ(env->force_stage, 0);
  EXPECT_EQ(env->max_stage, 1);
  EXPECT_EQ(env->force_variant, "");
  EXPECT_TRUE(env->early);
  EXPECT_TRUE(env->graphs);
  EXPECT_TRUE(env->run_ahead);
  EXPECT_FALSE(env->check_caches);
  EXPECT_EQ(env->deadline.count(), 30'000);
  EXPECT_EQ(env->cpu_threads, 0);
  EXPECT_EQ(env->emu_seed, 0u);
  EXPECT_EQ(env->tuned_file, "");
  EXPECT_EQ(env->ccl_library, "");
  EXPECT_EQ(env->load_deadline.count(), 1'800'000);
  EXPECT_EQ(env->secret, "");
  EXPECT_FALSE(env->listen_all);
}

TEST(Env, ReadsEveryKnob) {
  const auto env =
      parse({"TENON_LOG=debug", "TENON_FORCE_STAGE=2", "TENON_MAX_STAGE=3",
             "TENON_FORCE_VARIANT=rmsnorm:row", "TENON_EARLY=0", "TENON_GRAPHS=0",
             "TENON_RUN_AHEAD=0", "TENON_CHECK_CACHES=1", "TENON_DEADLINE_MS=250",
             "TENON_CPU_THREADS=4", "TENON_EMU_SEED=18446744073709551615",
             "TENON_TUNED_FILE=/etc/tenon/tuned.json", "TENON_CCL_LIBRARY=/opt/nccl/libnccl.so.2",
             "TENON_LOAD_DEADLINE_MS=9000", "TENON_SECRET=sixteen letters!", "TENON_LISTEN_ALL=1"});
  ASSERT_TRUE(env) << env.status().to_string();
  EXPECT_EQ(env->log, LogLevel::kDebug);
  EXPECT_EQ(env->force_stage, 2);
  EXPECT_EQ(env->max_stage, 3);
  EXPECT_EQ(env->force_variant, "rmsnorm:row");
  EXPECT_FALSE(env->early);
  EXPECT_FALSE(env->graphs);
  EXPECT_FALSE(env->run_ahead);
  EXPECT_TRUE(env->check_caches);
  EXPECT_EQ(env->deadline.count(), 250);
  EXPECT_EQ(env->cpu_threads, 4);
  EXPECT_EQ(env->emu_seed, ~std::uint64_t{0});
  EXPECT_EQ(env->tuned_file, "/etc/tenon/tuned.json");
  EXPECT_EQ(env->ccl_library, "/opt/nccl/libnccl.so.2");
  EXPECT_EQ(env->load_deadline.count(), 9000);
  EXPECT_EQ(env->secret, "sixteen letters!");
  EXPECT_TRUE(env->listen_all);
}

TEST(Env, EveryKnobIsListedOnce) {
  // What the test above sets, so that a new knob is not forgotten here.
  const std::vector<std::string_view> names = {
      "TENON_LOG",         "TENON_FORCE_STAGE",      "TENON_MAX_STAGE", "TENON_FORCE_VARIANT",
      "TENON_EARLY",       "TENON_GRAPHS",           "TENON_RUN_AHEAD", "TENON_CHECK_CACHES",
      "TENON_DEADLINE_MS", "TENON_CPU_THREADS",      "TENON_EMU_SEED",  "TENON_TUNED_FILE",
      "TENON_CCL_LIBRARY", "TENON_LOAD_DEADLINE_MS", "TENON_SECRET",    "TENON_LISTEN_ALL"};
  const std::vector<Knob> listed = knobs();
  ASSERT_EQ(listed.size(), names.size());
  for (std::size_t i = 0; i < names.size(); ++i) {
    EXPECT_EQ(listed[i].name, names[i]);
    EXPECT_FALSE(listed[i].text.empty());
  }
}

TEST(Env, MalformedValuesAreNamedWithWhatIsAccepted) {
  struct Case {
    std::string variable, message;
  };
  const Case cases[] = {
      {"TENON_TUNED_FILE=", "TENON_TUNED_FILE: is \"\" but must be the path of a file"},
      {"TENON_LOG=loud", "TENON_LOG: is \"loud\" but must be error, warning, info or debug"},
      {"TENON_LOG=", "TENON_LOG: is \"\" but must be error, warning, info or debug"},
      {"TENON_FORCE_STAGE=4", "TENON_FORCE_STAGE: is \"4\" but must be 0, 1, 2 or 3"},
      {"TENON_MAX_STAGE=0", "TENON_MAX_STAGE: is \"0\" but must be 1, 2 or 3"},
      {"TENON_MAX_STAGE=2x", "TENON_MAX_STAGE: is \"2x\" but must be 1, 2 or 3"},
      {"TENON_MAX_STAGE= 2", "TENON_MAX_STAGE: is \" 2\" but must be 1, 2 or 3"},
      {"TENON_FORCE_VARIANT=rmsnorm", "TENON_FORCE_VARIANT: is \"rmsnorm\" but must be op:variant"},
      {"TENON_FORCE_VARIANT=:row", "TENON_FORCE_VARIANT: is \":row\" but must be op:variant"},
      {"TENON_FORCE_VARIANT=rmsnorm:",
       "TENON_FORCE_VARIANT: is \"rmsnorm:\" but must be op:variant"},
      {"TENON_EARLY=no", "TENON_EARLY: is \"no\" but must be 0 or 1"},
      {"TENON_EARLY=2", "TENON_EARLY: is \"2\" but must be 0 or 1"},
      {"TENON_DEADLINE_MS=0", "TENON_DEADLINE_MS: is \"0\" but must be 1 to 86400000"},
      {"TENON_DEADLINE_MS=1e3", "TENON_DEADLINE_MS: is \"1e3\" but must be 1 to 86400000"},
      {"TENON_CPU_THREADS=-1", "TENON_CPU_THREADS: is \"-1\" but must be 0 to 1024"},
      {"TENON_EMU_SEED=-1", "TENON_EMU_SEED: is \"-1\" but must be an unsigned integer"},
      {"TENON_EMU_SEED=18446744073709551616",
       "TENON_EMU_SEED: is \"18446744073709551616\" but must be an unsigned integer"},
      {"TENON_LOAD_DEADLINE_MS=0", "TENON_LOAD_DEADLINE_MS: is \"0\" but must be 1 to 86400000"},
      {"TENON_SECRET=short", "TENON_SECRET: has 5 characters but must have 16 or more"},
      {"TENON_LISTEN_ALL=yes", "TENON_LISTEN_ALL: is \"yes\" but must be 0 or 1"},
      {"TENON_LOG", "TENON_LOG: is \"\" but must be error, warning, info or debug"},
  };
  for (const Case& each : cases) {
    const auto env = parse({each.variable});
    ASSERT_FALSE(env) << each.variable;
    EXPECT_EQ(env.status().code(), Code::kInvalidArgument);
    EXPECT_EQ(env.status().message(), each.message);
  }
}

TEST(Env, UnknownVariablesAreWarningsWithTheNearestName) {
  std::vector<std::string> warnings;
  const auto env = parse(
      {"TENON_MAXSTAGE=2", "TENON_DEADLINE=5", "TENON_EMU_SED=1", "TENON_LOG=info"}, &warnings);
  ASSERT_TRUE(env);
  EXPECT_EQ(env->log, LogLevel::kInfo);
  EXPECT_EQ(env->max_stage, 1) << "an unknown name sets nothing";
  ASSERT_EQ(warnings.size(), 3u);
  EXPECT_EQ(warnings[0], "unknown variable TENON_MAXSTAGE; did you mean TENON_MAX_STAGE?");
  EXPECT_EQ(warnings[1], "unknown variable TENON_DEADLINE; did you mean TENON_DEADLINE_MS?");
  EXPECT_EQ(warnings[2], "unknown variable TENON_EMU_SED; did you mean TENON_EMU_SEED?");
  EXPECT_TRUE(parse({"TENON_NONSENSE=1"})) << "nobody has to ask for the warnings";
}

TEST(Log, WritesOneLineWithLevelAndRank) {
  testing::internal::CaptureStderr();
  set_log_rank(3);
  log(LogLevel::kError, "boundary 4 failed");
  log(LogLevel::kDebug, "not at the default level");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "tenon: rank 3: error: boundary 4 failed\n");
}

TEST(Log, GoesToASinkWhileThereIsOne) {
  std::vector<std::string> lines;
  const auto keep = [](void* to, LogLevel level, const char* line) {
    static_cast<std::vector<std::string>*>(to)->push_back(std::to_string(static_cast<int>(level)) +
                                                          " " + line);
  };
  testing::internal::CaptureStderr();
  set_log_rank(2);
  set_log_sink(keep, &lines, LogLevel::kInfo);
  log(LogLevel::kInfo, "more than standard error gets");
  log(LogLevel::kDebug, "more than was asked for");
  set_log_sink(nullptr, nullptr, LogLevel::kError);
  log(LogLevel::kWarning, "back again");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "tenon: rank 2: warning: back again\n");
  EXPECT_EQ(lines, std::vector<std::string>{"2 rank 2: info: more than standard error gets"});
}

TEST(Log, AFailureIsToldWithoutMemory) {
  std::string text(600, 'x');
  text += " and more";
  const Status why = Status::error(Code::kIo, text);
  testing::internal::CaptureStderr();
  set_log_rank(2);
  log_failure("turning", why);
  test::fail_allocations(0, INT64_MAX / 2);
  log_failure("turning", why);
  test::allocation_fails = nullptr;
  const std::string told = testing::internal::GetCapturedStderr();
  EXPECT_EQ(told.find("tenon: rank 2: error: turning: io: xxx"), 0u) << told;
  EXPECT_NE(told.find(" and more\ntenon: rank 2: error: turning: io: xxx"), std::string::npos)
      << told;
  EXPECT_EQ(told.back(), '\n');
}

}  // namespace
}  // namespace tenon
