// The search of sampling by a team of several blocks, as variant sm90 runs it, on host threads:
// each is a block of one thread with a room of its own. What they find is what one block finds; the
// thread sanitizer sees whether a sync() stands between each reading of another's room and the next
// writing there.
#define TENON_TARGET cpu
#define TENON_WAVE 1
#define TENON_DEVICE_HEADER "tenon/device/cpu/device.cuh"
#include <gtest/gtest.h>

#include <array>
#include <barrier>
#include <cmath>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "tenon/ops/sampling/draw.cuh"

namespace tenon::cpu::sampling {
namespace {

constexpr int kTeamRanks = 4;
thread_local int team_rank = 0;
std::barrier team_barrier(kTeamRanks);
std::byte* team_rooms[kTeamRanks];

struct ThreadTeam {
  static constexpr int kRanks = kTeamRanks, kBuckets = 64, kGroups = 8;
  static int rank() { return team_rank; }
  static void sync() { team_barrier.arrive_and_wait(); }
  template <class T>
  static T* at(T* mine, int rank) {
    const auto offset = reinterpret_cast<std::byte*>(mine) - team_rooms[team_rank];
    return reinterpret_cast<T*>(team_rooms[rank] + offset);
  }
  template <class T>
  static T& own(T& room) {
    return room;
  }
};

// Neighbouring ids of a row.
struct Stretch {
  const std::vector<float>& logits;
  std::size_t begin, end;
};
template <class Visit>
void visit(const Stretch& stretch, Visit body) {
  for (std::size_t id = stretch.begin; id < stretch.end; ++id)
    body(plain(stretch.logits[id]), static_cast<std::int32_t>(id));
}

struct Settings {
  float temperature = 1, top_p = 1, min_p = 0;
  std::int32_t top_k = 0, wanted = -1;
};

struct Outcome {
  std::int32_t drawn = -2;
  float largest = -1;
  std::int64_t mass = -1;
  std::int32_t before = -2;  // of the given id
  std::array<std::int32_t, kMaxLikely> ids{};
  std::array<float, kMaxLikely> logits{};
  bool operator==(const Outcome&) const = default;
};

// What a row gives; only rank 0 writes to `outcome`.
template <class Team>
void run_row(Room<Team>& room, const std::vector<float>& logits, const Settings& settings,
             std::int64_t seed, Outcome& outcome) {
  const std::int32_t position = 5;
  Sample sample;
  sample.temperature = &settings.temperature;
  sample.top_k = &settings.top_k;
  sample.top_p = &settings.top_p;
  sample.min_p = &settings.min_p;
  sample.seed = &seed;
  sample.position = &position;
  sample.wanted = &settings.wanted;
  sample.largest = &outcome.largest;
  sample.mass = &outcome.mass;
  const auto given = static_cast<std::int32_t>(logits.size() / 3);
  sample.logits = logits.data();
  sample.width = sample.num_tokens = static_cast<std::int32_t>(logits.size());
  sample.given = &given;
  sample.before = &outcome.before;
  sample.listed_ids = outcome.ids.data();
  sample.listed_logits = outcome.logits.data();
  const auto rank = static_cast<std::size_t>(Team::rank());
  const std::size_t share = logits.size() / Team::kRanks;
  const Stretch stretch{logits, rank * share,
                        rank + 1 == Team::kRanks ? logits.size() : (rank + 1) * share};
  keep_setting(room, sample, 0);
  const Seen seen = join(room, see_all(stretch), 0);
  const Setting setting = room.setting;
  if (setting.wanted >= 0) report(room, sample, 0, setting.wanted, stretch, seen);
  const std::int32_t drawn = draw(room, stretch, join(room, seen, 1));
  if (Team::rank() == 0) outcome.drawn = drawn;
  Team::sync();
}

// All settings of every row, on a team and on one block.
void expect_the_same(const std::vector<std::vector<float>>& rows) {
  std::vector<Settings> settings;
  for (const std::int32_t top_k : {0, 1, 20, 511, 900})
    for (const float top_p : {1.0f, 0.9f, 0.2f})
      for (const float temperature : {0.0f, 1.0f, 30.0f})
        settings.push_back({temperature, top_p, settings.size() % 3 == 1 ? 0.02f : 0.0f, top_k,
                            static_cast<std::int32_t>(settings.size() % 4 * 7) - 1});
  std::vector<Outcome> by_block, by_team(rows.size() * settings.size());
  const auto block_room = std::make_unique<Room<BlockTeam>>();
  for (const auto& row : rows)
    for (const Settings& each : settings) {
      const auto seed = static_cast<std::int64_t>(by_block.size());
      run_row(*block_room, row, each, seed, by_block.emplace_back());
    }
  const auto rooms = std::make_unique<Room<ThreadTeam>[]>(kTeamRanks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kTeamRanks; ++rank)
    team_rooms[rank] = reinterpret_cast<std::byte*>(&rooms[static_cast<std::size_t>(rank)]);
  for (int rank = 0; rank < kTeamRanks; ++rank)
    threads.emplace_back([&, rank] {
      team_rank = rank;
      std::size_t i = 0;
      for (const auto& row : rows)
        for (const Settings& each : settings) {
          Outcome unused;
          run_row(rooms[static_cast<std::size_t>(rank)], row, each, static_cast<std::int64_t>(i),
                  rank == 0 ? by_team[i] : unused);
          ++i;
        }
    });
  for (std::thread& each : threads) each.join();
  for (std::size_t i = 0; i < by_block.size(); ++i)
    EXPECT_TRUE(by_team[i] == by_block[i])
        << "row " << i / settings.size() << ", setting " << i % settings.size();
}

std::vector<float> random_row(std::size_t size, float spread) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> row(size);
  for (float& each : row) each = normal(random);
  return row;
}

TEST(SamplingTeam, FindsWhatABlockFinds) {
  std::vector<std::vector<float>> rows{random_row(3, 2.0f), random_row(4000, 2.0f),
                                       random_row(4001, 0.01f)};
  for (float& each : rows.emplace_back(random_row(5000, 2.0f))) each = std::round(each);
  rows.emplace_back(3000, -1.5f);
  rows.push_back(rows[1]);
  for (std::size_t i = 0; i < 4000; i += 2) rows.back()[i] = i % 4 == 0 ? NAN : -INFINITY;
  expect_the_same(rows);
}

// One far away: the others share a bucket, and are cut by their orders.
TEST(SamplingTeam, CutsACrowdAgain) {
  std::vector<float> crowd = random_row(4000, 1e-3f);
  crowd[2345] = 25.0f;
  std::vector<float> nothing(40, -INFINITY);
  nothing[7] = NAN;
  expect_the_same({crowd, nothing});
}

}  // namespace
}  // namespace tenon::cpu::sampling
