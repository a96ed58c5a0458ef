// Values that ranks compare: the sentence, which is the same on every rank and names the values and
// the ranks; that nothing is broken afterwards; and that no option of a communicator is left out.
#include "tenon/comm/agreement.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/changes.h"
#include "tests/support/fake_ccl.h"
#include "tests/support/processes.h"
#include "tests/support/ranks.h"

namespace tenon {
namespace {

using std::chrono::milliseconds;
using test::meet;
using test::run_ranks;
using Clock = std::chrono::steady_clock;

constexpr milliseconds kDeadline(20'000);
constexpr milliseconds kAtOnce(10'000);  // half of it: it is a matter of milliseconds

// What every rank got. All of them took part in `body` from the same moment.
std::vector<Status> on_ranks(int size, const std::function<Status(int rank, Bootstrap&)>& body) {
  auto handles = local_bootstrap(size);
  std::vector<Status> statuses(handles.size());
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < handles.size(); ++rank)
    threads.emplace_back([&, rank] {
      const auto begin = Clock::now();
      statuses[rank] = body(static_cast<int>(rank), *handles[rank]);
      EXPECT_LT(Clock::now() - begin, kAtOnce);
    });
  for (std::thread& thread : threads) thread.join();
  return statuses;
}

void expect_all(const std::vector<Status>& statuses, std::string_view text) {
  for (const Status& each : statuses) {
    EXPECT_EQ(each.code(), Code::kInvalidArgument);
    EXPECT_EQ(each.message(), text);
  }
}

TEST(Agreement, EqualValuesAreFine) {
  for (const int size : {1, 2, 8})
    for (const Status& each : on_ranks(size, [](int, Bootstrap& bootstrap) {
           Fields fields;
           fields("eps", 1e-6f);
           fields("nothing", std::numeric_limits<float>::quiet_NaN());
           fields("empty", "");
           return agree_equal(bootstrap, fields, "here", kDeadline);
         }))
      EXPECT_TRUE(each) << each.to_string();
}

TEST(Agreement, NoFieldsAreFine) {
  for (const Status& each : on_ranks(
           3, [](int, Bootstrap& bootstrap) { return agree_equal(bootstrap, {}, "", kDeadline); }))
    EXPECT_TRUE(each) << each.to_string();
}

TEST(Agreement, TheSentenceShowsValuesAsTheyAreAndTheirRanks) {
  expect_all(on_ranks(4,
                      [](int rank, Bootstrap& bootstrap) {
                        const bool odd = rank == 1;
                        Fields fields;
                        fields("same", 3);
                        fields("eps", odd ? 1e-5f : 1e-6f);
                        fields("dtype", odd ? DType::kF16 : DType::kBF16);
                        fields("strange", odd ? static_cast<DType>(77) : DType::kF32);
                        fields("layout", odd ? ScaleLayout::kUe8m0Packed : ScaleLayout::kRow);
                        fields("variant", odd ? "one_shot" : "");
                        fields("fresh", odd);
                        fields("deadline", milliseconds(odd ? 1 : 30'000));
                        fields("rows", rank);
                        return agree_equal(bootstrap, fields, "boundary \"mlp\"", kDeadline);
                      }),
             "boundary \"mlp\": the ranks disagree about "
             "eps: 1e-06 on ranks 0, 2 and 3, 1e-05 on rank 1; "
             "dtype: bf16 on ranks 0, 2 and 3, f16 on rank 1; "
             "strange: f32 on ranks 0, 2 and 3, number 77 on rank 1; "
             "layout: row on ranks 0, 2 and 3, ue8m0_packed on rank 1; "
             "variant: \"\" on ranks 0, 2 and 3, \"one_shot\" on rank 1; "
             "fresh: false on ranks 0, 2 and 3, true on rank 1; "
             "deadline: 30000 ms on ranks 0, 2 and 3, 1 ms on rank 1; "
             "rows: 0 on rank 0, 1 on rank 1, 2 on rank 2, 3 on rank 3; all must be equal");
}

// Texts that look alike once they are put behind each other.
TEST(Agreement, NeighbouringValuesAreNotMixedUp) {
  for (const Status& each : on_ranks(2, [](int rank, Bootstrap&bootstrap) {
         Fields fields;
         fields.add("a", rank == 0 ? "xy" : "x");
         fields.add("b", rank == 0 ? "z" : "yz");
         return agree_equal(bootstrap, fields, "here", kDeadline);
       }))
    EXPECT_EQ(each.message(),
              "here: the ranks disagree about a: xy on rank 0, x on rank 1; b: z on rank 0, yz on "
              "rank 1; all must be equal");
}

TEST(Agreement, FloatsThatDifferInTheLastBitDiffer) {
  const float next = std::nextafter(1e-6f, 1.0f);
  for (const Status& each : on_ranks(2, [&](int rank, Bootstrap&bootstrap) {
         Fields fields;
         fields("eps", rank == 0 ? 1e-6f : next);
         return agree_equal(bootstrap, fields, "here", kDeadline);
       }))
    EXPECT_NE(each.message().find("eps: 1e-06 on rank 0, 1.0000001e-06 on rank 1"),
              std::string_view::npos)
        << each.message();
}

TEST(Agreement, RanksInDifferentCallsAreToldSo) {
  expect_all(on_ranks(3,
                      [](int rank, Bootstrap& bootstrap) {
                        Fields fields;
                        fields(rank == 2 ? "hidden" : "rows", 4);
                        return agree_equal(bootstrap, fields,
                                           rank == 2 ? "boundary \"mlp\"" : "boundary channel",
                                           kDeadline);
                      }),
             "the ranks are in different calls: boundary channel on ranks 0 and 1, boundary "
             "\"mlp\" on rank 2; every rank must make the same calls in the same order");
  for (const int extra : {0, 1})
    for (const Status& each : on_ranks(2, [&](int rank, Bootstrap&bootstrap) {
           Fields fields;
           fields("hidden", 4);
           if (rank == extra) fields("rows", 4);
           return agree_equal(bootstrap, fields, "here", kDeadline);
         }))
      EXPECT_EQ(each.message(),
                "here: the ranks compare different things; all must run the same build of tenon");
}

TEST(Agreement, TooMuchTextIsRefusedOnEveryRank) {
  for (const Status& each : on_ranks(2, [](int rank, Bootstrap&bootstrap) {
         Fields fields;
         fields("label", std::string(rank == 0 ? 4 : 2 << 20, 'x'));
         return agree_equal(bootstrap, fields, "here", kDeadline);
       }))
    EXPECT_NE(each.message().find("accepted: 1048576"), std::string_view::npos) << each.message();
}

TEST(Agreement, ADifferenceLeavesTheCommunicatorAsItWas) {
  for (const char* transport : {"threads", "shm", "ccl"})
    run_ranks(3, {.transport = transport}, [](int rank, Communicator& comm) {
      for (int round = 0; round < 5; ++round) {
        Fields fields;
        fields("round", rank == 2 && round % 2 == 0 ? -1 : round);
        const Status status = comm.agree_equal(fields, "test");
        EXPECT_EQ(static_cast<bool>(status), round % 2 != 0) << status.to_string();
        meet(comm);
      }
    });
}

TEST(Agreement, AHandleThatIsSharedIsTheSameCommunicator) {
  auto handles = local_bootstrap(2);
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < 2; ++rank)
    threads.emplace_back([&, rank, handle = std::move(handles[rank])] {
      CommOptions options;
      options.bootstrap = handle;
      auto comm = Communicator::create(options, Device{});
      ASSERT_TRUE(comm) << comm.status().to_string();
      const auto other = (*comm)->share();
      EXPECT_EQ(other->rank(), static_cast<int>(rank));
      comm->reset();
      meet(*other);
      other->abort("enough");
      EXPECT_FALSE(other->health());
    });
  handles.clear();
  for (std::thread& thread : threads) thread.join();
}

// --- the options of a communicator --------------------------------------------------------------

CommOptions usual_options(std::shared_ptr<Bootstrap> bootstrap) {
  CommOptions options;
  options.bootstrap = std::move(bootstrap);
  options.deadline = kDeadline;
  options.transport = "ccl";  // the one that takes every option
  return options;
}

// One rank is different: all get the same error at once, and may try again with the same bootstrap.
TEST(Agreement, EveryOptionThatDiffersOnOneRankIsTheSameErrorOnAll) {
  const std::vector<std::string> names = test::names_of_fields(CommOptions());
  EXPECT_GE(names.size(), 3u);
  for (const std::string& name : names)
    for (const bool invalid : {false, true})
      for (const int odd : {0, 2}) {
        SCOPED_TRACE(name + (invalid ? " cannot be" : " differs") + " on rank " +
                     std::to_string(odd));
        auto handles = local_bootstrap(3);
        std::vector<Status> statuses(3);
        std::vector<std::thread> threads;
        for (std::size_t rank = 0; rank < 3; ++rank)
          threads.emplace_back([&, rank, handle = std::move(handles[rank])] {
            CommOptions options = usual_options(handle);
            if (static_cast<int>(rank) == odd)
              test::alter_field(options, name, [&](auto& field) {
                invalid ? test::spoil(field) : test::change(field);
              });
            const auto begin = Clock::now();
            statuses[rank] = Communicator::create(options, Device{}).status();
            EXPECT_LT(Clock::now() - begin, kAtOnce);
            const auto again = Communicator::create(usual_options(handle), Device{});
            ASSERT_TRUE(again) << again.status().to_string();
            meet(**again);
          });
        handles.clear();
        for (std::thread& thread : threads) thread.join();
        EXPECT_EQ(statuses[0].code(), Code::kInvalidArgument);
        EXPECT_NE(statuses[0].message().find("the ranks disagree about " + name + ": "),
                  std::string_view::npos)
            << statuses[0].to_string();
        EXPECT_NE(statuses[0].message().find(" on rank " + std::to_string(odd)),
                  std::string_view::npos)
            << statuses[0].to_string();
        for (const Status& each : statuses) EXPECT_EQ(each.to_string(), statuses[0].to_string());
      }
}

TEST(AgreementChild, DISABLED_Create) {
  const auto comm = Communicator::create({}, Device{});
  std::printf("status: %s\n", comm.status().to_string().c_str());
}

// The knob is of a process.
TEST(Agreement, ProcessesMustAgreeOnEarlyLaunch) {
  const int port = test::free_port();
  std::vector<test::Process> ranks;
  for (int rank = 0; rank < 2; ++rank)
    ranks.push_back(test::start_rank(rank, 2, port, "AgreementChild.DISABLED_Create",
                                     {rank == 1 ? "TENON_EARLY=0" : "TENON_EARLY=1"}));
  for (test::Process& rank : ranks) {
    EXPECT_EQ(rank.wait(milliseconds(20'000)), 0) << rank.output();
    EXPECT_NE(rank.output().find("status: invalid argument: communicator: options: the ranks "
                                 "disagree about TENON_EARLY: true on rank 0, false on rank 1; "
                                 "all must be equal\n"),
              std::string::npos)
        << rank.output();
  }
}

}  // namespace
}  // namespace tenon
