// The tables of measurements: which line a call takes, what is said of it, and their text.
#include "tenon/boundary/tuned.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "tenon/boundary/tuned_json.h"

namespace tenon {
namespace {

constexpr std::int64_t kEnd = TunedLine::kNoEnd;

TunedTables tables_of_cards() {
  return {{{"card", 400, 2, 4096, "fp8+bf16", "2026-11-28", {{48, "one_shot"}, {kEnd, "two_shot"}}},
           {"card", 400, 2, 4096, "fp8", "2026-11-25", {{32, "one_shot"}, {kEnd, "two_shot"}}},
           {"card", 400, 2, 1024, "fp8+bf16", "2026-11-27", {{kEnd, "two_kernels"}}},
           {"card", 50, 2, 4096, "fp8+bf16", "2026-11-26", {{kEnd, "one_shot_packed"}}}},
          {{"other card", "card"}}};
}

constexpr std::string_view kBoth = "fp8+bf16";

std::string_view fastest(const TunedTables& tables, const TunedTeam& team, std::int64_t rows,
                         int hidden, std::string_view outputs = kBoth) {
  return choices_for(tables, team, outputs, hidden).of(rows);
}

TEST(Tuned, LinesAreTakenByRows) {
  const TunedTables tables = tables_of_cards();
  const TunedTeam team{"card", 380, 2};
  EXPECT_EQ(fastest(tables, team, 1, 4096), "one_shot");
  EXPECT_EQ(fastest(tables, team, 48, 4096), "one_shot");
  EXPECT_EQ(fastest(tables, team, 49, 4096), "two_shot");
  EXPECT_EQ(fastest(tables, team, std::int64_t{1} << 40, 4096), "two_shot");
  EXPECT_EQ(fastest(tables, {"third card", 380, 2}, 1, 4096), "");
}

TEST(Tuned, OutputsHaveTablesOfTheirOwn) {
  const TunedTables tables = tables_of_cards();
  const TunedTeam team{"card", 380, 2};
  EXPECT_EQ(fastest(tables, team, 48, 4096, "fp8"), "two_shot");
  EXPECT_EQ(fastest(tables, team, 48, 4096, "bf16"), "one_shot");  // as with fp8 besides
  EXPECT_EQ(fastest(tables, team, 127, 1024, "fp8"), "one_shot");  // of 4096, by bytes
  EXPECT_EQ(fastest(tables, team, 127, 1024, "bf16"), "two_kernels");
  EXPECT_EQ(row_ends(tables, team, 4096), (std::vector<std::int64_t>{32, 48}));
  EXPECT_EQ(row_ends(tables, team, 8192), (std::vector<std::int64_t>{16, 24}));
  EXPECT_EQ(boundary_outputs(true, false), "fp8");
  EXPECT_EQ(boundary_outputs(true, true), "fp8+bf16");
  EXPECT_EQ(boundary_outputs(false, true), "bf16");
}

TEST(Tuned, WholeResidualsHaveTablesOfTheirOwn) {
  TunedTables tables = tables_of_cards();
  const TunedTeam sharded{"card", 380, 2}, whole{"card", 380, 2, true};
  EXPECT_EQ(fastest(tables, whole, 49, 4096), "two_shot");  // without one, those of sharded ones
  TunedTable table{"card", 400, 2, 4096, "fp8+bf16", "2026-11-29", {{kEnd, "one_shot_packed"}}};
  table.whole_residual = true;
  EXPECT_FALSE(table.is_about(tables.tables.front()));
  tables.put({{table}, {}});
  EXPECT_EQ(fastest(tables, whole, 49, 4096), "one_shot_packed");
  EXPECT_EQ(fastest(tables, whole, 49, 4096, "fp8"), "one_shot_packed");
  EXPECT_EQ(fastest(tables, {"other card", 380, 2, true}, 49, 4096), "one_shot_packed");
  EXPECT_EQ(row_ends(tables, whole, 4096), std::vector<std::int64_t>{});
  EXPECT_EQ(fastest(tables, sharded, 49, 4096), "two_shot");
  const auto again = parse_tuned(text_of(tables));
  ASSERT_TRUE(again) << again.status().to_string();
  EXPECT_TRUE(again->tables.back().whole_residual);
  EXPECT_FALSE(again->tables.front().whole_residual);
}

TEST(Tuned, AWidthWithoutATableTakesTheNearestByBytes) {
  const TunedTables tables = tables_of_cards();
  const TunedTeam team{"card", 380, 2};
  EXPECT_EQ(fastest(tables, team, 76, 2560), "one_shot");  // nearer to 4096 than to 1024
  EXPECT_EQ(fastest(tables, team, 77, 2560), "two_shot");
  EXPECT_EQ(fastest(tables, team, 24, 8192), "one_shot");
  EXPECT_EQ(fastest(tables, team, 25, 8192), "two_shot");
  EXPECT_EQ(fastest(tables, team, 1, 512), "two_kernels");
  EXPECT_EQ(fastest(tables, team, 1, 2048), "two_kernels");  // as near to 1024 as to 4096
}

TEST(Tuned, MeasurementsHoldForLinksLikeTheirs) {
  const TunedTables tables = tables_of_cards();
  for (const int gbs : {0, 200, 380, 800})
    EXPECT_EQ(fastest(tables, {"card", gbs, 2}, 1, 4096), "one_shot") << gbs;
  for (const int gbs : {25, 50, 100})
    EXPECT_EQ(fastest(tables, {"card", gbs, 2}, 1, 4096), "one_shot_packed") << gbs;
  for (const int gbs : {24, 101, 199, 801})
    EXPECT_EQ(fastest(tables, {"card", gbs, 2}, 1, 4096), "") << gbs;
}

// What nobody has measured on a device is not said to have been.
TEST(Tuned, ReasonsSayWhereAChoiceWasMeasured) {
  const TunedTables tables = tables_of_cards();
  EXPECT_EQ(choices_for(tables, {"card", 380, 2}, kBoth, 4096).why,
            "was measured to be faster (2026-11-28)");
  EXPECT_EQ(choices_for(tables, {"other card", 380, 2}, kBoth, 4096).why,
            "is taken to be faster, as it was measured to be on card (2026-11-28)");
  EXPECT_EQ(choices_for(tables, {"card", 380, 3}, kBoth, 4096).why,
            "is taken to be faster, by a rule from times of four H200s (2026-11-28)");
  EXPECT_EQ(choices_for(tables, {"host", 0, 2}, kBoth, 4096).why, "");
}

// Rows of 4096 on links of 300 GB/s, by the formulas of tuned.h.
TEST(Tuned, TeamsWithoutATableHaveARule) {
  const auto ends = [](int ranks, int gbs) {
    std::vector<std::int64_t> found;
    for (const TunedLine& each : rule({"any", gbs, ranks}, 4096).lines)
      found.push_back(each.up_to_rows);
    return found;
  };
  using Ends = std::vector<std::int64_t>;
  EXPECT_EQ(ends(3, 300), (Ends{72, 134, kEnd}));
  EXPECT_EQ(ends(4, 300), (Ends{32, 119, kEnd}));
  EXPECT_EQ(ends(8, 300), (Ends{9, 102, kEnd}));
  EXPECT_EQ(ends(8, 1), (Ends{1, kEnd}));
  EXPECT_EQ(ends(2, 300), Ends{});
  EXPECT_EQ(ends(8, 0), Ends{});
  const TunedChoices choices = rule({"any", 300, 8}, 4096);
  EXPECT_EQ(choices.of(9), "one_shot");
  EXPECT_EQ(choices.of(10), "two_shot");
  EXPECT_EQ(choices.of(103), "two_shot_packed");
}

TEST(Tuned, NewerTablesTakeThePlaceOfThoseAboutTheSame) {
  TunedTables tables = tables_of_cards();
  TunedTables newer;
  newer.tables.push_back(tables.tables[0]);
  newer.tables[0].link_gbs = 390;
  newer.tables[0].lines = {{TunedLine::kNoEnd, "two_shot_packed"}};
  newer.tables.push_back(newer.tables[0]);
  newer.tables[1].ranks = 4;
  newer.alike.push_back({"other card", "third card"});
  tables.put(newer);
  EXPECT_EQ(tables.tables.size(), 5u);
  EXPECT_EQ(fastest(tables, {"card", 380, 2}, 1, 4096), "two_shot_packed");
  EXPECT_EQ(fastest(tables, {"card", 380, 4}, 1, 4096), "two_shot_packed");
  EXPECT_EQ(fastest(tables, {"card", 50, 2}, 1, 4096), "one_shot_packed");
  EXPECT_EQ(fastest(tables, {"other card", 380, 2}, 1, 4096), "");
}

TEST(Tuned, TextAndTablesAreTheSame) {
  const TunedTables tables = tables_of_cards();
  const std::string text = text_of(tables);
  const auto read = parse_tuned(text);
  ASSERT_TRUE(read) << read.status().to_string();
  EXPECT_EQ(text_of(*read), text);
  EXPECT_EQ(fastest(*read, {"other card", 380, 2}, 49, 4096), "two_shot");
}

TEST(Tuned, WhatIsWrongWithATextIsSaid) {
  const std::string good =
      R"({"tables":[{"device":"a","ranks":2,"hidden":64,"outputs":"fp8","date":"2026-11-28",)"
      R"("lines":[{"up_to_rows":2,"choice":"one_shot"},{"choice":"two_shot"}]}]})";
  ASSERT_TRUE(parse_tuned(good)) << parse_tuned(good).status().to_string();
  struct Case {
    std::string old, fresh, message;
  };
  const Case cases[] = {
      {good, "[]", "the file is no object"},
      {"\"tables\":[", "\"tabels\":[", "the file has \"tabels\"; accepted: tables, alike"},
      {good, R"({"tables":3})", "\"tables\" is no list"},
      {good, R"({"tables":[3]})", "table 1 is no object"},
      {"\"date\"", "\"day\"", "table 1 has \"day\"; accepted: device, ranks, hidden"},
      {"\"date\":\"2026-11-28\",", "", "table 1 has no \"date\""},
      {"\"device\":\"a\"", "\"device\":\"\"", "table 1 has \"device\": \"\"; accepted: a text"},
      {"\"ranks\":2", "\"ranks\":9", "table 1 has \"ranks\": 9; accepted: 2 to 8"},
      {"\"ranks\":2", "\"ranks\":2,\"link_gbs\":-1", "table 1 has \"link_gbs\": -1"},
      {"\"outputs\":\"fp8\"", "\"outputs\":\"f16\"",
       "table 1 has the outputs \"f16\"; accepted: fp8, fp8+bf16, bf16"},
      {"\"hidden\":64", "\"hidden\":0.5", "no object, list, text in quotes or whole number"},
      {"two_shot", "three_shot",
       "table 1, line 2 has the choice \"three_shot\"; accepted: one_shot, one_shot_packed"},
      {"\"up_to_rows\":2,", "", "table 1, line 2 does not go beyond the line before"},
      {"{\"choice\":\"two_shot\"}", "{\"up_to_rows\":9,\"choice\":\"two_shot\"}",
       "table 1 ends at 9 rows; accepted: a last line without \"up_to_rows\""},
      {"}]}]}",
       "}]},{\"device\":\"a\",\"ranks\":2,\"hidden\":64,\"outputs\":\"fp8\","
       "\"date\":\"x\",\"lines\":[{\"choice\":\"one_shot\"}]}]}",
       "table 2 is about the same device, links, ranks, width, outputs and residual as one "},
      {"\"lines\"", "\"residual\":\"sharded\",\"lines\"",
       "table 1 has the residual \"sharded\"; accepted: whole"},
      {"}]}]}", "}]}],\"alike\":[{\"device\":\"b\"}]}", "\"alike\" number 1 has no \"other\""},
  };
  for (const Case& each : cases) {
    std::string text = good;
    text.replace(text.find(each.old), each.old.size(), each.fresh);
    const auto read = parse_tuned(text);
    ASSERT_FALSE(read) << text;
    EXPECT_NE(read.status().message().find(each.message), std::string::npos)
        << read.status().to_string() << "\nlacks " << each.message;
  }
}

TEST(Tuned, TheTablesOfThisBuildAreSound) {
  EXPECT_TRUE(tuned_status()) << tuned_status().to_string();
  EXPECT_EQ(tuned_file_text(), "no file");
  std::set<std::string> devices;
  for (const TunedTable& each : tuned_tables().tables) devices.insert(each.device);
  EXPECT_TRUE(devices.contains("NVIDIA H200"));
  // Which the rule is made of.
  for (const int ranks : {3, 4})
    for (const int hidden : {2048, 3072, 4096, 5120}) {
      const TunedTeam team{"NVIDIA H200", 0, ranks};
      const TunedChoices measured = choices_for(tuned_tables(), team, kBoth, hidden);
      const TunedChoices ruled = rule({"any", ranks == 3 ? 342 : 307, ranks}, hidden);
      ASSERT_NE(measured.why, ruled.why);
      EXPECT_EQ(measured.of(16), ruled.of(16)) << ranks << " ranks, " << hidden;
      EXPECT_EQ(measured.of(2048), ruled.of(2048)) << ranks << " ranks, " << hidden;
    }
  for (const TunedTables::Alike& each : tuned_tables().alike)
    EXPECT_TRUE(devices.contains(each.other)) << each.device;
}

TEST(Tuned, PlansPreferWhatWasMeasured) {
  PlanContext where;
  where.team_size = 2;
  where.properties.name = "NVIDIA H200";
  prefer_measured(where, 380, false, kBoth, 8192, 4096);
  EXPECT_EQ(where.preferred, "two_shot_packed");
  EXPECT_TRUE(where.why_preferred.starts_with("was measured to be faster (2026-"));
  prefer_measured(where, 380, false, kBoth, 1, 4096);
  EXPECT_EQ(where.preferred, "one_shot_split");
  where.properties.name = "host";
  prefer_measured(where, 0, false, kBoth, 48, 4096);
  EXPECT_EQ(where.preferred, "");
  EXPECT_EQ(where.why_preferred, "");
}

}  // namespace
}  // namespace tenon
