// Whatever of a boundary or a channel differs between ranks is the same error on all of them, at
// once, and the communicator works on: field by field, and for the knobs of processes.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>

#include "tenon/boundary/boundary.h"
#include "tests/support/changes.h"
#include "tests/support/fake_ccl.h"
#include "tests/support/processes.h"
#include "tests/support/ranks.h"

namespace tenon {
namespace {

using std::chrono::milliseconds;
using test::meet;
using test::RankOptions;
using test::run_ranks;
using Clock = std::chrono::steady_clock;

constexpr milliseconds kDeadline(20'000);
constexpr milliseconds kAtOnce(10'000);  // half of it: it is a matter of milliseconds

BoundarySpec usual_spec() {
  BoundarySpec spec;
  spec.site = "test";
  spec.hidden = 512;
  spec.max_rows = 4;
  spec.force_stage = StagePolicy::kGeneric;  // what every transport has
  return spec;
}

BoundaryChannel::Spec usual_channel() {
  BoundaryChannel::Spec spec;
  spec.hidden = 512;
  spec.max_rows = 8;
  return spec;
}

// Collects what the ranks got and compares it when all are there.
class Answers {
 public:
  explicit Answers(std::size_t ranks) : all_(ranks) {}
  void put(int rank, const Status& status) { all_[static_cast<std::size_t>(rank)] = status; }
  void expect_alike(std::string_view text) const {
    for (const Status& each : all_) {
      EXPECT_EQ(each.code(), Code::kInvalidArgument);
      EXPECT_EQ(each.to_string(), all_[0].to_string());
      EXPECT_NE(each.message().find(text), std::string_view::npos) << each.to_string();
    }
  }
  void expect_alike_or_fine() const {
    for (const Status& each : all_) EXPECT_EQ(each.to_string(), all_[0].to_string());
  }

 private:
  std::vector<Status> all_;
};

RankOptions over(const char* transport) { return {.deadline = kDeadline, .transport = transport}; }

// `make(rank, comm, odd)` for rank `odd` being different, then a usual boundary on the same
// communicator: nothing was broken.
void expect_alike(const char* transport, std::string_view text,
                  const std::function<Status(int rank, Communicator&, bool odd)>& make) {
  for (const int odd : {0, 1, 2}) {
    Answers answers(3);
    run_ranks(3, over(transport), [&](int rank, Communicator& comm) {
      const auto begin = Clock::now();
      answers.put(rank, make(rank, comm, rank == odd));
      EXPECT_LT(Clock::now() - begin, kAtOnce);
      auto channel = BoundaryChannel::make(usual_channel(), comm);
      ASSERT_TRUE(channel) << channel.status().to_string();
      const auto boundary = Boundary::make(usual_spec(), *channel);
      ASSERT_TRUE(boundary) << boundary.status().to_string();
    });
    answers.expect_alike(text);
  }
}

template <class Spec>
Spec altered(Spec spec, std::string_view name, bool invalid) {
  test::alter_field(spec, name,
                    [&](auto& field) { invalid ? test::spoil(field) : test::change(field); });
  return spec;
}

TEST(BoundaryAgreement, EveryFieldThatDiffersOnOneRankIsTheSameErrorOnAll) {
  const std::vector<std::string> names = test::names_of_fields(usual_spec());
  EXPECT_GE(names.size(), 16u);
  for (const char* transport : {"threads", "ccl"})
    for (const std::string& name : names)
      for (const bool invalid : {false, true}) {
        SCOPED_TRACE(std::string(transport) + ", " + name + (invalid ? " cannot be" : " differs"));
        expect_alike(transport, "the ranks disagree about " + name + ": ",
                     [&](int, Communicator& comm, bool odd) -> Status {
                       TENON_ASSIGN(auto channel, BoundaryChannel::make(usual_channel(), comm));
                       const BoundarySpec spec =
                           odd ? altered(usual_spec(), name, invalid) : usual_spec();
                       return Boundary::make(spec, std::move(channel)).status();
                     });
      }
}

TEST(BoundaryAgreement, EveryFieldOfAChannelThatDiffersOnOneRankIsTheSameErrorOnAll) {
  const std::vector<std::string> names = test::names_of_fields(usual_channel());
  EXPECT_GE(names.size(), 5u);
  for (const char* transport : {"threads", "ccl"})
    for (const std::string& name : names)
      for (const bool invalid : {false, true}) {
        SCOPED_TRACE(std::string(transport) + ", " + name + (invalid ? " cannot be" : " differs"));
        expect_alike(transport, "the ranks disagree about " + name + ": ",
                     [&](int, Communicator& comm, bool odd) -> Status {
                       const BoundaryChannel::Spec spec =
                           odd ? altered(usual_channel(), name, invalid) : usual_channel();
                       return BoundaryChannel::make(spec, comm).status();
                     });
      }
}

// What cannot be on any rank is refused in the same words, whichever field it is.
TEST(BoundaryAgreement, WhatCannotBeIsTheSameErrorOnAll) {
  for (const std::string& name : test::names_of_fields(usual_spec())) {
    SCOPED_TRACE(name);
    Answers answers(2);
    run_ranks(2, over("threads"), [&](int rank, Communicator& comm) {
      auto channel = BoundaryChannel::make(usual_channel(), comm);
      ASSERT_TRUE(channel) << channel.status().to_string();
      const auto begin = Clock::now();
      const auto made = Boundary::make(altered(usual_spec(), name, true), *channel);
      answers.put(rank, made.status());
      EXPECT_LT(Clock::now() - begin, kAtOnce);
      meet(comm);
    });
    const bool is_harmless = name == "site" || name == "fresh_residual" || name == "want_bf16" ||
                             name == "want_fp8" || name == "offset" || name == "force_variant";
    if (is_harmless)
      answers.expect_alike_or_fine();
    else
      answers.expect_alike("boundary \"test\"");
  }
  for (const std::string& name : test::names_of_fields(usual_channel())) {
    if (name == "label" || name == "sharded_residual") continue;
    SCOPED_TRACE(name);
    Answers answers(2);
    run_ranks(2, over("threads"), [&](int rank, Communicator& comm) {
      answers.put(rank, BoundaryChannel::make(altered(usual_channel(), name, true), comm).status());
      meet(comm);
    });
    answers.expect_alike("boundary channel");
  }
}

TEST(BoundaryAgreement, NumbersThatAreNoneAreRefused) {
  const std::function<void(BoundarySpec&)> cases[] = {
      [](BoundarySpec& spec) { spec.group = 0; },
      [](BoundarySpec& spec) { spec.max_rows = 0; },
      [](BoundarySpec& spec) { spec.hidden = 0; },
      [](BoundarySpec& spec) { spec.eps = std::numeric_limits<float>::quiet_NaN(); },
      [](BoundarySpec& spec) { spec.offset = std::numeric_limits<float>::infinity(); },
      [](BoundarySpec& spec) { spec.want_bf16 = spec.want_fp8 = false; },
  };
  for (const auto& spoil : cases)
    run_ranks(2, over("threads"), [&](int, Communicator& comm) {
      auto channel = BoundaryChannel::make(usual_channel(), comm);
      ASSERT_TRUE(channel) << channel.status().to_string();
      BoundarySpec spec = usual_spec();
      spoil(spec);
      EXPECT_EQ(Boundary::make(spec, *channel).status().code(), Code::kInvalidArgument);
      meet(comm);
    });
}

TEST(BoundaryAgreement, ChannelsThatDifferAreTheSameErrorOnAll) {
  expect_alike("threads", "the channel's ", [](int, Communicator& comm, bool odd) -> Status {
    TENON_ASSIGN(auto one, BoundaryChannel::make(usual_channel(), comm));
    BoundaryChannel::Spec spec = usual_channel();
    spec.max_rows = 64;
    TENON_ASSIGN(auto two, BoundaryChannel::make(spec, comm));
    return Boundary::make(usual_spec(), odd ? one : two).status();
  });
  expect_alike("threads", "the channel's mailbox", [](int, Communicator& comm, bool odd) -> Status {
    TENON_ASSIGN(auto one, BoundaryChannel::make(usual_channel(), comm));
    TENON_ASSIGN(auto two, BoundaryChannel::make(usual_channel(), comm));
    return Boundary::make(usual_spec(), odd ? one : two).status();
  });
}

TEST(BoundaryAgreement, RanksThatMakeDifferentThingsAreToldSo) {
  expect_alike("threads", "the ranks are in different calls: ",
               [](int, Communicator& comm, bool odd) -> Status {
                 TENON_ASSIGN(auto channel, BoundaryChannel::make(usual_channel(), comm));
                 if (odd) return BoundaryChannel::make(usual_channel(), comm).status();
                 return Boundary::make(usual_spec(), channel).status();
               });
}

TEST(BoundaryAgreement, NoChannelIsAnError) {
  const auto refused = Boundary::make(usual_spec(), nullptr);
  EXPECT_EQ(refused.status().code(), Code::kInvalidArgument);
}

// --- knobs --------------------------------------------------------------------------------------

TEST(BoundaryAgreementChild, DISABLED_Make) {
  CommOptions options;
  options.deadline = kDeadline;
  const auto comm = Communicator::create(options, Device{});
  ASSERT_TRUE(comm) << comm.status().to_string();
  const auto begin = Clock::now();
  const auto make = [&]() -> Status {
    TENON_ASSIGN(auto channel, BoundaryChannel::make(usual_channel(), **comm));
    BoundarySpec spec = usual_spec();
    spec.force_stage = StagePolicy::kFree;
    return Boundary::make(spec, std::move(channel)).status();
  };
  const Status made = make();
  EXPECT_LT(Clock::now() - begin, kAtOnce);
  std::printf("status: %s\n", made.to_string().c_str());
  meet(**comm);
}

// A file that ends with the test.
struct File {
  File(std::string at, const char* text) : path(std::move(at)) { std::ofstream(path) << text; }
  ~File() { std::remove(path.c_str()); }
  std::string path;
};

// Knobs are of a process, and one process has another than the rest.
TEST(BoundaryAgreement, KnobsThatDifferAreTheSameErrorOnAll) {
  const File tables(testing::TempDir() + "boundary_agreement_tables.json", "{\"tables\": []}");
  const File broken(testing::TempDir() + "boundary_agreement_broken.json", "{");
  const std::string boundary = "boundary \"test\"", channel = "boundary channel \"boundary\"";
  const struct {
    std::string knob, where, text;
  } cases[] = {
      {"TENON_FORCE_STAGE=3", boundary, "force_stage: 0 on ranks 0 and 2, 3 on rank 1;"},
      {"TENON_MAX_STAGE=2", boundary, "max_stage: 1 on ranks 0 and 2, 2 on rank 1;"},
      {"TENON_FORCE_VARIANT=fused_allreduce_rmsnorm_quant:one_shot", boundary,
       "TENON_FORCE_VARIANT: \"\" on ranks 0 and 2, \"fused_allreduce_rmsnorm_quant:one_shot\" on "
       "rank 1;"},
      {"TENON_TUNED_FILE=" + tables.path, channel,
       "TENON_TUNED_FILE: no file on ranks 0 and 2, contents "},
      {"TENON_TUNED_FILE=" + broken.path, channel,
       "TENON_TUNED_FILE: no file on ranks 0 and 2, io: TENON_TUNED_FILE: " + broken.path + ": "},
      {"TENON_TUNED_FILE=/nowhere/tuned.json", channel,
       "TENON_TUNED_FILE: no file on ranks 0 and 2, io: TENON_TUNED_FILE: /nowhere/tuned.json: "
       "cannot be opened"},
  };
  for (const auto& [knob, where, text] : cases) {
    const int port = test::free_port();
    std::vector<test::Process> ranks;
    for (int rank = 0; rank < 3; ++rank)
      ranks.push_back(test::start_rank(rank, 3, port, "BoundaryAgreementChild.DISABLED_Make",
                                       rank == 1 ? std::vector{knob} : std::vector<std::string>{}));
    for (test::Process& rank : ranks) {
      EXPECT_EQ(rank.wait(milliseconds(60'000)), 0) << rank.output();
      EXPECT_NE(rank.output().find("status: invalid argument: " + where +
                                   ": the ranks disagree about " + text),
                std::string::npos)
          << rank.output();
      EXPECT_NE(rank.output().find("; all must be equal\n"), std::string::npos) << rank.output();
    }
  }
}

TEST(BoundaryAgreement, AFileOfTablesThatCannotBeReadIsTheSameErrorOnAll) {
  const int port = test::free_port();
  std::vector<test::Process> ranks;
  for (int rank = 0; rank < 2; ++rank)
    ranks.push_back(test::start_rank(rank, 2, port, "BoundaryAgreementChild.DISABLED_Make",
                                     {"TENON_TUNED_FILE=/nowhere/tuned.json"}));
  for (test::Process& rank : ranks) {
    EXPECT_EQ(rank.wait(milliseconds(60'000)), 0) << rank.output();
    EXPECT_NE(rank.output().find("TENON_TUNED_FILE: /nowhere/tuned.json: cannot be opened"),
              std::string::npos)
        << rank.output();
  }
}

}  // namespace
}  // namespace tenon
