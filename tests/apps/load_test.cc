// What of the load client and of evaluations needs no server: numbers in answers, intervals,
// addresses, the made prompts.
#include <gtest/gtest.h>

#include <cmath>

#include "apps/eval/problems.h"
#include "apps/load/workload.h"
#include "apps/server/http_client.h"

namespace tenon::apps {
namespace {

TEST(LastNumber, IsInItsShortestForm) {
  const std::pair<const char*, const char*> cases[] = {{"It costs $1,250.50.", "1250.5"},
                                                       {"3 and then 18", "18"},
                                                       {"18.00", "18"},
                                                       {"so -7", "-7"},
                                                       {"20-2", "2"},
                                                       {"no number", ""},
                                                       {"007", "7"},
                                                       {"0.50", "0.5"},
                                                       {"-0", "0"},
                                                       {"1, 2, 3.", "3"},
                                                       {"12 and 5.", "5"},
                                                       {"x=-0.25 m", "-0.25"},
                                                       {"000", "0"},
                                                       {"30%", "30"},
                                                       {"", ""}};
  for (const auto& [text, number] : cases) EXPECT_EQ(last_number(text), number) << text;
}

TEST(WilsonInterval, IsThatOfTheTextbook) {
  const auto [low, high] = wilson_interval(8, 10);
  EXPECT_NEAR(low, 0.4901625, 1e-6);
  EXPECT_NEAR(high, 0.9433178, 1e-6);
  EXPECT_EQ(wilson_interval(0, 0), (std::pair<double, double>(0, 1)));
  EXPECT_EQ(wilson_interval(0, 20).first, 0);
  EXPECT_NEAR(wilson_interval(20, 20).second, 1, 1e-12);
}

TEST(ParseUrl, TakesAddressesOfHttp) {
  const auto plain = server::parse_url("http://localhost:8000/");
  ASSERT_TRUE(plain);
  EXPECT_EQ(plain->host + " " + plain->port + " " + plain->base, "localhost 8000 ");
  const auto v6 = server::parse_url("http://[::1]:81/api");
  ASSERT_TRUE(v6);
  EXPECT_EQ(v6->host + " " + v6->port + " " + v6->base, "::1 81 /api");
  EXPECT_EQ(server::parse_url("http://host")->port, "80");
  for (const char* bad : {"https://host", "host:80", "http://", "http://a:", "http://a:b",
                          "http://[::1", "http://a:123456", "http://a b"})
    EXPECT_FALSE(server::parse_url(bad)) << bad;
}

TEST(Workload, LengthsOfConversationsHaveTheMeanThatWasAskedFor) {
  WorkloadOptions options;
  options.kind = "sharegpt";
  options.prompts = 4000;
  options.input_tokens = 200;
  options.output_tokens = 100;
  options.num_ids = 10;
  double input = 0, output = 0;
  std::size_t longest = 0;
  for (const WorkItem& each : make_workload(options, 0)) {
    input += static_cast<double>(each.prompt.size());
    output += each.output_tokens;
    longest = std::max(longest, each.prompt.size());
  }
  // Lengths end at kLongest means, which takes 7 % of the mean.
  EXPECT_NEAR(input / 4000, 186, 10);
  EXPECT_NEAR(output / 4000, 93, 5);
  EXPECT_EQ(longest, static_cast<std::size_t>(kLongest * 200));
}

TEST(Workload, RoundsHaveOtherIdsAndTheSameLengths) {
  WorkloadOptions options;
  options.range_ratio = 0.25;
  options.num_ids = 1000;
  const auto first = make_workload(options, 0), again = make_workload(options, 0),
             other = make_workload(options, 1);
  for (std::size_t i = 0; i < first.size(); ++i) {
    EXPECT_EQ(first[i].prompt, again[i].prompt);
    EXPECT_NE(first[i].prompt, other[i].prompt);
    EXPECT_EQ(first[i].prompt.size(), other[i].prompt.size());
    EXPECT_EQ(first[i].output_tokens, other[i].output_tokens);
    EXPECT_GE(first[i].prompt.size(), 32u);
    EXPECT_LE(first[i].prompt.size(), 128u);
  }
}

TEST(PoissonMoments, HaveTheirRateAndSpread) {
  const auto moments = poisson_moments(10'001, 50, 3);
  EXPECT_EQ(moments.front(), 0);
  EXPECT_NEAR(moments.back(), 200, 8);  // 10,000 gaps of 20 ms; standard deviation 2
  double squares = 0;
  for (std::size_t i = 1; i < moments.size(); ++i)
    squares += std::pow(moments[i] - moments[i - 1] - 0.02, 2);
  EXPECT_NEAR(std::sqrt(squares / 10'000), 0.02, 0.001);  // of gaps: as their mean
}

}  // namespace
}  // namespace tenon::apps
